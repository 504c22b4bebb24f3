//! What serving a model in ONNX Runtime takes beside the model, before anything is loaded.

use espalier_models::architecture::Input;
use espalier_models::checkpoint::onnx_plan;
use espalier_models::{Artifact, DType};

use super::library::OrtLibrary;
use super::model::run_bytes;
use super::scorer::scoring_block;
use super::session::{NODE_BYTES, OrtOptions};
use crate::error::Result;
use crate::plan::MAX_PROMPT_TOKENS;

/// Bytes of small blocks that a session keeps of its weights: 0.7 KiB were asked for a network of five layers.
const KEPT_BYTES: u64 = 64 << 10;

/// Bytes that ONNX Runtime takes for `artifact` beside its mapped file, at most: the library, its form of every node, the copies that it
/// makes of weights, while it makes them too, and the largest run of one window, or of one prompt where the diagnosis is made by text.
///
/// # Errors
/// [`RuntimeError::Model`](crate::RuntimeError::Model) where the artifact has no graph.
pub fn ort_overhead_bytes(artifact: &Artifact, options: OrtOptions) -> Result<u64> {
    let manifest = artifact.manifest();
    let (architecture, shape) = (&manifest.architecture, manifest.shape());
    let by_tokens = architecture.patches() == 0;
    let plan = onnx_plan(artifact, by_tokens)?;
    let (run, input) = match architecture.input {
        Input::Tokens { .. } => {
            let tokens = architecture.context().min(MAX_PROMPT_TOKENS);
            let block = scoring_block(architecture.output_width()).min(tokens);
            (run_bytes(architecture, &shape, 1, block, tokens.saturating_sub(block)), 0)
        }
        Input::Patches { patch, .. } => {
            (run_bytes(architecture, &shape, 1, architecture.patches(), 0), architecture.patches().saturating_mul(patch))
        }
    };
    let numbers = input.saturating_add(architecture.output_width()) as u64;
    let buffers = numbers.saturating_mul(4).saturating_add(KEPT_BYTES);
    let packed = packed_bytes(artifact, plan.copied_bytes, options);
    let copies = plan.loading_bytes.max(plan.copied_bytes.saturating_add(run));
    let nodes = NODE_BYTES.saturating_mul(plan.nodes as u64);
    Ok(OrtLibrary::BYTES.saturating_add(buffers).saturating_add(nodes).saturating_add(packed).saturating_add(copies))
}

/// Bytes of the packed copies that ONNX Runtime keeps of f32 weights, and of those that it has copied to f32, where it is to.
pub(super) fn packed_bytes(artifact: &Artifact, copied_bytes: u64, options: OrtOptions) -> u64 {
    if !options.prepack {
        return 0;
    }
    let matrices = artifact.manifest().tensors.iter().filter(|tensor| !tensor.key.part.is_vector() && tensor.dtype == DType::F32);
    matrices.map(|tensor| tensor.bytes).fold(copied_bytes, u64::saturating_add)
}
