//! The compression that runs beside the loop.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use espalier_kernels::{CpuDevice, Reservation};
use espalier_models::Artifact;
use espalier_runtime::{Budget, release_free_memory};

use crate::error::{AgentError, Result, file_error};
use crate::files::publish;
use crate::prune::{Cascade, CascadeOptions, CascadeResult};
use crate::train::{Examples, Progress, Stop};

/// Added to the nice value of the threads that prune. At 10 the scheduler gives a thread of the loop that has a window about nine times the
/// share of one that prunes, and pruning still goes on when the node is busy.
const BACKGROUND_NICE: i32 = 10;

/// A job on its thread.
pub(super) struct Background {
    pub stop: Stop,
    pub receiver: Receiver<Result<CascadeResult>>,
    pub thread: std::thread::JoinHandle<()>,
}

/// A cascade with everything it owns, to be run on another thread.
pub(super) struct CascadeJob {
    pub artifact: Arc<Artifact>,
    /// Books the artifact's map, where the engine does not serve from it.
    pub mapped: Option<Reservation>,
    pub options: CascadeOptions,
    pub calibration: Arc<dyn Examples + Send>,
    pub holdout: Arc<dyn Examples + Send>,
    pub budget: Arc<Budget>,
    pub threads: usize,
    pub folder: PathBuf,
    pub keep_stages: bool,
    pub candidate: PathBuf,
}

impl CascadeJob {
    /// Runs it on a thread of its own.
    pub fn start(self, mut progress: Box<dyn Progress>) -> Result<Background> {
        let (sender, receiver) = channel();
        let stop = Stop::new();
        let asked = stop.clone();
        let work = move || {
            let result = self.run(progress.as_mut(), &asked);
            release_free_memory();
            // The receiver is gone only where the node itself is; then nobody wants the result.
            let _ = sender.send(result);
        };
        let thread = std::thread::Builder::new().name("pruning".into()).spawn(work);
        let thread = thread.map_err(|error| file_error("cannot start a thread in", Path::new("this process"), &error))?;
        Ok(Background { stop, receiver, thread })
    }

    fn run(self, progress: &mut dyn Progress, stop: &Stop) -> Result<CascadeResult> {
        std::fs::create_dir_all(&self.folder).map_err(|error| file_error("cannot make the folder", &self.folder, &error))?;
        // Windows come first: this thread, and the device's threads that it starts, yield to the loop. Refused, pruning competes with it.
        if let Err(error) = rustix::process::nice(BACKGROUND_NICE) {
            log::warn!("pruning runs at the loop's own priority: {error}");
        }
        let mut cascade = Cascade {
            device: CpuDevice::new(self.threads, self.budget.clone())?,
            budget: &self.budget,
            calibration: self.calibration.as_ref(),
            holdout: self.holdout.as_ref(),
            options: self.options,
            folder: &self.folder,
            progress,
            stop,
        };
        let result = cascade.run(&self.artifact)?;
        drop(self.mapped);
        let last = result.stages.last().ok_or_else(|| AgentError::Training("the cascade had no stages".into()))?;
        publish(&last.path, &self.candidate)?;
        if !self.keep_stages {
            std::fs::remove_dir_all(&self.folder).map_err(|error| file_error("cannot remove", &self.folder, &error))?;
        }
        Ok(result)
    }
}
