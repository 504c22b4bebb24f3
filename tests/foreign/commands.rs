//! `inspect`, `run`, `eval` and `bench` with a graph.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{Place, world};
use crate::{TOLERANCE, args, data, library::library, recordings, tensor};

/// The CNN with a sidecar for the simulated corpus, whose recordings have another rate.
fn simulated_cnn(place: &Place) -> PathBuf {
    let graph = place.path("cnn.onnx");
    fs::copy(data("cnn.onnx"), &graph).expect("a copy");
    let sidecar = fs::read_to_string(data("cnn.onnx.json")).expect("a sidecar").replace("20000", "12000");
    fs::write(place.path("cnn.onnx.json"), sidecar).expect("a sidecar");
    graph
}

fn write_raw(path: &Path, samples: &[f32]) {
    fs::write(path, samples.iter().flat_map(|sample| sample.to_le_bytes()).collect::<Vec<u8>>()).expect("raw samples");
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}"))).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().filter_map(Value::as_f64).collect()
}

#[test]
fn run_gives_verdicts_as_of_any_model() {
    if library().is_none() {
        return;
    }
    let place = Place::new();
    let (windows, _) = tensor("cnn.safetensors", "windows");
    let (logits, shape) = tensor("cnn.safetensors", "logits");
    let source = place.path("windows.f32");
    // A dead sensor for a window, between two that live.
    write_raw(&source, &[&windows[..2048], &[0.25; 2048], &windows[2048..]].concat());
    let said = place.succeed(args!["run", data("cnn.onnx"), "--source", source]);
    assert!(said.stderr.contains("never pruned") && said.stderr.contains("every sequence number accounted for"), "{}", said.stderr);
    let verdicts = lines(&said.stdout);
    assert_eq!(verdicts.len(), shape[0] + 1, "{}", said.stdout);
    let judged: Vec<&Value> = verdicts.iter().filter(|verdict| verdict["probabilities"].is_array() && verdict["sequence"] != 1).collect();
    assert!(said.stderr.contains("1 unusable") && judged.len() == shape[0], "{}", said.stderr);
    for (verdict, logits) in judged.into_iter().zip(logits.chunks(4)) {
        let total: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
        for (found, logit) in numbers(&verdict["probabilities"]).iter().zip(logits) {
            assert!((found - f64::from(*logit).exp() / total).abs() < f64::from(TOLERANCE), "{verdict} {logits:?}");
        }
    }
}

#[test]
fn a_sidecar_says_how_windows_are_normalised_and_how_often_they_begin() {
    if library().is_none() {
        return;
    }
    let place = Place::new();
    let source = place.path("signal.f32");
    let samples: Vec<f32> = (0..24).map(|index| (index as f32 * 0.7).sin()).collect();
    write_raw(&source, &samples);
    let verdicts = lines(&place.succeed(args!["run", data("tiny.onnx"), "--source", source]).stdout);
    assert_eq!(verdicts.len(), 5, "windows of 8 samples every 4 of 24");
    let weight = |sample: usize, class: usize| ((sample * 3 + class) % 7) as f64 / 4.0 - 0.75;
    for (index, verdict) in verdicts.iter().enumerate() {
        let window: Vec<f64> = samples[index * 4..][..8].iter().map(|sample| (f64::from(*sample) - 0.5) / 2.0).collect();
        let powers: Vec<f64> = (0..3).map(|class| (0..8).map(|at| window[at] * weight(at, class)).sum::<f64>().exp()).collect();
        for (found, power) in numbers(&verdict["probabilities"]).iter().zip(&powers) {
            assert!((found - power / powers.iter().sum::<f64>()).abs() < 1e-4, "{verdict} {powers:?}");
        }
    }
}

