//! Language models with `--engine ort`: the same numbers as the CPU engine's.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::args;
use crate::library::library;
use crate::support::language_model::checkpoint;
use crate::support::{Place, assert_none, fixture, world};

/// A command's JSON, or lines of JSON, with an engine.
fn said(place: &Place, command: &[OsString], engine: &str) -> Vec<Value> {
    let engine = ["--engine", engine].map(OsString::from);
    let said = place.succeed(command.iter().chain(&engine));
    match serde_json::from_str(&said.stdout) {
        Ok(value) => vec![value],
        Err(_) => said.stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}"))).collect(),
    }
}

/// What differs between two values by more than a thousandth, but for speeds.
fn differences(name: &str, a: &Value, b: &Value, faults: &mut Vec<String>) {
    match (a, b) {
        _ if name.ends_with("per_second") => {}
        (Value::Number(x), Value::Number(y)) => {
            let (x, y) = (x.as_f64().unwrap_or(f64::NAN), y.as_f64().unwrap_or(f64::NAN));
            let off = (x - y).abs();
            if off.is_nan() || off > 1e-3 * y.abs().max(1.0) {
                faults.push(format!("{name}: {x}, expected {y}"));
            }
        }
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            x.iter().zip(y).enumerate().for_each(|(index, (x, y))| differences(&format!("{name}[{index}]"), x, y, faults));
        }
        (Value::Object(x), Value::Object(y)) if x.keys().eq(y.keys()) => {
            x.iter().for_each(|(key, x)| differences(&format!("{name}.{key}"), x, &y[key], faults));
        }
        _ if a == b => {}
        _ => faults.push(format!("{name}: {a}, expected {b}")),
    }
}

fn import(place: &Place, folder: &Path, name: &str) -> PathBuf {
    let model = place.out(&format!("{name}.esp"));
    place.succeed(args!["import", folder, "-o", model]);
    model
}

#[test]
fn texts_are_scored_and_embedded_as_the_cpu_does() {
    if library().is_none() {
        return;
    }
    let place = Place::new();
    let text: Vec<String> = (0..150).map(|index| ((index * index * 7 + index * 3 + 1) % 97).to_string()).collect();
    let (running, lines) = (place.path("running.txt"), place.path("lines.txt"));
    fs::write(&running, text.join(" ")).expect("a text");
    fs::write(&lines, "3 1 4 1 5\n9 2 6\n3 1 4 1 5 9 2 6 5 3 5\n").expect("a text");
    let mut faults = Vec::new();
    for name in ["gpt2", "llama-gqa2", "gemma3"] {
        let model = import(&place, &fixture(name), name);
        let commands = [
            args!["eval", model, "--text", running, "--seq-len", "40", "--json"].to_vec(),
            args!["eval", model, "--text", lines, "--lines", "--prefix", "7 8", "--json"].to_vec(),
            args!["embed", model, "--file", lines, "--normalize"].to_vec(),
        ];
        for command in commands {
            let (ort, cpu) = (said(&place, &command, "ort"), said(&place, &command, "cpu"));
            assert!(!cpu.is_empty(), "{command:?}");
            differences(&format!("{name}: {command:?}"), &Value::from(ort), &Value::from(cpu), &mut faults);
        }
    }
    assert_none(faults);
}

#[test]
fn windows_are_judged_by_text_and_questions_are_answered_as_the_cpu_does() {
    if library().is_none() {
        return;
    }
    let (world, place) = (world(), Place::new());
    checkpoint(&place.path("language"));
    let model = import(&place, &place.path("language"), "language");
    let questions = place.path("piqa.jsonl");
    let question = |goal: &str| format!("{{\"goal\": \"{goal}\", \"sol1\": \"turn it\", \"sol2\": \"leave it\"}}\n");
    fs::write(&questions, ["open a jar", "read a gauge", "stop a fan"].map(question).concat()).expect("questions");
    fs::write(place.path("piqa-labels.lst"), "0\n1\n0\n").expect("labels");
    let solutions = place.path("gsm8k.jsonl");
    fs::write(&solutions, "{\"question\": \"2 and 2?\", \"answer\": \"4\\n#### 4\"}\n").expect("questions");
    let trained = place.out("trained.esp");
    let train = args!["train", "--lora", model, "--data", world.corpus, "-o", trained, "--steps", "2", "--batch", "2"];
    place.succeed(train);
    let mut faults = Vec::new();
    let commands = [
        args!["eval", model, "--data", world.corpus, "--json"].to_vec(),
        args!["eval", model, "--task", "piqa", "--data", questions, "--json"].to_vec(),
        args!["eval", model, "--task", "gsm8k", "--data", solutions, "--json"].to_vec(),
        args!["eval", trained, "--data", world.corpus, "--json"].to_vec(),
    ];
    for command in commands {
        let (ort, cpu) = (said(&place, &command, "ort"), said(&place, &command, "cpu"));
        differences(&format!("{command:?}"), &Value::from(ort), &Value::from(cpu), &mut faults);
    }
    let recording = fs::read_dir(&world.corpus)
        .expect("the corpus")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "npy" || extension == "wav" || extension == "mat"))
        .expect("a recording");
    let verdicts = |engine: &str| -> Vec<Value> {
        let run = args!["run", trained, "--source", recording, "--store", place.out(&format!("store-{engine}")), "--engine", engine];
        let said = place.succeed(run);
        assert!(said.stderr.contains("every sequence number accounted for"), "{}", said.stderr);
        let verdicts = said.stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect("a verdict"));
        verdicts.map(|verdict| serde_json::json!([verdict["sequence"], verdict["class"], verdict["probabilities"]])).collect()
    };
    let (ort, cpu) = (verdicts("ort"), verdicts("cpu"));
    assert!(!cpu.is_empty());
    differences("run", &Value::from(ort), &Value::from(cpu), &mut faults);
    assert_none(faults);
}

#[test]
fn a_bench_says_what_it_has_timed() {
    if library().is_none() {
        return;
    }
    let (world, place) = (world(), Place::new());
    let mut faults = Vec::new();
    for (model, prepack) in [(&world.model, false), (&world.model, true), (&world.gpt2, false)] {
        let mut command = args!["bench", model, "--engine", "ort", "--count", "3", "--json"].to_vec();
        command.extend(prepack.then(|| "--ort-prepack".into()));
        let timing = place.succeed(&command).json();
        let device = timing["device"].as_str().unwrap_or_default();
        let [p50, planned, chunks, checked] =
            [&timing["p50_ms"], &timing["planned_bytes"], &timing["warm"]["chunks"], &timing["warm"]["chunks_checked"]].map(Value::as_f64);
        let held = timing["held_bytes"].as_f64();
        let fits = held.zip(planned).is_some_and(|(held, planned)| held <= planned);
        if !device.starts_with("ONNX Runtime, ") || p50.is_none_or(|ms| ms <= 0.0) || chunks != checked || !fits {
            faults.push(format!("{command:?}: {timing}"));
        }
    }
    assert_none(faults);
}
