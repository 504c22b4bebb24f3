//! What happened on a node, for the person who reads it at its end.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::time::Instant;

/// Entries of a node's log: a node runs for years, and what a person reads at its end is the last hours.
const MOST_NOTES: usize = 1000;
/// Different failures that are remembered; after so many others one is worth a line again.
const MOST_FAILURES: usize = 64;

/// Notes with seconds since the start, in order; the newest 1000 of them.
#[derive(Debug)]
pub struct Log {
    notes: Vec<(f64, String)>,
    /// Failures that were noted, so that one that comes again and again is noted once.
    failures: BTreeSet<String>,
    started: Instant,
}

impl Default for Log {
    fn default() -> Self {
        Self { notes: Vec::new(), failures: BTreeSet::new(), started: Instant::now() }
    }
}

impl Log {
    /// Notes something, which the program's own log hears too.
    pub fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        log::info!("{text}");
        if self.notes.len() >= MOST_NOTES {
            self.notes.remove(0);
        }
        self.notes.push((self.started.elapsed().as_secs_f64(), text));
    }

    /// Notes a failure, unless it is one of those noted before.
    pub fn note_failure(&mut self, text: String) {
        if self.failures.len() >= MOST_FAILURES {
            self.failures.clear();
        }
        if self.failures.insert(text.clone()) {
            self.note(text);
        }
    }
}

impl Deref for Log {
    type Target = Vec<(f64, String)>;

    fn deref(&self) -> &Self::Target {
        &self.notes
    }
}
