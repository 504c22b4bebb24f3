//! The whole way of a model on a CUDA device.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use espalier_models::Artifact;
use serde_json::Value;

use super::choice::{emulate, run_on};
use crate::args;
use crate::device::emulator_folder;
use crate::support::{Place, SIZE, Said, signal, world};

fn succeed(said: Said) -> Said {
    assert_eq!(said.code, Some(0), "{}\n{}", said.stdout, said.stderr);
    said
}

#[test]
fn cuda_trains_and_prunes_a_small_model_from_start_to_end() {
    let Some(folder) = emulator_folder() else { return };
    let (world, place) = (world(), Place::new());
    let (dense, pruned) = (place.out("dense.esp"), place.out("pruned.esp"));
    let train = args!["train", "--data", world.corpus, "-o", dense, "--engine", "cuda", "--steps", "6", "--batch", "8", "-v"];
    let said = succeed(run_on(&place, &folder, "", train.into_iter().chain(SIZE.map(Into::into))));
    assert!(said.stderr.contains("engine cuda: "), "{}", said.stderr);
    let prune = args!["prune", dense, "-o", pruned, "--data", world.corpus, "--ratio", "2", "--steps", "2,2,2", "--windows", "16"];
    let prune = prune.into_iter().chain(args!["--batch", "8", "--engine", "cuda", "--json"]);
    let said = succeed(run_on(&place, &folder, "", prune)).json();
    assert!(said["compression_ratio"].as_f64().is_some_and(|ratio| ratio >= 2.0), "{said}");
    assert_eq!(said["stages"].as_array().map(Vec::len), Some(3), "{said}");
    Artifact::open(&pruned).expect("the pruned model").verify().expect("the pruned model");
    // Both engines say the same of it.
    let eval = args!["eval", pruned, "--data", world.corpus, "--json", "--engine"];
    let on = |engine: &str| succeed(run_on(&place, &folder, "", eval.clone().into_iter().chain([engine.into()]))).json();
    let (cuda, cpu) = (on("cuda"), on("cpu"));
    let of = |value: &Value, field: &str| value[0][field].as_f64().unwrap_or(f64::NAN);
    let (loss, expected) = (of(&cuda, "cross_entropy_nats"), of(&cpu, "cross_entropy_nats"));
    assert!((loss - expected).abs() < 1e-4, "{loss} on cuda, {expected} on cpu");
}

