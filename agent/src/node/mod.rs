//! A node: the diagnosis loop, the memory watch and the pruning that keeps it within its budget, tied together.
//!
//! The controller decides ([`control`](crate::control)); this module carries its actions out: it starts a cascade from the factory
//! artifact on a thread of its own, asks the holdout, writes the other slot, hands the loop its next engine between two windows, and
//! commits or rolls back. One thread supervises; nothing here is on the way of a window to its verdict.

mod background;
#[cfg(feature = "ort")]
mod foreign;
mod log;
mod serving;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use espalier_kernels::{Device, Purpose, Reservation};
use espalier_models::Artifact;
use espalier_runtime::{Budget, Plan, gauges};

use background::{Background, CascadeJob};
#[cfg(feature = "ort")]
pub use foreign::{ForeignNode, open_foreign};
pub use log::Log;
use serving::{Heard, Serving};

use crate::check::StaticCheck;
use crate::control::linux::Linux;
use crate::control::{Action, Controller, Event, Hardware, Held, Reading, State, Thresholds};
#[cfg(feature = "ort")]
use crate::diagnosis;
use crate::diagnosis::{DiagnosisHandle, Engine, NativeEngine};
use crate::diagnosis_text::TextEngine;
use crate::engine::{Engines, OpenDevice, is_device_failure};
use crate::error::{AgentError, Result};
use crate::on_device;
use crate::prune::{CascadeOptions, CascadeResult, Target};
use crate::store::{Active, Store};
use crate::train::{Examples, Progress, Stop};

/// Bytes left to everyone else on the host. An eighth of a small board's memory would be too much for a large host and too little for a
/// tiny one; 64 MiB is what an idle embedded Linux needs to go on answering.
const RESERVE_BYTES: u64 = 64 << 20;

/// Threads of the loop's engine on the CPU: at batch 1 a second one costs more than it saves, and pruning needs it.
pub const LOOP_THREADS: usize = 1;

/// Between two readings of the gauges: a tenth of a second costs under 1 % of one core and is short against every hold time.
const POLL: Duration = Duration::from_millis(100);

/// How long windows may wait without a verdict before a line says so: far longer than an engine takes for a window. A replacement may take
/// longer, but while the supervisor is at work on one it does not look, and when the other engine serves the time counts anew.
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// Whether verdicts come.
#[derive(Default)]
struct Watchdog {
    /// Windows answered, and since when it is that many.
    answered: Option<(u64, std::time::Instant)>,
    said: bool,
}

impl Watchdog {
    /// Begins again: an engine's time counts from when it began to serve.
    fn reset(&mut self) {
        *self = Self::default();
    }

    /// Whether windows have waited too long; true once, until a verdict comes again.
    fn is_stuck(&mut self, answered: u64, waits: bool) -> bool {
        match self.answered {
            Some((before, since)) if before == answered && waits => {
                let first = since.elapsed() >= STUCK_AFTER && !self.said;
                self.said |= first;
                first
            }
            _ => {
                *self = Self { answered: Some((answered, std::time::Instant::now())), said: false };
                false
            }
        }
    }
}

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

/// The id of an artifact, after its checksums were all read.
pub fn artifact_id(path: &Path) -> std::result::Result<u64, String> {
    let artifact = Artifact::open(path).map_err(|error| error.to_string())?;
    artifact.verify().map_err(|error| error.to_string())?;
    Ok(artifact.id())
}

/// An engine for an artifact, booked in the budget, and the artifact for as long as the engine lives.
pub fn open_engine(device: &OpenDevice, budget: &Arc<Budget>, path: &Path) -> Result<Served> {
    let artifact = Arc::new(Artifact::open(path)?);
    let engine: Box<dyn Engine> = match device {
        #[cfg(feature = "ort")]
        OpenDevice::Ort(_, ort) => match artifact.manifest().diagnosis {
            Some(_) => Box::new(TextEngine::open_in_ort(*ort, budget, &artifact, None)?),
            None => Box::new(diagnosis::ort::OrtEngine::open(*ort, budget, &artifact)?),
        },
        device => on_device!(device, device => engine_on(device, budget, &artifact))?,
    };
    Ok((engine, Arc::downgrade(&artifact)))
}

/// An engine, and the artifact for as long as it lives.
pub type Served = (Box<dyn Engine>, Weak<Artifact>);

