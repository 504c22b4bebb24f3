//! What a run tells its caller, and how it is stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{AgentError, Result};

/// One step of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Report {
    /// Steps that are done.
    pub done: usize,
    /// Steps in all.
    pub total: usize,
    /// Running mean of the training loss, in nats.
    pub loss: f64,
    /// Running share of right training windows; none where it is not counted.
    pub accuracy: Option<f64>,
}

/// Hears how a run goes.
pub trait Progress: Send {
    /// A new part of the run begins, of `total` steps.
    fn begin(&mut self, what: &str, total: usize);
    /// A step is done.
    fn step(&mut self, report: Report);
    /// The part is over; one line says how it went.
    fn end(&mut self, summary: &str);
}

/// Says nothing.
#[derive(Debug, Default, Clone, Copy)]
pub struct Quiet;

impl Progress for Quiet {
    fn begin(&mut self, _what: &str, _total: usize) {}
    fn step(&mut self, _report: Report) {}
    fn end(&mut self, _summary: &str) {}
}

/// Asks a run to stop; clones ask the same run.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// A stop that nobody has asked for.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that is asked for by setting `flag` (a signal handler can).
    pub fn by_flag(flag: Arc<AtomicBool>) -> Self {
        Self(flag)
    }

    /// Asks.
    pub fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked for.
    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// An error once it was asked for.
    pub fn check(&self) -> Result<()> {
        if self.is_asked() { Err(AgentError::Cancelled) } else { Ok(()) }
    }
}

/// A running mean that forgets with a time constant of about `1 / rate` steps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RunningMean {
    value: Option<f64>,
    rate: f64,
}

impl RunningMean {
    pub fn new(rate: f64) -> Self {
        Self { value: None, rate }
    }

    pub fn add(&mut self, x: f64) -> f64 {
        let value = self.value.map_or(x, |value| value + self.rate * (x - value));
        self.value = Some(value);
        value
    }
}
