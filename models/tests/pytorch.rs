//! What a user of PyTorch checkpoints relies on: those that PyTorch wrote (tests/pytorch/make.py) are read exactly, in whatever way they
//! were saved; nothing in them is run; whatever the bytes are, the import ends in an artifact or in a sentence.

use std::path::{Path, PathBuf};

use espalier_models::checkpoint::import;
use espalier_models::tensor::model_tensors;
use espalier_models::{Artifact, DType, Error, TensorKey};
use proptest::prelude::*;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pytorch")
}

/// All tensors of the artifact that an import makes.
fn imported(src: &Path, dtype: Option<DType>) -> Result<Vec<(TensorKey, DType, Vec<f32>)>, Error> {
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("model.esp");
    let result = import(src, &path, dtype, &mut |_, _| {});
    assert_eq!(path.exists(), result.is_ok(), "an artifact is there if and only if the import succeeded");
    result?;
    let artifact = Artifact::open(&path)?;
    artifact.verify()?;
    let manifest = artifact.manifest();
    let read = model_tensors(&manifest.architecture, &manifest.shape()).into_iter().map(|spec| {
        let mut numbers = vec![0.0; spec.rows * spec.columns];
        artifact.read_rows(spec.key, 0..spec.rows, &mut numbers)?;
        let stored = manifest.tensors.iter().find(|stored| stored.key == spec.key).unwrap();
        Ok((spec.key, stored.dtype, numbers))
    });
    read.collect()
}

