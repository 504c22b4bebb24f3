//! What a user of artifacts relies on: what was written is read, whatever is damaged is noticed, nothing is left half done.

mod common;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::{classifier, differences, numbers, odd_layers, write};
use espalier_models::architecture::*;
use espalier_models::artifact::{CHUNK_BYTES, FORMAT_VERSION, LARGE_TENSOR_BYTES, expected_bytes};
use espalier_models::formats::Format;
use espalier_models::manifest::Span;
use espalier_models::tensor::model_tensors;
use espalier_models::{Artifact, ArtifactWriter, DType, Error, LayerShape, Layout, Part, TensorKey, Units};
use proptest::prelude::*;

const DENSE: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

#[test]
fn what_was_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.esp");
    let manifest = classifier(6, 4, odd_layers());
    for dtype in DENSE {
        for rows_at_once in [1, 2, 3, 1000] {
            write(&path, &manifest, dtype, rows_at_once).unwrap();
            let artifact = Artifact::open(&path).unwrap();
            artifact.verify().unwrap();
            assert_eq!(differences(&artifact), Vec::<String>::new(), "{dtype:?}, {rows_at_once} rows at once");
            assert_eq!(artifact.file_bytes(), expected_bytes(&manifest, dtype).unwrap());
            assert_eq!(artifact.file_bytes(), std::fs::metadata(&path).unwrap().len());
            let read = espalier_models::Manifest { tensors: Vec::new(), ..artifact.manifest().clone() };
            assert_eq!(read, manifest);
        }
    }
}

/// Layers whose heads and channels are no multiples of a block, and more than one.
fn blocks_of_odd_sizes() -> espalier_models::Manifest {
    let units = |channels| LayerShape::Kept(Units { heads: vec![1, 0, 1], groups: 2, channels, span: 0 });
    classifier(70, 35, vec![units(70), units(31), LayerShape::Removed, units(64), LayerShape::Kept(Units::dense(2, 1, 0))])
}

#[test]
fn quantised_tensors_are_written_as_their_format_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.esp");
    let manifest = blocks_of_odd_sizes();
    for dtype in [DType::Q8, DType::Q4] {
        for rows_at_once in [1, 2, 3, 31, 33, 1000] {
            write(&path, &manifest, dtype, rows_at_once).unwrap();
            let artifact = Artifact::open(&path).unwrap();
            artifact.verify().unwrap();
            assert_eq!(artifact.file_bytes(), expected_bytes(&manifest, dtype).unwrap());
            let map = artifact.map();
            let specs = model_tensors(&manifest.architecture, &manifest.shape());
            let wrong: Vec<_> = specs
                .iter()
                .filter(|spec| {
                    let stored = &map[artifact.range(artifact.find(spec.key).unwrap())];
                    stored != Format::of(spec, dtype).encode(&numbers(spec)).unwrap()
                })
                .map(|spec| spec.key.to_string())
                .collect();
            assert_eq!(wrong, Vec::<String>::new(), "{dtype:?}, {rows_at_once} rows at once");
        }
    }
}

#[test]
fn a_sparse_quantised_artifact_reads_as_zero_where_nothing_was_given() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.esp");
    let manifest = blocks_of_odd_sizes();
    for dtype in [DType::Q8, DType::Q4] {
        let mut writer = ArtifactWriter::create_sparse(&path, manifest.clone(), dtype).unwrap();
        for part in [Part::Query, Part::Down] {
            writer.write_rows(TensorKey::of_layer(1, part), &[1.0; 40 * 70][..if part == Part::Down { 5 * 70 } else { 40 * 70 }]).unwrap();
        }
        writer.finish().unwrap();
        let artifact = Artifact::open(&path).unwrap();
        artifact.verify().unwrap();
        for (part, given, rows) in [(Part::Query, 40, 105), (Part::Down, 5, 31), (Part::Up, 0, 31)] {
            let mut out = vec![f32::NAN; rows * 70];
            artifact.read_rows(TensorKey::of_layer(1, part), 0..rows, &mut out).unwrap();
            let wrong = out.iter().enumerate().find(|(i, x)| (**x - if i / 70 < given { 1.0 } else { 0.0 }).abs() > 1e-3);
            assert_eq!(wrong, None, "{dtype:?} {part:?}");
        }
    }
}