#[test]
fn eval_and_bench_measure_a_graph() {
    if library().is_none() {
        return;
    }
    let (place, world) = (Place::new(), world());
    let graph = simulated_cnn(&place);
    let evaluated = place.succeed(args!["eval", graph, "--data", world.corpus, "--json", "--reference", world.model]).json();
    let count: f64 = evaluated[0]["confusion"].as_array().expect("rows").iter().flat_map(numbers).sum();
    assert!(count > 0.0 && evaluated[0]["windows"] == count && evaluated[0]["agreement"].is_number(), "{evaluated}");
    let other = place.succeed(args!["eval", world.model, "--data", world.corpus, "--json", "--reference", graph]).json();
    assert_eq!(evaluated[0]["agreement"], other[0]["agreement"], "both ways");
    let timed = place.succeed(args!["bench", graph, "--count", "20", "--json"]).json();
    assert!(timed["p50_ms"].as_f64() > Some(0.0) && timed["held_bytes"].as_u64() > Some(0), "{timed}");
    assert!(timed["booked_bytes"].as_u64() >= timed["planned_bytes"].as_u64(), "{timed}");
    let said = place.succeed(args!["bench", graph, "--count", "5", "--engine", "ort"]);
    assert!(said.stdout.contains("window, median") && said.stdout.contains("ONNX Runtime"), "{}", said.stdout);
    let line = format!("engine ort: {} is ", graph.display());
    let says = |said: &str| said.contains(&line) && said.contains(", which the engines cpu and cuda do not run");
    assert!(!says(&said.stderr), "it was asked for by name: {}", said.stderr);
    let said = place.succeed(args!["bench", graph, "--count", "5", "-v"]).stderr;
    assert!(said.lines().any(says), "{said}");
}

/// Class by class what PyTorch's own logits say.
#[test]
fn eval_counts_what_pytorch_counts() {
    let (Some(_), Some(folder)) = (library(), recordings()) else { return };
    let place = Place::new();
    let eval = args!["eval", data("cnn.onnx"), "--data", folder, "--split", "uestc-speed:1000", "--json"].to_vec();
    let tests = place.succeed(&eval).json();
    let holdout = place.succeed(eval.into_iter().chain(args!["--holdout"])).json();
    let mut wrong = Vec::new();
    for named in tests.as_array().into_iter().flatten().chain(holdout.as_array().into_iter().flatten()) {
        let set = named["set"].as_str().expect("a name");
        let (logits, _) = tensor("cnn-uestc.safetensors", &format!("{set}.logits"));
        let (labels, _) = tensor("cnn-uestc.safetensors", &format!("{set}.labels"));
        let mut confusion = vec![vec![0.0; 4]; 4];
        for (row, label) in logits.chunks(4).zip(&labels) {
            let predicted = (0..4).max_by(|a, b| row[*a].total_cmp(&row[*b])).expect("classes");
            confusion[*label as usize][predicted] += 1.0;
        }
        let found: Vec<Vec<f64>> = named["confusion"].as_array().expect("rows").iter().map(numbers).collect();
        println!("{set}: accuracy {}, confusion {found:?}", named["accuracy"]);
        if found != confusion {
            wrong.push(format!("{set}: {found:?}, PyTorch {confusion:?}"));
        }
    }
    assert!(wrong.is_empty() && tests.as_array().map(Vec::len) == Some(3), "{}", wrong.join("\n"));
}

#[test]
fn inspect_shows_a_graph_and_drafts_its_sidecar() {
    let place = Place::new();
    let said = place.succeed(args!["inspect", data("cnn.onnx")]).stdout;
    for words in [
        "by pytorch",
        "input    signal: float [batch, 1, 2048]",
        "output   logits: float [batch, 4]",
        "operator sets 18",
        " Conv",
        "fits, id",
    ] {
        assert!(said.contains(words), "without `{words}`:\n{said}");
    }
    let shown = place.succeed(args!["inspect", data("cnn.onnx"), "--json"]).json();
    assert_eq!((&shown["inputs"][0]["name"], &shown["opsets"][0][1]), (&Value::from("signal"), &Value::from(18)), "{shown}");
    assert_eq!(shown["sidecar_fits"], true, "{shown}");
    let graph = place.path("alone.onnx");
    fs::copy(data("cnn.onnx"), &graph).expect("a copy");
    let said = place.succeed(args!["inspect", graph]).stdout;
    assert!(said.contains("is missing") && said.contains("\"sample_rate_hz\": 0"), "{said}");
    let draft = place.succeed(args!["inspect", graph, "--template"]).stdout;
    let draft: Value = serde_json::from_str(&draft).expect("the draft alone");
    assert_eq!((&draft["input"]["window"], &draft["output"]["classes"][3]), (&Value::from(2048), &Value::from("class 3")));
}

