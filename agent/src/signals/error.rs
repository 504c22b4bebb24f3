//! What can go wrong between a file on disk and a window: one sentence each, with the place and the remedy.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::windows::BadWindow;

/// An error of reading, arranging or simulating signals.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SignalError {
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}; check that the path exists, is a file of signals and may be read", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as a verb phrase.
        action: &'static str,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The bytes are not what the format says.
    #[error("{}: {place}: {problem}; expected {expected}; {remedy}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where in the file: "byte 128", "line 3, column 2", "array X097_DE_time".
        place: String,
        /// What is there.
        problem: String,
        /// What should be there.
        expected: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A valid file of a kind that is not read.
    #[error("{}: {what} cannot be read; {remedy}", .path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// Something exceeds a limit that protects memory or time.
    #[error("{}: {what} is {found}, more than the limit of {limit}; split the recording into smaller files", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What is too large.
        what: &'static str,
        /// Its size, with unit.
        found: String,
        /// The limit, with unit.
        limit: String,
    },
    /// The signal asked for is not in the file.
    #[error("{}: no {wanted} here; the file has {found}; choose one of these by its name", .path.display())]
    NoSuchSignal {
        /// The file.
        path: PathBuf,
        /// The array, column or channel wanted.
        wanted: String,
        /// What there is.
        found: String,
    },
    /// A recording that cannot give what a split needs.
    #[error("{}: the recording has {samples} samples, expected at least {needed} for {purpose}; record longer or choose a shorter window", .path.display())]
    TooShort {
        /// The recording.
        path: PathBuf,
        /// Its samples.
        samples: usize,
        /// The samples needed.
        needed: usize,
        /// What they are needed for.
        purpose: &'static str,
    },
    /// No layout of recordings that is known.
    #[error(
        "{}: not a folder of recordings that is known here; expected CWRU files (IR007_0hp_105.mat), UESTC files (B_800_1.mat), a corpus.json, \
         or one folder per class with recordings in it ({detail})", .path.display()
    )]
    UnknownLayout {
        /// The folder.
        path: PathBuf,
        /// What was found instead.
        detail: String,
    },
    /// A protocol name that does not exist.
    #[error("protocol `{name}` is not known; expected one of: {known}")]
    UnknownProtocol {
        /// The name given.
        name: String,
        /// The names that exist.
        known: String,
    },
    /// A protocol for other data.
    #[error("protocol `{protocol}` does not fit {} ({kind}); use one of: {fitting}", .path.display())]
    WrongProtocol {
        /// The protocol given.
        protocol: String,
        /// The corpus folder.
        path: PathBuf,
        /// What the corpus is.
        kind: String,
        /// The protocols that fit it.
        fitting: String,
    },
    /// A class without a recording on one side of a split.
    #[error("protocol `{protocol}`: class {class} has no recording for {side} in {}; {remedy}", .path.display())]
    MissingClass {
        /// The protocol.
        protocol: String,
        /// The class.
        class: String,
        /// train, holdout or a test set's name.
        side: String,
        /// The corpus folder.
        path: PathBuf,
        /// What to do about it.
        remedy: &'static str,
    },
    /// An option out of its range.
    #[error("{option} is {given}; expected {expected}")]
    BadOption {
        /// The option.
        option: &'static str,
        /// The value given.
        given: String,
        /// The range.
        expected: String,
    },
    /// A window that cannot be normalised, with where it was.
    #[error("{recording}: the window at sample {start} is unusable: {reason}; check the sensor and its wiring")]
    Window {
        /// The recording's name.
        recording: String,
        /// First sample of the window.
        start: usize,
        /// Why.
        reason: BadWindow,
    },
}

impl SignalError {
    /// Wraps an operating-system error with its path and what was tried.
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, action, source }
    }

    /// A file whose bytes contradict its format.
    pub(crate) fn malformed(
        path: &Path,
        place: impl Into<String>,
        problem: impl Into<String>,
        expected: impl Into<String>,
        remedy: &'static str,
    ) -> Self {
        Self::Malformed { path: path.to_path_buf(), place: place.into(), problem: problem.into(), expected: expected.into(), remedy }
    }
}
