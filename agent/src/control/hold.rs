//! How long a condition has held, and how long to stay away from what has failed.

use std::time::Duration;

/// Since when a condition holds.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Hold {
    since: Option<Duration>,
}

impl Hold {
    /// Starts when `begins`, goes on while `persists`, which is the wider of the two: noise between them neither starts nor stops it.
    pub fn observe(&mut self, now: Duration, begins: bool, persists: bool) {
        self.since = match self.since {
            Some(since) if begins || persists => Some(since),
            _ if begins => Some(now),
            _ => None,
        };
    }

    /// Whether the condition has held for `time`.
    pub fn lasted(&self, now: Duration, time: Duration) -> bool {
        self.since.is_some_and(|since| now.saturating_sub(since) >= time)
    }

    /// Counts from now again, where the condition holds.
    pub fn restart(&mut self, now: Duration) {
        self.since = self.since.map(|_| now);
    }
}

/// Waits that double with every failure in a row.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Backoff {
    failures: u32,
    until: Duration,
}

impl Backoff {
    /// A failure: wait `first`, then twice that, up to `longest`. Returns the wait.
    pub fn fail(&mut self, now: Duration, first: Duration, longest: Duration) -> Duration {
        let factor = 1u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        let wait = first.checked_mul(factor).unwrap_or(longest).min(longest);
        self.failures = self.failures.saturating_add(1);
        self.until = now.saturating_add(wait);
        wait
    }

    /// A success: forget the failures and only let things settle.
    pub fn succeed(&mut self, now: Duration, settle: Duration) {
        *self = Self { failures: 0, until: now.saturating_add(settle) };
    }

    /// Whether the wait is over.
    pub fn over(&self, now: Duration) -> bool {
        now >= self.until
    }

    /// Whether the last thing was a failure.
    pub fn failed(&self) -> bool {
        self.failures > 0
    }

    /// When the wait is over.
    pub fn until(&self) -> Duration {
        self.until
    }
}
