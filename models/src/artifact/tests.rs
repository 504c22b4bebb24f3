//! Manifests that lie, in files whose checksums are right: every lie must be an error, none a panic.

use std::path::Path;

use proptest::prelude::*;

use super::header::{HEADER_BYTES, Header};
use super::*;
use crate::architecture::*;
use crate::manifest::{Level, Origin, Span, StoredAdapter, StoredLayer};
use crate::shape::{LayerShape, Units};
use crate::tensor::{DType, Layout, Part};

/// A classifier of one layer with two heads and three channels.
fn manifest() -> Manifest {
    let units = Units { heads: vec![0, 1], groups: 2, channels: 3, span: 0 };
    Manifest {
        name: "test".to_string(),
        architecture: Architecture {
            input: Input::Patches { window: 8, patch: 4, stride: 4, sample_rate_hz: 100.0 },
            embedding_scale: None,
            output: Output::Classes { names: vec!["a".to_string(), "b".to_string()] },
            d_model: 4,
            norm: Norm { kind: NormKind::RmsNorm, epsilon: 1e-5 },
            post_norms: false,
            positions: Positions::Rotary { dims: 2, context: 2 },
            spans: vec![AttentionSpan { window: None, rotary: Some(Rotary::of_base(10_000.0)) }],
            attention: Attention { head_dim: 2, scale: None, qk_norm: false, qkv_bias: false, output_bias: false, fused_qkv: false },
            ffn: Ffn { gated: false, activation: Activation::Relu, bias: false },
            residual: Residual::Sequential,
        },
        layers: vec![StoredLayer {
            original: 0,
            shape: LayerShape::Kept(units),
            original_heads: vec![0, 1],
            original_groups: vec![0, 1],
            original_channels: vec![0, 1, 2],
        }],
        tensors: Vec::new(),
        levels: Vec::new(),
        origin: Origin { dialect: "espalier".to_string(), config: String::new(), dense_parameters: 1, history: Vec::new() },
        tokenizer: None,
        measured: None,
        diagnosis: None,
    }
}

/// A file with that manifest, data region and right checksums.
fn write_raw(path: &Path, encoded: &[u8], data: &[u8]) {
    let table: Vec<u8> = data.chunks(CHUNK_BYTES).flat_map(|chunk| crc32c::crc32c(chunk).to_le_bytes()).collect();
    let data_start = (HEADER_BYTES + encoded.len() + table.len()).next_multiple_of(4096);
    let header = Header {
        manifest_crc: crc32c::crc32c(encoded),
        manifest_bytes: encoded.len() as u64,
        table_crc: crc32c::crc32c(&table),
        table_bytes: table.len() as u64,
        data_start: data_start as u64,
        file_bytes: (data_start + data.len()) as u64,
    };
    let mut bytes = header.encode().to_vec();
    bytes.extend_from_slice(encoded);
    bytes.extend_from_slice(&table);
    bytes.resize(data_start, 0);
    bytes.extend_from_slice(data);
    std::fs::write(path, bytes).unwrap();
}

/// Opens, verifies and reads every tensor.
fn use_all(path: &Path) -> Result<()> {
    let artifact = Artifact::open(path)?;
    artifact.verify()?;
    for tensor in &artifact.manifest().tensors {
        let rows = tensor.rows as usize;
        artifact.read_rows(tensor.key, 0..rows, &mut vec![0.0; rows * tensor.columns as usize])?;
    }
    artifact.manifest().compression_ratio();
    Ok(())
}

/// A planned manifest and the length of its data region, with room for 256 bytes of levels' data at its end, all zero.
fn planned() -> (Manifest, usize) {
    let plan = plan::Plan::new(manifest(), DType::F32).unwrap();
    assert_eq!(plan.data_start, 4096);
    (plan.manifest, (plan.file_bytes - 4096) as usize + 256)
}

/// A level with one head, two channels and an adapter on the queries; its data are at the end of the region.
fn level(data: usize) -> Level {
    let end = 4096 + data as u64 - 256;
    Level {
        layers: vec![LayerShape::Kept(Units { heads: vec![0], groups: 1, channels: 2, span: 0 })],
        adapters: vec![StoredAdapter {
            layer: 0,
            parts: vec![Part::Query],
            rank: 3,
            scale: 4.0,
            model_side: Span { offset: end, bytes: 48 },
            unit_sides: vec![Span { offset: end + 48, bytes: 24 }],
        }],
        overrides: vec![StoredTensor {
            key: TensorKey::of_layer(0, Part::FfnNorm),
            dtype: DType::F32,
            layout: Layout::Rows,
            rows: 1,
            columns: 4,
            offset: end + 72,
            bytes: 16,
        }],
        bytes: 1,
        measured: None,
    }
}

