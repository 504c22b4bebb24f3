//! A first draft of a graph's sidecar.

use serde_json::{Value, json};

use super::graph::{Extent, ForeignGraph, Slot};
use super::tensor::ElementType;

/// A sidecar for the graph, filled with what the graph says. What it does not say is 0 or a name that wants replacing: a sidecar with a 0 is
/// refused with the field's name, so that nothing is guessed in silence.
pub fn template(graph: &ForeignGraph) -> String {
    let tokens = graph.inputs.iter().any(|slot| slot.element == ElementType::INT64);
    let value = if tokens { encoder(graph) } else { classifier(graph) };
    // Writing a value as text cannot fail: its keys are texts.
    serde_json::to_string_pretty(&value).unwrap_or_default() + "\n"
}

/// A known dimension, or 0.
fn size(slot: Option<&Slot>, index: usize) -> u64 {
    match slot.and_then(|slot| slot.dims.as_ref()?.get(index)) {
        Some(Extent::Size(size)) => *size,
        _ => 0,
    }
}

fn rank(slot: Option<&Slot>) -> usize {
    slot.and_then(|slot| slot.dims.as_ref()).map_or(0, Vec::len)
}

fn classifier(graph: &ForeignGraph) -> Value {
    let input = graph.inputs.iter().find(|slot| slot.element == ElementType::FLOAT).or(graph.inputs.first());
    let output = graph.outputs.first();
    let name = |slot: Option<&Slot>| slot.map_or(String::new(), |slot| slot.name.clone());
    // What Espalier notes in graphs that it exports.
    let noted = |key: &str| graph.properties.get(key).and_then(|value| serde_json::from_str::<Value>(value).ok());
    let number = |key: &str| noted(key).filter(Value::is_number);
    let rate = number("espalier.sample_rate_hz").unwrap_or(json!(0));
    let patches = rank(input) == 3 && size(input, 1) != 1;
    let signal = match patches {
        false => json!({
            "kind": "window",
            "name": name(input),
            "window": size(input, rank(input).max(2) - 1),
            "sample_rate_hz": rate,
            "normalisation": "window",
        }),
        true => {
            let (count, patch) = (size(input, 1), size(input, 2));
            let stride = number("espalier.stride").unwrap_or(json!(patch));
            json!({
                "kind": "patches",
                "name": name(input),
                "window": number("espalier.window").unwrap_or(json!(count.saturating_mul(patch))),
                "patch": patch,
                "stride": stride,
                "sample_rate_hz": rate,
                "normalisation": "window",
            })
        }
    };
    let count = size(output, 1).min(32);
    let classes = noted("espalier.classes").unwrap_or_else(|| (0..count).map(|class| format!("class {class}")).collect());
    let kind = if name(output).to_lowercase().contains("prob") { "probabilities" } else { "logits" };
    json!({ "input": signal, "output": { "kind": kind, "name": name(output), "classes": classes } })
}

fn encoder(graph: &ForeignGraph) -> Value {
    let named = |part: &str| graph.inputs.iter().find(|slot| slot.name.contains(part)).map(|slot| slot.name.clone());
    let other = |slot: &&Slot| ["mask", "type"].iter().all(|part| !slot.name.contains(part));
    let ids = graph.inputs.iter().find(other).map(|slot| slot.name.clone());
    let mut input = json!({ "kind": "tokens", "ids": ids.unwrap_or_default() });
    for (key, part) in [("mask", "mask"), ("types", "type")] {
        if let Some(name) = named(part) {
            input[key] = json!(name);
        }
    }
    input["tokenizer"] = json!("tokenizer.json");
    input["max_tokens"] = json!(0);
    let output = graph.outputs.first();
    let pooling = if rank(output) == 2 { "none" } else { "mean" };
    let name = output.map_or("", |slot| slot.name.as_str());
    json!({ "input": input, "output": { "kind": "embedding", "name": name, "pooling": pooling, "normalise": true } })
}
