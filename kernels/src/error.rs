//! What can go wrong on a device.

/// A failed operation of a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The ledger refused a reservation.
    #[error("{purpose} needs {needed} bytes, but only {available} bytes of the memory limit of {limit} bytes are left")]
    OutOfBudget {
        /// What the memory was for.
        purpose: &'static str,
        /// Bytes asked for.
        needed: u64,
        /// Bytes that were left.
        available: u64,
        /// The limit.
        limit: u64,
    },
    /// The operating system or driver refused memory.
    #[error("the system refused {needed} bytes for {purpose}: {reason}")]
    OutOfMemory {
        /// What the memory was for.
        purpose: &'static str,
        /// Bytes asked for.
        needed: u64,
        /// What the system said.
        reason: String,
    },
    /// A shape that does not fit its buffers: a mistake of the caller, reported instead of reading out of bounds.
    #[error("{operation}: {detail}")]
    Shape {
        /// The operation.
        operation: &'static str,
        /// What was given and what was expected.
        detail: String,
    },
    /// A device or its driver failed.
    #[error("{operation} failed on the device: {reason}")]
    Device {
        /// The operation.
        operation: &'static str,
        /// The driver's name of the error and its text.
        reason: String,
        /// Whether the device refuses everything from now on.
        lost: bool,
    },
}

impl KernelError {
    /// Whether the device is lost: every operation on it fails from now on, and what its memory holds is gone.
    pub fn is_lost(&self) -> bool {
        matches!(self, KernelError::Device { lost: true, .. })
    }
}

/// A result of a device.
pub type Result<T> = std::result::Result<T, KernelError>;
