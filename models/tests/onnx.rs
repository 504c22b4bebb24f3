//! ONNX graphs, without ONNX: every value is made before it is used, every weight is the artifact's own, and what cannot be is refused.
//! What the graphs compute is compared in `scripts/check-onnx.sh`.

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use common::checkpoints::{fixtures, kept, parity, pruned};
use common::onnx::Model;
use espalier_models::checkpoint::{OnnxExport, OnnxOptions, OnnxOutput, export_onnx, import, onnx_graph};
use espalier_models::{Artifact, DType, LayerShape, Result};

/// Exports into the folder of the artifact, and reads what was written.
fn exported(artifact: &Artifact, options: OnnxOptions) -> Result<(OnnxExport, Model)> {
    let out = artifact.path().with_extension("onnx");
    let plan = export_onnx(artifact, &out, options)?;
    let bytes = std::fs::read(out).unwrap();
    assert_eq!(plan.file_bytes, bytes.len() as u64);
    Ok((plan, Model::parse(&bytes)))
}

/// An artifact of every fixture, and one of odd layers in every format.
fn artifacts(folder: &Path) -> Vec<Artifact> {
    let mut artifacts = Vec::new();
    for fixture in fixtures() {
        let out = folder.join(format!("{}.esp", fixture.file_name().unwrap().to_str().unwrap()));
        import(&fixture, &out, None, &mut |_, _| {}).unwrap();
        artifacts.push(Artifact::open(&out).unwrap());
    }
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        let signal = common::classifier(24, 4, common::odd_layers());
        let llama = pruned("llama-gqa2", &[kept(&[1, 0, 1], 2, 7), LayerShape::Removed, kept(&[], 0, 3), kept(&[0], 1, 0)]);
        for (name, manifest) in [("signal", signal), ("llama", llama)] {
            let out = folder.join(format!("{name}-{dtype:?}.esp"));
            common::write(&out, &manifest, dtype, 3).unwrap();
            artifacts.push(Artifact::open(&out).unwrap());
        }
    }
    artifacts
}

/// What is wrong with a graph as a graph, each a sentence.
fn faults(model: &Model) -> Vec<String> {
    let mut faults = Vec::new();
    let mut known: BTreeSet<String> = BTreeSet::new();
    let bare = |info: &String| info.split(' ').next().unwrap_or_default().to_string();
    for name in model.inputs.iter().map(bare).chain(model.initializers.iter().map(|tensor| tensor.name.clone())) {
        if !known.insert(name.clone()) {
            faults.push(format!("{name} is there twice"));
        }
    }
    let mut used = BTreeSet::new();
    let mut names = BTreeSet::new();
    for node in &model.nodes {
        faults.extend(
            node.inputs.iter().filter(|input| !known.contains(*input)).map(|input| format!("{} reads {input} too early", node.name)),
        );
        used.extend(node.inputs.iter().cloned());
        faults
            .extend(node.outputs.iter().filter(|output| !known.insert((*output).clone())).map(|output| format!("{output} is made twice")));
        if !names.insert(&node.name) {
            faults.push(format!("two nodes are called {}", node.name));
        }
    }
    let outputs: BTreeSet<String> = model.outputs.iter().map(bare).collect();
    faults.extend(outputs.difference(&known).map(|output| format!("{output} is never made")));
    faults
        .extend(known.iter().filter(|name| !used.contains(*name) && !outputs.contains(*name)).map(|name| format!("{name} is never read")));
    faults
}

/// What is wrong with its weights.
fn weight_faults(model: &Model, artifact: &Artifact, embedded: bool) -> Vec<String> {
    let mut faults = Vec::new();
    let map = artifact.map();
    for tensor in model.initializers.iter().filter(|tensor| embedded || !tensor.external.is_empty()) {
        let Some(stored) = artifact.manifest().tensors.iter().find(|stored| dotted(&stored.key.to_string()) == tensor.name) else {
            if tensor.external.is_empty() {
                continue;
            }
            faults.push(format!("{} is no tensor of the artifact", tensor.name));
            continue;
        };
        let width = if tensor.element == 1 { 4 } else { 2 };
        let (elements, range) = (tensor.dims.iter().product::<i64>() as usize, artifact.range(stored));
        if elements * width != range.len() {
            faults.push(format!("{} is {:?}, but has {} bytes", tensor.name, tensor.dims, range.len()));
        }
        let expected = [range.start.to_string(), range.len().to_string()];
        let right = match embedded {
            true => tensor.raw == map[range],
            false => {
                let file = artifact.path().file_name().unwrap().to_str().unwrap();
                tensor.external["location"] == file
                    && [&tensor.external["offset"], &tensor.external["length"]] == [&expected[0], &expected[1]]
            }
        };
        if !right {
            faults.push(format!("{} has other bytes than the artifact's: {:?}", tensor.name, tensor.external));
        }
    }
    faults
}

