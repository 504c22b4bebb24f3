//! Whatever the bytes of a checkpoint are, an import ends in an artifact or in an error, never in a panic.

use std::path::Path;

use espalier_models::checkpoint::import;
use espalier_models::{Artifact, Error};
use proptest::prelude::*;

const CONFIG: &str = r#"{"model_type": "gpt2", "n_embd": 2, "n_head": 1, "n_layer": 1, "n_positions": 3, "n_inner": 2, "vocab_size": 3}"#;

/// The tensors of the model that [`CONFIG`] describes.
fn tensors() -> Vec<(String, Vec<usize>)> {
    let layer = [
        ("ln_1.weight", vec![2]),
        ("ln_1.bias", vec![2]),
        ("attn.c_attn.weight", vec![2, 6]),
        ("attn.c_attn.bias", vec![6]),
        ("attn.c_proj.weight", vec![2, 2]),
        ("attn.c_proj.bias", vec![2]),
        ("ln_2.weight", vec![2]),
        ("ln_2.bias", vec![2]),
        ("mlp.c_fc.weight", vec![2, 2]),
        ("mlp.c_fc.bias", vec![2]),
        ("mlp.c_proj.weight", vec![2, 2]),
        ("mlp.c_proj.bias", vec![2]),
    ];
    let globals = [("wte.weight", vec![3, 2]), ("wpe.weight", vec![3, 2]), ("ln_f.weight", vec![2]), ("ln_f.bias", vec![2])];
    let layer = layer.into_iter().map(|(name, shape)| (format!("h.0.{name}"), shape));
    layer.chain(globals.into_iter().map(|(name, shape)| (name.to_string(), shape))).collect()
}

/// A file with `header` and as many zero bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// The model as one file.
fn model() -> Vec<u8> {
    let (mut header, mut end) = (Vec::new(), 0);
    for (name, shape) in tensors() {
        let bytes = shape.iter().product::<usize>() * 4;
        header.push(format!(r#""{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{end},{}]}}"#, end + bytes));
        end += bytes;
    }
    file(&format!("{{{}}}", header.join(",")), end)
}

/// Imports a checkpoint of these two files and opens the result.
fn attempt(config: &[u8], weights: &[u8]) -> Result<(), Error> {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("config.json", config);
    write("model.safetensors", weights);
    let out = folder.path().join("model.esp");
    let result = import(folder.path(), &out, None, &mut |_, _| {});
    assert_eq!(out.exists(), result.is_ok(), "an artifact is there if and only if the import succeeded");
    result?;
    Artifact::open(&out)?.verify()
}

#[test]
fn the_model_itself_is_sound() {
    attempt(CONFIG.as_bytes(), &model()).unwrap();
}

#[test]
fn headers_that_lie_are_refused() {
    let huge = u64::MAX;
    let headers = [
        ("a length that overflows", format!(r#"{{"a":{{"dtype":"U8","shape":[{}],"data_offsets":[0,{}]}}}}"#, huge - 5, huge - 5)),
        ("a shape that overflows", format!(r#"{{"a":{{"dtype":"F32","shape":[{huge},{huge}],"data_offsets":[0,8]}}}}"#)),
        ("a zero that hides it", format!(r#"{{"a":{{"dtype":"F32","shape":[{huge},{huge},0],"data_offsets":[0,0]}}}}"#)),
        ("offsets in reverse", r#"{"a":{"dtype":"F32","shape":[0],"data_offsets":[4,0]}}"#.to_string()),
        ("another length", r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#.to_string()),
        ("a gap", r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#.to_string()),
        (
            "an overlap",
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#.into(),
        ),
        ("data left over", r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#.to_string()),
        (
            "a name twice",
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#.into(),
        ),
        ("an unknown type", r#"{"a":{"dtype":"Q9","shape":[8],"data_offsets":[0,8]}}"#.to_string()),
        ("a negative shape", r#"{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#.to_string()),
        ("no object", "[]".to_string()),
        ("deep nesting", "[".repeat(100_000)),
    ];
    let mut wrong = Vec::new();
    for (what, header) in headers {
        match attempt(CONFIG.as_bytes(), &file(&header, 8)) {
            Err(Error::Checkpoint { .. }) => {}
            other => wrong.push(format!("{what}: {other:?}")),
        }
    }
    for length in [0, 7, 8, 9] {
        if attempt(CONFIG.as_bytes(), &model()[..length]).is_ok() {
            wrong.push(format!("cut after {length} bytes"));
        }
    }
    if attempt(CONFIG.as_bytes(), &[0xff; 64]).is_ok() {
        wrong.push("a header of 2^64 - 1 bytes".to_string());
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let nested = "{\"a\":".repeat(100_000);
    assert!(attempt(nested.as_bytes(), &model()).is_err());
    assert!(import(Path::new("/dev/null"), Path::new("/dev/null/x"), None, &mut |_, _| {}).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn random_bytes_are_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(attempt(CONFIG.as_bytes(), &bytes).is_err());
        prop_assert!(attempt(&bytes, &model()).is_err());
    }

    #[test]
    fn random_headers_are_no_panic(header in r#"\{("[a-c]":\{"dtype":"(F32|U8|F64)","shape":\[[0-9,]{0,6}\],"data_offsets":\[[0-9]{1,20},[0-9]{1,20}\]\},?){0,3}\}"#) {
        prop_assert!(attempt(CONFIG.as_bytes(), &file(&header, 8)).is_err());
    }

    #[test]
    fn mutations_are_no_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5), cut in any::<Option<prop::sample::Index>>()) {
        let mut bytes = model();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let _ = attempt(CONFIG.as_bytes(), &bytes);
    }

    #[test]
    fn mutated_configurations_are_no_panic(at in any::<prop::sample::Index>(), text in r#"[0-9a-z"{}:,\-]{0,8}"#) {
        let at = at.index(CONFIG.len());
        let changed = format!("{}{text}{}", &CONFIG[..at], &CONFIG[at + 1..]);
        let _ = attempt(changed.as_bytes(), &model());
    }
}
