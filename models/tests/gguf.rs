//! What a user of GGUF files relies on: what is exported is what is read back, bit for bit, and a file that lies is refused with a sentence.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use espalier_models::checkpoint::{export_gguf, import, import_until};
use espalier_models::tensor::model_tensors;
use espalier_models::{Artifact, DType, Error, TensorKey};
use proptest::prelude::*;
use serde_json::{Value, json};

/// The fixtures of families that llama.cpp has too.
const FAMILIES: [&str; 8] = ["gpt2", "llama-mha", "llama-gqa2", "llama-gqa8", "qwen2", "qwen3", "gpt_neox", "phi"];

fn parity(name: &str) -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/parity");
    std::env::var_os("ESPALIER_PARITY").map_or_else(default, PathBuf::from).join(name)
}

/// The numbers of all tensors.
fn numbers(artifact: &Artifact) -> BTreeMap<TensorKey, Vec<u32>> {
    let manifest = artifact.manifest();
    let tensors = model_tensors(&manifest.architecture, &manifest.shape());
    let read = |spec: espalier_models::TensorSpec| {
        let mut out = vec![0.0; spec.rows * spec.columns];
        artifact.read_rows(spec.key, 0..spec.rows, &mut out).unwrap();
        (spec.key, out.into_iter().map(f32::to_bits).collect())
    };
    tensors.into_iter().map(read).collect()
}

fn import_to(source: &Path, out: &Path, dtype: Option<DType>) -> Result<Artifact, Error> {
    import(source, out, dtype, &mut |_, _| {})?;
    Artifact::open(out)
}

