//! What has happened so far.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::histogram::{Histogram, Quantiles};
use super::queue::Queue;
use super::verdict::{State, Verdict};

/// Labelled verdicts that the rolling accuracy looks back on: enough that one verdict moves it by less than half a percent, few enough that
/// it follows a change within a minute of signal at 12 kHz.
pub const ROLLING: usize = 256;

/// Numbers of a run. The loop adds, any thread reads.
pub struct Counters {
    started: Instant,
    judged: AtomicU64,
    unusable: AtomicU64,
    failed: AtomicU64,
    missing: AtomicU64,
    repeated: AtomicU64,
    engine_failures: AtomicU64,
    swaps: AtomicU64,
    labelled: AtomicU64,
    right: AtomicU64,
    /// Right verdicts among the last labelled ones in the upper half, how many these are in the lower.
    rolling: AtomicU64,
    model_id: AtomicU64,
    level: AtomicU32,
    latency: Histogram,
    compute: Histogram,
}

/// The numbers at one moment. Once the run is over, `produced = judged + unusable + failed + dropped` and `in_flight` is 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Since the start.
    pub seconds: f64,
    /// Windows that came from the source.
    pub produced: u64,
    /// Windows with a verdict.
    pub judged: u64,
    /// Windows that could not be normalised.
    pub unusable: u64,
    /// Windows on which the engine failed and none took its place in time.
    pub failed: u64,
    /// Windows that were dropped, as the queue counts them.
    pub dropped: u64,
    /// Windows that are in the queue or with the engine.
    pub in_flight: u64,
    /// Sequence numbers that were passed over, as seen where verdicts come out. It equals `dropped` when the run is over.
    pub missing: u64,
    /// Sequence numbers that came again or too late; 0 unless the program is wrong.
    pub repeated: u64,
    /// Most windows that ever waited.
    pub queue_high_water: usize,
    /// Times an engine failed.
    pub engine_failures: u64,
    /// Engines that took over.
    pub swaps: u64,
    /// Contents of the model that judged last.
    pub model_id: u64,
    /// Its level.
    pub level: u32,
    /// Verdicts on recordings whose class is known.
    pub labelled: u64,
    /// Those that were right.
    pub right: u64,
    /// Share of right verdicts among the last 256 labelled ones; none before the first.
    pub rolling_accuracy: Option<f64>,
    /// From due or whole to the verdict.
    pub latency: Quantiles,
    /// Time the engine took.
    pub compute: Quantiles,
}

impl Snapshot {
    /// Whether every window of a run that is over has come out exactly once or was counted as dropped.
    pub fn is_complete(&self) -> bool {
        self.in_flight == 0 && self.repeated == 0 && self.missing == self.dropped
    }

    /// Share of right verdicts among all labelled ones; none before the first.
    pub fn accuracy(&self) -> Option<f64> {
        (self.labelled > 0).then(|| self.right as f64 / self.labelled as f64)
    }
}

impl Counters {
    /// All zero, starting now.
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            judged: AtomicU64::new(0),
            unusable: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            missing: AtomicU64::new(0),
            repeated: AtomicU64::new(0),
            engine_failures: AtomicU64::new(0),
            swaps: AtomicU64::new(0),
            labelled: AtomicU64::new(0),
            right: AtomicU64::new(0),
            rolling: AtomicU64::new(0),
            model_id: AtomicU64::new(0),
            level: AtomicU32::new(0),
            latency: Histogram::default(),
            compute: Histogram::default(),
        }
    }

    /// An engine failed.
    pub(super) fn engine_failed(&self) {
        self.engine_failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Another engine is used from now on.
    pub(super) fn swapped(&self) {
        self.swaps.fetch_add(1, Ordering::Relaxed);
    }

    /// The numbers now.
    pub fn snapshot(&self, queue: &Queue) -> Snapshot {
        let get = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        // What comes out is read before what went in, so that the difference never falls below zero.
        let (judged, unusable, failed) = (get(&self.judged), get(&self.unusable), get(&self.failed));
        let dropped = queue.dropped();
        let produced = queue.produced();
        let rolling = get(&self.rolling);
        let (right, of) = (rolling >> 32, rolling & u64::from(u32::MAX));
        Snapshot {
            seconds: self.started.elapsed().as_secs_f64(),
            produced,
            judged,
            unusable,
            failed,
            dropped,
            in_flight: produced.saturating_sub(judged + unusable + failed + dropped),
            missing: get(&self.missing),
            repeated: get(&self.repeated),
            queue_high_water: queue.high_water(),
            engine_failures: get(&self.engine_failures),
            swaps: get(&self.swaps),
            model_id: get(&self.model_id),
            level: self.level.load(Ordering::Relaxed),
            labelled: get(&self.labelled),
            right: get(&self.right),
            rolling_accuracy: (of > 0).then(|| right as f64 / of as f64),
            latency: self.latency.quantiles(),
            compute: self.compute.quantiles(),
        }
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self::new()
    }
}

