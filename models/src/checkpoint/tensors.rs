//! The tensors of a checkpoint, whatever kind of file holds them.

use std::path::Path;

use crate::error::{Error, Result};
use crate::tensor::DType;

/// How a checkpoint stores the numbers of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Numbers<'a> {
    /// Floating point numbers that an artifact can hold as they are.
    Float(DType),
    /// Blocks of small integers with scales; by name. They are read as the exact products.
    Quantised(&'a str),
    /// Something that is no weight: integers, booleans, formats that are not known; by name.
    Other(&'a str),
}

/// What a checkpoint says of one tensor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found<'a> {
    /// The file that holds it.
    pub file: &'a Path,
    /// Rows first.
    pub shape: &'a [usize],
    /// How its numbers are stored.
    pub numbers: Numbers<'a>,
}

/// A checkpoint's tensors by name.
pub(super) trait Tensors {
    /// The checkpoint: its folder or its file.
    fn path(&self) -> &Path;

    /// The length of all files.
    fn bytes(&self) -> u64;

    /// All tensors' names, in alphabetical order.
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_>;

    /// The tensor `name`.
    fn find(&self, name: &str) -> Option<Found<'_>>;

    /// Reads `out.len()` numbers of the tensor `name` from number `first` on, row-major.
    ///
    /// # Errors
    /// There is no such tensor, it does not have these numbers, they are no weights, or one of them is not finite.
    fn read(&self, name: &str, first: usize, out: &mut [f32]) -> Result<()>;
}

/// The tensor `name`, of shape `shape` and a number format that can be read.
///
/// # Errors
/// [`Error::MissingTensor`], [`Error::Checkpoint`] for another shape, [`Error::Unsupported`] for another number format.
pub(super) fn require<'a>(tensors: &'a dyn Tensors, name: &str, shape: &[usize]) -> Result<Found<'a>> {
    let missing = || Error::MissingTensor { path: tensors.path().to_path_buf(), tensor: name.to_string() };
    let found = tensors.find(name).ok_or_else(missing)?;
    if found.shape != shape {
        let problem = format!("tensor `{name}` has shape {:?}, but its config.json makes it {shape:?}", found.shape);
        return Err(Error::checkpoint(found.file, problem));
    }
    match found.numbers {
        Numbers::Float(_) | Numbers::Quantised(_) => Ok(found),
        Numbers::Other(format) => Err(Error::Unsupported {
            path: found.file.to_path_buf(),
            feature: format!("tensor `{name}` with numbers of type {format}"),
            expected: "F32, F16 and BF16 are, and in GGUF files Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K".to_string(),
        }),
    }
}

/// Decodes little-endian numbers of `dtype` (f32, f16 or bf16) into `out`, as many as both hold. Returns where the first number that is
/// not finite is.
pub(super) fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Option<usize> {
    match dtype {
        DType::F16 => {
            let pairs = bytes.chunks_exact(2).map(|pair| half::f16::from_le_bytes([pair[0], pair[1]]).to_f32());
            out.iter_mut().zip(pairs).for_each(|(out, value)| *out = value);
        }
        DType::Bf16 => {
            let pairs = bytes.chunks_exact(2).map(|pair| half::bf16::from_le_bytes([pair[0], pair[1]]).to_f32());
            out.iter_mut().zip(pairs).for_each(|(out, value)| *out = value);
        }
        _ => {
            let quads = bytes.chunks_exact(4).map(|quad| f32::from_le_bytes([quad[0], quad[1], quad[2], quad[3]]));
            out.iter_mut().zip(quads).for_each(|(out, value)| *out = value);
        }
    }
    out.iter().position(|value| !value.is_finite())
}

/// The error that a tensor does not have the numbers that are read of it.
pub(super) fn outside(file: &Path, name: &str, first: usize, count: usize) -> Error {
    Error::checkpoint(file, format!("tensor `{name}` does not have {count} numbers at {first}"))
}

/// The error that a number of a tensor is not finite.
pub(super) fn not_finite(file: &Path, name: &str, element: usize, value: f32) -> Error {
    Error::NotFinite { path: file.to_path_buf(), tensor: name.to_string(), element, value }
}
