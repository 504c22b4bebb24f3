//! The compression that runs beside the loop.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use espalier_kernels::{CpuDevice, Device, Reservation};
use espalier_models::Artifact;
use espalier_runtime::{Budget, release_free_memory};

use crate::engine::{EngineKind, OpenDevice, is_device_failure};
use crate::error::{AgentError, Result, file_error};
use crate::files::publish;
use crate::on_device;
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
    /// The loop's device; the job opens one of its own behind it.
    pub device: OpenDevice,
    /// Whether the CPU may take over.
    pub may_move: bool,
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

    /// Runs it, and takes the stages' artifacts away, however it ends: they are as large as the model, and no later run goes on from them.
    fn run(self, progress: &mut dyn Progress, stop: &Stop) -> Result<CascadeResult> {
        let (folder, keep) = (self.folder.clone(), self.keep_stages);
        let result = self.compress(progress, stop);
        if keep {
            return result;
        }
        let removed = match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(file_error("cannot remove", &folder, &error)),
            _ => Ok(()),
        };
        match (result, removed) {
            (Ok(result), removed) => removed.map(|()| result),
            (Err(error), Ok(())) => Err(error),
            (Err(error), Err(left)) => {
                log::warn!("{left}");
                Err(error)
            }
        }
    }

    fn compress(self, progress: &mut dyn Progress, stop: &Stop) -> Result<CascadeResult> {
        std::fs::create_dir_all(&self.folder).map_err(|error| file_error("cannot make the folder", &self.folder, &error))?;
        // Windows come first: this thread, and the device's threads that it starts, yield to the loop. Refused, pruning competes with it.
        if let Err(error) = rustix::process::nice(BACKGROUND_NICE) {
            log::warn!("pruning runs at the loop's own priority: {error}");
        }
        let result = self.cascade(progress, stop)?;
        drop(self.mapped);
        let last = result.stages.last().ok_or_else(|| AgentError::Training("the cascade had no stages".into()))?;
        publish(&last.path, &self.candidate)?;
        Ok(result)
    }

    /// The cascade on the loop's engine; where that fails or has no room for it, on the CPU from the start.
    fn cascade(&self, progress: &mut dyn Progress, stop: &Stop) -> Result<CascadeResult> {
        let behind = self.device.behind(self.threads, &self.budget);
        let error = match behind.and_then(|device| on_device!(device, device => self.cascade_on(device, progress, stop))) {
            Err(error) if self.device.kind() != EngineKind::Cpu && self.may_move && is_device_failure(&error) => error,
            result => return result,
        };
        log::warn!("engine {} failed while it pruned: {error}; engine cpu prunes from the start", self.device.kind());
        self.cascade_on(CpuDevice::new(self.threads, self.budget.clone())?, progress, stop)
    }

    fn cascade_on<D: Device>(&self, device: D, progress: &mut dyn Progress, stop: &Stop) -> Result<CascadeResult> {
        let mut cascade = Cascade {
            device,
            budget: &self.budget,
            calibration: self.calibration.as_ref(),
            holdout: self.holdout.as_ref(),
            options: self.options.clone(),
            folder: &self.folder,
            progress,
            stop,
        };
        cascade.run(&self.artifact)
    }
}

#[cfg(test)]
pub(in crate::node) mod tests {
    use espalier_models::DType;
    use espalier_models::tensor::model_tensors;
    use espalier_runtime::{DeviceTensors, Network};

    use super::*;
    use crate::prune::Target;
    use crate::prune::pack::write_network;
    use crate::signal_model::{SignalSize, dense_manifest};
    use crate::train::{Length, RecoveryOptions, Report};

    const SIZE: SignalSize = SignalSize { layers: 3, width: 16, heads: 4, channels: 32, window: 32, patch: 8, stride: 8 };

    /// Two classes of ramps.
    struct Ramps;

    impl Examples for Ramps {
        fn count(&self) -> usize {
            8
        }

        fn window(&self) -> usize {
            SIZE.window
        }