#[test]
fn units_of_reductions_are_interleaved_below_32_bits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.esp");
    write(&path, &classifier(6, 4, odd_layers()), DType::F16, 1).unwrap();
    let artifact = Artifact::open(&path).unwrap();
    let key = TensorKey::of_layer(0, Part::Down);
    let down = artifact.find(key).unwrap();
    assert_eq!((down.layout, down.rows, down.bytes), (Layout::Interleaved, 5, 6 * 6 * 2));
    let spec = espalier_models::TensorSpec { key, rows: 5, columns: 6 };
    let (map, expected) = (artifact.map(), numbers(&spec));
    let stored: Vec<f32> = map[artifact.range(down)].chunks(2).map(|pair| half::f16::from_le_bytes([pair[0], pair[1]]).to_f32()).collect();
    // [rows / 2, columns, 2]: row 1, column 2 beside row 0, column 2; the row after the last is zero.
    assert_eq!((stored[4], stored[5]), (expected[2], expected[6 + 2]));
    assert!(stored[2 * 12..].chunks(2).all(|pair| pair[1] == 0.0));
    assert_eq!(artifact.prefix_bytes(down, 3), 4 * 6 * 2);
    assert_eq!(artifact.vector(TensorKey::global(Part::HeadBias)).unwrap().len(), 3);
}

#[test]
fn large_tensors_have_their_own_pages() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.esp");
    let manifest = classifier(256, 64, vec![LayerShape::Kept(Units::dense(4, 4, 2500))]);
    write(&path, &manifest, DType::F32, 100).unwrap();
    let artifact = Artifact::open(&path).unwrap();
    assert!(artifact.file_bytes() > 8 * CHUNK_BYTES as u64);
    let mut large = 0;
    for tensor in &artifact.manifest().tensors {
        let alignment = if tensor.bytes >= LARGE_TENSOR_BYTES { 65_536 } else { 64 };
        large += usize::from(tensor.bytes >= LARGE_TENSOR_BYTES);
        assert_eq!(tensor.offset % alignment, 0, "{}", tensor.key);
    }
    assert_eq!(large, 2);
    assert_eq!(differences(&artifact), Vec::<String>::new());
    artifact.release(0..artifact.file_bytes() as usize).unwrap();
    artifact.release(5..6).unwrap();
    artifact.release(usize::MAX - 1..usize::MAX).unwrap();
    assert_eq!(differences(&artifact), Vec::<String>::new());
    artifact.verify().unwrap();
}

#[test]
fn only_the_damaged_chunk_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.esp");
    write(&path, &classifier(256, 64, vec![LayerShape::Kept(Units::dense(4, 4, 2500))]), DType::F32, 100).unwrap();
    let key = TensorKey::of_layer(0, Part::Up);
    let at = Artifact::open(&path).unwrap().find(key).unwrap().offset + 2000 * 256 * 4;
    flip(&path, at, 3);
    let artifact = Artifact::open(&path).unwrap();
    let mut row = vec![0.0; 256];
    artifact.read_rows(key, 0..1, &mut row).unwrap();
    let error = artifact.read_rows(key, 2000..2001, &mut row).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }) && error.to_string().contains("layer 0 Up"), "{error}");
    assert!(artifact.check(artifact.find(key).unwrap()).is_err());
    assert!(artifact.verify().is_err());
}

/// Flips one bit of a file.
fn flip(path: &Path, at: u64, bit: u32) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    byte[0] ^= 1 << bit;
    file.write_all_at(&byte, at).unwrap();
}

/// Opens and verifies.
fn read_all(path: &Path) -> Result<(), Error> {
    Artifact::open(path)?.verify()
}

#[test]
fn every_flipped_bit_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.esp");
    write(&path, &classifier(4, 2, vec![LayerShape::Kept(Units::dense(1, 1, 3))]), DType::F16, 1).unwrap();
    read_all(&path).unwrap();
    let mut missed = Vec::new();
    for at in 0..std::fs::metadata(&path).unwrap().len() {
        for bit in 0..8 {
            flip(&path, at, bit);
            if read_all(&path).is_ok() {
                missed.push((at, bit));
            }
            flip(&path, at, bit);
        }
    }
    assert!(missed.is_empty(), "flipped bits (byte, bit) that went unnoticed: {missed:?}");
    read_all(&path).unwrap();
}

#[test]
fn every_other_length_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.esp");
    write(&path, &classifier(4, 2, vec![LayerShape::Kept(Units::dense(1, 1, 3))]), DType::F32, 1).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(length + 1).unwrap();
    assert!(Artifact::open(&path).is_err(), "a byte more");
    let opened: Vec<u64> = (0..length)
        .rev()
        .filter(|&length| {
            file.set_len(length).unwrap();
            Artifact::open(&path).is_ok()
        })
        .collect();
    assert!(opened.is_empty(), "opened at lengths {opened:?}");
}

