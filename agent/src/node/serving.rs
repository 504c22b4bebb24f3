//! The engine that serves: where it runs, what was offered to the loop, and when it may be replaced.

use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use espalier_models::Artifact;
use espalier_runtime::{Budget, release_free_memory};

use super::{LOOP_THREADS, Served};
use crate::diagnosis::{DiagnosisHandle, Event};
use crate::engine::{EngineKind, Engines, OpenDevice, another_may_do, is_lost};
use crate::error::{AgentError, Result};

/// How long a failure counts against a device: contention and a refused allocation pass within minutes, and a device that fails twice in
/// that time fails for a reason that lasts.
const FAILURE_MEMORY: Duration = Duration::from_secs(600);

/// Replacements in a row that are tried without waiting: one on the same device, one on the next.
const AT_ONCE: u32 = 2;

/// The first wait after these, shorter than a window waits, and the longest, which doubling leads to: opening an engine once a minute
/// costs little.
const WAIT_FIRST: Duration = Duration::from_secs(1);
const WAIT_LONGEST: Duration = Duration::from_secs(60);

/// Opens an engine for an artifact on a device.
pub(super) type Opener = Box<dyn FnMut(&OpenDevice, &Arc<Budget>, &Path) -> Result<Served> + Send>;

/// What was heard of the loop.
pub(super) enum Heard {
    /// The loop runs this model from now on.
    Serves(u64),
    /// The engine of this model has failed and is gone.
    Failed(u64, AgentError),
}

/// The engine that serves.
pub(super) struct Serving {
    pub engines: Engines,
    pub handle: DiagnosisHandle,
    /// The artifact that the newest engine serves.
    pub served: Weak<Artifact>,
    pub open: Opener,
    budget: Arc<Budget>,
    /// Where the newest engine runs; none after it was lost where no other may take its place.
    device: Option<OpenDevice>,
    /// Bytes that the newest engine takes beside its model.
    engine_bytes: u64,
    /// The last failure of the device.
    device_failed: Option<Instant>,
    /// Contents of the model that was offered and not yet taken.
    offered: Option<u64>,
    /// Why the loop has no engine, where it has none.
    without: Option<String>,
    /// Replacements in a row, and the last of them.
    tries: u32,
    last_try: Option<Instant>,
}

impl Serving {
    pub fn new(
        (engines, device): (Engines, OpenDevice),
        budget: Arc<Budget>,
        handle: DiagnosisHandle,
        served: Weak<Artifact>,
        open: Opener,
    ) -> Self {
        let engine_bytes = overhead_bytes(&device, &served).unwrap_or(0);
        Self {
            engines,
            handle,
            served,
            open,
            budget,
            device: Some(device),
            engine_bytes,
            device_failed: None,
            offered: None,
            without: None,
            tries: 0,
            last_try: None,
        }
    }

    /// What the engine takes beside the model.
    pub fn overhead_bytes(&self) -> u64 {
        let engine_bytes = if self.device.is_some() { self.engine_bytes } else { 0 };
        engine_bytes.saturating_add(self.engines.left_bytes())
    }

    /// The device, for work beside the loop.
    pub fn device(&self) -> Result<OpenDevice> {
        self.device.clone().ok_or_else(|| AgentError::Engine("it is lost, and no other engine may take over".into()))
    }

    /// Its name for the log.
    pub fn device_name(&self) -> String {
        self.device.as_ref().map_or("none".to_string(), |device| format!("{} ({})", device.kind(), device.name()))
    }

    /// Why the loop has no engine, where it has none and none is on its way.
    pub fn without(&self) -> Option<&str> {
        self.without.as_deref().filter(|_| self.offered.is_none())
    }

