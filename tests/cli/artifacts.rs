//! Files that are no artifact, or no longer one.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use espalier_agent::signal_model::{SignalSize, dense_manifest};
use espalier_models::tensor::model_tensors;
use espalier_models::{Artifact, ArtifactWriter, DType};

use crate::args;
use crate::support::{Place, assert_none, world};

/// What is wrong with a file, how it is made from a good artifact's bytes, and words of the sentence.
type BadFile = (&'static str, fn(&[u8]) -> Vec<u8>, &'static [&'static str]);

const BAD_FILES: [BadFile; 7] = [
    ("empty.esp", |_| Vec::new(), &["is not an Espalier artifact", "give a .esp file"]),
    ("text.esp", |_| b"# My notes\n".to_vec(), &["is not an Espalier artifact"]),
    ("magic.esp", |good| [b"\x7fELF", &good[4..]].concat(), &["is not an Espalier artifact", "magic"]),
    ("header.esp", |good| good[..40].to_vec(), &["is damaged", "ends after 40 bytes", "copy it again"]),
    ("half.esp", |good| good[..good.len() / 2].to_vec(), &["is damaged", "bytes where", "were written"]),
    ("longer.esp", |good| [good, &[0]].concat(), &["is damaged", "bytes where", "were written"]),
    ("newer.esp", newer, &["format version 3", "versions up to 2", "update the program"]),
];

fn newer(good: &[u8]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    bytes[8..12].copy_from_slice(&3u32.to_le_bytes());
    bytes
}

#[test]
fn every_command_refuses_a_file_that_is_no_artifact() {
    let (world, place) = (world(), Place::new());
    let good = fs::read(&world.model).expect("the model");
    let mut faults = Vec::new();
    let mut refuse = |path: &Path, words: &[&str]| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let out = place.out("model.esp");
        let commands = [
            args!["inspect", path].to_vec(),
            args!["check", path].to_vec(),
            args!["bench", path].to_vec(),
            args!["export", path, "--safetensors", place.out("checkpoint")].to_vec(),
            args!["eval", path, "--data", world.corpus].to_vec(),
            args!["prune", path, "-o", out, "--data", world.corpus, "--ratio", "2"].to_vec(),
            args!["run", path, "--source", world.corpus, "--store", place.out("store")].to_vec(),
            args!["generate", path, "1 2 3"].to_vec(),
        ];
        for command in commands {
            let what = command[0].to_string_lossy().into_owned();
            let named = [words, &[name.as_str()]].concat();
            faults.extend(place.refuse(command, 1, &named).into_iter().map(|fault| format!("{what} {name}: {fault}")));
        }
    };
    for (name, make, words) in BAD_FILES {
        let path = place.path(name);
        fs::write(&path, make(&good)).expect("a bad file");
        refuse(&path, words);
    }
    refuse(&place.path("missing.esp"), &["No such file", "check the path"]);
    let folder = place.path("folder.esp");
    fs::create_dir(&folder).expect("a folder");
    refuse(&folder, &["is not an Espalier artifact"]);
    assert_none(faults);
}

/// The smallest classifier that can be: its artifact is one page of header and manifest and about one of numbers.
fn tiny_artifact(path: &Path) {
    let size = SignalSize { layers: 1, width: 4, heads: 1, channels: 3, window: 16, patch: 8, stride: 8 };
    let architecture = size.architecture(&["N".to_string(), "B".to_string()], 12_000.0).expect("a size that can be");
    let shape = size.shape();
    let manifest = dense_manifest("tiny", architecture.clone(), &shape, "made by a test".into(), None);
    let mut writer = ArtifactWriter::create(path, manifest, DType::F32).expect("a writer");
    for spec in model_tensors(&architecture, &shape) {
        let numbers: Vec<f32> = (0..spec.rows * spec.columns).map(|index| (index as f32 + 0.5).sin()).collect();
        writer.write_rows(spec.key, &numbers).expect("rows");
    }
    writer.finish().expect("an artifact");
}

#[test]
fn every_flipped_bit_is_found() {
    let place = Place::new();
    let path = place.path("tiny.esp");
    tiny_artifact(&path);
    let good = fs::read(&path).expect("the artifact");
    let file = fs::OpenOptions::new().write(true).open(&path).expect("the artifact");
    let mut missed = Vec::new();
    for bit in 0..good.len() * 8 {
        let (byte, mask) = (bit / 8, 1u8 << (bit % 8));
        file.write_all_at(&[good[byte] ^ mask], byte as u64).expect("a write");
        if Artifact::open(&path).and_then(|artifact| artifact.verify()).is_ok() {
            missed.push(format!("bit {bit}"));
        }
        file.write_all_at(&[good[byte]], byte as u64).expect("a write");
    }
    assert_none(missed);
    Artifact::open(&path).and_then(|artifact| artifact.verify()).expect("the artifact as it was written");
}

#[test]
fn inspect_verify_names_what_is_damaged() {
    let (world, place) = (world(), Place::new());
    let good = fs::read(&world.model).expect("the model");
    let path = place.path("flipped.esp");
    let mut faults = Vec::new();
    // In the header, the manifest, the zeros before the data, the first tensor and the last.
    for byte in [17, 80, 4090, 4096, good.len() / 2, good.len() - 5] {
        let mut bytes = good.clone();
        bytes[byte] ^= 4;
        fs::write(&path, bytes).expect("a damaged copy");
        let words = ["flipped.esp is damaged", "copy it again"];
        faults.extend(place.refuse(args!["inspect", "--verify", path], 1, &words).into_iter().map(|fault| format!("byte {byte}: {fault}")));
    }
    assert_none(faults);
}
