//! What is said of one window.

use super::engine::MAX_CLASSES;
use crate::signals::BadWindow;

/// Probabilities `[classes]`, without heap memory.
pub type Probabilities = heapless::Vec<f32, MAX_CLASSES>;

/// How it went with a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It was judged.
    Verdict,
    /// It cannot be normalised: a dead, saturated or broken sensor.
    Unusable(BadWindow),
    /// The engine failed, and none took its place in time.
    Failed,
}

/// What is said of one window.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Counts the windows of a run from 0; every number comes once or was counted as dropped.
    pub sequence: u64,
    /// The recording, counted from 0 in the order of the source.
    pub recording: u32,
    /// First sample of the window, counted from the recording's start.
    pub start: u64,
    /// How it went.
    pub state: State,
    /// Index of the most probable class; none where the window was not judged.
    pub class: Option<usize>,
    /// The class that the recording is known to have.
    pub label: Option<usize>,
    /// `[classes]`; empty where the window was not judged.
    pub probabilities: Probabilities,
    /// From the moment the window was due (a paced source) or whole (any other) to the verdict, in microseconds.
    pub latency_us: u64,
    /// Time the engine took for it, in microseconds; 0 where the window was not judged.
    pub compute_us: u64,
    /// Level of the model.
    pub level: u32,
    /// Contents of the model.
    pub model_id: u64,
    /// When it was said, in milliseconds since 1970-01-01 UTC.
    pub time_unix_ms: u64,
}
