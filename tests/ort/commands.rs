//! `--engine ort` on the command line.

use std::fs;
use std::sync::Arc;

use espalier_agent::engine::{Asked, EngineChoice, EngineKind, Engines};
use espalier_runtime::Budget;
use serde_json::Value;

use crate::args;
use crate::library::library;
use crate::support::{Place, assert_none, fixture, world};

/// The verdicts of `run` with an engine: sequence number, class, probabilities.
fn verdicts(place: &Place, engine: &str) -> Vec<Value> {
    let store = place.out(&format!("store-{engine}"));
    let source = world().corpus.clone();
    let said = place.succeed(args!["run", world().model, "--source", source, "--store", store, "--engine", engine]);
    assert!(said.stderr.contains("every sequence number accounted for"), "{}", said.stderr);
    said.stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}"))).collect()
}

#[test]
fn windows_are_judged_as_the_cpu_judges_them() {
    if library().is_none() {
        return;
    }
    let place = Place::new();
    let (ort, cpu) = (verdicts(&place, "ort"), verdicts(&place, "cpu"));
    assert!(ort.len() == cpu.len() && !cpu.is_empty(), "{} and {} verdicts", ort.len(), cpu.len());
    let numbers = |verdict: &Value| -> Vec<f64> {
        verdict["probabilities"].as_array().expect("probabilities").iter().filter_map(Value::as_f64).collect()
    };
    for (ort, cpu) in ort.iter().zip(&cpu) {
        assert_eq!((&ort["sequence"], &ort["model"]), (&cpu["sequence"], &cpu["model"]));
        let off = numbers(ort).iter().zip(numbers(cpu)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(off < 1e-4, "{ort}\n{cpu}");
    }
    let accuracy = |engine: &str| {
        let evaluated = place.succeed(args!["eval", world().model, "--data", world().corpus, "--json", "--engine", engine]).json();
        evaluated[0]["accuracy"].as_f64().expect("an accuracy")
    };
    assert_eq!(accuracy("ort"), accuracy("cpu"));
}

/// The loop opens the engine of a pruned model beside the one that serves.
#[test]
fn an_engine_beside_onnx_runtime_is_onnx_runtime() {
    if library().is_none() {
        return;
    }
    let budget = Arc::new(Budget::unlimited());
    let engines = Engines::new(Asked { engine: EngineChoice::Ort, ..Asked::default() });
    let device = engines.open(1, &budget).expect("ONNX Runtime");
    let beside = device.beside(1, &budget).expect("another");
    assert_eq!([device.kind(), beside.kind()], [EngineKind::Ort; 2]);
    assert!(!engines.may_move(), "it was asked for by name");
}

#[test]
fn a_text_is_continued_as_the_cpu_continues_it() {
    if library().is_none() {
        return;
    }
    let place = Place::new();
    for name in ["gpt2", "llama-gqa2", "gemma3"] {
        let model = place.out(&format!("{name}.esp"));
        place.succeed(args!["import", fixture(name), "-o", model]);
        let continued = |engine: &str| {
            let prompt = "3 1 4 1 5 9 2 6 5 3 5 8 9 7 9 3 2 3 8 4 6 2 6 4 3 3 8 3 2 7 9 5 0 2 8 8";
            place.succeed(args!["generate", model, prompt, "--max-tokens", "20", "--json", "--engine", engine]).json()
        };
        let (ort, cpu) = (continued("ort"), continued("cpu"));
        assert_eq!(ort["ids"], cpu["ids"], "{name}");
        assert_eq!((&ort["prompt_tokens"], &ort["generated_tokens"]), (&cpu["prompt_tokens"], &cpu["generated_tokens"]));
    }
}

#[test]
fn what_onnx_runtime_cannot_do_here_is_refused() {
    let (world, place) = (world(), Place::new());
    let (text, foreign) = (place.path("text.so"), place.path("foreign.so"));
    fs::write(&text, "no library").expect("a file");
    fs::write(&foreign, b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x08\0and more").expect("a file");
    let eval = |more: &[&std::ffi::OsStr]| {
        let mut command = args!["eval", world.model, "--data", world.corpus, "--engine", "ort"].to_vec();
        command.extend(more.iter().map(|word| word.to_os_string()));
        command
    };
    let lib = |path: &std::path::Path| eval(&["--ort-lib".as_ref(), path.as_os_str()]);
    let mut cases = vec![
        (lib(&place.path("missing.so")), 1, vec!["missing.so", "there is no such file", "scripts/onnxruntime.sh"]),
        (lib(&text), 1, vec!["text.so", "it is no shared library", "--ort-lib"]),
        (lib(&foreign), 1, vec!["foreign.so", "another kind of processor"]),
        (
            args!["eval", world.model, "--data", world.corpus, "--engine", "cpu", "--ort-prepack"].to_vec(),
            2,
            vec!["give --engine ort or auto"],
        ),
        (eval(&["--precision".as_ref(), "fast".as_ref()]), 2, vec!["--precision is of the GPU", "--engine ort"]),
        (
            args!["prune", world.model, "-o", place.out("x.esp"), "--data", world.corpus, "--ratio", "2", "--engine", "ort"].to_vec(),
            2,
            vec!["engine ort runs models", "it trains and prunes none; give --engine cpu or cuda"],
        ),
        (
            args!["bench", world.model, "--engine", "cuda", "--ort-provider", "openvino"].to_vec(),
            2,
            vec!["--ort-provider are of ONNX Runtime, but --engine cuda was given"],
        ),
        (eval(&["--ort-provider".as_ref(), "cuda,vulkan".as_ref()]), 2, vec!["`vulkan` is no execution provider; expected some of cuda,"]),
    ];
    if library().is_some() {
        cases.push((eval(&["--limit".as_ref(), "12MiB".as_ref()]), 1, vec!["memory limit of 12582912 bytes"]));
        cases.push((args!["eval", world.gpt2, "--data", world.corpus, "--engine", "ort"].to_vec(), 2, vec!["the model has no tokenizer"]));
        cases.push((args!["run", world.gpt2, "--source", world.corpus, "--engine", "ort"].to_vec(), 2, vec!["is a language model"]));
    }
    let mut faults = Vec::new();
    for (command, code, words) in cases {
        faults.extend(place.refuse(&command, code, &words).into_iter().map(|fault| format!("{command:?}: {fault}")));
    }
    assert_none(faults);
}
