//! A loop that gives no verdicts any more.

use std::time::{Duration, Instant};

/// How long windows may wait without a verdict before a line says so: far longer than an engine takes for a window. A replacement may take
/// longer, but while the supervisor is at work on one it does not look, and when the other engine serves the time counts anew.
pub(super) const STUCK_AFTER: Duration = Duration::from_secs(60);

/// Whether verdicts come.
#[derive(Default)]
pub(super) struct Watchdog {
    /// Windows answered, and since when it is that many.
    answered: Option<(u64, Instant)>,
    said: bool,
}

impl Watchdog {
    /// Begins again: an engine's time counts from when it began to serve.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Whether windows have waited too long; true once, until a verdict comes again.
    pub fn is_stuck(&mut self, answered: u64, waits: bool) -> bool {
        match self.answered {
            Some((before, since)) if before == answered && waits => {
                let first = since.elapsed() >= STUCK_AFTER && !self.said;
                self.said |= first;
                first
            }
            _ => {
                *self = Self { answered: Some((answered, Instant::now())), said: false };
                false
            }
        }
    }
}