/// A graph that Espalier exported says all that its sidecar needs, and gives what the artifact gives.
#[test]
fn a_graph_that_espalier_exported_runs_as_a_foreign_one() {
    if library().is_none() {
        return;
    }
    let (place, world) = (Place::new(), world());
    let (artifact, graph) = (place.path("model.esp"), place.path("model.onnx"));
    fs::copy(&world.model, &artifact).expect("a copy");
    place.succeed(args!["export", artifact, "--onnx", graph]);
    let draft = place.succeed(args!["inspect", graph, "--template"]).stdout;
    fs::write(place.path("model.onnx.json"), draft).expect("a sidecar");
    let source = world.corpus.clone();
    let of_graph = lines(&place.succeed(args!["run", graph, "--source", source]).stdout);
    let of_artifact = lines(&place.succeed(args!["run", artifact, "--source", source, "--engine", "cpu"]).stdout);
    assert!(of_graph.len() == of_artifact.len() && !of_graph.is_empty(), "{} and {}", of_graph.len(), of_artifact.len());
    for (graph, artifact) in of_graph.iter().zip(&of_artifact) {
        let (found, expected) = (numbers(&graph["probabilities"]), numbers(&artifact["probabilities"]));
        let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(off < 1e-4 && found.len() == expected.len(), "{graph}\n{artifact}");
        assert_eq!((&graph["sequence"], &graph["label"]), (&artifact["sequence"], &artifact["label"]));
    }
}

/// A signal model of 16-bit weights, exported as a file of its own, judges windows where nothing else is.
#[test]
fn an_embedded_graph_of_16_bit_weights_runs_alone() {
    let (place, world) = (Place::new(), world());
    let (checkpoint, artifact) = (place.out("checkpoint"), place.out("f16.esp"));
    place.succeed(args!["export", world.model, "--safetensors", checkpoint, "--dialect", "espalier"]);
    place.succeed(args!["import", checkpoint, "-o", artifact, "--dtype", "f16"]);
    let copies = |said: &str| {
        let line = said.lines().find(|line| line.starts_with("copies that ONNX Runtime's CPU provider will hold in memory: "));
        line.map(str::to_string).unwrap_or_else(|| panic!("{said}"))
    };
    let graph = place.out("f16.onnx");
    let said = place.succeed(args!["export", artifact, "--onnx", graph]).stdout;
    let words = "of f32 weights, made from those in 16 bits and fewer when it loads the graph";
    assert!(said.contains("weights that stay in the artifact: ") && copies(&said).ends_with(words), "{said}");
    let folder = place.path("alone");
    fs::create_dir(&folder).expect("a folder");
    let alone = folder.join("f16.onnx");
    let said = place.succeed(args!["export", artifact, "--onnx", alone, "--embed"]).stdout;
    assert!(!said.contains("stay in the artifact") && copies(&said).contains("all weights and "), "{said}");
    assert!(copies(&said).ends_with("of f32 ones, made from those in 16 bits and fewer when it loads the graph"), "{said}");
    let names: Vec<_> = fs::read_dir(&folder).expect("the folder").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(names, ["f16.onnx"], "one file");
    if library().is_none() {
        return;
    }
    let draft = place.succeed(args!["inspect", alone, "--template"]).stdout;
    fs::write(folder.join("f16.onnx.json"), draft).expect("a sidecar");
    // Only what is in the file is left.
    let eval = |model: &Path| place.succeed(args!["eval", model, "--data", world.corpus, "--json"]).json();
    let expected = eval(&artifact);
    fs::remove_file(&artifact).expect("the artifact goes");
    assert_eq!(eval(&alone)[0]["confusion"], expected[0]["confusion"]);
}

#[test]
fn a_graph_with_a_cache_reads_keys_and_values_of_the_past() {
    let (place, world) = (Place::new(), world());
    let (artifact, graph) = (place.out("gpt2.esp"), place.out("gpt2.onnx"));
    fs::copy(&world.gpt2, &artifact).expect("a copy");
    let inputs = |more: &[&str]| -> Vec<String> {
        place.succeed(args!["export", artifact, "--onnx", graph].into_iter().chain(more.iter().map(Into::into)));
        let shown = place.succeed(args!["inspect", graph, "--json"]).json();
        fs::remove_file(&graph).expect("the graph goes");
        let named = shown["inputs"].as_array().expect("inputs").iter().filter_map(|input| input["name"].as_str());
        named.map(str::to_string).collect()
    };
    assert_eq!(inputs(&[]), ["input_ids"]);
    let cached = inputs(&["--cache"]);
    for name in ["input_ids", "past_key_values.0.key", "past_key_values.0.value", "past_key_values.1.key"] {
        assert!(cached.iter().any(|input| input == name), "without {name}: {cached:?}");
    }
}
