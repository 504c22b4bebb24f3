//! `run`: live sources, standard input, restarts.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use espalier_models::Artifact;
use serde_json::Value;

use crate::args;
use crate::support::{Place, Said, assert_none, end, signal, world};

/// Samples of a window of the model.
const WINDOW: usize = 2048;

/// Raw little-endian f32 samples: `windows` windows of a signal that is nothing in particular.
fn samples(windows: usize) -> Vec<f32> {
    (0..windows * WINDOW).map(|index| (index as f32 * 0.31).sin() + (index * 7919 % 613) as f32 / 613.0).collect()
}

fn write_raw(path: &Path, samples: &[f32]) {
    fs::write(path, samples.iter().flat_map(|sample| sample.to_le_bytes()).collect::<Vec<u8>>()).expect("raw samples");
}

/// The verdicts, each line a JSON object.
fn verdicts(said: &Said) -> Vec<Value> {
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in: {line}"));
    said.stdout.lines().map(parse).collect()
}

fn sequence(verdict: &Value) -> u64 {
    verdict["sequence"].as_u64().expect("a sequence number")
}

/// The number in front of a word of the summary; 0 where the summary does not have it.
fn summary(said: &Said, word: &str) -> u64 {
    let line = said.stderr.lines().find(|line| line.contains(" windows: ")).unwrap_or_else(|| panic!("no summary in: {}", said.stderr));
    let words: Vec<&str> = line.split([' ', ',', ':', ';']).filter(|word| !word.is_empty()).collect();
    words.windows(2).find(|pair| pair[1] == word).and_then(|pair| pair[0].parse().ok()).unwrap_or(0)
}

#[test]
fn a_source_faster_than_the_engine_loses_windows_and_counts_every_one() {
    let (world, place) = (world(), Place::new());
    let source = place.path("long.f32");
    write_raw(&source, &samples(600));
    let said = place.succeed(args!["run", world.model, "--source", source, "--pace", "80000", "--store", place.out("store")]);
    let verdicts = verdicts(&said);
    let (mut next, mut gaps) = (0, 0);
    for verdict in &verdicts {
        assert!(sequence(verdict) >= next, "{verdict} after {next}");
        gaps += sequence(verdict) - next;
        next = sequence(verdict) + 1;
        let total: f64 = verdict["probabilities"].as_array().expect("probabilities").iter().filter_map(Value::as_f64).sum();
        assert!((total - 1.0).abs() < 1e-4, "{verdict}");
    }
    let produced = summary(&said, "windows");
    assert_eq!(produced, 600, "{}", said.stderr);
    gaps += produced - next;
    assert!(gaps > 0, "the source was not too fast: {}", said.stderr);
    assert_eq!((summary(&said, "dropped"), summary(&said, "judged")), (gaps, verdicts.len() as u64), "{}", said.stderr);
    assert!(said.stderr.contains("every sequence number accounted for"), "{}", said.stderr);
    assert!(said.stderr.contains(&format!("missing {gaps}, repeated 0")), "{}", said.stderr);
}

#[test]
fn a_pace_that_cannot_be_is_refused() {
    let (world, place) = (world(), Place::new());
    let mut faults = Vec::new();
    for pace in ["0", "-1", "NaN", "1e9"] {
        let run = args!["run", world.model, "--source", world.corpus, &format!("--pace={pace}"), "--store", place.out("store")];
        faults.extend(place.refuse(run, 2, &["a pace of", "is not possible", "samples a second"]));
    }
    assert_none(faults);
}

#[test]
fn a_file_is_judged_window_by_window() {
    let (world, place) = (world(), Place::new());
    let said = place.succeed(args!["run", world.model, "--source", world.corpus, "--store", place.out("store")]);
    let verdicts = verdicts(&said);
    assert!(verdicts.iter().enumerate().all(|(index, verdict)| sequence(verdict) == index as u64), "{}", said.stdout);
    let classes = ["N", "B", "IR", "OR"].map(Value::from);
    assert!(verdicts.iter().all(|verdict| classes.contains(&verdict["class"]) && classes.contains(&verdict["label"])), "{}", said.stdout);
    let id = format!("{:016x}", Artifact::open(&world.model).expect("the model").id());
    assert!(verdicts.iter().all(|verdict| verdict["model"] == id.as_str()), "{}", said.stdout);
    assert_eq!((summary(&said, "windows"), summary(&said, "dropped")), (verdicts.len() as u64, 0), "{}", said.stderr);
}

