//! `espalier eval` with a graph of another program.

use std::path::Path;
use std::sync::Arc;

use espalier_models::foreign::ForeignModel;

use super::open;
use crate::cli::{Context, EngineArgs};
use crate::diagnosis::foreign::signal;
use crate::error::{AgentError, Result};
use crate::evaluate::{BATCH, predict_by_signal};
use crate::metrics::Predictions;
use crate::signals::WindowSet;

/// Predictions of the graph on one set after the other, of windows normalised as its sidecar says.
pub(in crate::cli) fn predictions(
    context: &Context,
    (args, limit): (EngineArgs, Option<u64>),
    model: &Arc<ForeignModel>,
    (sets, classes): (&[(String, WindowSet)], &[String]),
) -> Result<Vec<Predictions>> {
    let (path, signal) = (model.graph.path(), signal(model)?);
    check_classes(path, model.classes(), classes)?;
    if let Some((_, set)) = sets.iter().find(|(_, set)| set.length() != signal.window) {
        let (path, window, length) = (path.display(), signal.window, set.length());
        return Err(AgentError::Usage(format!("{path} reads windows of {window} samples, but the split has windows of {length}")));
    }
    let mut runner = open::runner(&open::ort(context, args, path, limit)?, model, BATCH)?;
    let mut predict = |(_, set): &(String, WindowSet)| {
        predict_by_signal(&mut runner, model.classes(), &set.clone().with_normalisation(signal.normalisation), &context.stop)
    };
    sets.iter().map(&mut predict).collect()
}

fn check_classes(path: &Path, known: &[String], classes: &[String]) -> Result<()> {
    if known == classes {
        return Ok(());
    }
    let (path, known, classes) = (path.display(), known.join(", "), classes.join(", "));
    Err(AgentError::Usage(format!(
        "{path} tells the classes {known} apart by its sidecar, in this order, but the split has the classes {classes}; choose the split it \
         was trained for, or name the classes in the sidecar as the split does"
    )))
}
