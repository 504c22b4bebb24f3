//! Opens a graph, its sidecar and ONNX Runtime.

use std::path::Path;
use std::sync::Arc;

use espalier_models::foreign::ForeignModel;
use espalier_runtime::{Budget, OrtForeign, PROCESS_BYTES};

use super::engine;
use crate::cli::{Context, EngineArgs};
use crate::engine::{Engines, OpenDevice, Ort};
use crate::error::{AgentError, Result};

/// A graph with its sidecar, read from their files.
pub(in crate::cli) fn read(model: &Path, sidecar: Option<&Path>) -> Result<Arc<ForeignModel>> {
    Ok(Arc::new(ForeignModel::open(model, sidecar)?))
}

/// ONNX Runtime for the graph `model`, and the budget that what it takes is booked in.
pub(super) fn ort(context: &Context, args: EngineArgs, model: &Path, limit: Option<u64>) -> Result<(Ort, Arc<Budget>)> {
    let budget = Arc::new(Budget::new(limit.unwrap_or(u64::MAX), PROCESS_BYTES));
    // Engines of its own: an artifact that it is compared with may be computed by another one.
    match Engines::new(engine(args, model)?.asked()?).open(context.threads, &budget)? {
        OpenDevice::Ort(_, ort) => Ok((ort, budget)),
        other => Err(AgentError::Usage(format!("engine {} was opened for {}; give --engine ort", other.kind(), model.display()))),
    }
}

/// The graph in ONNX Runtime, for up to `most` windows at once or tokens of a text.
pub(super) fn runner((ort, budget): &(Ort, Arc<Budget>), model: &Arc<ForeignModel>, most: usize) -> Result<OrtForeign> {
    Ok(OrtForeign::open(ort.library, budget, model.clone(), most, ort.options)?)
}
