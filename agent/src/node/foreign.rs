//! A node that serves a graph of another program: nothing is pruned, and an engine that fails is opened again.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use espalier_models::foreign::ForeignModel;
use espalier_runtime::Budget;

use super::serving::{Heard, Serving};
use super::{Log, POLL};
use crate::diagnosis::DiagnosisHandle;
use crate::diagnosis::foreign::ForeignEngine;
use crate::engine::{Engines, OpenDevice};
use crate::error::{AgentError, Result};
use crate::train::Stop;

/// A node that only serves.
pub struct ForeignNode {
    serving: Serving,
    path: PathBuf,
    /// What happened, in order.
    pub log: Log,
}

/// The engine of a foreign model on `device`, which must be ONNX Runtime.
///
/// # Errors
/// As [`ForeignEngine::open`].
pub fn open_foreign(device: &OpenDevice, budget: &Arc<Budget>, model: &Arc<ForeignModel>) -> Result<ForeignEngine> {
    match device {
        OpenDevice::Ort(_, ort) => ForeignEngine::open(*ort, budget, model),
        other => {
            let path = model.graph.path().display();
            Err(AgentError::Usage(format!("{path} is an ONNX graph, which engine {} does not run; give --engine ort", other.kind())))
        }
    }
}

impl ForeignNode {
    /// A node around a running diagnosis loop that serves `model`.
    pub fn new((engines, device): (Engines, OpenDevice), budget: Arc<Budget>, handle: DiagnosisHandle, model: Arc<ForeignModel>) -> Self {
        let path = model.graph.path().to_path_buf();
        let open = move |device: &OpenDevice, budget: &Arc<Budget>, _: &Path| -> Result<super::Served> {
            Ok((Box::new(open_foreign(device, budget, &model)?), Weak::new()))
        };
        Self::with((engines, device), budget, handle, path, Box::new(open))
    }

    /// As [`new`](Self::new), with engines that `open` opens.
    pub(super) fn with(
        engines: (Engines, OpenDevice),
        budget: Arc<Budget>,
        handle: DiagnosisHandle,
        path: PathBuf,
        open: super::serving::Opener,
    ) -> Self {
        Self { serving: Serving::new(engines, budget, handle, Weak::new(), open), path, log: Log::default() }
    }

    /// Supervises until the loop is over or `stop` is asked.
    pub fn run(&mut self, stop: &Stop) {
        while !stop.is_asked() && !self.serving.handle.is_finished() {
            self.serving.handle.set_at_work(false);
            std::thread::sleep(POLL);
            // A window whose engine has failed meanwhile waits until another is open.
            self.serving.handle.set_at_work(true);
            for heard in self.serving.hear() {
                match heard {
                    Heard::Serves(_) => self.log.note("the graph was opened again, and serves"),
                    Heard::Failed(_, error) => self.log.note_failure(format!("the engine failed: {error}")),
                }
            }
            if self.serving.without().is_some()
                && self.serving.may_replace()
                && let Err(error) = self.serving.offer(&self.path)
            {
                self.log.note_failure(format!("no engine could be opened: {error}"));
            }
        }
        self.serving.handle.set_at_work(false);
    }

    /// Why no engine serves, where none does and none is on its way.
    pub fn unserved(&mut self) -> Option<&str> {
        self.serving.hear();
        self.serving.without()
    }

    /// The loop.
    pub fn handle(&mut self) -> &mut DiagnosisHandle {
        &mut self.serving.handle
    }
}
