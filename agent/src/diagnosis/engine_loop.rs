//! The verdict path: window, engine, verdict, sinks. The path itself allocates nothing unless something fails; an engine may.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use espalier_models::foreign::Normalisation;
use espalier_runtime::RuntimeError;

use super::counters::{Counters, Recorder};
use super::engine::Engine;
use super::handover::{EngineCell, Event, Events};
use super::queue::{Found, Gap, Header, Queue, Slot};
use super::sink::Sink;
use super::verdict::{Probabilities, State, Verdict};
use crate::error::{AgentError, Result};
use crate::signals::normalise_as;
use crate::train::Stop;

/// What supervisor, source and loop share.
pub(super) struct Shared {
    pub queue: Arc<Queue>,
    pub counters: Counters,
    pub cell: EngineCell,
    pub events: Events,
    pub stop: Stop,
}

impl Shared {
    fn is_stopped(&self) -> bool {
        self.stop.is_asked() || self.queue.is_stopped()
    }
}

/// Takes windows from the queue, and has each judged and heard.
pub(super) struct EngineLoop {
    shared: Arc<Shared>,
    /// None after it has failed, until the supervisor offers another.
    engine: Option<Box<dyn Engine>>,
    /// Contents and level of the model that the newest engine runs.
    model: (u64, u32),
    /// What all engines of a run want done to a window.
    normalisation: Normalisation,
    sinks: Vec<Box<dyn Sink>>,
    slot: Slot,
    recorder: Recorder,
    /// How long a window waits for another engine when its own has failed.
    retry: Duration,
    /// Whether waiting for another engine is worth while: once none came in time, windows fail at once until there is one.
    patient: bool,
    /// Windows that an engine has refused.
    refused: u64,
}

impl EngineLoop {
    pub fn new(shared: Arc<Shared>, engine: Box<dyn Engine>, sinks: Vec<Box<dyn Sink>>, retry: Duration) -> Self {
        let (slot, model) = (Slot::new(engine.window()), (engine.model_id(), engine.level()));
        let normalisation = engine.normalisation();
        Self {
            shared,
            engine: Some(engine),
            model,
            normalisation,
            sinks,
            slot,
            recorder: Recorder::new(),
            retry,
            patient: true,
            refused: 0,
        }
    }

    /// Runs until the source has ended, someone stops it, or a sink refuses. Windows that are then left are dropped and counted.
    pub fn run(&mut self) -> Result<()> {
        let result = self.judge_all();
        let queue = self.shared.queue.clone();
        queue.stop();
        let told = match (&result, queue.take_gap()) {
            (Ok(()), Some(gap)) => self.tell_gap(gap),
            _ => Ok(()),
        };
        self.recorder.finish(&self.shared.counters, queue.produced());
        match result.and(told) {
            // Whoever read the verdicts has gone.
            Err(AgentError::Cancelled) => Ok(()),
            result => result,
        }
    }

    fn judge_all(&mut self) -> Result<()> {
        loop {
            let popped = self.shared.queue.pop(&mut self.slot, &self.shared.stop);
            if let Some(gap) = popped.gap {
                self.tell_gap(gap)?;
            }
            let sequence = (popped.what == Found::Window).then_some(self.slot.header.sequence);
            if self.shared.events.has_room_for_swap()
                && let Some(next) = self.shared.cell.try_take()
            {
                self.install(next, sequence);
            }
            match popped.what {
                Found::Window => {
                    let verdict = self.judge();
                    self.recorder.add(&self.shared.counters, &verdict);
                    self.sinks.iter_mut().try_for_each(|sink| sink.verdict(&verdict))?;
                }
                Found::Nothing => {}
                Found::End => return Ok(()),
            }
        }
    }

    fn tell_gap(&mut self, gap: Gap) -> Result<()> {
        self.sinks.iter_mut().try_for_each(|sink| sink.gap(gap))
    }

    /// Uses `next` from now on and hands the old engine to the supervisor, who drops it off the verdict path.
    fn install(&mut self, next: Box<dyn Engine>, from: Option<u64>) {
        let (model_id, level) = (next.model_id(), next.level());
        let old = self.engine.replace(next);
        (self.model, self.patient) = ((model_id, level), true);
        self.shared.counters.swapped();
        let refused = self.shared.events.add(Event::Swapped { old, model_id, level, from });
        assert!(refused.is_none(), "a place for the used engine was seen before the swap");
    }