/// `layer 3 AttentionOutputBias` as `layers.3.attention_output_bias`.
fn dotted(key: &str) -> String {
    let words: Vec<&str> = key.split(' ').collect();
    let part = words.last().unwrap().replace(|c: char| c.is_ascii_uppercase(), "_");
    let part: String = part
        .chars()
        .zip(words.last().unwrap().chars())
        .map(|(a, b)| if a == '_' { format!("_{}", b.to_ascii_lowercase()) } else { a.to_string() })
        .collect();
    let part = part.trim_start_matches('_');
    if words.len() == 1 { part.to_string() } else { format!("layers.{}.{part}", words[1]) }
}

#[test]
fn every_graph_is_whole_and_reads_the_artifacts_own_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for artifact in artifacts(folder.path()) {
        let language = artifact.manifest().architecture.classes().is_empty();
        for (cache, embed) in [(false, false), (false, true), (true, false)].into_iter().filter(|(cache, _)| language || !cache) {
            let (plan, model) = exported(&artifact, OnnxOptions { cache, embed }).unwrap();
            let mut found = faults(&model);
            found.extend(weight_faults(&model, &artifact, embed));
            let external: u64 = model.initializers.iter().filter_map(|tensor| tensor.external.get("length")?.parse::<u64>().ok()).sum();
            let single = artifact.manifest().tensors.iter().all(|tensor| tensor.dtype == DType::F32);
            if plan.nodes != model.nodes.len()
                || plan.external_bytes != external
                || embed != (external == 0)
                || single != (plan.copied_bytes == 0)
            {
                found.push(format!("the plan is {plan:?}"));
            }
            if (model.ir_version, model.opset) != (8, 17) || !model.outputs[0].starts_with("logits ") {
                found.push(format!("IR {}, opset {}, outputs {:?}", model.ir_version, model.opset, model.outputs));
            }
            let name = artifact.path().file_name().unwrap().to_string_lossy().into_owned();
            wrong.extend(found.into_iter().map(|fault| format!("{name}, cache {cache}, embed {embed}: {fault}")));
        }
    }
    assert!(wrong.is_empty(), "{} faults:\n{}", wrong.len(), wrong.join("\n"));
}

