//! What the controller knows of the machine: gauges and a clock behind a trait.

use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

/// The gauges at one moment. All in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// What counts against goal and limit: anonymous memory, working set of the mapped artifacts, device bytes.
    pub held_bytes: u64,
    /// The part of it that is mapped artifacts, which the host calls free.
    pub working_set_bytes: u64,
    /// What held must get under.
    pub goal_bytes: u64,
    /// What held may never exceed.
    pub limit_bytes: u64,
    /// What the host and the control groups call available, less the reserve (0 where the reserve is touched); none where no gauge is.
    pub available_bytes: Option<u64>,
    /// What held would be if the factory artifact were served.
    pub factory_bytes: u64,
}

impl Reading {
    /// Bytes that the host can still give before its reserve is touched; negative where the working set itself would have to go.
    pub fn host_headroom_bytes(&self) -> i64 {
        self.available_bytes.map_or(i64::MAX, |available| difference(available, self.working_set_bytes))
    }

    /// Bytes that may still be taken: the smallest of what goal, limit and host leave.
    pub fn headroom_bytes(&self) -> i64 {
        self.host_headroom_bytes().min(difference(self.goal_bytes.min(self.limit_bytes), self.held_bytes))
    }
}

/// `a - b` in a signed number, clipped where it does not fit.
pub(super) fn difference(a: u64, b: u64) -> i64 {
    i64::try_from(i128::from(a) - i128::from(b)).unwrap_or(if a > b { i64::MAX } else { i64::MIN })
}

/// What the program itself holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Anonymous memory, working set and device bytes.
    pub held_bytes: u64,
    /// The working set alone.
    pub working_set_bytes: u64,
}

/// Memory pressure as the kernel sees it: the share of time in which tasks wait for memory, in percent, over the last 10 seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// Some task waits.
    pub some_avg10_percent: f64,
    /// All tasks wait.
    pub full_avg10_percent: f64,
    /// Time in which some task waited since the start, in microseconds.
    pub some_total_us: u64,
    /// Time in which all tasks waited since the start, in microseconds.
    pub full_total_us: u64,
}

/// Why a wait has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// The kernel reported memory pressure.
    Pressure,
    /// The time is over.
    Timeout,
}

/// A gauge that cannot be read.
#[derive(Debug, Error)]
pub enum GaugeError {
    /// The file cannot be read.
    #[error("the memory gauge {} could not be read: {source}; check that /proc and the control groups are mounted and readable", path.display())]
    Io {
        /// The gauge.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file does not hold what it should.
    #[error("the memory gauge {} has no {expected} (it starts with `{found}`); this kernel's format is unknown, set a fixed goal instead", path.display())]
    Format {
        /// The gauge.
        path: PathBuf,
        /// What was looked for.
        expected: &'static str,
        /// The first characters of what is there.
        found: String,
    },
}

/// Gauges and a clock. [`linux::Linux`](super::linux::Linux) is a node, [`Simulated`](super::Simulated) a test.
pub trait Hardware {
    /// Time since some moment in the past; it never goes back.
    fn now(&self) -> Duration;

    /// What the program holds.
    fn held(&mut self) -> Held;

    /// What host and control groups can give to this program, less the reserve; none where there is no gauge.
    ///
    /// # Errors
    /// Where a gauge that is there cannot be read.
    fn available_bytes(&mut self) -> Result<Option<u64>, GaugeError>;

    /// Memory pressure; none where the kernel does not measure it.
    fn pressure(&mut self) -> Option<Pressure>;

    /// Waits until the kernel reports pressure, at most `timeout`.
    fn wait(&mut self, timeout: Duration) -> Wake;

    /// All gauges, with the goal, the limit and the factory artifact's need that the caller knows.
    ///
    /// # Errors
    /// As [`Hardware::available_bytes`].
    fn read(&mut self, goal_bytes: u64, limit_bytes: u64, factory_bytes: u64) -> Result<Reading, GaugeError> {
        let Held { held_bytes, working_set_bytes } = self.held();
        let available_bytes = self.available_bytes()?;
        Ok(Reading { held_bytes, working_set_bytes, goal_bytes, limit_bytes, available_bytes, factory_bytes })
    }
}
