//! Where every tensor of an artifact will lie, decided before the first byte is written.

use super::header::HEADER_BYTES;
use super::{ALIGNMENT_LARGE, ALIGNMENT_SMALL, CHUNK_BYTES, DATA_ALIGNMENT, LARGE_TENSOR_BYTES};
use crate::formats::Format;
use crate::manifest::{Manifest, StoredTensor};
use crate::tensor::{DType, model_tensors};

/// The layout of an artifact that is to be written.
pub(super) struct Plan {
    /// The manifest with all tensors placed.
    pub manifest: Manifest,
    /// The manifest as it is stored.
    pub encoded: Vec<u8>,
    /// First byte of the data region.
    pub data_start: u64,
    /// Length of the file in bytes.
    pub file_bytes: u64,
}

/// The alignment of a tensor of `bytes` bytes, counted from the start of the file.
pub(super) fn alignment(bytes: u64) -> u64 {
    if bytes >= LARGE_TENSOR_BYTES { ALIGNMENT_LARGE } else { ALIGNMENT_SMALL }
}

impl Plan {
    /// Places the tensors of the validated `manifest` in `dtype`.
    ///
    /// The manifest holds the offsets and its own length moves them: the start of the data region grows until both fit.
    pub fn new(mut manifest: Manifest, dtype: DType) -> Result<Self, String> {
        let mut data_start = DATA_ALIGNMENT;
        loop {
            let file_bytes = place(&mut manifest, dtype, data_start).ok_or("the model is larger than a file can be")?;
            let encoded = postcard::to_stdvec(&manifest).map_err(|error| format!("the manifest cannot be encoded: {error}"))?;
            let table = (file_bytes - data_start).div_ceil(CHUNK_BYTES as u64) * 4;
            let needed = (HEADER_BYTES as u64 + encoded.len() as u64 + table).next_multiple_of(DATA_ALIGNMENT);
            if needed <= data_start {
                return Ok(Self { manifest, encoded, data_start, file_bytes });
            }
            data_start = needed;
        }
    }
}

/// Fills `manifest.tensors`, behind the tokenizer at `data_start`; returns the length of the file, none where it does not fit.
fn place(manifest: &mut Manifest, dtype: DType, data_start: u64) -> Option<u64> {
    let mut end = data_start;
    if let Some(span) = &mut manifest.tokenizer {
        span.offset = data_start;
        end = data_start.checked_add(span.bytes)?;
    }
    let specs = model_tensors(&manifest.architecture, &manifest.shape());
    manifest.tensors.clear();
    for spec in specs {
        let format = Format::of(&spec, dtype);
        let bytes = format.bytes()? as u64;
        let offset = end.checked_next_multiple_of(alignment(bytes))?;
        end = offset.checked_add(bytes)?;
        manifest.tensors.push(StoredTensor {
            key: spec.key,
            dtype: format.dtype,
            layout: format.layout,
            rows: spec.rows as u64,
            columns: spec.columns as u64,
            offset,
            bytes,
        });
    }
    i64::try_from(end).is_ok().then_some(end)
}
