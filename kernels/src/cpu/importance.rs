//! Sums that rank units and layers, in f64: they add up millions of numbers.

use super::real::Real;
use super::vector::{self, vectorized};

/// Numbers that are added up in the numbers' own type before their sum goes to f64.
const BLOCK: usize = 256;

vectorized! {
    /// `Σ x²`.
    pub fn sum_of_squares<T: Real>(x: &[T]) -> f64 {
        let mut sum = 0.0;
        for block in x.chunks(BLOCK) {
            sum += vector::sum(block, |x| x * x).to_f64();
        }
        sum
    }
}

vectorized! {
    /// `Σ |x|`.
    pub fn sum_of_magnitudes<T: Real>(x: &[T]) -> f64 {
        let mut sum = 0.0;
        for block in x.chunks(BLOCK) {
            sum += vector::sum(block, |x| x.abs()).to_f64();
        }
        sum
    }
}

vectorized! {
    /// `Σ_rows ‖after − before‖ / ‖before‖` (a layer's LCR, arXiv 2606.26861) and `Σ_rows (1 − cos(before, after))` (a layer's block influence,
    /// ShortGPT, arXiv 2403.03853), rows of `d`.
    ///
    /// A row that does not change counts 0 in both, also where it is zero; a row that leaves zero counts infinite and 1.
    pub fn residual_change<T: Real>(before: &[T], after: &[T], d: usize) -> [f64; 2] {
        let mut sums = [0.0; 2];
        for (before, after) in before.chunks_exact(d).zip(after.chunks_exact(d)) {
            let change = vector::sum2(before, after, |b, a| (a - b) * (a - b)).to_f64();
            if change == 0.0 {
                continue;
            }
            let (b, a) = (vector::sum(before, |b| b * b), vector::sum(after, |a| a * a));
            sums[0] += (change / b.to_f64()).sqrt();
            if b > T::ZERO && a > T::ZERO {
                // 1 − cos is half the squared distance of the directions, a form without cancellation.
                let (b, a) = (T::ONE / b.sqrt(), T::ONE / a.sqrt());
                sums[1] += 0.5 * vector::sum2(before, after, |x, y| (y * a - x * b) * (y * a - x * b)).to_f64();
            } else {
                sums[1] += 1.0;
            }
        }
        sums
    }
}
