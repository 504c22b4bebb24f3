//! Recordings and splits that cannot be used, and models of another kind.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::args;
use crate::support::{Place, SIZE, assert_none, copy_files, fixture, world};

/// A copy of the corpus in which every recording whose name contains `which` holds `value` alone.
fn corpus_with(place: &Place, name: &str, which: &str, value: f32) -> PathBuf {
    let folder = place.path(name);
    copy_files(&world().corpus, &folder);
    let mut changed = 0;
    for entry in fs::read_dir(&folder).expect("the corpus") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".npy") && name.contains(which) {
            let mut bytes = fs::read(&path).expect("a recording");
            // A NumPy header of version 1: 10 bytes and as many as bytes 8 and 9 say.
            let header = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
            bytes[header..].chunks_exact_mut(4).for_each(|sample| sample.copy_from_slice(&value.to_le_bytes()));
            fs::write(&path, bytes).expect("a recording");
            changed += 1;
        }
    }
    assert!(changed > 0, "no recording is named like {which}");
    folder
}

/// A WAV file of 16-bit samples, a sine with a little noise.
fn write_wav(path: &Path, rate_hz: u32, samples: u32) {
    let mut bytes = Vec::new();
    bytes.extend(b"RIFF");
    bytes.extend((36 + 2 * samples).to_le_bytes());
    bytes.extend(b"WAVEfmt \x10\0\0\0\x01\0\x01\0");
    bytes.extend(rate_hz.to_le_bytes());
    bytes.extend((2 * rate_hz).to_le_bytes());
    bytes.extend(b"\x02\0\x10\0data");
    bytes.extend((2 * samples).to_le_bytes());
    bytes.extend((0..samples).flat_map(|index| ((8000.0 * (index as f32 * 0.37).sin()) as i16 + (index * 97 % 501) as i16).to_le_bytes()));
    fs::write(path, bytes).expect("a WAV file");
}

/// A corpus of a folder a class.
fn generic_corpus(root: &Path, classes: &[&str], rate_hz: u32, recordings: usize) {
    for class in classes {
        let folder = root.join(class);
        fs::create_dir_all(&folder).expect("a folder");
        (0..recordings).for_each(|index| write_wav(&folder.join(format!("{index}.wav")), rate_hz, 12_000));
    }
}

fn train(place: &Place, data: &Path) -> Vec<OsString> {
    let mut arguments = args!["train", "--data", data, "-o", place.out("model.esp"), "--steps", "3"].to_vec();
    arguments.extend(SIZE.map(OsString::from));
    arguments
}

#[test]
fn recordings_of_a_dead_or_broken_sensor_are_named() {
    let place = Place::new();
    let constant = corpus_with(&place, "constant", "train02-IR", 0.25);
    let broken = corpus_with(&place, "broken", "train01-B", f32::NAN);
    let infinite = corpus_with(&place, "infinite", "train01-OR", f32::INFINITY);
    let mut faults =
        place.refuse(train(&place, &constant), 1, &["sim-train02-IR.npy", "sample 0", "all its samples are the same", "check the sensor"]);
    faults.extend(place.refuse(train(&place, &broken), 1, &["sim-train01-B.npy", "sample 0", "not a finite number"]));
    faults.extend(place.refuse(train(&place, &infinite), 1, &["sim-train01-OR.npy", "sample 0", "not a finite number"]));
    let prune = args!["prune", world().model, "-o", place.out("small.esp"), "--data", broken, "--ratio", "2"];
    faults.extend(place.refuse(prune, 1, &["sim-train01-B.npy", "sample 0", "not a finite number"]));
    assert_none(faults);
}

#[test]
fn a_split_without_a_class_is_refused() {
    let place = Place::new();
    let one_side = place.path("one-side");
    generic_corpus(&one_side.join("train"), &["N", "B"], 12_000, 2);
    generic_corpus(&one_side.join("test"), &["N"], 12_000, 1);
    let single = place.path("single");
    generic_corpus(&single, &["N", "B"], 12_000, 1);
    let one_class = place.path("one-class");
    generic_corpus(&one_class, &["N"], 12_000, 3);
    let mut faults = place.refuse(train(&place, &one_side), 1, &["class B has no recording for test", "add recordings"]);
    faults.extend(place.refuse(train(&place, &single), 1, &["has no recording for test", "add recordings"]));
    faults.extend(place.refuse(train(&place, &one_class), 1, &["one class only", "telling classes apart takes two"]));
    assert_none(faults);
}

#[test]
fn folders_that_are_no_corpus_are_refused() {
    let (world, place) = (world(), Place::new());
    let empty = place.path("empty");
    fs::create_dir(&empty).expect("a folder");
    let short = place.path("short");
    generic_corpus(&short, &["N", "B"], 12_000, 2);
    write_wav(&short.join("N/0.wav"), 12_000, 3000);
    let rates = place.path("rates");
    generic_corpus(&rates, &["N", "B"], 12_000, 2);
    generic_corpus(&rates, &["OR"], 48_000, 2);
    let mut faults = place.refuse(train(&place, &empty), 1, &["not a folder of recordings", "corpus.json", "one folder per class"]);
    faults.extend(place.refuse(train(&place, &place.path("nowhere")), 1, &["nowhere", "No such file", "check that the path exists"]));
    faults.extend(place.refuse(train(&place, &world.model), 1, &["model.esp", "Not a directory"]));
    faults.extend(place.refuse(train(&place, &short), 1, &["0.wav", "3000 samples", "at least 10240", "record longer"]));
    faults.extend(place.refuse(train(&place, &rates), 2, &["12000 Hz", "48000 Hz", "train on recordings of one rate"]));
    assert_none(faults);
}