#[test]
fn whatever_way_a_model_was_saved_the_numbers_are_the_same() {
    let expected = imported(&folder(), None).unwrap();
    assert!(expected.iter().all(|(_, dtype, numbers)| *dtype == DType::F32 && numbers.iter().any(|&number| number != 0.0)));
    let files = [
        "state_dict.bin",
        "ordered_with_metadata.pt",
        "parameters.pt",
        "training.pth",
        "model.pth",
        "strided.bin",
        "one_storage.bin",
        "old_names.bin",
        "without_prefix.bin",
        "protocol_3.bin",
        "protocol_4.bin",
        "protocol_5.bin",
        "sharded",
    ];
    let mut wrong = Vec::new();
    for file in files {
        match imported(&folder().join(file), None) {
            Ok(found) if found == expected => {}
            other => wrong.push(format!("{file}: {other:?}")),
        }
    }
    for (file, dtype) in [("half.bin", DType::F16), ("bfloat16.bin", DType::Bf16)] {
        let found = imported(&folder().join(file), None).unwrap();
        let same = found.iter().zip(&expected).all(|(found, expected)| (found.0, &found.2) == (expected.0, &expected.2));
        if !same || !found.iter().any(|(_, found, _)| *found == dtype) {
            wrong.push(format!("{file}: {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_folder_is_read_from_its_pytorch_file_where_it_has_no_safetensors() {
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(folder().join("config.json"), copy.path().join("config.json")).unwrap();
    let problem = imported(copy.path(), None).unwrap_err().to_string();
    assert!(problem.contains("neither model.safetensors nor pytorch_model.bin"), "{problem}");
    std::fs::copy(folder().join("state_dict.bin"), copy.path().join("pytorch_model.bin")).unwrap();
    assert_eq!(imported(copy.path(), None).unwrap(), imported(&folder(), None).unwrap());
    std::fs::remove_file(copy.path().join("config.json")).unwrap();
    let problem = imported(&copy.path().join("pytorch_model.bin"), None).unwrap_err().to_string();
    assert!(problem.contains("config.json"), "{problem}");
}

#[test]
fn what_cannot_be_read_is_refused_by_name() {
    let cases = [
        ("legacy.bin", "torch.save(torch.load(\"legacy.bin\", map_location=\"cpu\", weights_only=True), \"legacy.bin\")"),
        ("runs.bin", "`posix.system`"),
        ("module.pt", "`__main__.Module`"),
        ("torchscript.pt", "TorchScript"),
        ("double.bin", "numbers of type F64"),
        ("repeated.bin", "`transformer.wpe.weight` of shape [3, 2] repeats its 1 numbers"),
        ("not_finite.bin", "`transformer.ln_f.bias` holds NaN at element 1"),
        ("no_tensor.bin", "`transformer.h.0.attn.scale`"),
        ("list.bin", "no dictionary of tensors"),
    ];
    let mut wrong = Vec::new();
    for (file, expected) in cases {
        match imported(&folder().join(file), None) {
            Err(error) if error.to_string().contains(expected) && error.to_string().contains(file) => {}
            other => wrong.push(format!("{file}: {other:?}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The error of importing a checkpoint of these bytes, none where it succeeds.
fn attempt(bytes: &[u8]) -> Option<String> {
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(folder().join("config.json"), copy.path().join("config.json")).unwrap();
    let path = copy.path().join("pytorch_model.bin");
    std::fs::write(&path, bytes).unwrap();
    imported(&path, None).err().map(|error| error.to_string())
}

/// A ZIP archive that stores `files` as they are.
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in files {
        let sizes = [(data.len() as u32).to_le_bytes(), (data.len() as u32).to_le_bytes()].concat();
        let lengths = [(name.len() as u16).to_le_bytes(), [0, 0]].concat();
        let common = [&[0; 12][..], &sizes, &lengths].concat();
        directory.extend([b"PK\x01\x02\0\0\0\0", &common[..2], &common[2..], &[0; 10], &(bytes.len() as u32).to_le_bytes()].concat());
        directory.extend(name.as_bytes());
        bytes.extend([b"PK\x03\x04\0\0", &common[..]].concat());
        bytes.extend([name.as_bytes(), data].concat());
    }
    let start = bytes.len() as u32;
    bytes.extend(&directory);
    let count = (files.len() as u16).to_le_bytes();
    bytes.extend(
        [b"PK\x05\x06\0\0\0\0", &count[..], &count, &(directory.len() as u32).to_le_bytes(), &start.to_le_bytes(), &[0, 0]].concat(),
    );
    bytes
}

/// A checkpoint whose pickle is `pickle`.
fn with_pickle(pickle: &[u8]) -> Vec<u8> {
    archive(&[("m/data.pkl", pickle), ("m/data/0", &[0; 24]), ("m/byteorder", b"little")])
}

#[test]
fn hostile_pickles_are_refused_in_a_sentence() {
    let deep = [&b"\x80\x02)"[..], &b"\x85".repeat(400_000), b"."].concat();
    let marks = [&b"\x80\x02"[..], &b"(".repeat(100_000), b"."].concat();
    let values = [&b"\x80\x02("[..], &b"}".repeat(1_000_000), b"t."].concat();
    let items =
        [&b"\x80\x02]q\x00("[..], &b"h\x00".repeat(400_000), b"e(", &b"h\x00".repeat(400_000), b"e(", &b"h\x00".repeat(400_000), b"e."]
            .concat();
    let cases: &[(&str, &[u8], &str)] = &[
        ("a call of the system", b"\x80\x02cos\nsystem\n(X\x04\x00\x00\x00truetR.", "`os.system`"),
        ("the same, by STACK_GLOBAL", b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "`os.system`"),
        ("evaluation", b"\x80\x02cbuiltins\neval\n(X\x01\x00\x00\x001tR.", "`builtins.eval`"),
        ("a storage class of another module", b"\x80\x02cevil\nFloatStorage\n.", "`evil.FloatStorage`"),
        ("a call of a text", b"\x80\x02X\x01\x00\x00\x00a)R.", "it calls a text"),
        ("an instance", b"\x80\x02cos\nsystem\n)\x81.", "`os.system`"),
        ("NEWOBJ of a known name", b"\x80\x02ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
        ("INST", b"\x80\x02(ios\nsystem\n.", "INST"),
        ("an extension", b"\x80\x02\x82\x01.", "EXT1"),
        ("an old protocol", b"(dp0\n.", "DICT"),
        ("a later protocol", b"\x80\x09.", "protocol 9"),
        ("nothing", b"", "ends in the middle"),
        ("no end", b"\x80\x02}", "ends in the middle"),
        ("an empty stack", b"\x80\x02.", "empty stack"),
        ("a mark that is not closed under a pop", b"\x80\x02}(sss.", "empty stack"),
        ("a text beyond the end", b"\x80\x02X\xff\xff\xff\xffa.", "ends in the middle"),
        ("a value never remembered", b"\x80\x02h\x05.", "never remembered"),
        ("no dictionary", b"\x80\x02K\x01.", "no dictionary"),
        ("a key that is no text", b"\x80\x02}K\x01K\x02s.", "no dictionary"),
        ("a dictionary in itself", b"\x80\x02}q\x00X\x0a\x00\x00\x00state_dicth\x00s.", "has no tensor"),
        ("deep nesting", &deep, "no dictionary"),
        ("many marks", &marks, "open tuples"),
        ("many values", &values, "values"),
        ("many items", &items, "items"),
    ];
    let mut wrong = Vec::new();
    for (what, pickle, expected) in cases {
        match attempt(&with_pickle(pickle)) {
            Some(error) if error.contains(expected) => {}
            other => wrong.push(format!("{what}: {other:?}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The pickle of `{"a": tensor}` with one storage of 6 f32 numbers.
fn one_tensor(offset: i32, shape: &[i32], strides: &[i32], numbers: i32) -> Vec<u8> {
    let int = |value: i32| [b"J", &value.to_le_bytes()[..]].concat();
    let ints = |values: &[i32]| [b"(", &values.iter().flat_map(|&value| int(value)).collect::<Vec<_>>()[..], b"t"].concat();
    let text = |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let storage = [b"(", &text("storage")[..], b"ctorch\nFloatStorage\n", &text("0"), &text("cpu"), &int(numbers), b"tQ"].concat();
    let arguments = [&b"("[..], &storage, &int(offset), &ints(shape), &ints(strides), b"\x89}t"].concat();
    [b"\x80\x02}", &text("a")[..], b"ctorch._utils\n_rebuild_tensor_v2\n", &arguments, b"Rs."].concat()
}

#[test]
fn tensors_outside_their_storage_are_refused() {
    // A sound tensor gets as far as the model's own tensors.
    let sound = "has no tensor `transformer.";
    let huge = i32::MAX;
    /// Offset, shape, strides, numbers of the storage, what the error says.
    type Case<'a> = (i32, &'a [i32], &'a [i32], i32, &'a str);
    let cases: &[Case] = &[
        (0, &[2, 3], &[3, 1], 6, sound),
        (5, &[1, 1], &[huge, huge], 6, sound),
        (6, &[0, 9], &[9, 1], 6, sound),
        (0, &[3, 2], &[1, 3], 6, sound),
        (0, &[], &[], 6, sound),
        (1, &[2, 3], &[3, 1], 6, "does not lie in its storage"),
        (0, &[2, 3], &[4, 1], 6, "does not lie in its storage"),
        (7, &[0], &[1], 6, "does not lie in its storage"),
        (0, &[huge, huge, huge, huge], &[huge, huge, huge, huge], 6, "does not lie in its storage"),
        (0, &[huge, huge], &[0, 0], 6, "repeats its 6 numbers"),
        (0, &[2, 3], &[3], 6, "has strides [3]"),
        (-1, &[2, 3], &[3, 1], 6, "cannot be negative"),
        (0, &[2, -3], &[3, 1], 6, "cannot be negative"),
        (0, &[2, 3], &[3, -1], 6, "cannot be negative"),
        (0, &[2, 3], &[3, 1], 7, "`data/0` has 24 bytes"),
        (0, &[1; 9], &[1; 9], 6, "at most 8"),
    ];
    let mut wrong = Vec::new();
    for &(offset, shape, strides, numbers, expected) in cases {
        match attempt(&with_pickle(&one_tensor(offset, shape, strides, numbers))) {
            Some(error) if error.contains(expected) => {}
            other => wrong.push(format!("{shape:?} {strides:?} at {offset}: {other:?}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn archives_that_lie_are_refused() {
    let sound = with_pickle(b"\x80\x02}.");
    let changed = |at: usize, value: u8| {
        let mut bytes = sound.clone();
        bytes[at] = value;
        bytes
    };
    let directory = sound.windows(4).position(|bytes| bytes == b"PK\x01\x02").unwrap();
    let end = sound.len() - 22;
    let order = archive(&[("m/data.pkl", b"\x80\x02}."), ("m/byteorder", b"big")]);
    let twice = archive(&[("m/data.pkl", b"\x80\x02}."), ("m/data.pkl", b"\x80\x02}.")]);
    let cases = [
        ("an empty file", Vec::new(), "empty"),
        ("text", b"hello".to_vec(), "no PyTorch checkpoint"),
        ("a cut file", sound[..sound.len() - 1].to_vec(), "cut off"),
        ("a compressed file", changed(directory + 10, 8), "compressed (method 8)"),
        ("an encrypted file", changed(directory + 8, 1), "encrypted"),
        ("another size", changed(directory + 24, 9), "stored"),
        ("a directory elsewhere", changed(end + 16, 1), "does not start as one"),
        ("a directory beyond the end", changed(end + 19, 1), "not inside the file"),
        ("fewer entries", changed(end + 10, 1), "after its 1 files"),
        ("more entries", changed(end + 10, 9), "cut off"),
        ("several disks", changed(end + 4, 1), "several disks"),
        ("a name that differs", changed(30, b'x'), "not where the directory says"),
        ("the other byte order", order, "byte order is `big`"),
        ("a file twice", twice, "twice"),
        ("no pickle", archive(&[("m/other", b"")]), "one data.pkl"),
    ];
    let mut wrong = Vec::new();
    for (what, bytes, expected) in cases {
        match attempt(&bytes) {
            Some(error) if error.contains(expected) => {}
            other => wrong.push(format!("{what}: {other:?}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn random_bytes_are_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(attempt(&bytes).is_some());
        prop_assert!(attempt(&[b"PK\x03\x04", &bytes[..]].concat()).is_some());
        prop_assert!(attempt(&with_pickle(&bytes)).is_some());
    }

    #[test]
    fn random_opcodes_are_no_panic(opcodes in prop::collection::vec(prop::sample::select(&b"\x80\x02(N\x88K\x8a)}]\x85\x86tasue\x94q\x00h\x01cRQbX\x01."[..]), 0..300)) {
        prop_assert!(attempt(&with_pickle(&opcodes)).is_some());
    }

    #[test]
    fn mutations_are_no_panic(
        name in prop::sample::select(vec!["state_dict.bin", "strided.bin", "training.pth", "protocol_4.bin", "old_names.bin", "torchscript.pt"]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        let mut bytes = std::fs::read(folder().join(name)).unwrap();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let _ = attempt(&bytes);
    }
}
