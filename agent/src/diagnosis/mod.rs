//! The diagnosis loop: a source of samples, a bounded queue of windows, an engine that judges them, sinks that hear the verdicts.
//!
//! ```text
//! source thread                       loop thread
//! samples → windower → clock → queue → engine → checker, counters → sinks
//!                                ▲        ▲ │
//!                     Block or DropOldest │ └ used engines, failures: Events ┐
//!                                         └── next engine: EngineCell ◀── supervisor
//! ```
//!
//! * A source that can wait (files) is blocked by a full queue: nothing is lost. A live source (paced by the clock, or said to be live)
//!   never waits: the oldest window is dropped and counted.
//! * Windows are numbered from 0. Every number comes out once, as a verdict, as unusable or as failed, or was counted as dropped; a
//!   [`Checker`](counters::Checker) where verdicts come out proves it without asking the queue.
//! * After the start nothing on the loop's thread allocates, as long as engine and sinks do not.
//! * The supervisor offers engines and never holds the loop up; what the loop no longer uses comes back to it.
//!
//! | module | concern |
//! |--|--|
//! | [`source`], [`feed`] | samples; windows with numbers and due times |
//! | [`queue`] | what waits, and what is dropped |
//! | [`engine`], [`handover`] | what judges; how engines change hands |
//! | [`verdict`], [`sink`] | what is said; who hears it |
//! | [`counters`], [`histogram`] | what has happened so far |

use std::panic;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use espalier_models::foreign::Normalisation;
use espalier_runtime::RuntimeError;

use crate::error::{AgentError, Result};
use crate::train::Stop;
use engine_loop::{EngineLoop, Shared};

pub mod counters;
pub mod engine;
mod engine_loop;
pub mod feed;
#[cfg(feature = "ort")]
pub mod foreign;
pub mod handover;
pub mod histogram;
#[cfg(feature = "ort")]
pub mod ort;
pub mod queue;
pub mod sink;
pub mod source;
pub mod verdict;

#[cfg(test)]
mod tests;

pub use counters::Snapshot;
pub use engine::{Engine, Host, MAX_CLASSES, NativeEngine};
pub use feed::{Feed, Pace, WindowFormat};
pub use handover::{EngineCell, Event, Events};
pub use queue::{Gap, MAX_QUEUE, Policy};
pub use sink::{CountingSink, JsonLines, MemorySink, Sink};
pub use source::{Clip, MemorySource, RawStream, Recordings, Source};
pub use verdict::{Probabilities, State, Verdict};

/// How the loop runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Samples between the starts of neighbouring windows; the window's length where none is given.
    pub hop: Option<usize>,
    /// How fast samples come.
    pub pace: Pace,
    /// Windows that may wait, 1 to [`MAX_QUEUE`].
    pub queue: usize,
    /// How long a window waits for another engine when its own has failed and the supervisor does not say that it is at work.
    pub retry: Duration,
    /// Ends the run when asked.
    pub stop: Stop,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            hop: None,
            pace: Pace::Unpaced,
            // 2.7 s of signal in windows of 2048 samples at 12 kHz: longer than a replacement may take.
            queue: 16,
            // A supervisor looks ten times a second; from then on it says that it is at work.
            retry: Duration::from_secs(2),
            stop: Stop::new(),
        }
    }
}

impl Options {
    /// Bytes of the window buffers that the loop allocates at its start: the queue's, one at each end, and the windower's.
    pub fn buffer_bytes(&self, window: usize) -> u64 {
        (self.queue as u64 + 3).saturating_mul(4 * window as u64)
    }
}

/// How long a source may take to notice that the run is over before it is left behind.
const PATIENCE: Duration = Duration::from_secs(1);

/// The diagnosis loop.
pub struct Diagnosis;

impl Diagnosis {
    /// Starts the source's and the loop's thread.
    ///
    /// # Errors
    /// [`AgentError::Usage`] or [`SignalError`](crate::signals::SignalError) for options or a source that do not fit the model;
    /// [`RuntimeError::Input`] for a model with no or too many classes; [`AgentError::File`] where the system refuses a thread.
    pub fn start(
        options: Options,
        engine: Box<dyn Engine>,
        mut source: Box<dyn Source>,
        sinks: Vec<Box<dyn Sink>>,
    ) -> Result<DiagnosisHandle> {
        let classes = engine.classes().to_vec();
        if classes.is_empty() || classes.len() > MAX_CLASSES {
            let count = classes.len();
            return Err(RuntimeError::Input(format!("the model has {count} classes; the diagnosis loop takes 1 to {MAX_CLASSES}")).into());
        }
        let (window, sample_rate_hz) = (engine.window(), engine.sample_rate_hz());
        let normalisation = engine.normalisation();
        let format = WindowFormat { window, hop: options.hop.unwrap_or(window), sample_rate_hz, classes };
        let samples_per_second = options.pace.samples_per_second(sample_rate_hz)?;
        source.prepare(&format)?;
        let live = samples_per_second.is_some() || source.is_live();
        let policy = if live { Policy::DropOldest } else { Policy::Block };
        let queue = Arc::new(queue::Queue::new(options.queue, window, policy)?);
        let mut feed = Feed::new(format.clone(), samples_per_second, queue.clone(), options.stop.clone())?;
        let shared = Arc::new(Shared {
            queue: queue.clone(),
            counters: Default::default(),
            cell: Default::default(),
            events: Default::default(),
            stop: options.stop,
        });
        let host = engine.host();
        let mut engine_loop = EngineLoop::new(shared.clone(), engine, sinks, options.retry);
        let stopper = OnDrop(queue.clone(), queue::Queue::stop);
        let judge = spawn("espalier-diagnosis", move || {
            // Also after a panic, so that the source does not wait for ever.
            let _stopper = stopper;
            let mut result = Ok(());
            host(&mut || result = engine_loop.run());
            result
        })?;
        let (closer, fallback) = (OnDrop(queue.clone(), queue::Queue::close), queue);
        let feeder = spawn("espalier-source", move || {
            let _closer = closer;
            source.run(&mut feed)
        });
        // Without a source the loop would wait for ever.
        let feeder = feeder.inspect_err(|_| fallback.stop())?;
        Ok(DiagnosisHandle { shared, format, normalisation, feeder: Some(feeder), judge: Some(judge) })
    }
}

