//! Yields tensors in the source's names and layouts, one at a time.

use std::ops::Range;

use super::Dialect;
use super::names::{Form, Piece, SourceTensor, prefix, source_tensors};
use crate::error::{Error, Result};
use crate::manifest::Manifest;
use crate::source::TensorSource;

/// Numbers that are moved at once: 1 MiB.
pub(super) const BLOCK_NUMBERS: usize = 256 * 1024;

/// What to do about a tensor that the source of numbers does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absent {
    /// Fail.
    Refuse,
    /// Go on with the next tensor; a fused tensor is left out where any of its parts is missing.
    Skip,
}

/// What is called with the name, shape and numbers of a source tensor.
pub type EachTensor<'a> = dyn FnMut(&str, &[usize], &[f32]) -> Result<()> + 'a;

/// Calls `each(name, shape, numbers)` for every tensor that a checkpoint of the model has in `dialect`, layers first, one tensor at a time.
///
/// Layers are numbered as the dialect numbers those that are there; query heads are ordered by KV group. Memory: the largest tensor and
/// 1 MiB.
///
/// # Errors
/// What `source` or `each` returns, and [`Error::Request`] where a tensor is too large for this machine.
pub fn for_each_source_tensor(
    manifest: &Manifest,
    dialect: Dialect,
    source: &dyn TensorSource,
    absent: Absent,
    each: &mut EachTensor<'_>,
) -> Result<()> {
    let head_dim = manifest.architecture.attention.head_dim;
    for tensor in source_tensors(dialect, prefix(dialect), &manifest.architecture, &manifest.shape()) {
        let missing = tensor.pieces.iter().any(|piece| !source.contains(piece.spec.key));
        if absent == Absent::Skip && missing {
            continue;
        }
        each(&tensor.name, &tensor.shape, &gather(&tensor, head_dim, source)?)?;
    }
    Ok(())
}

/// One source tensor's numbers, in the source's layout.
pub(super) fn gather(tensor: &SourceTensor, head_dim: usize, source: &dyn TensorSource) -> Result<Vec<f32>> {
    let key = tensor.pieces[0].spec.key;
    let too_large = || Error::request(key, format!("`{}` {:?} does not fit in memory", tensor.name, tensor.shape));
    let numbers = tensor.shape.iter().try_fold(1usize, |numbers, &size| numbers.checked_mul(size)).ok_or_else(too_large)?;
    let mut out = Vec::new();
    out.try_reserve_exact(numbers).map_err(|_| too_large())?;
    out.resize(numbers, 0.0);
    let (units, mut before) = (tensor.units(), 0);
    for piece in &tensor.pieces {
        match tensor.form {
            Form::Vector => gather_vector(piece, head_dim, source, &mut out[before..before + piece.spec.columns])?,
            Form::Rows => {
                let columns = piece.spec.columns;
                for (rows, at) in blocks(piece, head_dim) {
                    let count = rows.len() * columns;
                    source.rows(piece.spec.key, rows, &mut out[(before + at) * columns..][..count])?;
                }
            }
            Form::Transposed => gather_transposed(piece, head_dim, source, units, before, &mut out)?,
        }
        before += tensor.piece_units(piece);
    }
    Ok(out)
}

/// The rows of a piece to read at once, each with its place in the source's order.
fn blocks(piece: &Piece, head_dim: usize) -> Vec<(Range<usize>, usize)> {
    match &piece.heads {
        Some(order) => order.iter().enumerate().map(|(at, &head)| (head * head_dim..(head + 1) * head_dim, at * head_dim)).collect(),
        None => {
            let (rows, step) = (piece.spec.rows, (BLOCK_NUMBERS / piece.spec.columns.max(1)).max(1));
            (0..rows).step_by(step).map(|start| (start..(start + step).min(rows), start)).collect()
        }
    }
}

/// Reads a piece of a vector and puts its heads into the source's order.
fn gather_vector(piece: &Piece, head_dim: usize, source: &dyn TensorSource, out: &mut [f32]) -> Result<()> {
    let Some(order) = &piece.heads else { return source.rows(piece.spec.key, 0..1, out) };
    let mut stored = vec![0.0; out.len()];
    source.rows(piece.spec.key, 0..1, &mut stored)?;
    for (out, &head) in out.chunks_exact_mut(head_dim).zip(order) {
        out.copy_from_slice(&stored[head * head_dim..][..head_dim]);
    }
    Ok(())
}

/// Reads a piece and writes it as the columns from `before` on of `out [columns, units]`.
fn gather_transposed(
    piece: &Piece,
    head_dim: usize,
    source: &dyn TensorSource,
    units: usize,
    before: usize,
    out: &mut [f32],
) -> Result<()> {
    let columns = piece.spec.columns;
    let mut block = Vec::new();
    for (rows, at) in blocks(piece, head_dim) {
        let count = rows.len();
        block.resize(count * columns, 0.0);
        source.rows(piece.spec.key, rows, &mut block)?;
        for column in 0..columns {
            let out = &mut out[column * units + before + at..][..count];
            for (row, out) in out.iter_mut().enumerate() {
                *out = block[row * columns + column];
            }
        }
    }
    Ok(())
}
