//! A pruned artifact computes what the dense one computes with the same units switched off: whatever is cut, nothing else changes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use espalier_agent::prune::pack::{PackNote, pack, write_network};
use espalier_agent::prune::trial::gates;
use espalier_agent::prune::{LayerSelection, Selection};
use espalier_agent::signal_model::dense_manifest;
use espalier_agent::signals::Rng;
use espalier_kernels::{CpuDevice, Device, Unlimited};
use espalier_models::architecture::{
    Activation, Architecture, Attention, AttentionSpan, Ffn, Input as InputKind, Norm, NormKind, Output, Positions, Residual, Rotary,
};
use espalier_models::tensor::model_tensors;
use espalier_models::{Artifact, DType, LayerShape, ModelShape, Part, TensorKey, TensorSource, Units};
use espalier_runtime::{Gates, Input, Keep, LogitRows, Network, Pass, Residency, Workspace, WorkspaceSize};
use proptest::prelude::*;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// Largest difference of a logit, relative to the largest logit: f32 sums in another order.
const TOLERANCE: f32 = 1e-5;

/// Windows or sequences of a batch.
const BATCH: usize = 2;
const WINDOW: usize = 32;
const PATCH: usize = 8;
const VOCABULARY: usize = 11;
const TOKENS: usize = 5;

/// The sizes of a small network.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    /// Windows in, LayerNorm, GELU, a KV group a head; else tokens in, RMSNorm, rotary, SwiGLU, shared KV groups.
    signal: bool,
    /// Tied embeddings, for a network of tokens.
    tied: bool,
    d_model: usize,
    /// Half the head size, which rotary embeddings want even.
    half_head_dim: usize,
    layers: usize,
    groups: usize,
    heads_per_group: usize,
    channels: usize,
    options: Options,
}

/// What some families have and others not.
#[derive(Debug, Clone, Copy, Default)]
struct Options {
    /// Attention and FFN side by side, with one norm or two.
    parallel: bool,
    shared_norm: bool,
    qk_norm: bool,
    /// Norms of what blocks add; for networks with RMSNorm.
    post_norms: bool,
    /// A second attention span with a sliding window, for every other layer.
    window: bool,
    /// A bias of the logits and a scale of the embeddings, for a network of tokens.
    head_bias: bool,
    /// Biases in a network of tokens too.
    biases: bool,
}

/// Which kinds of units are cut at all.
#[derive(Debug, Clone, Copy)]
struct Kinds {
    layers: bool,
    groups: bool,
    heads: bool,
    channels: bool,
}

/// One number a unit: small ones stay, in ascending order, so that a failing case shrinks towards one that cuts nothing.
#[derive(Debug, Clone)]
struct Ranks {
    layer: u8,
    groups: Vec<u8>,
    heads: Vec<u8>,
    channels: Vec<u8>,
}

const STAYS_BELOW: u8 = 150;
const MAX_LAYERS: usize = 4;
const MAX_GROUPS: usize = 4;
const MAX_HEADS_PER_GROUP: usize = 3;
const MAX_CHANNELS: usize = 20;

fn sizes() -> impl Strategy<Value = Sizes> {
    let counts = (4..=24usize, 1..=4usize, 1..=MAX_LAYERS, 1..=MAX_GROUPS, 1..=MAX_HEADS_PER_GROUP, 1..=MAX_CHANNELS);
    (any::<bool>(), any::<bool>(), counts, options()).prop_map(
        |(signal, tied, (d_model, half_head_dim, layers, groups, heads_per_group, channels), options)| Sizes {
            signal,
            tied,
            d_model,
            half_head_dim,
            layers,
            groups,
            heads_per_group: if signal { 1 } else { heads_per_group },
            channels,
            options,
        },
    )
}

fn options() -> impl Strategy<Value = Options> {
    proptest::array::uniform7(any::<bool>()).prop_map(|[parallel, shared_norm, qk_norm, post_norms, window, head_bias, biases]| Options {
        parallel,
        shared_norm,
        qk_norm,
        post_norms,
        window,
        head_bias,
        biases,
    })
}

fn kinds() -> impl Strategy<Value = Kinds> {
    let only = |layers, groups, heads, channels| Just(Kinds { layers, groups, heads, channels });
    prop_oneof![
        only(true, false, false, false),
        only(false, true, false, false),
        only(false, false, true, false),
        only(false, false, false, true),
        only(true, true, true, true),
    ]
}

fn ranks() -> impl Strategy<Value = Vec<Ranks>> {
    let numbers = |count| proptest::collection::vec(any::<u8>(), count);
    let layer = (any::<u8>(), numbers(MAX_GROUPS), numbers(MAX_GROUPS * MAX_HEADS_PER_GROUP), numbers(MAX_CHANNELS));
    let layer = layer.prop_map(|(layer, groups, heads, channels)| Ranks { layer, groups, heads, channels });
    proptest::collection::vec(layer, MAX_LAYERS)
}