/// `run -` with a file as standard input.
fn run_stdin(place: &Place, bytes: &[u8]) -> Said {
    let path = place.path("stdin.f32");
    fs::write(&path, bytes).expect("raw samples");
    let mut command = place.command(args!["run", world().model, "--source", "-", "--store", place.out("store")]);
    command.stdin(File::open(path).expect("raw samples")).stdout(Stdio::piped()).stderr(Stdio::piped());
    end(command.spawn().expect("the program starts"))
}

#[test]
fn standard_input_is_judged_as_the_same_samples_in_a_file_are() {
    let (world, place) = (world(), Place::new());
    let mut samples = samples(7);
    // Windows 2 and 4: a dead sensor, and one bad sample.
    samples[2 * WINDOW..3 * WINDOW].fill(1.5);
    samples[4 * WINDOW + 9] = f32::NAN;
    let source = place.path("samples.f32");
    write_raw(&source, &samples);
    let piped = run_stdin(&place, &fs::read(&source).expect("raw samples"));
    assert_eq!(piped.code, Some(0), "{}", piped.stderr);
    let filed = place.succeed(args!["run", world.model, "--source", source, "--store", place.out("store")]);
    let said = |said: &Said| -> Vec<(Value, Value)> {
        verdicts(said).into_iter().map(|verdict| (verdict["state"].clone(), verdict["probabilities"].clone())).collect()
    };
    assert_eq!(said(&piped), said(&filed));
    let states: Vec<Value> = said(&piped).into_iter().map(|(state, _)| state).collect();
    let expected = ["verdict", "verdict", "unusable", "verdict", "unusable", "verdict", "verdict"];
    assert_eq!(states, expected.map(Value::from));
    assert_eq!((summary(&piped, "judged"), summary(&piped, "unusable")), (5, 2), "{}", piped.stderr);
    assert_eq!(verdicts(&piped)[4]["sample"], 9);
}

#[test]
fn standard_input_that_ends_inside_a_sample_is_an_error() {
    let place = Place::new();
    let mut bytes: Vec<u8> = samples(1).iter().flat_map(|sample| sample.to_le_bytes()).collect();
    bytes.extend([1, 2, 3]);
    let said = run_stdin(&place, &bytes);
    assert_none(said.faults(1, &["standard input", "3 bytes at the end", "whole samples of 4 bytes"]));
    assert_eq!(verdicts(&said).len(), 1, "the whole window before it is judged");
}

#[test]
fn standard_input_beside_files_is_a_usage_error() {
    let (world, place) = (world(), Place::new());
    let run = args!["run", world.model, "--source", "-", "--source", world.corpus, "--store", place.out("store")];
    assert_none(place.refuse(run, 2, &["standard input", "cannot be mixed with files"]));
}

#[test]
fn a_node_that_is_killed_serves_the_same_model_again() {
    let (world, place) = (world(), Place::new());
    let store = place.out("store");
    let serve = args!["run", world.model, "--source", world.corpus, "--store", store];
    let mut killed = place.command(serve.iter().chain(&args!["--repeat", "--pace", "50"]));
    let mut killed = killed.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the program starts");
    let mut lines = BufReader::new(killed.stdout.take().expect("its output")).lines();
    let first: Value = serde_json::from_str(&lines.next().expect("a line").expect("a line")).expect("JSON");
    signal(&killed, "KILL");
    assert_eq!(killed.wait().expect("its status").code(), None);
    let said = place.succeed(&serve);
    let verdicts = verdicts(&said);
    assert!(!verdicts.is_empty() && verdicts.iter().all(|verdict| verdict["model"] == first["model"]), "{first} and then {}", said.stdout);
}