#[test]
fn other_files_are_named_for_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.esp");
    for contents in [&b""[..], b"\x89ES", b"GGUF and more", &[0; 200]] {
        std::fs::write(&path, contents).unwrap();
        assert!(matches!(Artifact::open(&path), Err(Error::NotAnArtifact { .. })), "{contents:?}");
    }
    assert!(matches!(Artifact::open(folder.path()), Err(Error::NotAnArtifact { .. })));
    assert!(matches!(Artifact::open(&folder.path().join("none.esp")), Err(Error::Io { .. })));
    write(&path, &classifier(4, 2, vec![]), DType::F32, 1).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&(FORMAT_VERSION + 1).to_le_bytes(), 8).unwrap();
    let error = Artifact::open(&path).unwrap_err().to_string();
    assert!(error.contains(&format!("version {}", FORMAT_VERSION + 1)) && error.contains("update the program"), "{error}");
    file.write_all_at(&1u32.to_le_bytes(), 8).unwrap();
    assert!(matches!(Artifact::open(&path), Err(Error::OlderVersion { version: 1, supported: FORMAT_VERSION, .. })));
}

#[test]
fn an_unfinished_artifact_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.esp");
    let manifest = classifier(6, 4, odd_layers());
    let writer = ArtifactWriter::create(&path, manifest.clone(), DType::F32).unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    drop(writer);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let error = ArtifactWriter::create(&path, manifest.clone(), DType::F32).unwrap().finish().unwrap_err();
    assert!(matches!(error, Error::Request { .. }), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    // An older artifact stays until the new one is complete.
    write(&path, &manifest, DType::F32, 1).unwrap();
    drop(ArtifactWriter::create(&path, classifier(4, 2, vec![]), DType::F32).unwrap());
    assert_eq!(differences(&Artifact::open(&path).unwrap()), Vec::<String>::new());
}

#[test]
fn what_cannot_be_written_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.esp");
    let manifest = classifier(4, 2, vec![LayerShape::Kept(Units::dense(1, 1, 3))]);
    let missing = folder.path().join("none").join("model.esp");
    assert!(matches!(ArtifactWriter::create(&missing, manifest.clone(), DType::F32), Err(Error::Io { .. })));
    let first = model_tensors(&manifest.architecture, &manifest.shape())[0];
    let cases: [(&str, TensorKey, Vec<f32>); 6] = [
        ("another tensor first", TensorKey::global(Part::HeadBias), vec![0.0; 3]),
        ("no whole row", first.key, vec![0.0; first.columns + 1]),
        ("too many rows", first.key, vec![0.0; first.columns * (first.rows + 1)]),
        ("NaN", first.key, vec![f32::NAN; first.columns]),
        ("infinity", first.key, vec![f32::NEG_INFINITY; first.columns]),
        ("beyond f16", first.key, vec![65_520.0; first.columns]),
    ];
    for (what, key, rows) in cases {
        let mut writer = ArtifactWriter::create(&path, manifest.clone(), DType::F16).unwrap();
        assert!(writer.write_rows(key, &rows).is_err(), "{what}");
    }
    for (dtype, most) in [(DType::F16, 65_519.0), (DType::Q4, 65_519.0), (DType::Q8, 127.0 * 65_504.0)] {
        let mut writer = ArtifactWriter::create(&path, manifest.clone(), dtype).unwrap();
        let beyond = writer.write_rows(first.key, &vec![most * 1.001; first.columns]).unwrap_err();
        assert!(matches!(beyond, Error::TooLarge { .. }), "{dtype:?}: {beyond}");
        writer.write_rows(first.key, &vec![most; first.columns]).unwrap();
    }
}

#[test]
fn a_tokenizer_lies_before_the_tensors_and_outside_the_manifest() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.esp");
    let json = vec![b'7'; 300_000];
    let mut manifest = classifier(4, 2, odd_layers());
    manifest.tokenizer = Some(Span { offset: 0, bytes: json.len() as u64 });
    let refused = write(&path, &manifest, DType::F32, 1).unwrap_err().to_string();
    assert!(refused.contains("tokenizer of 300000 bytes must be written before"), "{refused}");
    let mut writer = ArtifactWriter::create(&path, manifest.clone(), DType::F32).unwrap();
    assert!(writer.write_tokenizer(&json[1..]).is_err());
    writer.write_tokenizer(&json).unwrap();
    for spec in model_tensors(&manifest.architecture, &manifest.shape()) {
        writer.write_rows(spec.key, &vec![1.0; spec.rows * spec.columns]).unwrap();
    }
    writer.finish().unwrap();
    let artifact = Artifact::open(&path).unwrap();
    artifact.verify().unwrap();
    assert_eq!(artifact.tokenizer().unwrap(), Some(&json[..]));
    // A flipped bit is seen when the tokenizer is used, not before.
    let mut bytes = std::fs::read(&path).unwrap();
    let at = artifact.manifest().tokenizer.unwrap().offset as usize + 299_999;
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert!(matches!(Artifact::open(&path).unwrap().tokenizer(), Err(Error::Damaged { .. })));
}

