//! Cutting windows into patches, and the mean over a sequence.

use super::elementwise;
use super::real::Real;

/// `out[p] = window[p · stride..][..patch]` of one window.
pub fn patches<T: Real>(out: &mut [T], window: &[T], patch: usize, stride: usize) {
    for (p, out) in out.chunks_exact_mut(patch).enumerate() {
        out.copy_from_slice(&window[p * stride..][..patch]);
    }
}

/// `out [d]` = mean over the rows of `x [sequence, d]`.
pub fn mean<T: Real>(out: &mut [T], x: &[T], sequence: usize) {
    out.fill(T::ZERO);
    elementwise::bias_backward(out, x, out.len(), 0);
    elementwise::scale(out, T::ONE / T::from_f64(sequence as f64));
}

/// `dx [sequence, d]`: every row is `dy / sequence`.
pub fn mean_backward<T: Real>(dx: &mut [T], dy: &[T], sequence: usize) {
    for row in dx.chunks_exact_mut(dy.len()) {
        row.copy_from_slice(dy);
    }
    elementwise::scale(dx, T::ONE / T::from_f64(sequence as f64));
}