    fn judge(&mut self) -> Verdict {
        let Header { sequence, recording, start, label, due } = self.slot.header;
        let (state, judged) = match normalise_as(&mut self.slot.samples, self.normalisation) {
            Err(bad) => (State::Unusable(bad), None),
            Ok(()) => match self.classify(sequence) {
                Some(judged) => (State::Verdict, Some(judged)),
                None => (State::Failed, None),
            },
        };
        let (probabilities, compute) = judged.unwrap_or_default();
        Verdict {
            sequence,
            recording,
            start,
            state,
            class: largest(&probabilities),
            label,
            probabilities,
            latency_us: micros(due.elapsed()),
            compute_us: micros(compute),
            level: self.model.1,
            model_id: self.model.0,
            time_unix_ms: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        }
    }

    /// Probabilities of the window in the slot, and the time the engine took; none where it refused the window, or failed and no other came
    /// in time.
    fn classify(&mut self, sequence: u64) -> Option<(Probabilities, Duration)> {
        let mut deadline = None;
        loop {
            if let Some(engine) = &mut self.engine {
                let started = Instant::now();
                match attempt(engine.as_mut(), &self.slot.samples) {
                    Ok(probabilities) => return Some((probabilities, started.elapsed())),
                    // The window is at fault: another engine would refuse it too.
                    Err(AgentError::Usage(reason)) => {
                        self.warn_of_refused(sequence, &reason);
                        return None;
                    }
                    Err(error) => self.hand_out(sequence, error),
                }
            }
            let shared = &self.shared;
            if !self.patient {
                return None;
            }
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + self.retry);
            let next = if shared.events.has_room_for_swap() { shared.cell.take_before(deadline, || shared.is_stopped()) } else { None };
            match next {
                Some(next) => self.install(next, Some(sequence)),
                None => {
                    self.patient = false;
                    return None;
                }
            }
        }
    }

    /// Says why a window was refused: of the first, the second, the fourth and so on, since a bad stream may be all such windows.
    fn warn_of_refused(&mut self, sequence: u64, reason: &str) {
        self.refused = self.refused.saturating_add(1);
        if self.refused.is_power_of_two() {
            log::warn!("window {sequence} cannot be judged: {reason} ({} such windows so far)", self.refused);
        }
    }

    /// Hands an engine that has failed to the supervisor: the memory that it holds may be what the next one needs.
    fn hand_out(&mut self, sequence: u64, error: AgentError) {
        self.shared.counters.engine_failed();
        let Some(engine) = self.engine.take() else { return };
        // Where so many events wait that there is no place for it, it stays, and is tried with the next window.
        if let Some(Event::Failed { engine, .. }) =
            self.shared.events.add(Event::Failed { engine, sequence, model_id: self.model.0, error })
        {
            self.engine = Some(engine);
        }
    }
}

/// One try; an engine whose answer makes no sense has failed.
fn attempt(engine: &mut dyn Engine, window: &[f32]) -> Result<Probabilities> {
    let classes = engine.classes().len();
    let answer = engine.classify(window)?;
    if answer.len() != classes {
        let found = answer.len();
        return Err(
            RuntimeError::Input(format!("the engine gave {found} probabilities for {classes} classes; choose another engine")).into()
        );
    }
    if let Some(class) = answer.iter().position(|probability| !probability.is_finite()) {
        let problem = format!("the engine's probability of class {class} is {}; the model is damaged, choose another", answer[class]);
        return Err(RuntimeError::Input(problem).into());
    }
    let most = super::engine::MAX_CLASSES;
    Probabilities::from_slice(answer).map_err(|_| RuntimeError::Input(format!("{classes} classes are more than {most}")).into())
}

/// Index of the largest number, the first of equals; none where there is none.
fn largest(probabilities: &[f32]) -> Option<usize> {
    let mut best = 0;
    for (index, probability) in probabilities.iter().enumerate() {
        if *probability > probabilities[best] {
            best = index;
        }
    }
    (!probabilities.is_empty()).then_some(best)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