#[test]
fn an_exported_model_is_read_back_bit_for_bit() {
    let mut wrong = Vec::new();
    for name in FAMILIES {
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            let folder = tempfile::tempdir().unwrap();
            let at = |file: &str| folder.path().join(file);
            let first = import_to(&parity(name), &at("first.esp"), Some(dtype)).unwrap();
            if let Err(error) = export_gguf(&first, first.manifest(), &at("model.gguf")) {
                wrong.push(format!("{name} {dtype:?}: {error}"));
                continue;
            }
            let second = import_to(&at("model.gguf"), &at("second.esp"), Some(dtype)).unwrap();
            if second.manifest().architecture != first.manifest().architecture || numbers(&first) != numbers(&second) {
                wrong.push(format!("{name} {dtype:?}: another model comes back"));
            }
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3, "nothing but the three files is left");
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_a_file_cannot_say_is_refused_and_leaves_nothing() {
    // Exact GELU in GPT-2's place, a window that llama.cpp does not know, a family that it does not have, windows in other layers than
    // its own.
    for name in ["gpt2-untied", "mistral", "opt", "gemma3"] {
        let folder = tempfile::tempdir().unwrap();
        let artifact = import_to(&parity(name), &folder.path().join("model.esp"), None).unwrap();
        let result = export_gguf(&artifact, artifact.manifest(), &folder.path().join("model.gguf"));
        assert!(matches!(result, Err(Error::Inexpressible { .. })), "{name}: {result:?}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "{name}");
    }
}

/// A metadata value of a test file.
enum Meta {
    Text(&'static str),
    Texts(Vec<&'static str>),
    Count(u32),
    Number(f32),
    Flag(bool),
}

/// A file of these keys and tensors (name, shape with the fastest dimension first, type, bytes).
fn file(version: u32, keys: &[(&str, Meta)], tensors: &[(&str, Vec<u64>, u32, Vec<u8>)]) -> Vec<u8> {
    fn text(out: &mut Vec<u8>, text: &str) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    }
    let mut out = b"GGUF".to_vec();
    out.extend(version.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((keys.len() as u64).to_le_bytes());
    for (key, value) in keys {
        text(&mut out, key);
        match value {
            Meta::Text(value) => {
                out.extend(8u32.to_le_bytes());
                text(&mut out, value);
            }
            Meta::Texts(values) => {
                out.extend(9u32.to_le_bytes());
                out.extend(8u32.to_le_bytes());
                out.extend((values.len() as u64).to_le_bytes());
                values.iter().for_each(|value| text(&mut out, value));
            }
            Meta::Count(value) => {
                out.extend(4u32.to_le_bytes());
                out.extend(value.to_le_bytes());
            }
            Meta::Number(value) => {
                out.extend(6u32.to_le_bytes());
                out.extend(value.to_le_bytes());
            }
            Meta::Flag(value) => {
                out.extend(7u32.to_le_bytes());
                out.push(u8::from(*value));
            }
        }
    }
    let mut offset = 0u64;
    for (name, shape, kind, bytes) in tensors {
        text(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().for_each(|size| out.extend(size.to_le_bytes()));
        out.extend(kind.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += (bytes.len() as u64).next_multiple_of(32);
    }
    out.resize(out.len().next_multiple_of(32), 0);
    for (.., bytes) in tensors {
        out.extend(bytes);
        out.resize(out.len().next_multiple_of(32), 0);
    }
    out
}

/// The keys of a llama of one layer, width 32, two heads and 64 channels, with a byte-level vocabulary of five tokens.
fn llama_keys() -> Vec<(&'static str, Meta)> {
    vec![
        ("general.architecture", Meta::Text("llama")),
        ("llama.block_count", Meta::Count(1)),
        ("llama.context_length", Meta::Count(64)),
        ("llama.embedding_length", Meta::Count(32)),
        ("llama.feed_forward_length", Meta::Count(64)),
        ("llama.attention.head_count", Meta::Count(2)),
        ("llama.attention.layer_norm_rms_epsilon", Meta::Number(1e-5)),
        ("tokenizer.ggml.model", Meta::Text("gpt2")),
        ("tokenizer.ggml.pre", Meta::Text("smollm")),
        ("tokenizer.ggml.tokens", Meta::Texts(vec!["a", "b", "ab", "\u{120}", "<end>"])),
        ("tokenizer.ggml.merges", Meta::Texts(vec!["a b"])),
        ("tokenizer.ggml.eos_token_id", Meta::Count(4)),
        ("tokenizer.ggml.add_eos_token", Meta::Flag(true)),
        ("tokenizer.chat_template", Meta::Text("{{ messages }}")),
    ]
}

/// Its tensors, the matrices of the layer as Q8_0 blocks of scale 1/128 with numbers that count up.
fn llama_tensors() -> Vec<(&'static str, Vec<u64>, u32, Vec<u8>)> {
    let ones = |count: usize| [1.0f32.to_le_bytes()].concat().repeat(count);
    let quants = |blocks: usize| {
        (0..blocks)
            .flat_map(|block| {
                let scale = [0x00, 0x20];
                scale.into_iter().chain((0..32).map(move |at| (block * 32 + at) as u8))
            })
            .collect::<Vec<u8>>()
    };
    let matrix = |name, columns: u64, rows: u64| (name, vec![columns, rows], 8, quants((columns * rows / 32) as usize));
    vec![
        matrix("token_embd.weight", 32, 5),
        ("output_norm.weight", vec![32], 0, ones(32)),
        ("blk.0.attn_norm.weight", vec![32], 0, ones(32)),
        ("blk.0.ffn_norm.weight", vec![32], 0, ones(32)),
        matrix("blk.0.attn_q.weight", 32, 32),
        matrix("blk.0.attn_k.weight", 32, 32),
        matrix("blk.0.attn_v.weight", 32, 32),
        matrix("blk.0.attn_output.weight", 32, 32),
        matrix("blk.0.ffn_gate.weight", 32, 64),
        matrix("blk.0.ffn_up.weight", 32, 64),
        matrix("blk.0.ffn_down.weight", 64, 32),
    ]
}

fn llama() -> Vec<u8> {
    file(3, &llama_keys(), &llama_tensors())
}

/// Imports a file of these bytes: the artifact is there if and only if that succeeded.
fn attempt(bytes: &[u8]) -> Result<Value, Error> {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (folder.path().join("model.gguf"), folder.path().join("model.esp"));
    std::fs::write(&source, bytes).unwrap();
    let result = import_to(&source, &out, None);
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        1 + usize::from(result.is_ok()),
        "an import leaves an artifact or nothing"
    );
    let artifact = result?;
    artifact.verify()?;
    Ok(serde_json::from_str(&artifact.manifest().origin.config).unwrap())
}

#[test]
fn quantised_files_become_bf16_and_their_text_metadata_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (folder.path().join("tiny.gguf"), folder.path().join("tiny.esp"));
    for version in [2, 3] {
        std::fs::write(&source, file(version, &llama_keys(), &llama_tensors())).unwrap();
        let report = import(&source, &out, None, &mut |_, _| {}).unwrap();
        assert_eq!((report.tensors, report.quantised), (11, 8));
        let rounding = report.rounding.unwrap();
        assert_eq!((rounding.changed, rounding.largest), (0, 0.0), "products of a power of two and a byte are exact in bf16");
        let artifact = Artifact::open(&out).unwrap();
        let config: Value = serde_json::from_str(&artifact.manifest().origin.config).unwrap();
        assert_eq!(config["eos_token_id"], json!(4));
        assert_eq!(config["chat_template"], json!("{{ messages }}"));
        let key = espalier_models::TensorKey::of_layer(0, espalier_models::Part::Query);
        assert_eq!(artifact.manifest().tensors.iter().find(|tensor| tensor.key == key).unwrap().dtype, DType::Bf16);
        let mut rows = vec![0.0; 2 * 32];
        artifact.read_rows(key, 0..2, &mut rows).unwrap();
        assert_eq!(
            (rows[0], rows[1], rows[32]),
            (0.0, 1.0 / 128.0, 64.0 / 128.0),
            "row 1 of the first half of a head is row 2 of the pairs"
        );
        let tokenizer: Value = serde_json::from_slice(artifact.tokenizer().unwrap().unwrap()).unwrap();
        assert_eq!(tokenizer["model"]["vocab"]["ab"], json!(2));
    }
}

/// Q8_0 has the blocks that `q8` has, along rows and, for the down projection and attention output, along units.
#[test]
fn blocks_of_8_bits_stay_as_they_are_in_q8() {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (folder.path().join("tiny.gguf"), folder.path().join("tiny.esp"));
    let mut tensors = llama_tensors();
    for (_, _, _, bytes) in tensors.iter_mut().filter(|(_, _, kind, _)| *kind == 8) {
        for (index, block) in bytes.chunks_exact_mut(34).enumerate() {
            // Any scale, and quants of which one is the largest, as a quantiser leaves them.
            block[..2].copy_from_slice(&(0x2000 + (index * 37 % 0x400) as u16).to_le_bytes());
            block[2..].iter_mut().enumerate().for_each(|(at, quant)| *quant = (((index * 7 + at * 13) % 255) as i16 - 127) as i8 as u8);
            block[2 + index % 32] = 127;
        }
    }
    std::fs::write(&source, file(3, &llama_keys(), &tensors)).unwrap();
    let report = import(&source, &out, Some(DType::Q8), &mut |_, _| {}).unwrap();
    assert_eq!(report.rounding.unwrap().changed, 0);
    let exact = folder.path().join("exact.esp");
    import(&source, &exact, Some(DType::F32), &mut |_, _| {}).unwrap();
    assert_eq!(numbers(&Artifact::open(&out).unwrap()), numbers(&Artifact::open(&exact).unwrap()));
}

#[test]
fn a_stopped_import_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (folder.path().join("tiny.gguf"), folder.path().join("tiny.esp"));
    std::fs::write(&source, llama()).unwrap();
    let result = import_until(&source, &out, None, &mut |_, _| ControlFlow::Break(()));
    assert!(matches!(result, Err(Error::Stopped { .. })), "{result:?}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn what_cannot_be_done_exactly_is_refused_by_name() {
    let changed = |key: &'static str, value: Meta| {
        let mut keys = llama_keys();
        keys.retain(|(name, _)| *name != key);
        keys.push((key, value));
        file(3, &keys, &llama_tensors())
    };
    let of_type = |kind: u32, bytes: usize| {
        let mut tensors = llama_tensors();
        (tensors[4].2, tensors[4].3) = (kind, vec![0; bytes]);
        file(3, &llama_keys(), &tensors)
    };
    let cases = [
        ("`bert`", changed("general.architecture", Meta::Text("bert"))),
        ("version 4", file(4, &llama_keys(), &llama_tensors())),
        ("big-endian", file(3u32.swap_bytes(), &llama_keys(), &llama_tensors())),
        ("`yarn`", changed("llama.rope.scaling.type", Meta::Text("yarn"))),
        ("llama.expert_count", changed("llama.expert_count", Meta::Count(8))),
        ("llama.attention.wkv_gain", changed("llama.attention.wkv_gain", Meta::Count(8))),
        ("`rwkv`", changed("tokenizer.ggml.model", Meta::Text("rwkv"))),
        ("`gpt-9`", changed("tokenizer.ggml.pre", Meta::Text("gpt-9"))),
        ("one of 3 parts", changed("split.count", Meta::Count(3))),
        ("IQ4_NL", of_type(20, 32 * 18)),
        ("llama.embedding_length", changed("llama.embedding_length", Meta::Text("wide"))),
        ("`a c`", changed("tokenizer.ggml.merges", Meta::Texts(vec!["a c"]))),
        ("both `a`", changed("tokenizer.ggml.tokens", Meta::Texts(vec!["a", "a", "ab", "b", "<end>"]))),
        ("tokenizer.ggml.eos_token_id", changed("tokenizer.ggml.eos_token_id", Meta::Count(5))),
    ];
    let mut wrong = Vec::new();
    for (named, bytes) in cases {
        match attempt(&bytes) {
            Err(error) if error.to_string().contains(named) => {}
            other => wrong.push(format!("{named}: {other:?}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A sentence for a person has no room for a name of a megabyte.
#[test]
fn long_texts_in_a_file_make_no_long_sentence() {
    let long: &'static str = Box::leak("x".repeat(60_000).into_boxed_str());
    let names: [&'static str; 5] =
        ["general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre", "llama.rope.scaling.type", "llama.block_count"];
    let changed = names.map(|name| (name, name, Meta::Text(long)));
    let unknown: &'static str = Box::leak(format!("llama.{long}").into_boxed_str());
    let cases = changed.into_iter().chain([
        ("an unknown key", unknown, Meta::Count(1)),
        ("a long token", "tokenizer.ggml.tokens", Meta::Texts(vec!["a", "b", "ab", "c", long])),
        ("a token twice", "tokenizer.ggml.tokens", Meta::Texts(vec!["a", "b", "ab", &long[..1000], &long[..1000]])),
        ("a long merge", "tokenizer.ggml.merges", Meta::Texts(vec![long])),
    ]);
    let mut wrong = Vec::new();
    for (what, key, value) in cases {
        let mut keys = llama_keys();
        keys.retain(|(name, _)| *name != key);
        keys.push((key, value));
        match attempt(&file(3, &keys, &llama_tensors())) {
            Err(error) if error.to_string().len() < 1024 => {}
            Err(error) => wrong.push(format!("{what}: a sentence of {} bytes", error.to_string().len())),
            Ok(_) => wrong.push(format!("{what}: accepted")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// llama.cpp takes scaling for linear where no type is named, and the factors 0 and 1 for none.
#[test]
fn rotary_scaling_is_what_llama_cpp_takes_it_for() {
    let scaled = |kind: Option<&'static str>, factor: Option<f32>, frequencies: usize| {
        let (mut keys, mut tensors) = (llama_keys(), llama_tensors());
        keys.extend(kind.map(|kind| ("llama.rope.scaling.type", Meta::Text(kind))));
        keys.extend(factor.map(|factor| ("llama.rope.scaling.factor", Meta::Number(factor))));
        if frequencies > 0 {
            // With the base 10 000 and 16 dimensions, Llama 3.1 stretches the longest of 8 wavelengths by 8, and the one before it by less.
            let factors = [1.0f32, 1.0, 1.0, 1.0, 1.0, 1.0, 4.681_483, 8.0];
            tensors.push((
                "rope_freqs.weight",
                vec![frequencies as u64],
                0,
                factors[..frequencies].iter().flat_map(|f| f.to_le_bytes()).collect(),
            ));
        }
        attempt(&file(3, &keys, &tensors)).map(|config| config["rope_scaling"].clone()).map_err(|error| error.to_string())
    };
    let linear = json!({ "rope_type": "linear", "factor": 2.5 });
    let cases = [
        (None, None, Value::Null),
        (None, Some(0.0), Value::Null),
        (None, Some(1.0), Value::Null),
        (None, Some(2.5), linear.clone()),
        (Some("linear"), Some(2.5), linear),
        (Some("linear"), Some(1.0), Value::Null),
        (Some("none"), Some(2.5), Value::Null),
    ];
    let found = cases.map(|(kind, factor, expected)| (kind, factor, scaled(kind, factor, 0), Ok(expected)));
    let wrong: Vec<_> = found.iter().filter(|(_, _, found, expected)| found != expected).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let refused = [
        ("expected 8, one for each pair", scaled(None, None, 1)),
        ("expected a number", scaled(Some("linear"), None, 0)),
        ("together with the tensor `rope_freqs.weight`", scaled(None, Some(2.5), 8)),
        ("together with the tensor `rope_freqs.weight`", scaled(Some("linear"), Some(2.5), 8)),
    ];
    let wrong: Vec<_> = refused.iter().filter(|(reason, found)| !found.as_ref().is_err_and(|found| found.contains(reason))).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(scaled(None, None, 8).unwrap()["rope_type"], json!("llama3"));
}

#[test]
fn files_that_lie_are_refused() {
    let sound = llama();
    attempt(&sound).unwrap();
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = sound.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    let place = |text: &str| sound.windows(text.len()).position(|window| window == text.as_bytes()).unwrap();
    let norm = place("output_norm.weight") + "output_norm.weight".len();
    let cases = [
        ("2^64 tensors", with(8, &[0xff; 8])),
        ("2^64 keys", with(16, &[0xff; 8])),
        ("a key longer than the file", with(24, &u64::MAX.to_le_bytes())),
        ("an array longer than the file", with(place("tokenizer.ggml.tokens") + 21 + 8, &u64::MAX.to_le_bytes())),
        ("an array of arrays", with(place("tokenizer.ggml.tokens") + 21 + 4, &9u32.to_le_bytes())),
        ("five dimensions", with(norm, &5u32.to_le_bytes())),
        ("a size of zero", with(norm + 4, &0u64.to_le_bytes())),
        ("a size that overflows", with(norm + 4, &u64::MAX.to_le_bytes())),
        ("an unknown type", with(norm + 12, &77u32.to_le_bytes())),
        ("an offset beyond the file", with(norm + 16, &(1u64 << 62).to_le_bytes())),
        ("an offset that is not aligned", with(norm + 16, &8u64.to_le_bytes())),
        ("an overlap", with(norm + 16, &0u64.to_le_bytes())),
        ("no file", Vec::new()),
        ("the magic alone", b"GGUF".to_vec()),
    ];
    let accepted: Vec<&str> = cases.iter().filter(|(_, bytes)| attempt(bytes).is_ok()).map(|(what, _)| *what).collect();
    assert!(accepted.is_empty(), "{accepted:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn arbitrary_bytes_are_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), magic in any::<bool>()) {
        let bytes = if magic { [b"GGUF\x03\0\0\0".to_vec(), bytes].concat() } else { bytes };
        prop_assert!(attempt(&bytes).is_err());
    }

    #[test]
    fn mutations_are_no_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), in_head in any::<bool>(),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        let mut bytes = llama();
        for (at, value) in changes {
            let at = at.index(if in_head { 1600 } else { bytes.len() });
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let _ = attempt(&bytes);
    }
}