    /// What the loop has said since the last look. Engines that it no longer uses are dropped here, off the verdict path.
    pub fn hear(&mut self) -> Vec<Heard> {
        let mut heard = Vec::new();
        while let Some(event) = self.handle.events().try_next() {
            match event {
                Event::Swapped { old, model_id, .. } => {
                    drop(old);
                    self.without = None;
                    self.offered = self.offered.filter(|offered| *offered != model_id);
                    heard.push(Heard::Serves(model_id));
                }
                Event::Failed { engine, model_id, error, .. } => {
                    drop(engine);
                    self.without = Some(error.to_string());
                    heard.push(Heard::Failed(model_id, error));
                }
            }
            release_free_memory();
        }
        heard
    }

    /// Leaves the device of an engine that has failed for another, and says whether it did: at once where the device is lost, which takes
    /// everything on it along, else with the second failure, because contention and a refused allocation pass.
    pub fn leave(&mut self, error: &AgentError) -> Result<bool> {
        let Some(device) = &self.device else { return Ok(false) };
        if device.kind() != EngineKind::Cuda && is_lost(error) {
            // Only a GPU is ever lost: that engine was of a device that has been left.
            return Ok(true);
        }
        if !another_may_do(device.kind(), error) {
            return Ok(false);
        }
        let again = self.device_failed.replace(Instant::now()).is_some_and(|last| last.elapsed() < FAILURE_MEMORY);
        if !again && !is_lost(error) {
            return Ok(false);
        }
        let next = self.engines.after_in_loop(device, LOOP_THREADS, &self.budget, error)?;
        let moved = next.is_some();
        if !moved && !is_lost(error) {
            return Ok(false);
        }
        if let Some(lost) = std::mem::replace(&mut self.device, next) {
            self.engines.close(lost, &self.budget);
        }
        self.device_failed = None;
        Ok(moved)
    }

    /// Opens an engine and offers it to the loop; where the device refuses for good, one on the next device. Gives back the contents of its
    /// model.
    pub fn offer(&mut self, path: &Path) -> Result<u64> {
        let (engine, artifact) = match self.open_beside(path) {
            Err(error) if self.leave(&error)? => self.open_beside(path)?,
            opened => opened?,
        };
        let model_id = engine.model_id();
        // An earlier offer that was not taken is dropped.
        self.handle.offer(engine)?;
        (self.served, self.offered) = (artifact, Some(model_id));
        Ok(model_id)
    }

    /// An engine on a device of its own, beside the one that serves: a device forgets the passes that it has recorded when memory of one of
    /// them goes, and the memory of the engine that is replaced goes while the next one judges.
    fn open_beside(&mut self, path: &Path) -> Result<Served> {
        let device = match &self.device {
            Some(device) => device.beside(LOOP_THREADS, &self.budget)?,
            None => self.engines.open(LOOP_THREADS, &self.budget)?,
        };
        let served = (self.open)(&device, &self.budget, path)?;
        if let Some(bytes) = overhead_bytes(&device, &served.1) {
            self.engine_bytes = bytes;
        }
        self.device = Some(device);
        Ok(served)
    }

    /// Whether it is time to try another replacement; counts it.
    pub fn may_replace(&mut self) -> bool {
        let since = self.last_try.map_or(Duration::MAX, |last| last.elapsed());
        if since > WAIT_LONGEST * 2 {
            self.tries = 0;
        }
        let wait = match self.tries.checked_sub(AT_ONCE) {
            None => Duration::ZERO,
            Some(doublings) => WAIT_LONGEST.min(WAIT_FIRST * (1 << doublings.min(6))),
        };
        if since < wait {
            return false;
        }
        (self.tries, self.last_try) = (self.tries.saturating_add(1), Some(Instant::now()));
        true
    }
}

/// Bytes that a device takes beside the artifact that it serves, as long as that is there. It serves it, so that it can be said.
fn overhead_bytes(device: &OpenDevice, served: &Weak<Artifact>) -> Option<u64> {
    served.upgrade().and_then(|artifact| device.overhead_bytes(&artifact).ok())
}