#[test]
fn a_split_that_does_not_exist_or_fit_is_refused() {
    let (world, place) = (world(), Place::new());
    let eval = |split: &str| args!["eval", world.model, "--data", world.corpus, "--split", split];
    let mut faults = place.refuse(eval("uestc-warp:9"), 2, &["`uestc-warp:9` is not known", "cwru-load", "simulated"]);
    faults.extend(place.refuse(eval("cwru-load"), 2, &["`cwru-load` does not fit", "SIMULATED", "use one of: simulated"]));
    let without = args!["eval", world.model, "--data", world.corpus, "--without", "X"];
    faults.extend(place.refuse(without, 2, &["the class `X` does not exist", "the classes are"]));
    assert_none(faults);
}

#[test]
fn a_model_of_other_classes_is_refused() {
    let (world, place) = (world(), Place::new());
    let other = place.path("other");
    generic_corpus(&other, &["good", "bad"], 12_000, 2);
    let words = ["N, B, IR, OR", "bad, good", "choose the split it was trained for"];
    let mut faults = place.refuse(args!["eval", world.model, "--data", other], 2, &words);
    let prune = args!["prune", world.model, "-o", place.out("small.esp"), "--data", other, "--ratio", "2"];
    faults.extend(place.refuse(prune, 2, &words));
    assert_none(faults);
}

#[test]
fn a_stream_of_another_rate_is_refused() {
    let (world, place) = (world(), Place::new());
    let wav = place.path("slow.wav");
    write_wav(&wav, 8_000, 20_000);
    let run = args!["run", world.model, "--source", wav, "--store", place.out("store")];
    assert_none(place.refuse(run, 1, &["slow.wav", "8000 Hz", "12000 Hz", "record at that rate"]));
    let run = args!["run", world.model, "--source", place.path("nowhere.wav"), "--store", place.out("store")];
    assert_none(place.refuse(run, 1, &["nowhere.wav", "No such file"]));
}

#[test]
fn a_language_model_is_no_signal_model_and_the_reverse() {
    let (world, place) = (world(), Place::new());
    let out = place.out("small.esp");
    let mut faults = Vec::new();
    let mut refuse = |arguments: &[OsString], code: i32, words: &[&str]| {
        let what = arguments[0].to_string_lossy().into_owned();
        faults.extend(place.refuse(arguments, code, words).into_iter().map(|fault| format!("{what}: {fault}")));
    };
    let language = ["gpt2.esp", "is a language model"];
    refuse(&args!["run", world.gpt2, "--source", world.corpus, "--store", place.out("store")], 2, &language);
    refuse(&args!["eval", world.gpt2, "--data", world.corpus], 2, &["gpt2.esp", "no tokenizer", "reads no prompt"]);
    refuse(&args!["prune", world.gpt2, "-o", out, "--data", world.corpus, "--ratio", "2"], 2, &language);
    refuse(&args!["generate", world.model, "1 2 3"], 2, &["model.esp", "is a signal model", "espalier run"]);
    refuse(&args!["eval", world.model, "--data", world.corpus, "--reference", world.gpt2], 2, &language);
    assert_none(faults);
}

#[test]
fn an_output_that_cannot_be_written_is_refused_first() {
    let (world, place) = (world(), Place::new());
    let missing = place.out("missing/model.esp");
    let folder = place.path("folder");
    fs::create_dir(&folder).expect("a folder");
    let used = place.path("used");
    fs::create_dir(&used).expect("a folder");
    fs::write(used.join("notes.txt"), "mine").expect("a file");
    let mut faults = Vec::new();
    let mut refuse = |arguments: &[OsString], code: i32, words: &[&str]| {
        let what = arguments[0].to_string_lossy().into_owned();
        faults.extend(place.refuse(arguments, code, words).into_iter().map(|fault| format!("{what}: {fault}")));
    };
    let words = ["missing/model.esp cannot be written", "does not exist", "make it first"];
    for (output, words) in [(&missing, &words[..]), (&folder, &["is a folder", "such as model.esp"])] {
        refuse(&args!["train", "--data", world.corpus, "-o", output, "--steps", "2"], 2, words);
        refuse(&args!["import", fixture("gpt2"), "-o", output], 2, words);
        refuse(&args!["prune", world.model, "-o", output, "--data", world.corpus, "--ratio", "2"], 2, words);
    }
    refuse(&args!["export", world.model, "--safetensors", used], 1, &["used", "empty"]);
    assert_none(faults);
}

#[test]
fn a_checkpoint_that_cannot_be_imported_is_refused() {
    let place = Place::new();
    let import = |source: &Path| args!["import", source, "-o", place.out("model.esp")];
    let empty = place.path("empty");
    fs::create_dir(&empty).expect("a folder");
    let unknown = place.path("unknown");
    copy_files(&fixture("gpt2"), &unknown);
    fs::write(unknown.join("config.json"), r#"{"model_type": "bert"}"#).expect("a config");
    let broken = place.path("broken");
    copy_files(&fixture("gpt2"), &broken);
    fs::write(broken.join("model.safetensors"), b"not safetensors at all").expect("a file");
    let no_json = place.path("no-json");
    copy_files(&fixture("gpt2"), &no_json);
    fs::write(no_json.join("config.json"), "{\"model_type\": ").expect("a config");
    let mut faults = place.refuse(import(&place.path("nowhere")), 1, &["nowhere", "No such file"]);
    faults.extend(place.refuse(import(&empty), 1, &["config.json"]));
    faults.extend(place.refuse(import(&unknown), 1, &["config.json", "model_type", "bert"]));
    faults.extend(place.refuse(import(&broken), 1, &["model.safetensors"]));
    faults.extend(place.refuse(import(&no_json), 1, &["config.json", "line 1"]));
    assert_none(faults);
}
