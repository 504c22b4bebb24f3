//! What can go wrong in the agent.

/// A failure of the agent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The runtime failed or refused.
    #[error(transparent)]
    Runtime(#[from] espalier_runtime::RuntimeError),
    /// An artifact or checkpoint could not be read or written.
    #[error(transparent)]
    Model(#[from] espalier_models::Error),
    /// A device operation failed or memory was refused.
    #[error(transparent)]
    Kernel(#[from] espalier_kernels::KernelError),
    /// A recording, corpus or split.
    #[error(transparent)]
    Signal(#[from] crate::signals::SignalError),
    /// The model store.
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    /// A gauge of the machine.
    #[error(transparent)]
    Gauge(#[from] crate::control::GaugeError),
    /// Predictions that cannot be evaluated.
    #[error(transparent)]
    Metrics(#[from] crate::metrics::MetricsError),
    /// An engine that was asked for cannot be used.
    #[error("engine cuda: {0}")]
    Engine(String),
    /// Training went wrong.
    #[error("training: {0}")]
    Training(String),
    /// A target that the network cannot reach.
    #[error("{0}")]
    Infeasible(String),
    /// The memory limit is too small for what was asked.
    #[error("{what} needs {needed} bytes of memory, but the limit is {limit} bytes; give a limit of at least {needed} bytes")]
    LimitTooSmall {
        /// What was asked.
        what: String,
        /// Bytes it needs.
        needed: u64,
        /// The limit.
        limit: u64,
    },
    /// Stopped by the user or the control loop; nothing is left half written.
    #[error("stopped before it was done; nothing was written")]
    Cancelled,
    /// A file operation.
    #[error("{what} {path}: {reason}")]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// Pages of an artifact could not be read while it was used.
    #[error(
        "pages of an artifact could not be read: the storage failed, or the file was shortened while it was used; what was computed or \
         written from it is worth nothing; copy the artifact again and repeat the command"
    )]
    LostPages,
    /// Windows without a verdict and without an entry among the dropped ones: a fault of this program.
    #[error("{missing} windows have neither a verdict nor a reason, {repeated} were judged twice; please report this with the log of -vv")]
    Unaccounted {
        /// Sequence numbers that never came.
        missing: u64,
        /// Sequence numbers that came again.
        repeated: u64,
    },
    /// No engine serves any more.
    #[error(
        "no engine serves any more, and {failed} of {windows} windows have no verdict: {reason}; see to it and start the program again, or give --engine auto, with which another engine takes over"
    )]
    Unserved {
        /// Windows without a verdict.
        failed: u64,
        /// All windows.
        windows: u64,
        /// What the last engine failed of.
        reason: String,
    },
    /// A mistake of the person who called the program.
    #[error("{0}")]
    Usage(String),
}

/// A result of the agent.
pub type Result<T> = std::result::Result<T, AgentError>;

impl AgentError {
    /// Whether the command line itself was wrong (exit code 2) rather than what it did (exit code 1).
    pub fn is_usage(&self) -> bool {
        use crate::signals::SignalError::{BadOption, UnknownProtocol, WrongProtocol};
        match self {
            AgentError::Usage(_) => true,
            AgentError::Signal(error) => matches!(error, UnknownProtocol { .. } | WrongProtocol { .. } | BadOption { .. }),
            AgentError::Metrics(error) => matches!(error, crate::metrics::MetricsError::UnknownClass { .. }),
            _ => false,
        }
    }
}

/// An I/O error with its file.
pub fn file_error(what: &'static str, path: &std::path::Path, error: &std::io::Error) -> AgentError {
    AgentError::File { what, path: path.display().to_string(), reason: error.to_string() }
}
