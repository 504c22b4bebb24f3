//! `embed` with MiniLM next to transformers.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::Place;
use crate::{TOLERANCE, args, data, library::library, off, tensor};

/// The graph in a folder with the checkpoint's weights and tokenizer; none where the checkpoint is missing, which is said, and which with
/// `CI=true` is a failure.
fn encoder(place: &Place) -> Option<PathBuf> {
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/models/minilm");
    let missing = "not compared: target/models/minilm is not there; bring it with scripts/models.sh minilm";
    if !checkpoint.join("model.safetensors").is_file() {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{missing}");
        eprintln!("{missing}");
        return None;
    }
    for name in ["model.safetensors", "tokenizer.json"] {
        let (from, to) = (checkpoint.join(name).canonicalize().expect("a file"), place.path(name));
        // 90 MB are linked where the file system can.
        fs::hard_link(&from, &to).or_else(|_| fs::copy(&from, &to).map(drop)).expect("a link or a copy");
    }
    for name in ["minilm.onnx", "minilm.onnx.json"] {
        fs::copy(data(name), place.path(name)).expect("a copy");
    }
    Some(place.path("minilm.onnx"))
}

#[test]
fn sentences_mean_what_they_mean_to_transformers() {
    let place = Place::new();
    let (Some(_), Some(graph)) = (library(), encoder(&place)) else { return };
    let (expected, shape) = tensor("minilm.safetensors", "embeddings");
    let said = place.succeed(args!["embed", graph, "--file", data("minilm.txt")]).stdout;
    let found: Vec<Vec<f32>> = said
        .lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).expect("JSON");
            line["embedding"].as_array().expect("numbers").iter().filter_map(Value::as_f64).map(|number| number as f32).collect()
        })
        .collect();
    assert_eq!(found.len(), shape[0]);
    let (mut most, mut least, mut wrong) = (0.0f32, 1.0f32, Vec::new());
    for (index, (found, expected)) in found.iter().zip(expected.chunks(shape[1])).enumerate() {
        let (difference, cosine) = (off(found, expected), found.iter().zip(expected).map(|(a, b)| a * b).sum::<f32>());
        (most, least) = (most.max(difference), least.min(cosine));
        if difference > TOLERANCE || cosine < 0.9999 {
            wrong.push(format!("sentence {}: off by {difference:.1e}, cosine {cosine:.6}", index + 1));
        }
    }
    println!("{} sentences: off by at most {most:.1e}, cosine at least {least:.6}", found.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let timed = place.succeed(args!["bench", graph, "--count", "3", "--json"]).json();
    let weights = fs::metadata(place.path("model.safetensors")).expect("weights").len();
    assert!(timed["tokens"] == 32 && timed["booked_bytes"].as_u64() > Some(weights), "{timed}");
    let mut faults = place.refuse(args!["run", graph, "--source", data("minilm.txt")], 2, &["is an encoder of text"]);
    faults.extend(place.refuse(args!["embed", graph, "x", "--limit", "64MiB"], 1, &["memory limit of 67108864 bytes"]));
    let long = "bearing ".repeat(300);
    faults.extend(place.refuse(args!["embed", graph, long], 2, &["text 1 has 302 tokens", "1 to 256"]));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
