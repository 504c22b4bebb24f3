//! Latencies in fixed buckets.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Below this every microsecond has its own bucket; above, every octave has half as many.
const EXACT: u64 = 64;
const PER_OCTAVE: usize = 32;
/// Octaves above [`EXACT`]: up to 2^40 microseconds, 13 days.
const OCTAVES: usize = 34;
const BUCKETS: usize = EXACT as usize + OCTAVES * PER_OCTAVE;
/// The longest time that is told apart.
const LONGEST_US: u64 = (1 << 40) - 1;

/// Counts of microseconds in buckets whose middle differs from every member by at most 1 part in 64. One thread adds, any thread reads.
pub struct Histogram {
    buckets: Box<[AtomicU64]>,
    max_us: AtomicU64,
}

/// Quantiles of a latency in microseconds; within 1.6 %, the maximum exact.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantiles {
    /// How many were measured.
    pub count: u64,
    /// Median.
    pub p50_us: u64,
    /// 99th percentile.
    pub p99_us: u64,
    /// Maximum.
    pub max_us: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(), max_us: AtomicU64::new(0) }
    }
}

impl Histogram {
    /// Adds one.
    pub fn add(&self, us: u64) {
        self.max_us.fetch_max(us, Ordering::Relaxed);
        self.buckets[bucket(us)].fetch_add(1, Ordering::Relaxed);
    }

    /// Median, 99th percentile and maximum, by nearest rank.
    pub fn quantiles(&self) -> Quantiles {
        // The counts are read once, so that both ranks refer to the same total while the writer goes on.
        let counts: Vec<u64> = self.buckets.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let (count, max_us) = (counts.iter().sum::<u64>(), self.max_us.load(Ordering::Relaxed));
        let at = |share: f64| {
            let rank = ((count as f64 * share).ceil() as u64).max(1);
            let mut below = 0;
            let found = counts.iter().position(|bucket| {
                below += bucket;
                below >= rank
            });
            found.map_or(0, |index| middle(index).min(max_us))
        };
        Quantiles { count, p50_us: at(0.5), p99_us: at(0.99), max_us }
    }
}

fn bucket(us: u64) -> usize {
    let us = us.min(LONGEST_US);
    if us < EXACT {
        return us as usize;
    }
    let octave = us.ilog2() - EXACT.ilog2();
    // The five bits below the leading one.
    let part = (us >> (octave + 1)) as usize - PER_OCTAVE;
    EXACT as usize + octave as usize * PER_OCTAVE + part
}

fn middle(bucket: usize) -> u64 {
    let Some(above) = bucket.checked_sub(EXACT as usize) else { return bucket as u64 };
    let (octave, part) = (above / PER_OCTAVE, above % PER_OCTAVE);
    let width = 2u64 << octave;
    (PER_OCTAVE + part) as u64 * width + width / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_lies_near_the_middle_of_its_bucket() {
        let times = (0..5000).chain((0..40).flat_map(|octave| [(1u64 << octave) - 1, 1 << octave, (1 << octave) + (1 << octave) / 3]));
        let far: Vec<_> =
            times.filter(|us| *us <= LONGEST_US && (middle(bucket(*us)) as f64 - *us as f64).abs() > *us as f64 / 64.0).collect();
        assert!(far.is_empty(), "{far:?}");
        assert_eq!((bucket(LONGEST_US), bucket(u64::MAX)), (BUCKETS - 1, BUCKETS - 1));
    }

    #[test]
    fn quantiles_are_within_two_percent_and_the_maximum_exact() {
        let histogram = Histogram::default();
        assert_eq!(histogram.quantiles(), Quantiles::default());
        (1..=10_000).for_each(|us| histogram.add(us));
        let Quantiles { count, p50_us, p99_us, max_us } = histogram.quantiles();
        assert_eq!((count, max_us), (10_000, 10_000));
        assert!(p50_us.abs_diff(5000) <= 100 && p99_us.abs_diff(9900) <= 198, "{p50_us} {p99_us}");
    }
}
