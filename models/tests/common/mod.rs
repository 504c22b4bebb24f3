//! Small models for the tests.

#![allow(dead_code, reason = "each test binary uses a part")]

pub mod checkpoints;
pub mod onnx;

use std::path::Path;

use espalier_models::architecture::*;
use espalier_models::manifest::{Origin, StoredLayer};
use espalier_models::tensor::model_tensors;
use espalier_models::{Artifact, ArtifactWriter, DType, LayerShape, Manifest, TensorSpec, Units};

/// A signal classifier of width `d_model` with one entry of `layers` a layer.
pub fn classifier(d_model: usize, head_dim: usize, layers: Vec<LayerShape>) -> Manifest {
    let architecture = Architecture {
        input: Input::Patches { window: 64, patch: 8, stride: 8, sample_rate_hz: 12_000.0 },
        embedding_scale: None,
        output: Output::Classes { names: vec!["normal".to_string(), "inner race".to_string(), "outer race".to_string()] },
        d_model,
        norm: Norm { kind: NormKind::LayerNorm, epsilon: 1e-5 },
        post_norms: false,
        positions: Positions::Learned { count: 8, offset: 0 },
        spans: vec![AttentionSpan::FULL],
        attention: Attention { head_dim, scale: None, qk_norm: false, qkv_bias: true, output_bias: true, fused_qkv: false },
        ffn: Ffn { gated: false, activation: Activation::GeluTanh, bias: true },
        residual: Residual::Sequential,
    };
    manifest(architecture, layers)
}

/// A manifest of that architecture and shape, with original indices that are not the stored ones.
pub fn manifest(architecture: Architecture, layers: Vec<LayerShape>) -> Manifest {
    let all = |count: usize| (0..count as u32).map(|index| index * 2 + 1).collect();
    let layers = layers.into_iter().enumerate().map(|(index, shape)| {
        let (heads, groups, channels) = shape.units().map_or((0, 0, 0), |units| (units.heads.len(), units.groups, units.channels));
        StoredLayer {
            original: index as u32,
            shape,
            original_heads: all(heads),
            original_groups: all(groups),
            original_channels: all(channels),
        }
    });
    Manifest {
        name: "a test model".to_string(),
        architecture,
        layers: layers.collect(),
        tensors: Vec::new(),
        levels: Vec::new(),
        origin: Origin {
            dialect: "espalier".to_string(),
            config: String::new(),
            dense_parameters: 12_345,
            history: vec!["Made by a test.".to_string()],
        },
        tokenizer: None,
        measured: None,
        diagnosis: None,
    }
}

/// Layers of odd sizes: 3 heads and 5 channels, removed, no heads, no channels.
pub fn odd_layers() -> Vec<LayerShape> {
    vec![
        LayerShape::Kept(Units { heads: vec![1, 0, 1], groups: 2, channels: 5, span: 0 }),
        LayerShape::Removed,
        LayerShape::Kept(Units { heads: vec![], groups: 0, channels: 3, span: 0 }),
        LayerShape::Kept(Units::dense(2, 1, 0)),
    ]
}

/// The numbers of a tensor: different in every element and tensor, and exact in every 16-bit format.
pub fn numbers(spec: &TensorSpec) -> Vec<f32> {
    let seed = spec.key.part as usize * 7 + spec.key.layer.map_or(0, |layer| layer as usize + 1) * 31;
    (0..spec.rows * spec.columns).map(|index| ((index * 13 + seed) % 255) as f32 - 127.0).collect()
}

/// Writes `manifest` with [`numbers`], `rows_at_once` rows at a time.
pub fn write(path: &Path, manifest: &Manifest, dtype: DType, rows_at_once: usize) -> espalier_models::Result<()> {
    let mut writer = ArtifactWriter::create(path, manifest.clone(), dtype)?;
    for spec in model_tensors(&manifest.architecture, &manifest.shape()) {
        for rows in numbers(&spec).chunks((spec.columns * rows_at_once).max(1)) {
            writer.write_rows(spec.key, rows)?;
        }
    }
    assert_eq!(writer.finish()?, path);
    Ok(())
}

/// Every difference between the artifact and [`numbers`], each a sentence.
pub fn differences(artifact: &Artifact) -> Vec<String> {
    let mut wrong = Vec::new();
    let manifest = artifact.manifest();
    for spec in model_tensors(&manifest.architecture, &manifest.shape()) {
        let expected = numbers(&spec);
        for start in 0..=spec.rows.min(3) {
            let mut out = vec![f32::NAN; (spec.rows - start) * spec.columns];
            match artifact.read_rows(spec.key, start..spec.rows, &mut out) {
                Err(error) => wrong.push(format!("{}: {error}", spec.key)),
                Ok(()) if out != expected[start * spec.columns..] => wrong.push(format!("{} from row {start}: {out:?}", spec.key)),
                Ok(()) => {}
            }
        }
    }
    wrong
}