#[test]
fn lies_in_a_manifest_are_found() {
    type Lie = (&'static str, fn(&mut Manifest));
    fn units(manifest: &mut Manifest) -> &mut Units {
        match &mut manifest.layers[0].shape {
            LayerShape::Kept(units) => units,
            LayerShape::Removed => unreachable!(),
        }
    }
    let lies: &[Lie] = &[
        ("no width", |m| m.architecture.d_model = 0),
        ("huge width", |m| m.architecture.d_model = usize::MAX),
        ("no head size", |m| m.architecture.attention.head_dim = 0),
        ("huge head size", |m| m.architecture.attention.head_dim = usize::MAX),
        ("NaN epsilon", |m| m.architecture.norm.epsilon = f32::NAN),
        ("odd rotary", |m| m.architecture.positions = Positions::Rotary { dims: 1, context: 2 }),
        ("wide rotary", |m| m.architecture.positions = Positions::Rotary { dims: 4, context: 2 }),
        ("no rotary base", |m| m.architecture.spans[0].rotary = Some(Rotary::of_base(0.0))),
        ("no rotary factor", |m| {
            m.architecture.spans[0].rotary = Some(Rotary { base: 1.0, scaling: RotaryScaling::Linear { factor: f64::NAN } });
        }),
        ("rotary scaling upside down", |m| {
            let scaling = RotaryScaling::Llama3 { factor: 8.0, low_freq_factor: 4.0, high_freq_factor: 4.0, original_context: 8 };
            m.architecture.spans[0].rotary = Some(Rotary { base: 1.0, scaling });
        }),
        ("no wavelengths", |m| m.architecture.spans[0].rotary = None),
        ("no spans", |m| m.architecture.spans.clear()),
        ("a window of nothing", |m| m.architecture.spans[0].window = Some(0)),
        ("a span that is not there", |m| units(m).span = 1),
        ("scores times nothing", |m| m.architecture.attention.scale = Some(0.0)),
        ("post norms that are LayerNorms", |m| {
            m.architecture.norm.kind = NormKind::LayerNorm;
            m.architecture.post_norms = true;
        }),
        ("no table to scale", |m| m.architecture.embedding_scale = Some(2.0)),
        ("short context", |m| m.architecture.positions = Positions::Rotary { dims: 2, context: 1 }),
        ("offset behind table", |m| m.architecture.positions = Positions::Learned { count: 2, offset: 3 }),
        ("patches say tokens", |m| m.architecture.output = Output::NextToken { tied: true, bias: false }),
        ("no classes", |m| m.architecture.output = Output::Classes { names: vec![] }),
        ("another class", |m| m.architecture.output = Output::Classes { names: vec!["a".to_string()] }),
        ("no stride", |m| m.architecture.input = Input::Patches { window: 8, patch: 4, stride: 0, sample_rate_hz: 1.0 }),
        ("patch over window", |m| m.architecture.input = Input::Patches { window: 3, patch: 4, stride: 1, sample_rate_hz: 1.0 }),
        ("no sample rate", |m| m.architecture.input = Input::Patches { window: 8, patch: 4, stride: 4, sample_rate_hz: 0.0 }),
        ("head of no group", |m| units(m).heads[1] = 2),
        ("a channel too many", |m| units(m).channels = 4),
        ("channels beyond memory", |m| units(m).channels = usize::MAX),
        ("groups beyond memory", |m| units(m).groups = usize::MAX),
        ("indices of heads", |m| m.layers[0].original_heads.push(2)),
        ("indices of groups", |m| m.layers[0].original_groups.clear()),
        ("indices of a removed layer", |m| m.layers[0].shape = LayerShape::Removed),
        ("a layer too many", |m| m.layers.push(m.layers[0].clone())),
        ("a tensor too few", |m| m.tensors.truncate(m.tensors.len() - 1)),
        ("a tensor twice", |m| m.tensors[1] = m.tensors[0].clone()),
        ("another order", |m| m.tensors.swap(0, 1)),
        ("another shape", |m| m.tensors[0].rows = 3),
        ("another length", |m| m.tensors[0].bytes += 1),
        ("another format", |m| m.tensors[0].dtype = DType::F16),
        ("f16 vector", |m| m.tensors[1].dtype = DType::F16),
        ("interleaved f32", |m| m.tensors[0].layout = Layout::Interleaved),
        ("an overlap", |m| m.tensors[1].offset = m.tensors[0].offset),
        ("an odd offset", |m| m.tensors.last_mut().unwrap().offset += 1),
        ("in the manifest", |m| m.tensors[0].offset = 64),
        ("behind the end", |m| m.tensors.last_mut().unwrap().offset += 1 << 20),
        ("at the end of numbers", |m| m.tensors.last_mut().unwrap().offset = !63),
        ("a level with another number of layers", |m| m.levels[0].layers.clear()),
        ("a level that is no prefix", |m| {
            m.levels[0].layers[0] = LayerShape::Kept(Units { heads: vec![1], groups: 2, channels: 1, span: 0 })
        }),
        ("a level with more channels", |m| m.levels[0].layers[0] = LayerShape::Kept(Units::dense(2, 2, 4))),
        ("an adapter on no layer", |m| m.levels[0].adapters[0].layer = 1),
        ("an adapter on a norm", |m| m.levels[0].adapters[0].parts = vec![Part::FfnNorm]),
        ("an adapter on no gate", |m| m.levels[0].adapters[0].parts = vec![Part::Gate]),
        ("an adapter without sides", |m| m.levels[0].adapters[0].unit_sides.clear()),
        ("an adapter of rank 0", |m| m.levels[0].adapters[0].rank = 0),
        ("an adapter of another rank", |m| m.levels[0].adapters[0].rank = 4),
        ("an adapter in the base", |m| m.levels[0].adapters[0].model_side.offset = 4096),
        ("an adapter behind the end", |m| m.levels[0].adapters[0].model_side.offset = u64::MAX - 3),
        ("a matrix replaced", |m| m.levels[0].overrides[0].key.part = Part::Query),
        ("a longer norm", |m| m.levels[0].overrides[0].columns = 5),
        ("a norm behind the end", |m| m.levels[0].overrides[0].offset += 256),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.esp");
    let (mut honest, data) = planned();
    honest.levels.push(level(data));
    let write = |manifest: &Manifest| write_raw(&path, &postcard::to_stdvec(manifest).unwrap(), &vec![0; data]);
    write(&honest);
    use_all(&path).unwrap();
    let mut believed = Vec::new();
    for (name, lie) in lies {
        let mut manifest = honest.clone();
        lie(&mut manifest);
        write(&manifest);
        match Artifact::open(&path) {
            Err(Error::Manifest { .. }) => {}
            other => believed.push(format!("{name}: {other:?}")),
        }
    }
    assert!(believed.is_empty(), "{believed:#?}");
}

#[test]
fn what_lies_between_tensors_is_zero() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.esp");
    let (manifest, length) = planned();
    let encoded = postcard::to_stdvec(&manifest).unwrap();
    let first = &manifest.tensors[1];
    for at in [(first.offset + first.bytes) as usize - 4096, length - 1] {
        let mut data = vec![0; length];
        data[at] = 1;
        write_raw(&path, &encoded, &data);
        let error = Artifact::open(&path).unwrap().verify().unwrap_err().to_string();
        assert!(error.contains("not zero"), "byte {at}: {error}");
    }
    let mut longer = encoded.clone();
    longer.push(0);
    write_raw(&path, &longer, &vec![0; length]);
    assert!(matches!(Artifact::open(&path), Err(Error::Manifest { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_manifest_makes_a_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), cut in any::<bool>()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.esp");
        let (mut manifest, data) = planned();
        manifest.levels.push(level(data));
        let mut encoded = postcard::to_stdvec(&manifest).unwrap();
        for (at, value) in &changes {
            let at = at.index(encoded.len());
            encoded[at] = *value;
        }
        if cut {
            encoded.truncate(changes[0].0.index(encoded.len()));
        }
        write_raw(&path, &encoded, &vec![0; data]);
        let _ = use_all(&path);
    }

    #[test]
    fn no_header_makes_a_panic(changes in prop::collection::vec((8usize..60, any::<u8>()), 1..9)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.esp");
        let (manifest, data) = planned();
        write_raw(&path, &postcard::to_stdvec(&manifest).unwrap(), &vec![0; data]);
        let mut bytes = std::fs::read(&path).unwrap();
        for (at, value) in changes {
            bytes[at] = value;
        }
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        std::fs::write(&path, bytes).unwrap();
        let _ = use_all(&path);
    }
}
