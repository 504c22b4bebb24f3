//! When ONNX Runtime is taken, and what it computes with.

use std::path::Path;
use std::sync::Arc;

use espalier_agent::engine::{Asked, AskedOrt, EngineChoice, EngineKind, Engines};
use espalier_runtime::{Budget, UnsupportedPart, covered};

use crate::args;
use crate::library::library;
use crate::support::{Place, assert_none, world};

fn engines(engine: EngineChoice, library: Option<&'static str>) -> Engines {
    let ort = AskedOrt { library: library.map(Path::new), ..AskedOrt::default() };
    Engines::new(Asked { engine, ort, ..Asked::default() })
}

/// A part that no native engine runs.
fn part() -> UnsupportedPart {
    UnsupportedPart { part: "tensor layers.0.up".into(), what: "is stored in knots".into() }
}

#[test]
fn a_part_that_the_native_engines_do_not_run_is_named_and_left_to_onnx_runtime() {
    let budget = Arc::new(Budget::unlimited());
    let path = Path::new("model.esp");
    let missing = Some("/no/such/libonnxruntime.so");
    let sentence = "model.esp: tensor layers.0.up is stored in knots, which the engines cpu and cuda do not run";
    let mut faults = Vec::new();
    let mut check = |engine: EngineChoice, library, expected: Result<EngineKind, &[&str]>| {
        let opened = engines(engine, library).open_for((Err(part()), path), 1, &budget).map(|device| device.kind());
        let right = match (&opened, expected) {
            (Ok(kind), Ok(expected)) => *kind == expected,
            (Err(error), Err(words)) => words.iter().all(|word| error.to_string().contains(word)),
            _ => false,
        };
        if !right {
            faults.push(format!("{}, library {library:?}: {opened:?}, expected {expected:?}", engine.name()));
        }
    };
    check(EngineChoice::Cpu, None, Err(&[sentence, "give --engine ort"]));
    check(EngineChoice::Cuda, None, Err(&[sentence, "give --engine ort"]));
    check(EngineChoice::Auto, missing, Err(&[sentence, "engine ort cannot be taken: /no/such/libonnxruntime.so"]));
    if library().is_some() {
        check(EngineChoice::Auto, None, Ok(EngineKind::Ort));
        check(EngineChoice::Ort, None, Ok(EngineKind::Ort));
    }
    assert_none(faults);
    let model = espalier_models::Artifact::open(&world().model).expect("an artifact");
    assert_eq!(covered(model.manifest()), Ok(()));
    let native = engines(EngineChoice::Auto, missing).open_for((covered(model.manifest()), path), 1, &budget).expect("a native engine");
    assert_ne!(native.kind(), EngineKind::Ort, "what the native engines run they run");
}

#[test]
fn onnx_runtime_follows_the_cpu_in_the_loop_and_nowhere_else() {
    let budget = Arc::new(Budget::unlimited());
    let cpu = engines(EngineChoice::Cpu, None).open(1, &budget).expect("the CPU");
    let mut faults = Vec::new();
    let mut check = |engine: EngineChoice, library, in_loop: bool, expected: Option<EngineKind>| {
        let engines = engines(engine, library);
        let next = match in_loop {
            true => engines.after_in_loop(&cpu, 1, &budget, &"it failed on purpose"),
            false => engines.after(&cpu, 1, &budget, &"it failed on purpose"),
        };
        let next = next.expect("no error").map(|device| device.kind());
        if next != expected {
            faults.push(format!("{}, library {library:?}, in the loop {in_loop}: {next:?}, expected {expected:?}", engine.name()));
        }
    };
    check(EngineChoice::Cpu, None, true, None);
    check(EngineChoice::Auto, Some("/no/such/libonnxruntime.so"), true, None);
    check(EngineChoice::Auto, None, false, None);
    if library().is_some() {
        check(EngineChoice::Auto, None, true, Some(EngineKind::Ort));
        let engines = engines(EngineChoice::Auto, None);
        let ort = engines.after_in_loop(&cpu, 1, &budget, &"it failed on purpose").expect("no error").expect("ONNX Runtime");
        let back = engines.after_in_loop(&ort, 1, &budget, &"so did this").expect("no error").map(|device| device.kind());
        assert_eq!(back, Some(EngineKind::Cpu), "the CPU may have got over it");
    }
    assert_none(faults);
}

/// The library of the tests has the CPU only.
#[test]
fn providers_that_are_not_there_are_named_and_the_cpu_computes() {
    if library().is_none() {
        return;
    }
    let (world, place) = (world(), Place::new());
    let eval = |provider: &[&str]| {
        let command = args!["eval", world.model, "--data", world.corpus, "--engine", "ort", "--json"];
        place.succeed(command.into_iter().chain(provider.iter().map(Into::into)))
    };
    let plain = eval(&[]);
    assert!(!plain.stderr.contains("provider"), "{}", plain.stderr);
    let asked = eval(&["--ort-provider", "tensorrt,cuda,openvino,cpu"]);
    assert_eq!(asked.json()[0]["accuracy"], plain.json()[0]["accuracy"]);
    let lines: Vec<&str> = asked.stderr.lines().filter(|line| line.contains("provider")).collect();
    let mut faults = Vec::new();
    for (line, name) in lines.iter().zip(["tensorrt", "cuda", "openvino"]) {
        let words = [&format!("ONNX Runtime's provider {name} is not taken: "), "has been built without it", "its provider cpu computes"];
        faults.extend(words.iter().filter(|words| !line.contains(**words)).map(|words| format!("no `{words}` in `{line}`")));
    }
    if lines.len() != 3 {
        faults.push(format!("{} lines for 3 providers: {}", lines.len(), asked.stderr));
    }
    assert_none(faults);
}