impl Sizes {
    fn architecture(&self) -> Architecture {
        let (head_dim, signal) = (2 * self.half_head_dim, self.signal);
        let Options { parallel, shared_norm, qk_norm, post_norms, window, head_bias, biases } = self.options;
        let biases = biases || signal;
        let rotary = |base: f64| if signal { None } else { Some(Rotary::of_base(base)) };
        let full = AttentionSpan { window: None, rotary: rotary(10_000.0) };
        let sliding = AttentionSpan { window: Some(2), rotary: rotary(100.0) };
        let names = ["N", "B", "IR"].map(str::to_string).to_vec();
        Architecture {
            input: match signal {
                true => InputKind::Patches { window: WINDOW, patch: PATCH, stride: PATCH, sample_rate_hz: 12_000.0 },
                false => InputKind::Tokens { vocabulary: VOCABULARY },
            },
            embedding_scale: (head_bias && !signal).then_some(1.7),
            output: if signal { Output::Classes { names } } else { Output::NextToken { tied: self.tied, bias: head_bias } },
            d_model: self.d_model,
            norm: Norm { kind: if signal { NormKind::LayerNorm } else { NormKind::RmsNorm }, epsilon: 1e-5 },
            post_norms: post_norms && !signal,
            positions: match signal {
                true => Positions::Learned { count: WINDOW / PATCH, offset: 0 },
                false => Positions::Rotary { dims: head_dim, context: 16 },
            },
            spans: if window { vec![full, sliding] } else { vec![full] },
            attention: Attention {
                head_dim,
                scale: window.then_some(0.4),
                qk_norm,
                qkv_bias: biases,
                output_bias: biases,
                fused_qkv: false,
            },
            ffn: Ffn { gated: !signal, activation: if signal { Activation::GeluTanh } else { Activation::Silu }, bias: biases },
            residual: if parallel { Residual::Parallel { shared_norm } } else { Residual::Sequential },
        }
    }

    fn shape(&self) -> ModelShape {
        let units = Units::dense(self.groups * self.heads_per_group, self.groups, self.channels);
        let span = |layer: usize| if self.options.window { layer % 2 } else { 0 };
        ModelShape { layers: (0..self.layers).map(|layer| LayerShape::Kept(Units { span: span(layer), ..units.clone() })).collect() }
    }
}

/// The units whose rank is small, smallest first.
fn small(ranks: &[u8], count: usize) -> Vec<usize> {
    let mut kept: Vec<usize> = (0..count).filter(|unit| ranks[*unit] < STAYS_BELOW).collect();
    kept.sort_by_key(|unit| (ranks[*unit], *unit));
    kept
}

fn selection(shape: &ModelShape, kinds: Kinds, ranks: &[Ranks]) -> Selection {
    let layer = |(layer, ranks): (&LayerShape, &Ranks)| {
        let units = layer.units()?;
        if kinds.layers && ranks.layer >= STAYS_BELOW {
            return None;
        }
        let mut kept = LayerSelection::all(units);
        if kinds.heads {
            kept.heads = small(&ranks.heads, units.heads.len());
        }
        if kinds.groups {
            kept.keep_groups(units, small(&ranks.groups, units.groups));
        }
        if kinds.channels {
            kept.channels = small(&ranks.channels, units.channels);
        }
        Some(kept)
    };
    Selection { layers: shape.layers.iter().zip(ranks).map(layer).collect() }
}

/// Random tensors in memory, with their columns.
struct Tensors(BTreeMap<TensorKey, (usize, Vec<f32>)>);

impl Tensors {
    fn random(architecture: &Architecture, shape: &ModelShape, rng: &mut Rng) -> Self {
        let number = |part: Part, rng: &mut Rng| match part {
            part if part.is_norm() => 1.0 + 0.1 * rng.normal() as f32,
            _ => 0.3 * rng.normal() as f32,
        };
        let tensor = |spec: espalier_models::TensorSpec| {
            (spec.key, (spec.columns, (0..spec.rows * spec.columns).map(|_| number(spec.key.part, rng)).collect()))
        };
        Self(model_tensors(architecture, shape).into_iter().map(tensor).collect())
    }
}

impl TensorSource for Tensors {
    fn rows(&self, key: TensorKey, rows: Range<usize>, out: &mut [f32]) -> espalier_models::Result<()> {
        let (columns, numbers) = &self.0[&key];
        out.copy_from_slice(&numbers[rows.start * columns..rows.end * columns]);
        Ok(())
    }

    fn contains(&self, key: TensorKey) -> bool {
        self.0.contains_key(&key)
    }
}

/// The same windows or tokens for both networks.
struct Batch {
    windows: Vec<f32>,
    ids: Vec<u32>,
}

