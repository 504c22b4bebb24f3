//! The controller's vocabulary: its states, what it asks for and what it is told.

use std::fmt;

/// What the agent is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// The committed artifact answers at its largest level; nothing else is going on.
    Serving,
    /// A smaller level of the committed artifact answers, because the largest does not fit. It costs accuracy at once and nothing to
    /// undo: climbing needs no more than room for a while.
    Shrunk,
    /// A background job prunes and recovers the factory artifact down to a number of bytes, while the committed artifact answers. It ends
    /// done, failed or cancelled; a cancelled one stays here until the caller reports that it has stopped.
    Compressing,
    /// A background job asks the holdout about the candidate. Only its yes leads on.
    Verifying,
    /// Another artifact is being loaded and put in place between two windows: the candidate, the committed one (a rollback) or the
    /// factory's. Not interrupted: half of a swap is no state to be in.
    Swapping,
    /// The candidate answers live windows. What is committed is still the old artifact, so that a power cut goes back to that. Enough good
    /// windows commit the candidate, too many bad ones roll it back.
    Probation,
    /// The host is below its reserve, or the limit is exceeded. The smallest level answers, background work is cancelled and none starts.
    /// A swap or commit under way ends first, without leading on to anything.
    Critical,
}

/// What the caller is to do. Where an answer is named, the controller waits for that [`Event`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Prune the factory artifact in the background until the program holds at most `fit_bytes` with it, resuming what was cut off.
    /// Answer: `CompressionDone`, `CompressionFailed`, or `CompressionCancelled`.
    StartCompression {
        /// What the program should hold when the result is served.
        fit_bytes: u64,
    },
    /// Stop the running compression or judgement soon. Answer: `CompressionCancelled`, or the job's own event where that came first.
    CancelCompression,
    /// Ask the holdout about the candidate in the background. Answer: `HoldoutAccepted`, `HoldoutRefused`, or `CompressionCancelled`.
    JudgeCandidate,
    /// Serve the candidate from the next window on. Answer: `Swapped` or `SwapFailed`.
    Swap,
    /// Make the candidate the committed artifact. Answer: `Committed` or `CommitFailed`.
    Commit,
    /// Serve the committed artifact again and drop the candidate. Answer: `Swapped` or `SwapFailed`.
    RollBack,
    /// Serve and commit the factory artifact. Answer: `Swapped` or `SwapFailed`.
    RestoreFactory,
    /// Serve this smaller level from the next window on and give the pages back. It cannot fail: only lengths change.
    DropLevel(usize),
    /// Serve this larger level from the next window on.
    ClimbLevel(usize),
}

/// What has happened to a job or a window. Reasons are sentences for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The candidate is written.
    CompressionDone,
    /// There is no candidate: budget, disk, or no network of that size.
    CompressionFailed(String),
    /// The compression or judgement has stopped.
    CompressionCancelled,
    /// The holdout says yes.
    HoldoutAccepted,
    /// The holdout says no.
    HoldoutRefused(String),
    /// The artifact that was asked for answers now.
    Swapped,
    /// The artifact that was asked for could not be loaded; what answered before still does.
    SwapFailed(String),
    /// A live window on probation, and whether its verdict was healthy (in time, finite, not out of line).
    HealthWindow {
        /// Whether it was.
        ok: bool,
    },
    /// The engine of the candidate has failed, so that it cannot answer any more.
    EngineFailed(String),
    /// The candidate is committed.
    Committed,
    /// The candidate could not be committed.
    CommitFailed(String),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Serving => "serving",
            State::Shrunk => "shrunk",
            State::Compressing => "compressing",
            State::Verifying => "verifying",
            State::Swapping => "swapping",
            State::Probation => "on probation",
            State::Critical => "critical",
        })
    }
}