fn engine_on<D: Device>(device: &D, budget: &Arc<Budget>, artifact: &Arc<Artifact>) -> Result<Box<dyn Engine>> {
    Ok(match artifact.manifest().diagnosis {
        Some(_) => Box::new(TextEngine::open(device, budget, artifact, None)?),
        None => Box::new(NativeEngine::open(device, budget, artifact)?),
    })
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

    fn compressed(&mut self, done: Result<CascadeResult>) -> Event {
        match done {
            Ok(result) => {
                let split = result.split;
                self.note(format!("pruned to {} layers, {} heads, {} channels", split.layers, split.heads, split.channels));
                self.result = Some(result);
                Event::CompressionDone
            }
            Err(AgentError::Cancelled) => Event::CompressionCancelled,
            Err(error) => {
                self.note(format!("pruning failed: {error}"));
                Event::CompressionFailed(error.to_string())
            }
        }
    }

    fn step(&mut self, now: Duration, reading: &Reading, event: Option<Event>) -> Result<()> {
        let before = self.controller.state();
        let actions = self.controller.step(now, reading, event);
        let after = self.controller.state();
        if before != after {
            self.note(format!("{before} → {after}"));
        }
        for action in actions {
            if let Some(answer) = self.act(action)? {
                self.step(now, reading, Some(answer))?;
            }
        }
        Ok(())
    }

    /// Carries an action out; an answer that is known at once is returned.
    fn act(&mut self, action: Action) -> Result<Option<Event>> {
        match action {
            Action::StartCompression { fit_bytes } => {
                Ok(self.start(fit_bytes).err().map(|error| Event::CompressionFailed(error.to_string())))
            }
            Action::CancelCompression => {
                if let Some(background) = &self.background {
                    background.stop.ask();
                }
                Ok(None)
            }
            Action::JudgeCandidate => Ok(Some(self.judge())),
            Action::Swap => Ok(self.swap().err().map(|error| Event::SwapFailed(error.to_string()))),
            Action::Commit => Ok(Some(self.commit())),
            Action::RollBack => Ok(self.serve(self.store.active()).err().map(|error| Event::SwapFailed(error.to_string()))),
            Action::RestoreFactory => {
                self.store.restore_factory()?;
                Ok(self.serve(Active::Factory).err().map(|error| Event::SwapFailed(error.to_string())))
            }
            // One-level artifacts have nothing to drop to; the controller is given no levels.
            Action::DropLevel(_) | Action::ClimbLevel(_) => Ok(None),
        }
    }

    fn start(&mut self, fit_bytes: u64) -> Result<()> {
        let Some(setup) = &self.prune else {
            return Err(AgentError::Usage("there are no calibration data; give --data, so that the node can prune".into()));
        };
        let (artifact, mapped) = self.factory()?;
        let report = StaticCheck::new(&artifact.manifest().architecture, &artifact.manifest().shape());
        let beside_bytes = self.source_bytes + self.serving.overhead_bytes();
        let job = CascadeJob {
            artifact,
            mapped,
            options: CascadeOptions { target: Target::Serving(fit_bytes.saturating_sub(beside_bytes)), ..setup.options.clone() },
            calibration: setup.calibration.clone(),
            holdout: setup.holdout.clone(),
            budget: self.budget.clone(),
            device: self.serving.device()?,
            may_move: self.serving.engines.may_move(),
            threads: setup.threads,
            folder: stages_folder(&self.store),
            keep_stages: setup.keep_stages,
            candidate: self.store.candidate_path(),
        };
        self.background = Some(job.start((setup.progress)())?);
        let holds = if report.holds_per_component() {
            "holds for every head and channel by itself"
        } else {
            "holds for coupled units only; they leave together"
        };
        self.note(format!("SIA check: structural independence {holds}"));
        self.note(format!("pruning to serve within {fit_bytes} bytes, {beside_bytes} of them for source and engine"));
        Ok(())
    }

    /// The factory artifact: the map that the engine serves from, or, where another is served, a new one with its reservation.
    fn factory(&self) -> Result<(Arc<Artifact>, Option<Reservation>)> {
        if self.store.active() == Active::Factory
            && let Some(served) = self.serving.served.upgrade()
        {
            return Ok((served, None));
        }
        let artifact = Artifact::open(&self.store.path(Active::Factory))?;
        let mapped = Reservation::new(self.budget.clone(), Purpose::Weights, artifact.file_bytes())?;
        Ok((Arc::new(artifact), Some(mapped)))
    }

    fn judge(&mut self) -> Event {
        let (Some(result), Some(setup)) = (&self.result, &self.prune) else {
            return Event::HoldoutRefused("there is no candidate".into());
        };
        let Some(last) = result.stages.last() else { return Event::HoldoutRefused("there is no candidate".into()) };
        let (dense, small, most) = (result.dense_accuracy, last.accuracy, setup.max_drop);
        let said = format!("holdout accuracy {:.1} % after {:.1} %", small * 100.0, dense * 100.0);
        if dense - small <= most {
            self.note(format!("accepted: {said}"));
            Event::HoldoutAccepted
        } else {
            let refusal = format!("{said}: a loss of more than {:.1} points", most * 100.0);
            self.note(format!("refused: {refusal}"));
            Event::HoldoutRefused(refusal)
        }
    }

    fn swap(&mut self) -> Result<()> {
        let path = self.store.candidate_path();
        let id = artifact_id(&path).map_err(AgentError::Usage)?;
        self.store.begin_candidate(id)?;
        self.store.begin_probation()?;
        self.awaited = Some(self.serving.offer(&path)?);
        Ok(())
    }

    fn serve(&mut self, active: Active) -> Result<()> {
        self.awaited = Some(self.serving.offer(&self.store.path(active))?);
        Ok(())
    }

    fn commit(&mut self) -> Event {
        let slot = self.store.inactive();
        let committed = match self.store.candidate() {
            Some(candidate) => self.store.commit(slot, candidate.id).map_err(|error| error.to_string()),
            None => Err("the store has no candidate".into()),
        };
        match committed {
            Ok(()) => {
                self.committed += 1;
                if self.limit_after_commit {
                    self.budget.set_limit(self.budget.goal());
                }
                self.note(format!("committed to slot {slot:?}"));
                Event::Committed
            }
            Err(reason) => Event::CommitFailed(reason),
        }
    }

    /// Ends background work and waits for it.
    fn cancel(&mut self) {
        if let Some(background) = self.background.take() {
            background.stop.ask();
            let _ = background.thread.join();
        }
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

/// What serving an artifact holds, as planned.
pub fn planned_bytes(path: &Path) -> Result<u64> {
    let artifact = Artifact::open(path)?;
    Ok(Plan::serving(artifact.manifest(), artifact.file_bytes()).total())
}
