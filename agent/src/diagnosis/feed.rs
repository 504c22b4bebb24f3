//! From samples to windows in the queue: cutting, numbering, and when each is due.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::queue::{Header, Pushed, Queue, Slot, WAIT};
use crate::error::{AgentError, Result};
use crate::signals::{SignalError, Windower};
use crate::train::Stop;

/// How far a recording's sample rate may be from the model's: resonances move by as much, and machines differ by more.
const RATE_TOLERANCE: f64 = 0.01;

/// How fast samples come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// As fast as the engine takes them.
    Unpaced,
    /// By the clock, at this many times the model's sample rate, as a sensor would give them: the source does not wait for the engine.
    RealTime(f64),
}

impl Pace {
    /// Samples a second; none when unpaced.
    pub(super) fn samples_per_second(self, sample_rate_hz: f64) -> Result<Option<f64>> {
        let Self::RealTime(factor) = self else { return Ok(None) };
        let rate = factor * sample_rate_hz;
        if rate.is_finite() && (1.0..=1e9).contains(&rate) {
            return Ok(Some(rate));
        }
        Err(AgentError::Usage(format!(
            "a pace of {factor} times {sample_rate_hz} Hz is not possible; give a factor that makes 1 to 10^9 samples a second"
        )))
    }
}

/// What the loop expects of windows.
#[derive(Debug, Clone)]
pub struct WindowFormat {
    /// Samples of a window.
    pub window: usize,
    /// Samples between the starts of neighbouring windows.
    pub hop: usize,
    /// Samples a second.
    pub sample_rate_hz: f64,
    /// The model's classes.
    pub classes: Vec<String>,
}

impl WindowFormat {
    /// Refuses a sample rate that the model was not trained for.
    ///
    /// # Errors
    /// [`SignalError::Malformed`] naming the file, the rate found and the rate expected.
    pub fn check_rate(&self, path: &Path, rate_hz: Option<f64>) -> Result<()> {
        let Some(found) = rate_hz else { return Ok(()) };
        let expected = self.sample_rate_hz;
        // Written so that a rate that is not a number is refused too.
        if (found - expected).abs() <= expected * RATE_TOLERANCE {
            return Ok(());
        }
        let expected = format!("{expected} Hz, at which the model was trained, within 1 %");
        let remedy = "record at that rate, or train a model for this one";
        Err(SignalError::malformed(path, "the sample rate", format!("{found} Hz"), expected, remedy).into())
    }

    /// Index of the class `name`.
    pub fn class(&self, name: &str) -> Option<usize> {
        self.classes.iter().position(|class| class == name)
    }
}

/// Takes samples from a source and puts windows into the queue. It belongs to the source's thread.
pub struct Feed {
    format: WindowFormat,
    queue: Arc<Queue>,
    stop: Stop,
    windower: Windower,
    slot: Slot,
    clock: Option<Clock>,
    sequence: u64,
    recording: u32,
    label: Option<usize>,
}

/// When windows are due.
struct Clock {
    window: Duration,
    hop: Duration,
    /// When the last window was due.
    last: Instant,
    /// No window of this recording has come yet.
    first: bool,
}

impl Feed {
    pub(super) fn new(format: WindowFormat, samples_per_second: Option<f64>, queue: Arc<Queue>, stop: Stop) -> Result<Self> {
        let windower = Windower::new(format.window, format.hop)?;
        let slot = Slot::new(format.window);
        // The rate is at least 1 and a window at most 2^20 samples, so neither time overflows.
        let seconds = |samples: usize, rate: f64| Duration::from_secs_f64(samples as f64 / rate);
        let clock = samples_per_second.map(|rate| Clock {
            window: seconds(format.window, rate),
            hop: seconds(format.hop, rate),
            last: Instant::now(),
            first: true,
        });
        Ok(Self { format, queue, stop, windower, slot, clock, sequence: 0, recording: 0, label: None })
    }

    /// What windows must be.
    pub fn format(&self) -> &WindowFormat {
        &self.format
    }

    /// Windows that were put into the queue so far.
    pub fn windows(&self) -> u64 {
        self.sequence
    }

    /// Whether the run is being stopped; a source that waits for something looks at it every now and then.
    pub fn is_stopped(&self) -> bool {
        self.stop.is_asked() || self.queue.is_stopped()
    }

    /// A recording begins: number `recording`, of the class `label` where it is known. No window spans two recordings.
    pub fn begin(&mut self, recording: u32, label: Option<usize>) -> Result<()> {
        self.windower = Windower::new(self.format.window, self.format.hop)?;
        (self.recording, self.label) = (recording, label);
        if let Some(clock) = &mut self.clock {
            // Time that reading a file took is not time in which a sensor gave samples.
            clock.last = clock.last.max(Instant::now());
            clock.first = true;
        }
        Ok(())
    }

    /// The next samples of the recording. [`ControlFlow::Break`] when the run is being stopped.
    pub fn samples(&mut self, mut piece: &[f32]) -> ControlFlow<()> {
        while let Some(window) = self.windower.next_window(&mut piece) {
            let due = match &mut self.clock {
                None => Instant::now(),
                Some(clock) => clock.next(),
            };
            self.slot.header = Header { sequence: self.sequence, recording: self.recording, start: window.start, label: self.label, due };
            self.slot.samples.copy_from_slice(window.samples);
            while let Some(left) = due.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
                if self.is_stopped() {
                    return ControlFlow::Break(());
                }
                thread::sleep(left.min(WAIT));
            }
            if self.queue.push(&mut self.slot, &self.stop) == Pushed::Refused {
                return ControlFlow::Break(());
            }
            self.sequence += 1;
        }
        if self.is_stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl Clock {
    fn next(&mut self) -> Instant {
        self.last += if self.first { self.window } else { self.hop };
        self.first = false;
        self.last
    }
}
