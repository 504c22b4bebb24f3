//! Watches what the process holds, for a report: the kernel's gauges, read again and again on a thread of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use espalier_runtime::gauges::{self, Held};

use crate::error::Result;

/// Between two readings. A buffer that is there for less may be missed; those that matter live for a step of training, tens of
/// milliseconds and more.
const INTERVAL: Duration = Duration::from_millis(10);

/// What a sampler saw.
#[derive(Debug, Clone, Default)]
pub struct Samples {
    /// The reading with the largest total.
    pub peak: Held,
    /// Seconds since the start and the reading, every tenth of a second.
    pub series: Vec<(f64, Held)>,
}

/// A thread that reads the gauges.
pub struct Sampler {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Samples>>,
}

impl Sampler {
    /// Starts to read. Fails where the gauges cannot be read at all.
    pub fn start() -> Result<Self> {
        let first = gauges::held()?;
        let stop = Arc::new(AtomicBool::new(false));
        let asked = stop.clone();
        let thread = std::thread::Builder::new().name("sampler".into()).spawn(move || {
            let started = Instant::now();
            let mut samples = Samples { peak: first, series: vec![(0.0, first)] };
            let mut next = 0.1;
            while !asked.load(Ordering::Relaxed) {
                std::thread::sleep(INTERVAL);
                let Ok(held) = gauges::held() else { continue };
                if held.total() > samples.peak.total() {
                    samples.peak = held;
                }
                let seconds = started.elapsed().as_secs_f64();
                if seconds >= next {
                    samples.series.push((seconds, held));
                    next = seconds + 0.1;
                }
            }
            samples
        });
        let thread =
            thread.map_err(|error| crate::error::file_error("cannot start a thread in", std::path::Path::new("this process"), &error))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Stops and returns what was seen.
    pub fn stop(mut self) -> Samples {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}
