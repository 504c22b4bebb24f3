//! What an import did to the numbers.

use super::tensors::Numbers;
use crate::formats::{Format, rounded};
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
/// in f32. Numbers that are small in their block of quants have large ones; the root mean square weighs them by their size.
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
    /// Squares: of the numbers, and of their differences.
    squares: [f64; 2],
}

impl RoundingError {
    /// The mean error.
    pub fn mean(&self) -> f64 {
        if self.numbers == 0 { 0.0 } else { self.sum / self.numbers as f64 }
    }

    /// The root of the mean squared difference, relative to that of the numbers: `‖stored − exact‖ / ‖exact‖`.
    pub fn root_mean_square(&self) -> f64 {
        let [numbers, differences] = self.squares;
        if numbers == 0.0 { 0.0 } else { (differences / numbers).sqrt() }
    }

    /// Counts rows that are stored in `format`; in blocks of rows where it is interleaved, of which the first is the first of a block.
    pub(super) fn count(&mut self, format: Format, exact: &[f32]) -> Result<(), String> {
        if !matches!(format.dtype, DType::Q8 | DType::Q4) {
            exact.iter().for_each(|&exact| self.add(rounded(format.dtype, exact), exact));
            return Ok(());
        }
        let mut stored = vec![0.0; exact.len()];
        format.decode_rows(&format.encode(exact)?, 0..format.rows, &mut stored)?;
        stored.into_iter().zip(exact).for_each(|(stored, &exact)| self.add(stored, exact));
        Ok(())
    }

    fn add(&mut self, stored: f32, exact: f32) {
        let (stored, exact) = (f64::from(stored), f64::from(exact));
        let difference = (stored - exact).abs();
        self.squares[0] += exact * exact;
        self.squares[1] += difference * difference;
        if exact == 0.0 {
            return;
        }
        self.numbers += 1;
        if difference > 0.0 {
            let error = difference / exact.abs();
            self.changed += 1;
            self.largest = self.largest.max(error);
            self.sum += error;
        }
    }
}

/// Whether storing these numbers as `dtype` can change them.
pub(super) fn may_lose(numbers: Numbers<'_>, dtype: DType) -> bool {
    dtype != DType::F32 && numbers != Numbers::Float(dtype)
}