#[test]
fn a_node_over_its_budget_prunes_itself_while_it_serves_and_keeps_the_result_over_a_kill() {
    let (world, place) = (world(), Place::new());
    let (model, store) = (place.path("dense.esp"), place.out("store"));
    let train = args!["train", "--data", world.corpus, "-o", model, "--layers", "4", "--width", "128", "--heads", "8", "--channels", "512"];
    place.succeed(train.iter().chain(&args!["--steps", "4"]));
    let serve = args!["run", model, "--source", world.corpus, "--store", store];
    // Serving it dense holds 5.3 MiB.
    let budget = args!["--budget", "3600KiB", "--limit", "24MiB", "--data", world.corpus, "--steps", "3,3,3", "--max-drop", "100"];
    let mut command = place.command(serve.iter().chain(&budget).chain(&args!["--repeat", "--pace", "10", "-v"]));
    let mut node = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let verdicts = node.stdout.take().expect("its output");
    let verdicts = std::thread::spawn(move || BufReader::new(verdicts).lines().map_while(Result::ok).collect::<Vec<String>>());
    let said = BufReader::new(node.stderr.take().expect("its messages")).lines().map_while(Result::ok);
    let told: Vec<String> = said.take_while(|line| !line.contains("committed to slot")).collect();
    signal(&node, "KILL");
    assert_eq!(node.wait().expect("its status").code(), None, "{told:?}");

    // The line that the kill cut short is no verdict.
    let verdicts: Vec<Value> = verdicts.join().expect("the reader").iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert!(verdicts.iter().enumerate().all(|(index, verdict)| sequence(verdict) == index as u64), "a window was lost in the swap");
    let mut models: Vec<&Value> = verdicts.iter().map(|verdict| &verdict["model"]).collect();
    models.dedup();
    assert_eq!(models.len(), 2, "{models:?} after {told:?}");
    let dense = Artifact::open(&model).expect("the dense model");
    assert_eq!(models[0], format!("{:016x}", dense.id()).as_str());

    let again = place.succeed(&serve);
    let served = self::verdicts(&again);
    assert!(!served.is_empty() && served.iter().all(|verdict| verdict["model"] == *models[1]), "{}", again.stdout);
    let pruned = Artifact::open(&store.join("slot-a.esp")).expect("the pruned model");
    pruned.verify().expect("the pruned model");
    assert!(pruned.file_bytes() < dense.file_bytes() / 2, "{} of {}", pruned.file_bytes(), dense.file_bytes());
}

/// Cuts the end of an artifact off.
fn shorten(artifact: &Path, bytes: u64) {
    let length = fs::metadata(artifact).expect("the artifact").len();
    File::options().write(true).open(artifact).and_then(|file| file.set_len(length - bytes)).expect("a shorter file");
}

#[test]
fn a_node_that_loses_its_pruned_model_serves_the_factory_artifact_again() {
    let (world, place) = (world(), Place::new());
    let (model, store) = (place.path("dense.esp"), place.out("store"));
    let train = args!["train", "--data", world.corpus, "-o", model, "--layers", "4", "--width", "128", "--heads", "8", "--channels", "512"];
    place.succeed(train.iter().chain(&args!["--steps", "4"]));
    let serve = args!["run", model, "--source", world.corpus, "--store", store, "--engine", "cpu", "--repeat", "--pace", "10", "-v"];
    let budget = args!["--budget", "3600KiB", "--limit", "24MiB", "--data", world.corpus, "--steps", "3,3,3", "--max-drop", "100"];
    let mut node = place.command(serve.iter().chain(&budget)).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program");
    let mut said = BufReader::new(node.stderr.take().expect("its messages")).lines().map_while(Result::ok);
    let told = std::thread::spawn(move || {
        let mut told: Vec<String> = said.by_ref().take_while(|line| !line.contains("committed to slot")).collect();
        let slot = store.join("slot-a.esp");
        shorten(&slot, fs::metadata(&slot).expect("the pruned model").len() / 2);
        told.extend(said);
        told
    });
    let dense = Value::from(format!("{:016x}", Artifact::open(&model).expect("the dense model").id()));
    let lines = BufReader::new(node.stdout.take().expect("its output")).lines().map_while(Result::ok);
    let (mut next, mut models) = (0, Vec::<Value>::new());
    // Dense, pruned, and dense again.
    for line in lines {
        let verdict: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in: {line}"));
        assert_eq!(sequence(&verdict), next, "a window was lost after {models:?}");
        next += 1;
        let another = models.last() != Some(&verdict["model"]);
        if another {
            models.push(verdict["model"].clone());
        }
        let served = verdict["state"] == "verdict";
        if !served || another && models.len() == 3 {
            signal(&node, "TERM");
        }
        assert!(served, "{verdict} after {models:?}");
    }
    let code = node.wait().expect("its status").code();
    let told = told.join().expect("the reader");
    assert!(models.len() == 3 && models[0] == dense && models[1] != dense && models[2] == dense, "{models:?} {told:?}");
    assert_eq!(code, Some(0), "{told:?}");
    assert!(told.iter().any(|line| line.contains("slot-a.esp cannot be read any more")), "{told:?}");
}

