//! Where the numbers of a model come from: an artifact, or tensors in memory such as gradients.

use std::ops::Range;

use crate::error::Result;
use crate::tensor::TensorKey;

/// Tensors by key, in this crate's own layout: units as rows, vectors as one row.
pub trait TensorSource {
    /// Writes the rows `rows` of the tensor `key` to `out [rows, columns]`.
    ///
    /// # Errors
    /// The tensor is absent, the rows are out of range, `out` has another length, or reading failed.
    fn rows(&self, key: TensorKey, rows: Range<usize>, out: &mut [f32]) -> Result<()>;

    /// Whether the source has the tensor `key`.
    fn contains(&self, key: TensorKey) -> bool;

    /// The raw `tokenizer.json` that belongs to the tensors.
    ///
    /// # Errors
    /// Reading failed.
    fn tokenizer(&self) -> Result<Option<&[u8]>> {
        Ok(None)
    }
}
