//! The whole way of a model on a CUDA device.

use espalier_models::Artifact;
use serde_json::Value;

use super::choice::run_on;
use crate::args;
use crate::device::emulator_folder;
use crate::support::{Place, SIZE, Said, world};

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
    let train = args!["train", "--data", world.corpus, "-o", model, "--layers", "4", "--width", "128", "--heads", "8", "--channels", "512"];
    place.succeed(train.iter().chain(&args!["--steps", "4"]));
    let bench = succeed(run_on(&place, &folder, "", args!["bench", model, "--engine", "cuda", "--count", "3", "--json"])).json();
    println!("{bench}");
    let kernels = bench["kernels"].as_array().expect("the kernels");
    assert!(kernels.iter().all(|kernel| kernel["launches"].as_u64() > Some(0)) && !kernels.is_empty(), "{bench}");
    let _ = store;
}
