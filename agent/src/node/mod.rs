//! A node: the diagnosis loop, the memory watch and the pruning that keeps it within its budget, tied together.
//!
//! The controller decides ([`control`](crate::control)); the node carries its actions out: it starts a cascade from the factory
//! artifact on a thread of its own, asks the holdout, writes the other slot, hands the loop its next engine between two windows, and
//! commits or rolls back. One thread supervises; nothing here is on the way of a window to its verdict.

mod actions;
mod background;
mod engines;
#[cfg(feature = "ort")]
mod foreign;
mod log;
mod serving;
#[cfg(test)]
mod tests;
mod watchdog;

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use espalier_models::Artifact;
use espalier_runtime::{Budget, gauges};

use background::Background;
pub use engines::{Served, artifact_id, open_engine, planned_bytes};
#[cfg(feature = "ort")]
pub use foreign::{ForeignNode, open_foreign};
pub use log::Log;
use serving::{Heard, Serving};
use watchdog::{STUCK_AFTER, Watchdog};

use crate::control::linux::Linux;
use crate::control::{Controller, Event, Hardware, Held, Reading, State, Thresholds};
use crate::diagnosis::DiagnosisHandle;
use crate::engine::{Engines, OpenDevice, is_device_failure};
use crate::error::{AgentError, Result};
use crate::prune::{CascadeOptions, CascadeResult};
use crate::store::{Active, Store};
use crate::train::{Examples, Progress, Stop};

/// Bytes left to everyone else on the host. An eighth of a small board's memory would be too much for a large host and too little for a
/// tiny one; 64 MiB is what an idle embedded Linux needs to go on answering.
const RESERVE_BYTES: u64 = 64 << 20;

/// Threads of the loop's engine on the CPU: at batch 1 a second one costs more than it saves, and pruning needs it.
pub const LOOP_THREADS: usize = 1;

/// Between two readings of the gauges: a tenth of a second costs under 1 % of one core and is short against every hold time.
const POLL: Duration = Duration::from_millis(100);

/// How a node prunes.
pub struct PruneSetup {
    /// Windows for importance and recovery.
    pub calibration: Arc<dyn Examples + Send>,
    /// Windows that decide.
    pub holdout: Arc<dyn Examples + Send>,
    /// How; the target is set by the controller.
    pub options: CascadeOptions,
    /// The largest loss of holdout accuracy that is accepted.
    pub max_drop: f64,
    /// Threads for pruning.
    pub threads: usize,
    /// Leave the stages' artifacts beside the slots.
    pub keep_stages: bool,
    /// Hears how it goes.
    pub progress: Box<dyn Fn() -> Box<dyn Progress> + Send>,
}

/// A node.
pub struct Node {
    store: Store,
    budget: Arc<Budget>,
    serving: Serving,
    /// The model of the swap that the controller waits for.
    awaited: Option<u64>,
    /// The candidate that has had its second chance.
    spared: Option<u64>,
    controller: Controller,
    prune: Option<PruneSetup>,
    /// The limit that follows the commit; before it, the limit stays so that there is room to prune in.
    limit_after_commit: bool,
    /// The limit that the node was opened with.
    first_limit: u64,
    source_bytes: u64,
    background: Option<Background>,
    result: Option<CascadeResult>,
    judged_before: u64,
    failed_before: u64,
    watchdog: Watchdog,
    /// What happened.
    pub log: Log,
    committed: usize,
}

/// What a node is opened with.
pub struct NodeOptions {
    /// Times and margins of the controller.
    pub thresholds: Thresholds,
    /// How it prunes; a node without this serves only.
    pub prune: Option<PruneSetup>,
    /// Lower the limit to the goal once a smaller model is committed.
    pub limit_after_commit: bool,
    /// What the source holds beside the model: a recording is read whole. A smaller model leaves room for it.
    pub source_bytes: u64,
}

