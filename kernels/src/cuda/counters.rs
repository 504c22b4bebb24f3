//! What the kernels of a device were asked to do.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Totals of a kernel since the device was opened.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelCount {
    /// The kernel.
    pub name: &'static str,
    /// How often it ran, in graphs too.
    pub launches: u64,
    /// Bytes that its launches had to move at least.
    pub bytes: u64,
    /// Additions and multiplications.
    pub flops: u64,
    /// Launches of those that were timed.
    pub timed_launches: u64,
    /// Bytes of the timed launches.
    pub timed_bytes: u64,
    /// Additions and multiplications of the timed launches.
    pub timed_flops: u64,
    /// Time of the timed launches.
    pub timed_ns: u64,
}

impl KernelCount {
    /// Bytes in a second over the timed launches; none where none was timed.
    pub fn bytes_per_s(&self) -> Option<f64> {
        (self.timed_ns > 0).then(|| self.timed_bytes as f64 / self.timed_ns as f64 * 1e9)
    }
}

/// What one launch moves and computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Work {
    /// Bytes that have to be read and written at least.
    pub bytes: u64,
    /// Additions and multiplications.
    pub flops: u64,
}

impl Work {
    /// Both.
    pub fn plus(self, other: Work) -> Work {
        Work { bytes: self.bytes.saturating_add(other.bytes), flops: self.flops.saturating_add(other.flops) }
    }
}

/// The running totals of a kernel.
#[derive(Default)]
pub(super) struct Counter {
    launches: AtomicU64,
    bytes: AtomicU64,
    flops: AtomicU64,
    timed_launches: AtomicU64,
    timed_bytes: AtomicU64,
    timed_flops: AtomicU64,
    timed_ns: AtomicU64,
}

impl Counter {
    /// Adds `launches` launches which together did `work`.
    pub fn add(&self, launches: u64, work: Work) {
        self.launches.fetch_add(launches, Relaxed);
        self.bytes.fetch_add(work.bytes, Relaxed);
        self.flops.fetch_add(work.flops, Relaxed);
    }

    /// Takes launches back that did not run.
    pub fn take_back(&self, launches: u64, work: Work) {
        self.launches.fetch_sub(launches, Relaxed);
        self.bytes.fetch_sub(work.bytes, Relaxed);
        self.flops.fetch_sub(work.flops, Relaxed);
    }

    /// Adds the time of a launch.
    pub fn add_time(&self, work: Work, ns: u64) {
        self.timed_launches.fetch_add(1, Relaxed);
        self.timed_bytes.fetch_add(work.bytes, Relaxed);
        self.timed_flops.fetch_add(work.flops, Relaxed);
        self.timed_ns.fetch_add(ns, Relaxed);
    }

    /// Launches and what they did together, so far.
    pub fn so_far(&self) -> (u64, Work) {
        (self.launches.load(Relaxed), Work { bytes: self.bytes.load(Relaxed), flops: self.flops.load(Relaxed) })
    }

    /// The totals under a name.
    pub fn totals(&self, name: &'static str) -> KernelCount {
        KernelCount {
            name,
            launches: self.launches.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            flops: self.flops.load(Relaxed),
            timed_launches: self.timed_launches.load(Relaxed),
            timed_bytes: self.timed_bytes.load(Relaxed),
            timed_flops: self.timed_flops.load(Relaxed),
            timed_ns: self.timed_ns.load(Relaxed),
        }
    }
}