/// Adds verdicts to [`Counters`]; belongs to the loop.
pub(super) struct Recorder {
    checker: Checker,
    /// Whether each of the last labelled verdicts was right, as a ring.
    outcomes: [bool; ROLLING],
    labelled: u64,
    rolling_right: u64,
}

impl Recorder {
    pub fn new() -> Self {
        Self { checker: Checker::default(), outcomes: [false; ROLLING], labelled: 0, rolling_right: 0 }
    }

    /// Adds one verdict.
    pub fn add(&mut self, counters: &Counters, verdict: &Verdict) {
        self.checker.see(verdict.sequence);
        self.publish(counters);
        counters.model_id.store(verdict.model_id, Ordering::Relaxed);
        counters.level.store(verdict.level, Ordering::Relaxed);
        counters.latency.add(verdict.latency_us);
        let counter = match verdict.state {
            State::Verdict => &counters.judged,
            State::Unusable(_) => &counters.unusable,
            State::Failed => &counters.failed,
        };
        if verdict.state == State::Verdict {
            counters.compute.add(verdict.compute_us);
            if let (Some(class), Some(label)) = (verdict.class, verdict.label) {
                self.outcome(counters, class == label);
            }
        }
        counter.fetch_add(1, Ordering::Release);
    }

    /// The run is over after `produced` windows.
    pub fn finish(&mut self, counters: &Counters, produced: u64) {
        self.checker.finish(produced);
        self.publish(counters);
    }

    fn publish(&self, counters: &Counters) {
        counters.missing.store(self.checker.missing, Ordering::Release);
        counters.repeated.store(self.checker.repeated, Ordering::Release);
    }

    fn outcome(&mut self, counters: &Counters, right: bool) {
        let place = &mut self.outcomes[self.labelled as usize % ROLLING];
        let forgotten = std::mem::replace(place, right);
        self.labelled += 1;
        // Places that were never used hold false.
        self.rolling_right = self.rolling_right + u64::from(right) - u64::from(forgotten);
        counters.labelled.store(self.labelled, Ordering::Release);
        counters.right.fetch_add(u64::from(right), Ordering::Release);
        counters.rolling.store(self.rolling_right << 32 | self.labelled.min(ROLLING as u64), Ordering::Release);
    }
}

/// Checks sequence numbers as they come out, knowing nothing of the queue: they count up from 0, and what is passed over is missing.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Checker {
    next: u64,
    /// Numbers that were passed over.
    pub missing: u64,
    /// Numbers that came again or too late.
    pub repeated: u64,
}

impl Checker {
    /// A number has come out.
    pub fn see(&mut self, sequence: u64) {
        match sequence.checked_sub(self.next) {
            Some(passed_over) => {
                self.missing += passed_over;
                self.next = sequence + 1;
            }
            None => self.repeated += 1,
        }
    }

    /// No more come, after `produced` windows in all.
    pub fn finish(&mut self, produced: u64) {
        self.missing += produced.saturating_sub(self.next);
        self.next = self.next.max(produced);
    }
}

#[cfg(test)]
mod tests {
    use super::super::queue::Policy;
    use super::*;

    #[test]
    fn the_checker_tells_missing_and_repeated_numbers() {
        let cases: [(&[u64], u64, (u64, u64)); 6] = [
            (&[0, 1, 2], 3, (0, 0)),
            (&[0, 2, 5], 6, (3, 0)),
            (&[3], 4, (3, 0)),
            (&[0, 1, 1, 2], 3, (0, 1)),
            (&[0, 2, 1], 3, (1, 1)),
            (&[], 2, (2, 0)),
        ];
        let wrong: Vec<_> = cases
            .iter()
            .filter_map(|(numbers, produced, expected)| {
                let mut checker = Checker::default();
                numbers.iter().for_each(|number| checker.see(*number));
                checker.finish(*produced);
                ((checker.missing, checker.repeated) != *expected).then_some((numbers, checker))
            })
            .collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    #[test]
    fn rolling_accuracy_forgets_what_is_long_ago() {
        let (counters, queue) = (Counters::new(), Queue::new(1, 1, Policy::Block).unwrap());
        let mut recorder = Recorder::new();
        assert_eq!(counters.snapshot(&queue).rolling_accuracy, None);
        (0..ROLLING).for_each(|_| recorder.outcome(&counters, false));
        assert_eq!(counters.snapshot(&queue).rolling_accuracy, Some(0.0));
        (0..ROLLING / 2).for_each(|_| recorder.outcome(&counters, true));
        assert_eq!(counters.snapshot(&queue).rolling_accuracy, Some(0.5));
        (0..ROLLING).for_each(|_| recorder.outcome(&counters, true));
        let snapshot = counters.snapshot(&queue);
        assert_eq!((snapshot.rolling_accuracy, snapshot.accuracy()), (Some(1.0), Some(0.6)));
    }

    #[test]
    fn a_snapshot_survives_json() {
        let snapshot = Counters::new().snapshot(&Queue::new(1, 1, Policy::Block).unwrap());
        let text = serde_json::to_string(&snapshot).unwrap();
        assert_eq!(serde_json::from_str::<Snapshot>(&text).unwrap(), snapshot);
    }
}
