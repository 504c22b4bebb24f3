//! What an import did to the numbers.

use super::tensors::Numbers;
use crate::formats::rounded;
use crate::tensor::DType;

/// What an import did.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ImportReport {
    /// Tensors of the artifact.
    pub tensors: usize,
    /// Numbers in them.
    pub numbers: u64,
    /// Matrices that the checkpoint keeps as blocks of small integers.
    pub quantised: usize,
    /// What rounding to the artifact's number format changed; none where nothing could be lost.
    pub rounding: Option<RoundingError>,
}

/// The relative error |stored − exact| / |exact| over all numbers of all matrices that are not zero; exact is the number in the checkpoint,
/// in f32.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RoundingError {
    /// Numbers that are not zero.
    pub numbers: u64,
    /// How many of them changed.
    pub changed: u64,
    /// The largest error.
    pub largest: f64,
    /// The sum of all errors.
    sum: f64,
}

impl RoundingError {
    /// The mean error.
    pub fn mean(&self) -> f64 {
        if self.numbers == 0 { 0.0 } else { self.sum / self.numbers as f64 }
    }

    /// Counts numbers that are stored as `dtype`.
    pub(super) fn count(&mut self, dtype: DType, exact: &[f32]) {
        for &exact in exact.iter().filter(|exact| **exact != 0.0) {
            let stored = rounded(dtype, exact);
            self.numbers += 1;
            if stored != exact {
                let error = (f64::from(stored) - f64::from(exact)).abs() / f64::from(exact).abs();
                self.changed += 1;
                self.largest = self.largest.max(error);
                self.sum += error;
            }
        }
    }
}

/// Whether storing these numbers as `dtype` can change them.
pub(super) fn may_lose(numbers: Numbers<'_>, dtype: DType) -> bool {
    dtype != DType::F32 && numbers != Numbers::Float(dtype)
}
