//! Opens a graph, its sidecar and ONNX Runtime.

use std::path::Path;
use std::sync::Arc;

use espalier_models::foreign::ForeignModel;
use espalier_runtime::{Budget, OrtForeign};

use super::engine;
use crate::cli::{Context, EngineArgs};
use crate::engine::{OpenDevice, Ort};
use crate::error::{AgentError, Result};

/// A graph with its sidecar, read from their files.
pub(in crate::cli) fn read(model: &Path, sidecar: Option<&Path>) -> Result<Arc<ForeignModel>> {
    Ok(Arc::new(ForeignModel::open(model, sidecar)?))
}

/// ONNX Runtime for the graph `model`, and the budget that what it takes is booked in.
pub(super) fn ort(context: &Context, args: EngineArgs, model: &Path, limit: Option<u64>) -> Result<(Ort, Arc<Budget>)> {
    match context.device_for(engine(args, model)?, limit, (Ok(()), model))? {
        (OpenDevice::Ort(_, ort), budget) => Ok((ort, budget)),
        (other, _) => Err(AgentError::Usage(format!("engine {} was opened for {}; give --engine ort", other.kind(), model.display()))),
    }
}

/// The graph in ONNX Runtime, for up to `most` windows at once or tokens of a text.
pub(super) fn runner((ort, budget): &(Ort, Arc<Budget>), model: &Arc<ForeignModel>, most: usize) -> Result<OrtForeign> {
    Ok(OrtForeign::open(ort.library, budget, model.clone(), most, ort.options)?)
}