fn spawn(name: &'static str, work: impl FnOnce() -> Result<()> + Send + 'static) -> Result<JoinHandle<Result<()>>> {
    let started = thread::Builder::new().name(name.to_string()).spawn(work);
    started.map_err(|error| AgentError::File { what: "cannot start the thread", path: name.to_string(), reason: error.to_string() })
}

/// Calls a function of the queue when it goes.
struct OnDrop(Arc<queue::Queue>, fn(&queue::Queue));

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.1(&self.0);
    }
}

/// A run. Dropping it stops the run.
pub struct DiagnosisHandle {
    shared: Arc<Shared>,
    format: WindowFormat,
    normalisation: Normalisation,
    feeder: Option<JoinHandle<Result<()>>>,
    judge: Option<JoinHandle<Result<()>>>,
}

impl DiagnosisHandle {
    /// What has happened so far.
    pub fn snapshot(&self) -> Snapshot {
        self.shared.counters.snapshot(&self.shared.queue)
    }

    /// Hands over the next engine; the loop takes it between two windows and gives the old one back as an [`Event::Swapped`]. Gives back an
    /// earlier offer that was not taken.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] for an engine with other windows, another rate, another normalisation or other classes.
    pub fn offer(&self, engine: Box<dyn Engine>) -> Result<Option<Box<dyn Engine>>> {
        let WindowFormat { window, sample_rate_hz, classes, .. } = &self.format;
        if engine.window() != *window || engine.classes() != classes || engine.sample_rate_hz() != *sample_rate_hz {
            let (found_window, found_rate, found) = (engine.window(), engine.sample_rate_hz(), engine.classes().join(", "));
            let expected = classes.join(", ");
            return Err(RuntimeError::Input(format!(
                "the next model reads windows of {found_window} samples at {found_rate} Hz and tells {found} apart; the running one reads \
                 windows of {window} samples at {sample_rate_hz} Hz and tells {expected} apart; give a model for the same task"
            ))
            .into());
        }
        if engine.normalisation() != self.normalisation {
            let (found, expected) = (engine.normalisation(), self.normalisation);
            let problem =
                format!("the next model wants windows normalised as {found:?}, the running one as {expected:?}; give one like it");
            return Err(RuntimeError::Input(problem).into());
        }
        Ok(self.shared.cell.offer(engine))
    }

    /// Takes back an engine that the loop has not taken.
    pub fn withdraw(&self) -> Option<Box<dyn Engine>> {
        self.shared.cell.withdraw()
    }

    /// Says whether the supervisor is at work, so that another engine may come: a window without one waits for it beyond
    /// [`Options::retry`], for up to three minutes.
    pub fn set_at_work(&self, at_work: bool) {
        self.shared.cell.set_at_work(at_work);
    }

    /// Failures and used engines. Read it while the run goes on: the loop takes no further engine while 32 events wait.
    pub fn events(&self) -> &Events {
        &self.shared.events
    }

    /// What the loop expects of windows.
    pub fn format(&self) -> &WindowFormat {
        &self.format
    }

    /// Whether the loop has ended.
    pub fn is_finished(&self) -> bool {
        self.judge.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Takes no more windows; those that wait are still judged, then the run ends.
    pub fn finish(&self) {
        self.shared.queue.close();
    }

    /// Ends the run; windows that wait are dropped and counted.
    pub fn stop(&self) {
        self.shared.queue.stop();
    }

    /// Waits until the run is over and says how it went.
    ///
    /// # Errors
    /// What the source or a sink failed with. A reader that has gone and a stop are no errors.
    pub fn wait(&mut self) -> Result<Snapshot> {
        let judged = self.judge.take().map_or(Ok(()), join);
        let deadline = Instant::now() + PATIENCE;
        // A source that waits for a reader of its own may never come back; it holds nothing that the rest needs.
        while self.feeder.as_ref().is_some_and(|feeder| !feeder.is_finished()) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        let fed = self.feeder.take().filter(JoinHandle::is_finished).map_or(Ok(()), join);
        judged.and(fed)?;
        Ok(self.snapshot())
    }
}

impl Drop for DiagnosisHandle {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A panic of a thread goes on in the one that waits for it.
fn join(handle: JoinHandle<Result<()>>) -> Result<()> {
    handle.join().unwrap_or_else(|reason| panic::resume_unwind(reason))
}