impl Node {
    /// A node around a running diagnosis loop that serves the store's active artifact.
    pub fn new(
        store: Store,
        engines: (Engines, OpenDevice),
        budget: Arc<Budget>,
        handle: DiagnosisHandle,
        served: Weak<Artifact>,
        options: NodeOptions,
    ) -> Self {
        let factory = store.active() == Active::Factory;
        Self {
            controller: Controller::new(options.thresholds, factory, Vec::new()),
            store,
            serving: Serving::new(engines, budget.clone(), handle, served, Box::new(open_engine)),
            awaited: None,
            spared: None,
            first_limit: budget.limit(),
            budget,
            prune: options.prune,
            limit_after_commit: options.limit_after_commit,
            source_bytes: options.source_bytes,
            background: None,
            result: None,
            judged_before: 0,
            failed_before: 0,
            watchdog: Watchdog::default(),
            log: Log::default(),
            committed: 0,
        }
    }

    /// Supervises until the loop is over or `stop` is asked; `watch` is called at every reading and ends it by returning false.
    pub fn run(&mut self, stop: &Stop, watch: &mut dyn FnMut(&NodeView<'_>) -> bool) -> Result<()> {
        let result = self.supervise(stop, watch);
        self.serving.handle.set_at_work(false);
        self.cancel();
        result
    }

    fn supervise(&mut self, stop: &Stop, watch: &mut dyn FnMut(&NodeView<'_>) -> bool) -> Result<()> {
        let planned = planned_bytes(&self.store.path(Active::Factory))?;
        let read_held = || {
            let held = gauges::held().unwrap_or_default();
            Held { held_bytes: held.total(), working_set_bytes: held.artifacts }
        };
        let mut hardware = Linux::new(RESERVE_BYTES, read_held)?;
        while !stop.is_asked() && !self.serving.handle.is_finished() {
            self.serving.handle.set_at_work(false);
            hardware.wait(POLL);
            // A window whose engine has failed meanwhile waits until this reading is through, however long it takes.
            self.serving.handle.set_at_work(true);
            let overhead = self.serving.overhead_bytes();
            let reading = hardware.read(self.budget.goal(), self.budget.limit(), planned.saturating_add(overhead))?;
            for event in self.events() {
                // The windows of one reading may end the probation before its last one.
                let late = matches!(event, Event::HealthWindow { .. }) && self.controller.state() != State::Probation;
                if !late {
                    self.step(hardware.now(), &reading, Some(event))?;
                }
            }
            self.step(hardware.now(), &reading, None)?;
            self.replace_failed(hardware.now(), &reading)?;
            let (state, handle) = (self.controller.state(), &self.serving.handle);
            let view = NodeView { state, reading, budget: &self.budget, handle, committed: self.committed };
            if !watch(&view) {
                break;
            }
        }
        Ok(())
    }

    /// Why no engine serves, where none does and none is on its way.
    pub fn unserved(&mut self) -> Option<&str> {
        self.serving.hear();
        self.serving.without()
    }

    /// The result of the last cascade.
    pub fn result(&self) -> Option<&CascadeResult> {
        self.result.as_ref()
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The loop.
    pub fn handle(&mut self) -> &mut DiagnosisHandle {
        &mut self.serving.handle
    }

    fn note(&mut self, text: impl Into<String>) {
        self.log.note(text);
    }

    fn note_failure(&mut self, text: String) {
        self.log.note_failure(text);
    }

    /// What has happened since the last look.
    fn events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        for heard in self.serving.hear() {
            match heard {
                // An engine that replaces a failed one is no answer to the controller.
                Heard::Serves(model_id) => {
                    self.watchdog.reset();
                    if self.awaited == Some(model_id) {
                        self.awaited = None;
                        events.push(Event::Swapped);
                    }
                }
                Heard::Failed(model_id, error) => events.extend(self.failed(model_id, &error)),
            }
        }
        let snapshot = self.serving.handle.snapshot();
        let (good, bad) = (snapshot.judged - self.judged_before, snapshot.failed - self.failed_before);
        (self.judged_before, self.failed_before) = (snapshot.judged, snapshot.failed);
        if self.watchdog.is_stuck(snapshot.judged + snapshot.failed + snapshot.unusable, snapshot.in_flight > 0) {
            let (seconds, engine) = (STUCK_AFTER.as_secs(), self.serving.device_name());
            self.note(format!("windows have waited {seconds} s for a verdict; if engine {engine} has got stuck, start the program again"));
        }
        // Only its own windows speak for a candidate.
        if self.controller.state() == State::Probation && self.candidate() == Some(snapshot.model_id) {
            events.extend((0..good).map(|_| Event::HealthWindow { ok: true }));
            events.extend((0..bad).map(|_| Event::HealthWindow { ok: false }));
        }
        if let Some(done) = self.background.as_ref().and_then(|background| background.receiver.try_recv().ok()) {
            if let Some(background) = self.background.take() {
                let _ = background.thread.join();
            }
            events.push(self.compressed(done));
        }
        events
    }

    /// Contents of the candidate, where there is one.
    fn candidate(&self) -> Option<u64> {
        self.store.candidate().map(|candidate| candidate.id)
    }

    /// The engine of a model has failed: leaves its device where that is to blame. What a candidate fails of is held against a device only
    /// where it is the device's own failure. A candidate gets one more chance where there is another device, and nowhere else.
    fn failed(&mut self, model_id: u64, error: &AgentError) -> Option<Event> {
        self.note_failure(format!("the engine failed: {error}"));
        let is_candidate = self.candidate() == Some(model_id);
        let moved = (!is_candidate || is_device_failure(error))
            && self.serving.leave(error).unwrap_or_else(|error| {
                self.note_failure(format!("no other engine can take over: {error}"));
                false
            });
        if !is_candidate {
            return None;
        }
        let spare = moved && self.spared != Some(model_id);
        self.spared = Some(model_id);
        (!spare).then(|| Event::EngineFailed(error.to_string()))
    }

    /// Where the loop has no engine, one of what it is to serve: a page that could not be read may be readable again, and another device
    /// may do what one could not. A candidate that cannot be opened any more is rolled back; for what is committed, the factory's is tried.
    fn replace_failed(&mut self, now: Duration, reading: &Reading) -> Result<()> {
        if self.serving.without().is_none() || !self.serving.may_replace() {
            return Ok(());
        }
        if self.controller.serves_candidate() {
            if let Err(error) = self.serving.offer(&self.store.candidate_path()) {
                self.step(now, reading, Some(Event::EngineFailed(error.to_string())))?;
            }
            if self.serving.without().is_none() {
                return Ok(());
            }
        }
        let active = self.store.active();
        for active in [active].into_iter().chain((active != Active::Factory).then_some(Active::Factory)) {
            if active == Active::Factory && self.budget.limit() < self.first_limit {
                // The limit was lowered to what a smaller model needs, which is not served any more. The next commit lowers it again.
                self.note("the limit is again the one that the node started with, for the factory artifact");
                self.budget.set_limit(self.first_limit);
            }
            match self.serving.offer(&self.store.path(active)) {
                Ok(_) => return Ok(()),
                Err(error) => self.note_failure(format!("{} cannot serve: {error}", self.store.path(active).display())),
            }
        }
        // Windows come before pruning, which may hold the memory that is missing.
        if let Some(background) = &self.background
            && !background.stop.is_asked()
        {
            background.stop.ask();
            self.note("pruning stops, so that an engine may have its memory");
        }
        Ok(())
    }
}

/// What a watcher sees at every reading.
pub struct NodeView<'a> {
    /// What the agent is doing.
    pub state: State,
    /// The gauges.
    pub reading: Reading,
    /// Limit and goal.
    pub budget: &'a Arc<Budget>,
    /// The loop.
    pub handle: &'a DiagnosisHandle,
    /// Candidates committed since the start.
    pub committed: usize,
}

/// Where a cascade keeps its stages.
pub fn stages_folder(store: &Store) -> PathBuf {
    store.candidate_path().with_file_name("stages")
}
