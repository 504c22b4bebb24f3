//! Exported graphs against the native engine: in ONNX Runtime here, and for `scripts/check-onnx.sh`, which does so without Espalier.
//!
//! ONNX Runtime's library comes by `scripts/onnxruntime.sh`. Where it is missing the comparison is passed over, but not with `CI=true`.

use std::collections::BTreeMap;
use std::path::Path;

#[cfg(feature = "ort")]
use espalier_kernels::CpuDevice;
use espalier_models::architecture::Input as InputKind;
use espalier_models::checkpoint::{OnnxOptions, export_onnx};
#[cfg(feature = "ort")]
use espalier_runtime::{
    Budget, Continues, Embeds, Input, OrtEmbedder, OrtGenerator, OrtLibrary, OrtModel, OrtOptions, OrtProviders, OrtScorer, Sampling,
    Scorer, Scores,
};
use safetensors::tensor::{Dtype, TensorView};

#[path = "ort/cases.rs"]
mod cases;
#[cfg(feature = "ort")]
#[path = "ort/commands.rs"]
mod commands;
#[allow(dead_code, reason = "only the trained model is used here")]
mod support;

#[cfg(feature = "ort")]
#[path = "ort/choice.rs"]
mod choice;
#[cfg(feature = "ort")]
#[path = "ort/libraries.rs"]
mod libraries;
#[cfg(feature = "ort")]
#[path = "ort/library.rs"]
mod library;
#[cfg(feature = "ort")]
#[path = "ort/text.rs"]
mod text;

use cases::{BATCH, Case, Fallible, GREEDY, Given, PROMPT, SEQUENCE, cases};
use support::world;

/// The largest difference of a logit.
#[cfg(feature = "ort")]
const TOLERANCE: f32 = 1e-4;

#[cfg(feature = "ort")]
const OPTIONS: OrtOptions = OrtOptions { threads: 1, prepack: false, providers: OrtProviders::CPU };

/// Every model in ONNX Runtime and in the native engine: logits of a batch, and a greedy continuation.
#[cfg(feature = "ort")]
#[test]
fn onnx_runtime_computes_what_the_native_engine_does() -> Fallible<()> {
    let Some(library) = library::library() else { return Ok(()) };
    let place = support::Place::new();
    let cases = cases(&place.path("cases"), &world().model)?;
    let mut wrong = Vec::new();
    for case in &cases {
        if let Err(fault) = compare(library, case) {
            wrong.push(format!("{}: {fault}", case.name));
        }
    }
    assert!(wrong.is_empty() && cases.len() > 50, "{} of {} differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    Ok(())
}

#[cfg(feature = "ort")]
fn compare(library: &OrtLibrary, case: &Case) -> Fallible<()> {
    let budget = std::sync::Arc::new(Budget::unlimited());
    let given = case.given();
    let expected = case.logits(&given)?;
    {
        let mut model = OrtModel::open(library, &budget, &case.artifact, (BATCH, SEQUENCE), OPTIONS)?;
        // All that runs will take is booked.
        budget.set_limit(budget.used());
        let input = match &given {
            Given::Tokens(ids) => Input::Tokens { ids, sequence: SEQUENCE },
            Given::Windows(windows) => Input::Windows(windows),
        };
        let found = model.logits(input)?;
        let off = found.iter().zip(&expected).map(|(a, b)| if a.is_finite() { (a - b).abs() } else { f32::INFINITY }).fold(0.0, f32::max);
        if found.len() != expected.len() || off > TOLERANCE {
            return Err(format!("{} of {} logits, off by {off:.1e}", found.len(), expected.len()).into());
        }
    }
    if let Given::Tokens(ids) = &given {
        budget.set_limit(u64::MAX);
        let mut generator = OrtGenerator::open(library, &budget, &case.artifact, PROMPT + GREEDY, OPTIONS)?;
        budget.set_limit(budget.used());
        // Twice: what was read is forgotten in between.
        for _ in 0..2 {
            let mut found = Vec::new();
            generator.generate(&ids[..PROMPT], GREEDY, Sampling::default(), &mut || 0.0, &mut |id| {
                found.push(id);
                true
            })?;
            if found != case.greedy(&ids[..PROMPT])? {
                return Err(format!("the continuation is {found:?}").into());
            }
            generator.clear()?;
        }
        drop(generator);
        compare_scores(library, case, ids)?;
    }
    match budget.used() {
        0 => Ok(()),
        used => Err(format!("{used} bytes are booked after all is closed").into()),
    }
}

/// Losses of sequences with a common beginning, losses of single tokens, and embeddings.
#[cfg(feature = "ort")]
fn compare_scores(library: &OrtLibrary, case: &Case, ids: &[u32]) -> Fallible<()> {
    let budget = std::sync::Arc::new(Budget::unlimited());
    let device = CpuDevice::new(1, budget.clone())?;
    let mut native = Scorer::open(&device, &budget, &case.reference, SEQUENCE)?;
    let mut scorer = OrtScorer::open(library, &budget, &case.artifact, SEQUENCE, OPTIONS)?;
    let tolerance = f64::from(TOLERANCE) * SEQUENCE as f64;
    for (row, first, end) in [(0, 1, SEQUENCE), (0, 9, SEQUENCE), (0, 9, 12), (1, 5, SEQUENCE), (0, 3, 9)] {
        let ids = &ids[row * SEQUENCE..][..end];
        let (found, expected) = (scorer.loss(ids, first)?, native.loss(ids, first)?);
        let off = (found - expected).abs();
        if off.is_nan() || off > tolerance {
            return Err(format!("the loss of tokens {first} to {end} of sequence {row} is {found}, expected {expected}").into());
        }
    }
    let (mut found, mut expected) = (Vec::new(), Vec::new());
    for length in [1, 7, 16, 9] {
        scorer.next_losses(&ids[..length], &[ids[length], ids[SEQUENCE]], &mut found)?;
        native.next_losses(&ids[..length], &[ids[length], ids[SEQUENCE]], &mut expected)?;
        if !found.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() <= f64::from(2.0 * TOLERANCE)) {
            return Err(format!("after {length} tokens the losses are {found:?}, expected {expected:?}").into());
        }
    }
    for (ids, first) in [(&ids[..1], 1), (&ids[..4], 0), (&ids[..4], 4), (&[1, 2, u32::MAX][..], 1), (&[0; SEQUENCE + 1][..], 1)] {
        if scorer.loss(ids, first).is_ok() {
            return Err(format!("{ids:?} from {first} has a loss").into());
        }
    }
    drop(scorer);
    let width = native.width();
    let (mut found, mut expected) = (vec![0.0; width], vec![0.0; width]);
    let mut embedder = OrtEmbedder::open(library, &budget, &case.artifact, SEQUENCE, OPTIONS)?;
    for ids in [&ids[..SEQUENCE], &ids[SEQUENCE..SEQUENCE + 5]] {
        embedder.mean_state(ids, &mut found)?;
        native.mean_state(ids, &mut expected)?;
        let largest = expected.iter().fold(1.0_f32, |largest, x| largest.max(x.abs()));
        let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        if off.is_nan() || off > TOLERANCE * largest || found.iter().any(|x| !x.is_finite()) {
            return Err(format!("the embedding of {} tokens is off by {off:.1e}", ids.len()).into());
        }
    }
    Ok(())
}

