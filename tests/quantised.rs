//! Models in q8 and q4: what they compute is what their stored numbers say, and pruning goes from quantised to quantised.

use std::path::PathBuf;

use serde_json::Value;

#[path = "ort/cases.rs"]
#[allow(dead_code, reason = "only logits are compared here")]
mod cases;
#[allow(dead_code, reason = "a part of it is used here")]
mod support;

use cases::{Fallible, cases};
use support::{Place, assert_none, fixture, world};

/// The largest difference of a logit, relative to the largest logit: f32 sums in another order.
const TOLERANCE: f32 = 2e-5;

/// Every fixture in every format, pruned too, beside the same network with its numbers written out in f32.
#[test]
fn a_quantised_network_computes_what_its_numbers_say() -> Fallible<()> {
    let place = Place::new();
    let (mut compared, mut wrong) = (0, Vec::new());
    for case in cases(&place.path("cases"), &world().model)?.iter().filter(|case| case.name.contains("-q")) {
        let given = case.given();
        let (expected, found) = (case.logits(&given)?, case.logits_of(&case.artifact, &given)?);
        let largest = expected.iter().fold(0.0, |largest: f32, logit| largest.max(logit.abs()));
        let off = expected.iter().zip(&found).map(|(a, b)| if b.is_finite() { (a - b).abs() } else { f32::INFINITY }).fold(0.0, f32::max);
        compared += 1;
        if expected.len() != found.len() || off > TOLERANCE * largest {
            wrong.push(format!("{}: off by {off:.1e} of {largest:.1e}", case.name));
        }
    }
    assert!(compared > 50 && wrong.is_empty(), "{} of {compared} differ:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

/// The trained signal model, quantised by way of a checkpoint.
fn quantised(place: &Place, dtype: &str) -> PathBuf {
    let (checkpoint, model) = (place.out(&format!("checkpoint-{dtype}")), place.out(&format!("{dtype}.esp")));
    place.succeed(args!["export", world().model, "--safetensors", checkpoint, "--dialect", "espalier"]);
    let said = place.succeed(args!["import", checkpoint, "-o", model, "--dtype", dtype]).stdout;
    assert!(said.contains("root mean square") && said.contains(&format!("weights  {dtype}")), "{said}");
    model
}

#[test]
fn a_quantised_signal_model_is_pruned_to_a_quantised_one() {
    let place = Place::new();
    let dense = place.succeed(args!["inspect", world().model, "--json"]).json();
    for dtype in ["q8", "q4"] {
        let (model, small, stages) =
            (quantised(&place, dtype), place.out(&format!("{dtype}-small.esp")), place.out(&format!("{dtype}-stages")));
        let inspect = |path: &PathBuf| place.succeed(args!["inspect", path, "--json", "--verify"]).json();
        assert!(inspect(&model)["file_bytes"].as_u64() < dense["file_bytes"].as_u64(), "{dtype} is smaller");
        let corpus = &world().corpus;
        let steps = ["--ratio", "2.5", "--steps", "20,20,20", "--stages"];
        let command = args!["prune", model, "-o", small, "--data", corpus].into_iter().chain(steps.map(Into::into));
        let said = place.succeed(command.chain([stages.clone().into_os_string()])).stdout;
        for stage in ["layers", "heads", "channels"] {
            assert_eq!(inspect(&stages.join(format!("{stage}.esp")))["weights"], dtype, "{stage}: {said}");
        }
        let pruned = inspect(&small);
        let parameters = |inspected: &Value| inspected["parameters"].as_u64().expect("parameters");
        assert_eq!(pruned["weights"], dtype);
        assert!(5 * parameters(&pruned) <= 2 * parameters(&dense), "{} of {}", parameters(&pruned), parameters(&dense));
        let channels = |layer: &Value| layer["channels"].as_u64().expect("channels");
        assert!(pruned["layers"].as_array().expect("layers").iter().all(|layer| channels(layer) % 32 == 0), "whole blocks stay: {pruned}");
        let evaluated = place.succeed(args!["eval", small, "--data", corpus, "--json"]).json();
        assert!(evaluated[0]["accuracy"].is_f64(), "{evaluated}");
    }
}

#[test]
fn a_quantised_model_judges_nearly_as_the_one_it_was_made_of() {
    let place = Place::new();
    let accuracy = |model: &PathBuf| {
        let evaluated = place.succeed(args!["eval", model, "--data", world().corpus, "--json"]).json();
        evaluated[0]["accuracy"].as_f64().expect("an accuracy")
    };
    let before = accuracy(&world().model);
    for (dtype, slack) in [("q8", 0.03), ("q4", 0.15)] {
        let after = accuracy(&quantised(&place, dtype));
        assert!((after - before).abs() <= slack, "{dtype}: accuracy {before} became {after}");
    }
}

#[test]
fn what_cannot_be_done_with_quantised_weights_is_refused() {
    let place = Place::new();
    let model = quantised(&place, "q8");
    let small = place.out("small.esp");
    let split = args!["prune", model, "-o", small, "--data", world().corpus, "--ratio", "4", "--keep", "2,2,40"];
    let smallest = args!["prune", model, "-o", small, "--data", world().corpus, "--ratio", "20"];
    let mut faults = place.refuse(split, 2, &["40 channels", "block of 32", "multiple of 32"]);
    faults.extend(place.refuse(smallest, 1, &["ratio of 20 cannot be reached", "32 channels"]));
    assert_none(faults);
}

#[test]
fn a_quantised_language_model_goes_on_where_it_was_cut_off() {
    let place = Place::new();
    for dtype in ["q8", "q4"] {
        let (model, checkpoint, again) = (place.out("model.esp"), place.out(&format!("{dtype}-out")), place.out("again.esp"));
        place.succeed(args!["import", fixture("llama-gqa2"), "-o", model, "--dtype", dtype]);
        let continued = |model: &PathBuf| place.succeed(args!["generate", model, "3 1 4 1 5 9", "--max-tokens", "20"]).stdout;
        // Out as f32 and in again as f32: the same numbers.
        place.succeed(args!["export", model, "--safetensors", checkpoint]);
        place.succeed(args!["import", checkpoint, "-o", again, "--dtype", "f32"]);
        assert_eq!(continued(&model), continued(&again), "{dtype}");
    }
}
