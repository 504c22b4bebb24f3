//! LayerNorm (Ba et al., arXiv 1607.06450) and RMSNorm (Zhang and Sennrich, arXiv 1910.07467). A row is one token's `d` numbers.

use super::real::Real;
use super::vector::{self, vectorized};
use crate::device::NormKind;

/// `(mean, 1 / sqrt(var + ε))` of a row; for RMSNorm the mean is 0.
#[inline(always)]
fn statistics<T: Real>(kind: NormKind, x: &[T], epsilon: T) -> (T, T) {
    let inverse_d = T::ONE / T::from_f64(x.len() as f64);
    let mean = match kind {
        NormKind::LayerNorm => vector::sum(x, |x| x) * inverse_d,
        NormKind::RmsNorm => T::ZERO,
    };
    // Two passes: the variance as a difference of squares would cancel.
    let variance = vector::sum(x, |x| (x - mean) * (x - mean)) * inverse_d;
    (mean, T::ONE / (variance + epsilon).sqrt())
}

vectorized! {
    /// `y = (x − mean) · rstd · weight + bias`, in every row.
    pub fn forward<T: Real>(kind: NormKind, y: &mut [T], x: &[T], weight: &[T], bias: Option<&[T]>, epsilon: T) {
        let d = weight.len();
        for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
            let (mean, rstd) = statistics(kind, x, epsilon);
            match bias {
                Some(bias) => {
                    for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                        *y = (x - mean) * rstd * w + b;
                    }
                }
                None => {
                    for ((y, &x), &w) in y.iter_mut().zip(x).zip(weight) {
                        *y = (x - mean) * rstd * w;
                    }
                }
            }
        }
    }
}

vectorized! {
    /// Adds to `dx` in every row, and writes every row's `[mean, rstd]` to `statistics`, for [`backward_weight`].
    ///
    /// With `x̂ = (x − mean) · rstd` and `g = dy · weight`: `dx = rstd · (g − mean(g) − x̂ · mean(g · x̂))`, for RMSNorm without `mean(g)`.
    pub fn backward<T: Real>(kind: NormKind, dx: &mut [T], stats: &mut [T], dy: &[T], x: &[T], weight: &[T], epsilon: T) {
        let d = weight.len();
        let inverse_d = T::ONE / T::from_f64(d as f64);
        let rows = dx.chunks_exact_mut(d).zip(stats.chunks_exact_mut(2)).zip(dy.chunks_exact(d)).zip(x.chunks_exact(d));
        for (((dx, stats), dy), x) in rows {
            let (mean, rstd) = statistics(kind, x, epsilon);
            stats.copy_from_slice(&[mean, rstd]);
            let mean_g = match kind {
                NormKind::LayerNorm => vector::sum2(dy, weight, |dy, w| dy * w) * inverse_d,
                NormKind::RmsNorm => T::ZERO,
            };
            let mean_gx = vector::sum3(dy, weight, x, |dy, w, x| dy * w * (x - mean) * rstd) * inverse_d;
            for (((dx, &dy), &x), &w) in dx.iter_mut().zip(dy).zip(x).zip(weight) {
                *dx += rstd * (dy * w - mean_g - (x - mean) * rstd * mean_gx);
            }
        }
    }
}

vectorized! {
    /// `d_weight += Σ_m dy · x̂` for the columns from `first` that `d_weight` covers; rows of `d`.
    pub fn backward_weight<T: Real>(d_weight: &mut [T], dy: &[T], x: &[T], stats: &[T], d: usize, first: usize) {
        for ((dy, x), stats) in dy.chunks_exact(d).zip(x.chunks_exact(d)).zip(stats.chunks_exact(2)) {
            let (mean, rstd) = (stats[0], stats[1]);
            for ((d_weight, &dy), &x) in d_weight.iter_mut().zip(&dy[first..]).zip(&x[first..]) {
                *d_weight += dy * (x - mean) * rstd;
            }
        }
    }
}