/// A folder for each model under `target/onnx-exports`: the artifact, `model.onnx`, `embedded.onnx` and, of a language model,
/// `cached.onnx`; and `expected.safetensors` with what Espalier computes.
#[test]
#[ignore = "writes target/onnx-exports for scripts/check-onnx.sh"]
fn exports_for_onnx_runtime() -> Fallible<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/onnx-exports");
    if root.exists() {
        std::fs::remove_dir_all(&root)?;
    }
    let cases = cases(&root, &world().model)?;
    for case in &cases {
        let folder = root.join(&case.name);
        export_onnx(&case.artifact, &folder.join("model.onnx"), OnnxOptions::default())?;
        export_onnx(&case.artifact, &folder.join("embedded.onnx"), OnnxOptions { cache: false, embed: true })?;
        expected(case, &folder)?;
    }
    println!("{} exports in {}", cases.len(), root.display());
    Ok(())
}

/// Writes `expected.safetensors`: `input_ids [batch, sequence]` or `patches [batch, patches, patch]`, `logits`; of a language model
/// `prompt [8]` and `greedy [16]` too.
fn expected(case: &Case, folder: &Path) -> Fallible<()> {
    let architecture = &case.artifact.manifest().architecture;
    let given = case.given();
    let logits: Vec<u8> = case.logits(&given)?.iter().flat_map(|logit| logit.to_le_bytes()).collect();
    let int64 = |ids: &[u32]| ids.iter().flat_map(|&id| i64::from(id).to_le_bytes()).collect::<Vec<u8>>();
    let mut tensors: Vec<(&str, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    match (&given, &architecture.input) {
        (Given::Tokens(ids), _) => {
            export_onnx(&case.artifact, &folder.join("cached.onnx"), OnnxOptions { cache: true, embed: false })?;
            let greedy = case.greedy(&ids[..PROMPT])?;
            tensors.push(("input_ids", Dtype::I64, vec![BATCH, SEQUENCE], int64(ids)));
            tensors.push(("logits", Dtype::F32, vec![BATCH, SEQUENCE, architecture.output_width()], logits));
            tensors.push(("prompt", Dtype::I64, vec![PROMPT], int64(&ids[..PROMPT])));
            tensors.push(("greedy", Dtype::I64, vec![GREEDY], int64(&greedy)));
        }
        (Given::Windows(windows), &InputKind::Patches { window, patch, stride, .. }) => {
            let starts = (0..BATCH).flat_map(|index| (0..architecture.patches()).map(move |place| index * window + place * stride));
            let patches = starts.flat_map(|start| &windows[start..start + patch]).flat_map(|sample| sample.to_le_bytes()).collect();
            tensors.push(("patches", Dtype::F32, vec![BATCH, architecture.patches(), patch], patches));
            tensors.push(("logits", Dtype::F32, vec![BATCH, architecture.output_width()], logits));
        }
        (Given::Windows(_), InputKind::Tokens { .. }) => return Err("windows for a model of tokens".into()),
    }
    let views: BTreeMap<&str, TensorView<'_>> = tensors
        .iter()
        .map(|(name, dtype, shape, data)| Ok((*name, TensorView::new(*dtype, shape.clone(), data)?)))
        .collect::<Result<_, safetensors::SafeTensorError>>()?;
    safetensors::serialize_to_file(views, None, &folder.join("expected.safetensors"))?;
    Ok(())
}
