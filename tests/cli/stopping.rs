//! Ctrl-C.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::args;
use crate::support::{Place, SIZE, assert_none, end, signal, wait_until, world};

/// How long a person waits for a program that was told to stop, on a busy machine.
const QUICK: Duration = Duration::from_secs(5);

/// Sends SIGINT to a command once `started`, and says what was wrong with its end.
fn interrupt(place: &Place, arguments: &[OsString], started: impl Fn() -> bool) -> Vec<String> {
    let before = place.listing();
    let mut child = place.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    wait_until(&mut child, "the work", started);
    let asked = Instant::now();
    signal(&child, "INT");
    let said = end(child);
    let mut faults = said.faults(1, &["stopped before it was done"]);
    if asked.elapsed() > QUICK {
        faults.push(format!("it took {:?} to stop", asked.elapsed()));
    }
    faults.extend(place.changes(&before));
    faults
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none())
}

/// Whether a file of this name lies below the folder.
fn has_file(folder: &Path, name: &str) -> bool {
    fs::read_dir(folder).into_iter().flatten().flatten().any(|entry| {
        let path = entry.path();
        path.file_name().is_some_and(|found| found == name) || (path.is_dir() && has_file(&path, name))
    })
}

#[test]
fn ctrl_c_ends_a_training_and_leaves_nothing() {
    let (world, place) = (world(), Place::new());
    let mut train = args!["train", "--data", world.corpus, "-o", place.out("model.esp"), "--steps", "1000000"].to_vec();
    train.extend(SIZE.map(OsString::from));
    let scratch = place.path("scratch");
    assert_none(interrupt(&place, &train, || !is_empty(&scratch)));
}

#[test]
fn ctrl_c_ends_the_measuring_of_a_trained_model_and_leaves_nothing() {
    let (world, place) = (world(), Place::new());
    let mut train = args!["train", "--data", world.corpus, "-o", place.out("model.esp"), "--steps", "1"].to_vec();
    // Large enough that its holdout takes a while.
    train.extend(args!["--layers", "12", "--width", "512", "--heads", "8", "--channels", "2048", "--batch", "1"]);
    let out = place.path("out");
    assert_none(interrupt(&place, &train, || has_artifact(&out)));
}

fn has_artifact(folder: &Path) -> bool {
    let is_artifact = |path: &Path| path.extension().is_some_and(|extension| extension == "esp");
    fs::read_dir(folder).into_iter().flatten().flatten().any(|entry| {
        let path = entry.path();
        is_artifact(&path) || (path.is_dir() && has_artifact(&path))
    })
}

#[test]
fn ctrl_c_ends_a_pruning_and_leaves_nothing() {
    let (world, place) = (world(), Place::new());
    let mut prune = args!["prune", world.model, "-o", place.out("small.esp"), "--data", world.corpus, "--ratio", "2"].to_vec();
    prune.extend(args!["--keep", "2,2,16", "--steps", "1000000,2,2"]);
    let out = place.path("out");
    // The first stage's cut is written before its recovery begins.
    assert_none(interrupt(&place, &prune, || has_file(&out, "layers-cut.esp")));
}

#[test]
fn ctrl_c_ends_a_run_well() {
    let (world, place) = (world(), Place::new());
    let run = args!["run", world.model, "--source", world.corpus, "--repeat", "--pace", "20", "--store", place.out("store")];
    let mut child = place.command(&run).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let store = place.out("store").join("factory.esp");
    wait_until(&mut child, "the store", || store.exists());
    std::thread::sleep(Duration::from_millis(300));
    let asked = Instant::now();
    signal(&child, "INT");
    let said = end(child);
    assert!(asked.elapsed() < QUICK, "it took {:?} to stop", asked.elapsed());
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stderr.contains("every sequence number accounted for"), "{}", said.stderr);
}
