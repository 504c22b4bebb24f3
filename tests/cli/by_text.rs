//! The text way of diagnosis: a language model that judges windows.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use crate::args;
use crate::support::language_model::checkpoint;
use crate::support::{Place, assert_none, world};

/// The language model as an artifact.
fn base(place: &Place) -> PathBuf {
    let (folder, model) = (place.path("language"), place.out("language.esp"));
    checkpoint(&folder);
    place.succeed(args!["import", folder, "-o", model]);
    model
}

#[test]
fn a_language_model_is_trained_evaluated_and_served_as_a_signal_model_is() {
    let (world, place) = (world(), Place::new());
    let (base, trained) = (base(&place), place.out("trained.esp"));
    let untrained = place.succeed(args!["eval", base, "--data", world.corpus, "--json"]).json();
    assert!(untrained[0]["accuracy"].is_f64(), "a language model is asked by the split's classes: {untrained}");

    let train = args![
        "train",
        "--lora",
        base,
        "--data",
        world.corpus,
        "-o",
        trained,
        "--steps",
        "40",
        "--batch",
        "4",
        "--learning-rate",
        "0.01",
        "--ffn",
        "--json"
    ];
    let report = place.succeed(train).json();
    assert_eq!(report["steps"].as_u64(), Some(40));
    let inspected = place.succeed(args!["inspect", trained, "--verify"]).stdout;
    for words in ["trained on simulated by text with LoRA rank 8", "by text: N, B, IR, OR", "12000 Hz"] {
        assert!(inspected.contains(words), "no `{words}` in\n{inspected}");
    }
    let evaluated = place.succeed(args!["eval", trained, "--data", world.corpus, "--json"]).json();
    let loss = |evaluated: &serde_json::Value| evaluated[0]["cross_entropy_nats"].as_f64().expect("a loss");
    assert!(loss(&evaluated) < loss(&untrained), "training lowers the loss: {} from {}", loss(&evaluated), loss(&untrained));

    let small = place.out("small.esp");
    let prune = args!["prune", trained, "-o", small, "--data", world.corpus, "--ratio", "1.3", "--steps", "2,2,2", "--batch", "2"];
    place.succeed(prune);
    let parameters = |model: &PathBuf| place.succeed(args!["inspect", model, "--json"]).json()["parameters"].as_u64().expect("a count");
    assert!(13 * parameters(&small) <= 10 * parameters(&trained));
    place.succeed(args!["eval", small, "--data", world.corpus]);

    let recording = fs::read_dir(&world.corpus)
        .expect("the corpus")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "npy" || extension == "wav" || extension == "mat"))
        .expect("a recording");
    let run = args!["run", trained, "--source", recording, "--store", place.out("store")];
    let said = place.succeed(run);
    let verdicts: Vec<serde_json::Value> = said.stdout.lines().map(|line| serde_json::from_str(line).expect("a verdict")).collect();
    assert!(!verdicts.is_empty() && said.stderr.contains("every sequence number accounted for"), "{}", said.stderr);
}

#[test]
fn what_a_language_model_cannot_judge_is_refused() {
    let (world, place) = (world(), Place::new());
    let base = base(&place);
    let out = place.out("x.esp");
    let cases: Vec<(Vec<OsString>, i32, &[&str])> = vec![
        (args!["run", base, "--source", world.corpus].to_vec(), 2, &["train --lora"]),
        (args!["train", "--lora", world.model, "--data", world.corpus, "-o", out].to_vec(), 2, &["is a signal model"]),
        (args!["train", "--lora", world.gpt2, "--data", world.corpus, "-o", out].to_vec(), 2, &["has no tokenizer"]),
        (args!["train", "--rank", "4", "--data", world.corpus, "-o", out].to_vec(), 2, &["--lora"]),
        (args!["prune", base, "--data", world.corpus, "-o", out, "--ratio", "2"].to_vec(), 2, &["language model"]),
    ];
    assert_none(cases.into_iter().flat_map(|(args, code, words)| place.refuse(args, code, words)).collect());
}
