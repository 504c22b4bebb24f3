//! What is refused on the command line, each with a sentence.

use std::fs;

use crate::support::{Place, assert_none, world};
use crate::{args, data, library::library};

#[test]
fn what_cannot_be_done_with_a_graph_is_refused() {
    let (world, place) = (world(), Place::new());
    let (cnn, source) = (data("cnn.onnx"), world.corpus.clone());
    let alone = place.path("alone.onnx");
    fs::copy(&cnn, &alone).expect("a copy");
    let wrong = place.path("wrong.json");
    let sidecar = fs::read_to_string(data("cnn.onnx.json")).expect("a sidecar");
    fs::write(&wrong, sidecar.replace("\"window\": 2048", "\"window\": 1024")).expect("a sidecar");
    let few = place.path("few.json");
    fs::write(&few, sidecar.replace("\"N\",", "")).expect("a sidecar");
    let renamed = place.path("renamed.json");
    fs::write(&renamed, sidecar.replace("\"N\"", "\"healthy\"").replace("20000", "12000")).expect("a sidecar");
    let graph = "is an ONNX graph, which cannot be";
    let mut cases = vec![
        (args!["prune", cnn, "-o", place.out("x.esp"), "--ratio", "2", "--data", source].to_vec(), 2, vec![graph, "pruned"]),
        (args!["export", cnn, "--gguf", place.out("x.gguf")].to_vec(), 2, vec![graph, "exported"]),
        (args!["generate", cnn, "text"].to_vec(), 2, vec![graph, "continue a text"]),
        (args!["import", cnn, "-o", place.out("x.esp")].to_vec(), 2, vec![graph, "imported"]),
        (args!["check", cnn].to_vec(), 2, vec![graph, "checked for pruning"]),
        (args!["run", cnn, "--source", source, "--engine", "cpu"].to_vec(), 2, vec!["engine cpu does not run", "--engine ort"]),
        (args!["run", cnn, "--source", source, "--store", place.out("s")].to_vec(), 2, vec!["never pruned", "--store"]),
        (args!["run", cnn, "--source", source, "--data", source].to_vec(), 2, vec!["never pruned", "--data"]),
        (
            args!["run", cnn, "--source", source, "--budget", "4MiB"].to_vec(),
            2,
            vec!["budget of 4.00 MiB", "cannot be pruned", "give a budget of"],
        ),
        (args!["run", cnn, "--source", source, "--limit", "4MiB"].to_vec(), 1, vec!["but the limit is 4194304 bytes"]),
        (args!["run", alone, "--source", source].to_vec(), 1, vec!["alone.onnx.json", "is missing", "--template"]),
        (args!["eval", cnn, "--data", source, "--sidecar", wrong].to_vec(), 1, vec!["wrong.json", "[batch, 1, 2048]", "[any, 1, 1024]"]),
        (args!["eval", cnn, "--data", source, "--sidecar", few].to_vec(), 1, vec!["4 numbers a window", "3 classes"]),
        (args!["inspect", cnn, "--verify"].to_vec(), 2, vec!["no checksums"]),
        (args!["inspect", world.model, "--template"].to_vec(), 2, vec!["--template is of ONNX graphs"]),
        (args!["bench", world.model, "--sidecar", wrong].to_vec(), 2, vec!["--sidecar is of ONNX graphs"]),
        (args!["embed", cnn, "text"].to_vec(), 2, vec!["reads signals by its sidecar"]),
        (args!["inspect", place.path("gone.onnx")].to_vec(), 1, vec!["gone.onnx", "check the path"]),
    ];
    if library().is_some() {
        cases.extend([
            (args!["eval", cnn, "--data", source, "--sidecar", renamed].to_vec(), 2, vec!["healthy, B, IR, OR", "N, B, IR, OR"]),
            (args!["run", cnn, "--source", source].to_vec(), 1, vec!["12000 Hz", "20000 Hz"]),
            (args!["bench", data("unsupported.onnx")].to_vec(), 1, vec!["ONNX Runtime cannot load", "unsupported.onnx", "NoSuchOperator"]),
            (args!["run", cnn, "--source", source, "--ort-lib", place.path("no.so")].to_vec(), 1, vec!["no.so", "there is no such file"]),
        ]);
    }
    let mut faults = Vec::new();
    for (command, code, words) in cases {
        faults.extend(place.refuse(&command, code, &words).into_iter().map(|fault| format!("{command:?}: {fault}")));
    }
    assert_none(faults);
}

/// An output that the sidecar calls probabilities and that are logits.
#[test]
fn logits_are_not_taken_for_probabilities() {
    if library().is_none() {
        return;
    }
    let place = Place::new();
    let sidecar =
        fs::read_to_string(data("cnn.onnx.json")).expect("a sidecar").replace("\"kind\": \"logits\"", "\"kind\": \"probabilities\"");
    fs::write(place.path("probabilities.json"), sidecar).expect("a sidecar");
    for command in [
        args!["bench", data("cnn.onnx"), "--count", "3", "--sidecar", place.path("probabilities.json")],
        args!["run", data("cnn.onnx"), "--source", world().corpus, "--sidecar", place.path("probabilities.json")],
    ] {
        assert_none(place.refuse(command, 1, &["probabilities.json", "no probabilities", "is its kind logits?"]));
    }
}