#[test]
fn cuda_serves_a_squeezed_model_without_losing_a_window() {
    let Some(folder) = emulator_folder() else { return };
    let (world, place) = (world(), Place::new());
    let (model, store) = (place.path("dense.esp"), place.out("store"));
    let train = args!["train", "--data", world.corpus, "-o", model, "--layers", "3", "--width", "128", "--heads", "8", "--channels", "512"];
    place.succeed(train.iter().chain(&args!["--steps", "4"]));
    let bench = args!["bench", model, "--engine", "cuda", "--count", "3", "--json"];
    let bench = succeed(run_on(&place, &folder, SETTINGS, bench)).json();
    let kernels = bench["kernels"].as_array().expect("the kernels");
    // A memory of 3.2 GHz on 256 bits, and 16 multiprocessors of 1 GHz.
    assert_eq!([&bench["memory_gb_per_s"], &bench["gflops"], &bench["matrix_gflops"]], [204.8, 4096.0, 32768.0], "{bench}");
    let is_whole = |kernel: &Value| {
        let above = |field: &str| kernel[field].as_f64().is_some_and(|number| number > 0.0);
        kernel["launches"].as_u64() > Some(0) && ["gb_per_s", "total_us", "roofline_percent"].into_iter().all(above)
    };
    assert!(kernels.iter().all(is_whole) && !kernels.is_empty(), "{bench}");
    let serve = args!["run", model, "--source", world.corpus, "--store", store, "--engine", "cuda"];
    // What the engine takes beside the model, as the refusal of a limit says.
    let planned = place.succeed(args!["inspect", model, "--json"]).json()["plan_total_bytes"].as_u64().expect("a plan");
    let refused = run_on(&place, &folder, SETTINGS, serve.iter().cloned().chain(args!["--limit", "1"]));
    let needed = refused.stderr.split("at least ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
    let engine = needed.unwrap_or_else(|| panic!("{}", refused.stderr)) - planned;
    // A sixteenth of the budget stays free.
    let (budget, limit) = ((engine + SQUEEZED_BYTES) * 16 / 15, engine + planned + (128 << 20));
    let squeeze = args!["--budget", budget.to_string(), "--limit", limit.to_string(), "--data", world.corpus, "--steps", "1,1,1"];
    let rest = args!["--windows", "4", "--batch", "2", "--max-drop", "100", "--repeat", "-v"];
    let mut command = place.command(serve.iter().chain(&squeeze).chain(&rest));
    let command = emulate(&mut command, &folder, SETTINGS).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut node = command.spawn().expect("the program starts");
    let verdicts = node.stdout.take().expect("its output");
    let verdicts = std::thread::spawn(move || BufReader::new(verdicts).lines().map_while(Result::ok).collect::<Vec<String>>());
    let said = BufReader::new(node.stderr.take().expect("its messages")).lines().map_while(Result::ok);
    let told: Vec<String> = said.take_while(|line| !line.contains("committed to slot")).collect();
    signal(&node, "KILL");
    node.wait().expect("its status");
    assert!(!told.iter().any(|line| line.contains("engine cpu")), "{told:?}");

    // The line that the kill cut short is no verdict.
    let verdicts: Vec<Value> = verdicts.join().expect("the reader").iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let numbers = verdicts.iter().map(|verdict| verdict["sequence"].as_u64());
    assert!(numbers.enumerate().all(|(index, number)| number == Some(index as u64)), "a window was lost in the swap: {told:?}");
    let mut models: Vec<&Value> = verdicts.iter().map(|verdict| &verdict["model"]).collect();
    models.dedup();
    assert_eq!(models.len(), 2, "{models:?} after {told:?}");
    let (dense, pruned) = (Artifact::open(&model).expect("the dense model"), store.join("slot-a.esp"));
    let pruned = Artifact::open(&pruned).expect("the pruned model");
    assert_eq!([models[0], models[1]], [&hex(&dense), &hex(&pruned)]);
    assert!(pruned.file_bytes() < dense.file_bytes() / 2, "{} of {}", pruned.file_bytes(), dense.file_bytes());
    // The engine of the dense model was there alone until pruning began, that of the pruned one is there alone at the end.
    let begun = told.iter().position(|line| line.contains("serving → compressing")).expect("the beginning");
    let [before, after] = [&told[..begun], &told].map(|told| device_bytes(told).last().expect("device memory"));
    assert!(after + (dense.file_bytes() - pruned.file_bytes()) / 2 < before, "{before} bytes of device memory, {after} at last: {told:?}");
    let (windows, from, to) = (verdicts.len(), dense.file_bytes(), pruned.file_bytes());
    println!("squeezed from {from} to {to} bytes, on the device from {before} to {after}, over {windows} windows");
}

/// On an integrated device the artifact's pages are the weights, where the driver reads them: nothing is there twice.
#[test]
fn cuda_reads_a_model_in_place_on_an_integrated_device() {
    let Some(folder) = emulator_folder() else { return };
    let (world, place) = (world(), Place::new());
    // The feed-forward matrices have 1 MiB each, as much as is registered.
    let model = place.out("model.esp");
    let train =
        args!["train", "--data", world.corpus, "-o", model, "--layers", "1", "--width", "256", "--heads", "4", "--channels", "1024"];
    place.succeed(train.iter().chain(&args!["--steps", "1", "--batch", "4"]));
    let eval = args!["eval", model, "--data", world.corpus, "--json", "--engine"];
    let expected = place.succeed(eval.iter().chain(&args!["cpu"])).json();
    let loss = |said: &Value| said[0]["cross_entropy_nats"].as_f64().unwrap_or(f64::NAN);
    let stored = Artifact::open(&model).expect("the model").file_bytes();
    let mut most = Vec::new();
    for settings in ["", "integrated=1,register=0", "integrated=1", "integrated=1,pageable=1"] {
        let settings = format!("granularity=65536,tell=1,{settings}");
        let said = succeed(run_on(&place, &folder, &settings, eval.iter().cloned().chain(args!["cuda"])));
        let found = said.json();
        assert!((loss(&found) - loss(&expected)).abs() < 1e-4, "{settings}: {found}, {expected} on cpu");
        most.push(device_bytes(&said.stderr.lines().collect::<Vec<_>>()).max().expect("device memory"));
    }
    let [uploaded, unregistered, registered, pageable] = most[..] else { panic!("{most:?}") };
    let matrices = 2 << 20;
    assert!(stored > matrices && uploaded >= stored && unregistered == uploaded, "{stored} bytes are stored, and taken: {most:?}");
    assert!(registered <= uploaded - matrices, "{most:?}: what is registered was copied");
    assert!(pageable <= registered && pageable < uploaded - stored * 9 / 10, "{most:?}: what can be read in place was copied");
}

/// What the stand-in for a driver told of its memory.
fn device_bytes<S: AsRef<str>>(told: &[S]) -> impl DoubleEndedIterator<Item = u64> {
    let told = told.iter().filter_map(|line| line.as_ref().strip_prefix("espalier emulator: ")?.strip_suffix(" bytes of device memory"));
    told.map(|bytes| bytes.parse().expect("a number"))
}

/// What is left for the model: serving it dense holds 4.6 MiB.
const SQUEEZED_BYTES: u64 = 2400 << 10;

/// A model that the emulator judges in time fills no granules of 2 MiB, the devices' own.
const SETTINGS: &str = "granularity=65536,tell=1";

/// An artifact's id as verdicts have it.
fn hex(artifact: &Artifact) -> Value {
    format!("{:016x}", artifact.id()).into()
}