#[test]
fn a_node_whose_only_artifact_is_lost_says_so() {
    let (world, place) = (world(), Place::new());
    let mut faults = Vec::new();
    // Half of the file, and a few bytes of its last page, for which the system gives zeros and no signal.
    for share in [2, 300] {
        let (model, store) = (place.path("model.esp"), place.out(&format!("store-{share}")));
        fs::copy(&world.model, &model).expect("a copy");
        let serve = args!["run", model, "--source", world.corpus, "--store", store, "--engine", "cpu", "--repeat", "--pace", "5", "-v"];
        let mut node = place.command(serve).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
        let mut said = BufReader::new(node.stderr.take().expect("its messages")).lines().map_while(Result::ok);
        let mut verdicts = BufReader::new(node.stdout.take().expect("its output")).lines();
        verdicts.next().expect("a verdict").expect("a verdict");
        let factory = store.join("factory.esp");
        shorten(&factory, fs::metadata(&factory).expect("the factory artifact").len() / share);
        let mut told: Vec<String> = said.by_ref().take_while(|line| !line.contains("cannot serve")).collect();
        signal(&node, "TERM");
        let rest = std::thread::spawn(move || said.collect::<Vec<String>>());
        verdicts.map_while(Result::ok).for_each(drop);
        let code = node.wait().expect("its status").code();
        told.extend(rest.join().expect("the reader"));
        let has = |part: &str| told.iter().any(|line| line.contains(part));
        if code != Some(1) || !has("factory.esp cannot be read any more") || !has("no engine serves any more") {
            faults.push(format!("shorter by a share of {share}: {code:?}, {told:?}"));
        }
    }
    assert_none(faults);
}

#[test]
fn a_folder_for_the_store_may_be_there_already() {
    let (world, place) = (world(), Place::new());
    let store = place.out("store");
    fs::create_dir(&store).expect("a folder");
    let serve = args!["run", world.model, "--source", world.corpus, "--store", store];
    place.succeed(&serve);
    // Where the program was cut off while the store was made, only the journal is there.
    fs::remove_file(store.join("factory.esp")).expect("the factory artifact");
    fs::write(store.join("factory.esp.tmp"), b"half of a copy").expect("a leftover");
    place.succeed(&serve);
    place.succeed(args!["inspect", "--verify", store.join("factory.esp")]);
    let foreign = place.path("foreign");
    fs::create_dir(&foreign).expect("a folder");
    fs::write(foreign.join("notes.tmp"), "mine").expect("a file");
    let run = args!["run", world.model, "--source", world.corpus, "--store", foreign];
    assert_none(place.refuse(run, 1, &["foreign holds no model store"]));
}

#[test]
fn a_store_of_another_model_is_refused() {
    let (world, place) = (world(), Place::new());
    let (store, other) = (place.out("store"), place.out("other.esp"));
    place.succeed(args!["run", world.model, "--source", world.corpus, "--store", store]);
    place.succeed(args!["prune", world.model, "-o", other, "--data", world.corpus, "--ratio", "2", "--steps", "0,0,0"]);
    let run = args!["run", other, "--source", world.corpus, "--store", store];
    assert_none(place.refuse(run, 2, &["other.esp is another model", "--store"]));
}