/// A copy would be made of an f32 weight that anything but these reads.
#[test]
fn f32_weights_are_read_as_they_lie() {
    let folder = tempfile::tempdir().unwrap();
    let reads_in_place = ["Gemm", "Gather", "LayerNormalization", "Mul", "Add"];
    let mut wrong = Vec::new();
    for artifact in artifacts(folder.path()) {
        let (_, model) = exported(&artifact, OnnxOptions::default()).unwrap();
        for node in &model.nodes {
            for tensor in node.inputs.iter().filter_map(|input| model.initializer(input)) {
                let stored_single = tensor.element == 1 && !tensor.external.is_empty();
                if stored_single && !reads_in_place.contains(&node.operator.as_str()) {
                    wrong.push(format!("{}: {} reads {}", artifact.path().display(), node.name, tensor.name));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn inputs_and_outputs_are_those_that_are_promised() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(format!("{name}.esp"));
    let signal = common::classifier(24, 4, common::odd_layers());
    common::write(&at("signal"), &signal, DType::F32, 3).unwrap();
    let (_, model) = exported(&Artifact::open(&at("signal")).unwrap(), OnnxOptions::default()).unwrap();
    assert_eq!(model.inputs, ["patches i1[batch, patches, 8]"]);
    assert_eq!(model.outputs, ["logits i1[batch, 3]"]);
    assert_eq!(model.properties["espalier.classes"], r#"["normal","inner race","outer race"]"#);
    assert_eq!(model.properties["espalier.window"], "64");

    // Layer 1 is removed and layer 2 has no heads, so that neither has keys.
    let layers = [kept(&[1, 0, 1], 2, 7), LayerShape::Removed, kept(&[], 0, 3), kept(&[0], 1, 0)];
    common::write(&at("llama"), &pruned("llama-gqa2", &layers), DType::Bf16, 3).unwrap();
    let llama = Artifact::open(&at("llama")).unwrap();
    let (_, model) = exported(&llama, OnnxOptions::default()).unwrap();
    let logits = format!("logits i1[batch, sequence, {}]", llama.manifest().architecture.output_width());
    assert_eq!((model.inputs, model.outputs), (vec!["input_ids i7[batch, sequence]".to_string()], vec![logits.clone()]));
    let (_, model) = exported(&llama, OnnxOptions { cache: true, embed: false }).unwrap();
    let carried = |name: &str, tokens: &str| {
        let one = |layer: usize, groups: usize, what: &str| format!("{name}.{layer}.{what} i1[batch, {groups}, {tokens}, 8]");
        vec![one(0, 2, "key"), one(0, 2, "value"), one(3, 1, "key"), one(3, 1, "value")]
    };
    let sorted = |mut texts: Vec<String>| {
        texts.sort();
        texts
    };
    let mut inputs = carried("past_key_values", "past_sequence");
    inputs.insert(0, "input_ids i7[batch, sequence]".to_string());
    assert_eq!(sorted(model.inputs), inputs);
    let mut outputs = carried("present", "total_sequence");
    outputs.insert(0, logits);
    assert_eq!(model.outputs, outputs);
}

#[test]
fn a_graph_in_memory_is_the_one_that_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model.esp");
    import(&parity().join("gpt2"), &out, None, &mut |_, _| {}).unwrap();
    let artifact = Artifact::open(&out).unwrap();
    exported(&artifact, OnnxOptions::default()).unwrap();
    let graph = onnx_graph(&artifact, false, OnnxOutput::Logits).unwrap();
    assert_eq!(graph.model, std::fs::read(out.with_extension("onnx")).unwrap());
    let named = Model::parse(&graph.model);
    let external: Vec<&str> =
        named.initializers.iter().filter(|tensor| !tensor.external.is_empty()).map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(graph.weights.iter().map(|weight| weight.name.as_str()).collect::<Vec<_>>(), external);
}

#[test]
fn what_cannot_be_is_refused_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    common::write(&at("signal.esp"), &common::classifier(24, 4, common::odd_layers()), DType::F32, 3).unwrap();
    let headless = pruned("llama-gqa2", &[kept(&[], 0, 3)]);
    common::write(&at("headless.esp"), &headless, DType::F32, 3).unwrap();
    std::fs::copy(at("signal.esp"), at("damaged.esp")).unwrap();
    let mut bytes = std::fs::read(at("damaged.esp")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(at("damaged.esp"), bytes).unwrap();
    let (plain, cache) = (OnnxOptions::default(), OnnxOptions { cache: true, embed: false });
    let cases = [
        ("signal.esp", other.path().join("a.onnx"), plain, "must lie in the same folder; write it to"),
        ("signal.esp", at("signal.esp"), plain, "it is the artifact itself"),
        ("signal.esp", folder.path().to_path_buf(), plain, "it is no name of a file"),
        ("signal.esp", at("missing/a.onnx"), plain, "cannot look up"),
        ("signal.esp", at("a.onnx"), cache, "this one says no next token; leave out --cache"),
        ("headless.esp", at("a.onnx"), cache, "no layer has heads left"),
        ("damaged.esp", at("a.onnx"), plain, "is damaged"),
    ];
    let mut wrong = Vec::new();
    for (name, out, options, expected) in cases {
        let artifact = Artifact::open(&at(name)).unwrap();
        match export_onnx(&artifact, &out, options) {
            Ok(_) => wrong.push(format!("{name} was written to {}", out.display())),
            Err(error) if !error.to_string().contains(expected) => wrong.push(format!("expected `{expected}`, found: {error}")),
            Err(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
    assert_eq!(std::fs::read_dir(other.path()).unwrap().count(), 0);
    let embedded = OnnxOptions { cache: false, embed: true };
    export_onnx(&Artifact::open(&at("signal.esp")).unwrap(), &other.path().join("a.onnx"), embedded).unwrap();
}