#[test]
fn requests_that_do_not_fit_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.esp");
    write(&path, &classifier(6, 4, odd_layers()), DType::Bf16, 1).unwrap();
    let artifact = Artifact::open(&path).unwrap();
    let key = TensorKey::of_layer(0, Part::Query);
    #[allow(clippy::reversed_empty_ranges, reason = "a caller's mistake that must not panic")]
    let cases = [(0..13, 13 * 6), (12..13, 6), (3..2, 0), (0..2, 11), (0..usize::MAX, 0), (usize::MAX..usize::MAX, 0)];
    for (rows, length) in cases {
        assert!(artifact.read_rows(key, rows.clone(), &mut vec![0.0; length]).is_err(), "{rows:?}");
    }
    assert!(artifact.vector(key).is_err());
    assert!(matches!(artifact.vector(TensorKey::of_layer(1, Part::AttentionNorm)), Err(Error::NoTensor { .. })));
    let mut foreign = artifact.find(key).unwrap().clone();
    (foreign.offset, foreign.bytes) = (u64::MAX, u64::MAX);
    assert!(artifact.check(&foreign).is_err());
}

#[test]
fn the_id_follows_the_contents() {
    let folder = tempfile::tempdir().unwrap();
    let ids: Vec<u64> = [("a", DType::F32, "x"), ("b", DType::F32, "x"), ("c", DType::F16, "x"), ("d", DType::F32, "y")]
        .into_iter()
        .map(|(file, dtype, name)| {
            let manifest = espalier_models::Manifest { name: name.to_string(), ..classifier(6, 4, odd_layers()) };
            write(&folder.path().join(file), &manifest, dtype, 1).unwrap();
            Artifact::open(&folder.path().join(file)).unwrap().id()
        })
        .collect();
    assert_eq!(ids[0], ids[1]);
    assert!(ids[0] != ids[2] && ids[0] != ids[3]);
}

fn any_layer() -> impl Strategy<Value = LayerShape> {
    let units = (0usize..4).prop_flat_map(|groups| {
        let heads = prop::collection::vec(0..groups.max(1) as u32, if groups == 0 { 0..1 } else { 0..6 });
        (heads, Just(groups), 0usize..9).prop_map(|(heads, groups, channels)| LayerShape::Kept(Units { heads, groups, channels, span: 0 }))
    });
    prop_oneof![1 => Just(LayerShape::Removed), 6 => units]
}

fn any_architecture() -> impl Strategy<Value = Architecture> {
    let flags = prop::array::uniform12(any::<bool>());
    (1usize..20, 1usize..5, 1usize..9, 1usize..30, flags).prop_map(|(d_model, half_head, table, vocabulary, flags)| {
        let [tokens, tied, rms, rotary, gated, bias, qk_norm, post_norms, parallel, shared_norm, windowed, scaled] = flags;
        let head_dim = half_head * 2;
        Architecture {
            input: match tokens {
                true => Input::Tokens { vocabulary },
                false => Input::Patches { window: 6, patch: 3, stride: 3, sample_rate_hz: 1.0 },
            },
            embedding_scale: (tokens && scaled).then_some(4.0),
            output: match tokens {
                true => Output::NextToken { tied, bias },
                false => Output::Classes { names: vec!["a".to_string(); table] },
            },
            d_model,
            norm: Norm { kind: if rms { NormKind::RmsNorm } else { NormKind::LayerNorm }, epsilon: 1e-6 },
            post_norms: rms && post_norms,
            positions: match rotary {
                true => Positions::Rotary { dims: half_head / 2 * 2, context: 64 },
                false => Positions::Learned { count: table + 3, offset: 1 },
            },
            spans: vec![AttentionSpan { window: windowed.then_some(table), rotary: rotary.then_some(Rotary::of_base(10_000.0)) }],
            attention: Attention { head_dim, scale: scaled.then_some(0.5), qk_norm, qkv_bias: bias, output_bias: tied, fused_qkv: bias },
            ffn: Ffn { gated, activation: Activation::Silu, bias },
            residual: if parallel { Residual::Parallel { shared_norm } } else { Residual::Sequential },
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_model_survives(
        architecture in any_architecture(), layers in prop::collection::vec(any_layer(), 0..4), dtype in 0usize..3, at_once in 1usize..5,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.esp");
        let manifest = common::manifest(architecture, layers);
        write(&path, &manifest, DENSE[dtype], at_once).unwrap();
        let artifact = Artifact::open(&path).unwrap();
        artifact.verify().unwrap();
        prop_assert_eq!(differences(&artifact), Vec::<String>::new());
        prop_assert_eq!(artifact.file_bytes(), expected_bytes(&manifest, DENSE[dtype]).unwrap());
    }
}