impl Batch {
    fn random(rng: &mut Rng) -> Self {
        Self {
            windows: (0..BATCH * WINDOW).map(|_| rng.normal() as f32).collect(),
            ids: (0..BATCH * TOKENS).map(|_| (rng.uniform() * VOCABULARY as f64) as u32).collect(),
        }
    }

    /// Logits of a network, with its gates if it has any.
    fn logits(&self, network: &Network<CpuDevice>, gates: Option<&Gates<CpuDevice>>) -> Fallible<Vec<f32>> {
        let signal = network.architecture.patches() > 0;
        let (sequence, input, rows) = match signal {
            true => (network.architecture.patches(), Input::Windows(&self.windows), BATCH),
            false => (TOKENS, Input::Tokens { ids: &self.ids, sequence: TOKENS }, BATCH * TOKENS),
        };
        let size = WorkspaceSize { batch: BATCH, sequence, keep: Keep::Nothing, logits: LogitRows::All, rank: 0, gates: true };
        let mut workspace = Workspace::new(&network.device, &network.architecture, &network.shape, size)?;
        Pass { network, adapters: &[], gates }.forward(&mut workspace, input, None)?;
        let mut logits = vec![0.0; rows * network.architecture.output_width()];
        network.device.read(workspace.logits(), 0, &mut logits)?;
        Ok(logits)
    }
}

fn load(path: &Path) -> Fallible<(Arc<Artifact>, Network<CpuDevice>)> {
    let artifact = Arc::new(Artifact::open(path)?);
    artifact.verify()?;
    let network = Network::load(CpuDevice::new(1, Arc::new(Unlimited))?, &artifact, Residency::Resident)?;
    Ok((artifact, network))
}

/// Why the pruned network differs from the gated one, or nothing.
fn difference(sizes: Sizes, kinds: Kinds, ranks: &[Ranks], seed: u64) -> Fallible<Option<String>> {
    let mut rng = Rng::for_stream(seed, 0);
    let (architecture, shape) = (sizes.architecture(), sizes.shape());
    let tensors = Tensors::random(&architecture, &shape, &mut rng);
    let folder = tempfile::tempdir()?;
    let dense = write_network(
        dense_manifest("dense", architecture.clone(), &shape, "made by a test".into(), None),
        DType::F32,
        &tensors,
        &folder.path().join("dense.esp"),
    )?;
    let (dense, dense_network) = load(&dense)?;
    let selection = selection(&shape, kinds, ranks);
    let note = PackNote { history: "cut by a test".into(), measured: None };
    let (packed, packed_network) = load(&pack(&dense, &selection, &[], &folder.path().join("packed.esp"), note)?)?;
    let expected = selection.shape(&shape).parameters(&architecture);
    if packed.manifest().parameters() != expected {
        return Ok(Some(format!("{} parameters were written, but {expected} were selected", packed.manifest().parameters())));
    }
    let batch = Batch::random(&mut rng);
    let gated = batch.logits(&dense_network, Some(&gates(&dense_network, &selection)?))?;
    let found = batch.logits(&packed_network, None)?;
    let largest = gated.iter().fold(f32::MIN_POSITIVE, |largest, logit| largest.max(logit.abs()));
    let off = gated.iter().zip(&found).map(|(a, b)| if a.is_finite() && b.is_finite() { (a - b).abs() / largest } else { f32::INFINITY });
    let off = off.fold(0.0, f32::max);
    let wrong = gated.len() != found.len() || off > TOLERANCE;
    Ok(wrong.then(|| format!("logits are off by {off:.2e} of the largest, {largest}; selected: {selection:?}")))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_pruned_artifact_is_the_dense_one_with_units_gated_to_zero(
        sizes in sizes(), kinds in kinds(), ranks in ranks(), seed in any::<u64>(),
    ) {
        let difference = difference(sizes, kinds, &ranks, seed).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert!(difference.is_none(), "{}", difference.unwrap_or_default());
    }
}

#[test]
fn a_query_head_may_go_while_its_group_stays() -> Fallible<()> {
    let sizes = Sizes {
        signal: false,
        tied: true,
        d_model: 12,
        half_head_dim: 2,
        layers: 2,
        groups: 2,
        heads_per_group: 3,
        channels: 9,
        options: Options::default(),
    };
    let kinds = Kinds { layers: false, groups: false, heads: true, channels: false };
    // Of layer 0 the second head of each group goes and the rest is stored in another order; of layer 1 every head of group 0.
    let heads = [[9, 255, 3, 2, 255, 1], [255, 255, 255, 4, 5, 6]];
    let ranks: Vec<Ranks> =
        heads.iter().map(|heads| Ranks { layer: 0, groups: vec![0; 2], heads: heads.to_vec(), channels: vec![0; 9] }).collect();
    assert_eq!(difference(sizes, kinds, &ranks, 7)?, None);
    Ok(())
}
