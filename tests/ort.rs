//! Exported graphs against the native engine.

use std::collections::BTreeMap;
use std::path::Path;

use espalier_models::architecture::Input as InputKind;
use espalier_models::checkpoint::{OnnxOptions, export_onnx};
use safetensors::tensor::{Dtype, TensorView};

#[path = "ort/cases.rs"]
mod cases;
#[allow(dead_code, reason = "only the trained model is used here")]
mod support;

use cases::{BATCH, Case, Fallible, GREEDY, Given, PROMPT, SEQUENCE, cases};
use support::world;

/// A folder for each model under `target/onnx-exports`: the artifact, `model.onnx`, `embedded.onnx` and, of a language model,
/// `cached.onnx`; and `expected.safetensors` with what Espalier computes.
#[test]
#[ignore = "writes target/onnx-exports for scripts/check-onnx.sh"]
fn exports_for_onnx_runtime() -> Fallible<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/onnx-exports");
    if root.exists() {
        std::fs::remove_dir_all(&root)?;
    }
    let cases = cases(&root, &world().model)?;
    for case in &cases {
        let folder = root.join(&case.name);
        export_onnx(&case.artifact, &folder.join("model.onnx"), OnnxOptions::default())?;
        export_onnx(&case.artifact, &folder.join("embedded.onnx"), OnnxOptions { cache: false, embed: true })?;
        expected(case, &folder)?;
    }
    println!("{} exports in {}", cases.len(), root.display());
    Ok(())
}

/// Writes `expected.safetensors`: `input_ids [batch, sequence]` or `patches [batch, patches, patch]`, `logits`; of a language model
/// `prompt [8]` and `greedy [16]` too.
fn expected(case: &Case, folder: &Path) -> Fallible<()> {
    let architecture = &case.artifact.manifest().architecture;
    let given = case.given();
    let logits: Vec<u8> = case.logits(&given)?.iter().flat_map(|logit| logit.to_le_bytes()).collect();
    let int64 = |ids: &[u32]| ids.iter().flat_map(|&id| i64::from(id).to_le_bytes()).collect::<Vec<u8>>();
    let mut tensors: Vec<(&str, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    match (&given, &architecture.input) {
        (Given::Tokens(ids), _) => {
            export_onnx(&case.artifact, &folder.join("cached.onnx"), OnnxOptions { cache: true, embed: false })?;
            let greedy = case.greedy(&ids[..PROMPT])?;
            tensors.push(("input_ids", Dtype::I64, vec![BATCH, SEQUENCE], int64(ids)));
            tensors.push(("logits", Dtype::F32, vec![BATCH, SEQUENCE, architecture.output_width()], logits));
            tensors.push(("prompt", Dtype::I64, vec![PROMPT], int64(&ids[..PROMPT])));
            tensors.push(("greedy", Dtype::I64, vec![GREEDY], int64(&greedy)));
        }
        (Given::Windows(windows), &InputKind::Patches { window, patch, stride, .. }) => {
            let starts = (0..BATCH).flat_map(|index| (0..architecture.patches()).map(move |place| index * window + place * stride));
            let patches = starts.flat_map(|start| &windows[start..start + patch]).flat_map(|sample| sample.to_le_bytes()).collect();
            tensors.push(("patches", Dtype::F32, vec![BATCH, architecture.patches(), patch], patches));
            tensors.push(("logits", Dtype::F32, vec![BATCH, architecture.output_width()], logits));
        }
        (Given::Windows(_), InputKind::Tokens { .. }) => return Err("windows for a model of tokens".into()),
    }
    let views: BTreeMap<&str, TensorView<'_>> = tensors
        .iter()
        .map(|(name, dtype, shape, data)| Ok((*name, TensorView::new(*dtype, shape.clone(), data)?)))
        .collect::<Result<_, safetensors::SafeTensorError>>()?;
    safetensors::serialize_to_file(views, None, &folder.join("expected.safetensors"))?;
    Ok(())
}
