//! What ONNX Runtime holds of a model: f32 weights stay pages of the artifact, and what does not fit the limit is refused.
//!
//! One test, in a program of its own: it reads this process's gauges.

#![cfg(feature = "ort")]

use std::path::Path;
use std::sync::Arc;

use espalier_agent::signal_model::dense_manifest;
use espalier_models::architecture::*;
use espalier_models::tensor::model_tensors;
use espalier_models::{Artifact, ArtifactWriter, DType, ModelShape, Units};
use espalier_runtime::{Budget, OrtModel, OrtOptions, OrtProviders, RuntimeError, ort_overhead_bytes, release_free_memory};

#[path = "ort/library.rs"]
mod library;

/// Bytes of this process by a line of `/proc/self/status`.
fn gauge(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with(name)).expect("a gauge");
    line.split_whitespace().nth(1).expect("a number").parse::<u64>().expect("a number") * 1024
}

/// A model of windows with some 16 million parameters.
fn artifact(path: &Path, dtype: DType) -> Arc<Artifact> {
    let architecture = Architecture {
        input: Input::Patches { window: 256, patch: 32, stride: 32, sample_rate_hz: 12_000.0 },
        embedding_scale: None,
        output: Output::Classes { names: vec!["a".to_string(), "b".to_string()] },
        d_model: 512,
        norm: Norm { kind: NormKind::LayerNorm, epsilon: 1e-5 },
        post_norms: false,
        positions: Positions::Learned { count: 8, offset: 0 },
        spans: vec![AttentionSpan::FULL],
        attention: Attention { head_dim: 64, scale: None, qk_norm: false, qkv_bias: true, output_bias: true, fused_qkv: false },
        ffn: Ffn { gated: false, activation: Activation::GeluTanh, bias: true },
        residual: Residual::Sequential,
    };
    let shape = ModelShape::uniform(5, Units::dense(8, 8, 2048));
    let manifest = dense_manifest("large", architecture.clone(), &shape, "made by a test".into(), None);
    let mut writer = ArtifactWriter::create(path, manifest, dtype).expect("a place for it");
    for spec in model_tensors(&architecture, &shape) {
        let numbers: Vec<f32> = (0..spec.rows * spec.columns).map(|index| ((index * 31 % 97) as f32 - 48.0) / 1000.0).collect();
        writer.write_rows(spec.key, &numbers).expect("rows");
    }
    Arc::new(Artifact::open(&writer.finish().expect("an artifact")).expect("an artifact"))
}

#[test]
fn f32_weights_are_not_copied_and_the_limit_holds() {
    let Some(library) = library::library() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let [single, half] =
        [("f32.esp", DType::F32), ("bf16.esp", DType::Bf16)].map(|(name, dtype)| artifact(&folder.path().join(name), dtype));
    let options = OrtOptions { threads: 1, prepack: false, providers: OrtProviders::CPU };
    let windows: Vec<f32> = (0..256).map(|index| (index as f32 * 0.3).sin()).collect();
    let held = |artifact: &Arc<Artifact>, options| {
        let budget = Arc::new(Budget::unlimited());
        // What earlier sessions gave back would hide what this one takes.
        release_free_memory();
        let before = gauge("RssAnon");
        let mut model = OrtModel::open(library, &budget, artifact, (1, 8), options).expect("a session");
        model.classify(&windows).expect("probabilities");
        (gauge("RssAnon").saturating_sub(before), budget.used())
    };
    let weights = single.file_bytes();
    let (first, _) = held(&single, options);
    let (anonymous, booked) = held(&single, options);
    println!("the first session: {first} anonymous bytes");
    assert!(first < weights / 4, "{first} anonymous bytes, with what ONNX Runtime itself needs, for {weights} of weights");
    println!("f32: {anonymous} anonymous bytes, {booked} booked, {weights} of weights");
    assert!(anonymous < weights / 32, "{anonymous} anonymous bytes for {weights} of weights");
    assert!(booked >= weights + anonymous, "{booked} booked for {weights} mapped and {anonymous} anonymous");
    let (copied, booked) = held(&half, options);
    println!("bf16: {copied} anonymous bytes, {booked} booked");
    assert!(copied > weights / 2 && booked >= half.file_bytes() + copied, "{copied} anonymous bytes, {booked} booked");
    let (packed, packed_booked) = held(&single, OrtOptions { prepack: true, ..options });
    println!("prepacked: {packed} anonymous bytes, {packed_booked} booked");
    assert!(packed_booked >= weights + packed, "{packed} anonymous bytes, {packed_booked} booked");

    let mut wrong = Vec::new();
    // What is planned before anything is loaded is enough, and not far too much.
    for (name, artifact, prepack) in [("f32", &single, false), ("f32, prepacked", &single, true), ("bf16", &half, false)] {
        let options = OrtOptions { prepack, ..options };
        let overhead = ort_overhead_bytes(artifact, options).expect("a plan");
        let planned = artifact.file_bytes() + overhead;
        let budget = Arc::new(Budget::new(planned, 0));
        release_free_memory();
        let before = gauge("RssAnon");
        match OrtModel::open(library, &budget, artifact, (1, 8), options) {
            Ok(mut model) => {
                model.classify(&windows).expect("probabilities");
                let anonymous = gauge("RssAnon").saturating_sub(before);
                println!("{name}: {overhead} bytes planned beside the file, {} booked at most, {anonymous} anonymous", budget.high_water());
                if anonymous > overhead || budget.high_water() * 2 < planned {
                    wrong.push(format!("{name}: {overhead} planned, {anonymous} anonymous, {} booked of {planned}", budget.high_water()));
                }
            }
            Err(error) => wrong.push(format!("{name}: {planned} bytes are not enough: {error}")),
        }
    }
    for share in [0, 10, 50, 90, 100, 110, 150, 220, 300] {
        let limit = booked / 100 * share;
        let budget = Arc::new(Budget::new(limit, 0));
        match OrtModel::open(library, &budget, &half, (1, 8), options) {
            Ok(_) if share < 100 => wrong.push(format!("{share} %: opened")),
            Ok(mut model) => {
                model.classify(&windows).expect("probabilities");
                if budget.high_water() > limit {
                    wrong.push(format!("{share} %: {} bytes of {limit}", budget.high_water()));
                }
            }
            Err(RuntimeError::Kernel(_)) if share < 300 => {}
            Err(error) => wrong.push(format!("{share} %: {error}")),
        }
        if budget.used() > 0 {
            wrong.push(format!("{share} %: {} bytes are booked in the end", budget.used()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