        fn load(&self, index: usize, out: &mut [f32]) -> Result<Option<u32>> {
            let slope = if index.is_multiple_of(2) { 0.1 } else { -0.1 };
            out.iter_mut().enumerate().for_each(|(at, value)| *value = slope * (at as f32 - 15.5));
            Ok(Some(index as u32 % 2))
        }
    }

    /// Stops the job when its first stage is being recovered.
    struct StopAtRecovery {
        begun: std::sync::mpsc::Sender<()>,
        stopped: Receiver<()>,
    }

    impl Progress for StopAtRecovery {
        fn begin(&mut self, _: &str, _: usize) {
            let _ = self.begun.send(());
            let _ = self.stopped.recv();
        }

        fn step(&mut self, _: Report) {}

        fn end(&mut self, _: &str) {}
    }

    /// A model of random numbers from `seed`, in `folder` under `name`.
    pub(in crate::node) fn artifact(folder: &Path, name: &str, seed: u32, budget: &Arc<Budget>) -> Result<Arc<Artifact>> {
        let device = CpuDevice::new(1, budget.clone())?;
        let (architecture, shape) = (SIZE.architecture(&["up".into(), "down".into()], 1000.0)?, SIZE.shape());
        let manifest = dense_manifest("ramps", architecture.clone(), &shape, String::new(), None);
        let mut state = seed;
        let mut number = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        let columns: std::collections::BTreeMap<_, _> =
            model_tensors(&architecture, &shape).iter().map(|spec| (spec.key, spec.columns)).collect();
        let mut network = Network::initialise(device.clone(), architecture, shape, &mut number)?;
        let tensors = network.trainable().into_iter();
        let tensors = tensors.map(|(key, buffer)| (key, &*buffer, columns.get(&key).copied().unwrap_or(device.len(buffer)))).collect();
        let path = folder.join(name);
        write_network(manifest, DType::F32, &DeviceTensors::new(&device, tensors), &path)?;
        Ok(Arc::new(Artifact::open(&path)?))
    }

    #[test]
    fn a_job_leaves_no_stages_however_it_ends() -> Result<()> {
        let mut failures = Vec::new();
        for (stopped, keep_stages) in [(false, false), (true, false), (true, true)] {
            let place = tempfile::tempdir().expect("a folder");
            let budget = Arc::new(Budget::new(u64::MAX, 0));
            let job = CascadeJob {
                artifact: artifact(place.path(), "dense.esp", 1, &budget)?,
                mapped: None,
                options: CascadeOptions {
                    target: Target::Ratio(1.3),
                    split: None,
                    lengths: [Length::Steps(2); 3],
                    recovery: RecoveryOptions { batch: 4, ..RecoveryOptions::default() },
                    trial_windows: 8,
                    calibration_windows: 8,
                },
                calibration: Arc::new(Ramps),
                holdout: Arc::new(Ramps),
                device: OpenDevice::Cpu(CpuDevice::new(1, budget.clone())?),
                may_move: true,
                budget,
                threads: 1,
                folder: place.path().join("stages"),
                keep_stages,
                candidate: place.path().join("candidate.esp"),
            };
            let (folder, candidate) = (job.folder.clone(), job.candidate.clone());
            let ((begun, hears), (told, waits)) = (channel(), channel());
            let background = job.start(Box::new(StopAtRecovery { begun, stopped: waits }))?;
            let _ = hears.recv();
            let during = folder.join("layers-cut.esp").exists();
            if stopped {
                background.stop.ask();
            }
            drop(told);
            let result = background.receiver.recv().expect("a result");
            background.thread.join().expect("no panic");
            let found = (during, folder.exists(), candidate.exists(), matches!(result, Err(AgentError::Cancelled)));
            if found != (true, keep_stages, !stopped, stopped) {
                failures.push(format!("stopped {stopped}, keep {keep_stages}: {found:?}, {:?}", result.err()));
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
        Ok(())
    }
}
