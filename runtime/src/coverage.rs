//! What of a model the native engines run. What they do not is named before anything is loaded, so that another engine can be taken for it.

use std::fmt;
use std::path::Path;

use espalier_kernels::Format;
use espalier_models::manifest::{Manifest, StoredTensor};
use espalier_models::{DType, Layout};

use crate::error::RuntimeError;

/// A part of a model that the native engines do not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsupportedPart {
    /// Which part, such as "tensor layers.0.up".
    pub part: String,
    /// What about it, such as "is stored as Q8".
    pub what: String,
}

impl fmt::Display for UnsupportedPart {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}", self.part, self.what)
    }
}

impl UnsupportedPart {
    /// The error that a native engine cannot load the artifact at `path`.
    pub fn of(self, path: &Path) -> RuntimeError {
        RuntimeError::Unsupported { path: path.display().to_string(), part: self }
    }
}

/// Whether the native engines run every part of a model.
///
/// # Errors
/// The first part that they do not run.
pub fn covered(manifest: &Manifest) -> Result<(), UnsupportedPart> {
    manifest.tensors.iter().try_for_each(|tensor| native_format(tensor).map(drop))
}

/// How the kernels call the way in which a tensor is stored.
pub(crate) fn native_format(tensor: &StoredTensor) -> Result<Format, UnsupportedPart> {
    Ok(match (tensor.dtype, tensor.layout) {
        (DType::F32, _) => Format::F32,
        (DType::F16, Layout::Rows) => Format::F16,
        (DType::F16, Layout::Interleaved) => Format::F16Pairs,
        (DType::Bf16, Layout::Rows) => Format::Bf16,
        (DType::Bf16, Layout::Interleaved) => Format::Bf16Pairs,
        (DType::Q8 | DType::Q4, _) => {
            let (key, dtype) = (tensor.key, tensor.dtype);
            return Err(UnsupportedPart { part: format!("tensor {key}"), what: format!("is stored as {dtype:?}") });
        }
    })
}
