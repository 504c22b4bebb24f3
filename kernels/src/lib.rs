//! The maths of a transformer, forward and backward, on slices and device buffers.
//!
//! This crate knows nothing of models: it takes numbers and sizes. [`Device`] lists the operations; [`cpu`] implements them, and `cuda` does
//! where the feature of that name is on.

pub mod conformance;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod device;
pub mod error;
pub mod format;
pub mod fused;
pub mod memory;

pub use cpu::{CpuDevice, buffer_bytes};
#[cfg(feature = "cuda")]
pub use cuda::{CudaDevice, Unavailable};
pub use device::{Activation, AdamW, AttentionShape, Device, HostBytes, NO_TARGET, NormKind, Product};
pub use error::{KernelError, Result};
pub use format::{Format, Planes};
pub use fused::{Epilogue, KeyValues, LowRank, Projection, Start, TokenShape};
pub use memory::{Ledger, Purpose, Reservation, Unlimited};
