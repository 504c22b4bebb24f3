//! What can go wrong when a model runs.

use espalier_kernels::KernelError;

use crate::coverage::UnsupportedPart;

/// A failure of the runtime.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// A device operation failed or memory was refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The artifact could not be read.
    #[error(transparent)]
    Model(#[from] espalier_models::Error),
    /// The caller's input does not fit the model.
    #[error("{0}")]
    Input(String),
    /// A part of the model is none that the native engines run.
    #[error("{path}: {part}, which the engines cpu and cuda do not run; give --engine ort, or import the model in f32, f16 or bf16")]
    Unsupported {
        /// The artifact.
        path: String,
        /// The part.
        part: UnsupportedPart,
    },
    /// ONNX Runtime is not there, or refuses.
    #[error("{0}")]
    Ort(String),
    /// A gauge of the operating system could not be read.
    #[error("{what} could not be read: {reason}")]
    Gauge {
        /// The file.
        what: String,
        /// What the system said.
        reason: String,
    },
}

/// A result of the runtime.
pub type Result<T> = std::result::Result<T, RuntimeError>;
