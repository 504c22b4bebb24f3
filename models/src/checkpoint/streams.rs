//! Yields tensors in the source's names and layouts, one at a time, and plans which of them a file gets in which number format.

use std::collections::HashMap;

use super::Dialect;
use super::names::{Form, Piece, SourceTensor, names, prefix, source_tensors};
use crate::error::{Error, Result};
use crate::manifest::Manifest;
use crate::source::TensorSource;
use crate::tensor::{DType, TensorKey};

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
/// The numbers are passed on as they are, for gradients and the like: a norm whose weights the source stores less 1 is not changed.
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
    for tensor in source_tensors(names(dialect), prefix(dialect), &manifest.architecture, &manifest.shape()) {
        let missing = tensor.pieces.iter().any(|piece| !source.contains(piece.spec.key));
        if absent == Absent::Skip && missing {
            continue;
        }
        each(&tensor.name, &tensor.shape, &gather(&tensor, source)?)?;
    }
    Ok(())
}

/// A tensor that is to be written to a file.
pub(super) struct Planned {
    pub tensor: SourceTensor,
    /// Its number format in the file: f32, f16 or bf16.
    pub dtype: DType,
    /// Its bytes there.
    pub bytes: u64,
}

/// Plans to write `tensors` of the model. `choose` gets a tensor and the number format in which it is stored, where that is f16 or bf16 and
/// it is a matrix, else f32; it returns the one in the file.
///
/// # Errors
/// What `choose` returns, and [`Error::Request`] where a tensor is larger than a file can be.
pub(super) fn plan(
    manifest: &Manifest,
    tensors: Vec<SourceTensor>,
    choose: &dyn Fn(&SourceTensor, DType) -> Result<DType>,
) -> Result<Vec<Planned>> {
    let stored: HashMap<TensorKey, DType> = manifest.tensors.iter().map(|tensor| (tensor.key, tensor.dtype)).collect();
    let planned = tensors.into_iter().map(|tensor| {
        let mut pieces = tensor.pieces.iter().map(|piece| stored.get(&piece.spec.key).copied());
        let stored = match pieces.next().flatten() {
            Some(first @ (DType::F16 | DType::Bf16)) if !tensor.form.is_vector() && pieces.all(|piece| piece == Some(first)) => first,
            _ => DType::F32,
        };
        let dtype = choose(&tensor, stored)?;
        let numbers = tensor.shape.iter().try_fold(1u64, |numbers, &size| numbers.checked_mul(size as u64));
        let bytes = numbers.and_then(|numbers| numbers.checked_mul(if dtype == DType::F32 { 4 } else { 2 }));
        let bytes = bytes.ok_or_else(|| Error::request(tensor.pieces[0].spec.key, "it is larger than a file can be"))?;
        Ok(Planned { tensor, dtype, bytes })
    });
    planned.collect()
}

/// One source tensor's numbers, in the source's layout; no [`Form::offset`] is taken off.
pub(super) fn gather(tensor: &SourceTensor, source: &dyn TensorSource) -> Result<Vec<f32>> {
    let key = tensor.pieces[0].spec.key;
    let too_large = || Error::request(key, format!("`{}` {:?} does not fit in memory", tensor.name, tensor.shape));
    let numbers = tensor.shape.iter().try_fold(1usize, |numbers, &size| numbers.checked_mul(size)).ok_or_else(too_large)?;
    let mut out = Vec::new();
    out.try_reserve_exact(numbers).map_err(|_| too_large())?;
    out.resize(numbers, 0.0);
    for piece in &tensor.pieces {
        match tensor.form {
            Form::Vector | Form::Offset => gather_vector(piece, source, &mut out)?,
            Form::Rows | Form::Transposed => gather_matrix(tensor, piece, source, &mut out)?,
        }
    }
    Ok(out)
}

/// Reads a piece of a vector and puts its numbers where the source has them.
fn gather_vector(piece: &Piece, source: &dyn TensorSource, out: &mut [f32]) -> Result<()> {
    let mut stored = vec![0.0; piece.spec.columns];
    source.rows(piece.spec.key, 0..1, &mut stored)?;
    for run in piece.order.runs(0..stored.len()) {
        out[run.source..][..run.count].copy_from_slice(&stored[run.stored..][..run.count]);
    }
    Ok(())
}

/// Reads a piece block of rows by block of rows, and writes them as rows or columns of the source tensor `out`.
fn gather_matrix(tensor: &SourceTensor, piece: &Piece, source: &dyn TensorSource, out: &mut [f32]) -> Result<()> {
    let (rows, columns, units) = (piece.spec.rows, piece.spec.columns, tensor.units());
    let step = (BLOCK_NUMBERS / columns.max(1)).max(1);
    let mut block = Vec::new();
    for start in (0..rows).step_by(step) {
        let end = rows.min(start + step);
        block.resize((end - start) * columns, 0.0);
        source.rows(piece.spec.key, start..end, &mut block)?;
        for run in piece.order.runs(start..end) {
            let numbers = &block[(run.stored - start) * columns..][..run.count * columns];
            if tensor.form == Form::Rows {
                out[run.source * columns..][..numbers.len()].copy_from_slice(numbers);
                continue;
            }
            for column in 0..columns {
                let out = &mut out[column * units + run.source..][..run.count];
                out.iter_mut().enumerate().for_each(|(row, out)| *out = numbers[row * columns + column]);
            }
        }
    }
    Ok(())
}
