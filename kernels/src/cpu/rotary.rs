//! Rotary position embedding (Su et al., arXiv 2104.09864) on the halves of each head's first `2 · frequencies` dimensions.

use super::real::Real;
use super::vector::vectorized;

/// Positions after which sine and cosine are computed afresh. In between they are turned by one position's angle, in f64, which loses
/// about one part in 10¹⁶ a position and saves nearly all the time.
pub const BLOCK: usize = 64;

/// Rotates `x [positions, heads · head_dim]`, consecutive positions from `start`; `state` has `4 · frequencies` numbers of scratch.
pub fn rotate<T: Real>(x: &mut [T], frequencies: &[T], heads: usize, head_dim: usize, start: usize, inverse: bool) {
    let half = frequencies.len();
    f64::with_scratch(4 * half, |state| {
        let (now, step) = state.split_at_mut(2 * half);
        T::with_scratch(2 * half, |turn| {
            let direction = if inverse { -1.0 } else { 1.0 };
            for (i, frequency) in frequencies.iter().enumerate() {
                let angle = direction * frequency.to_f64();
                (step[half + i], step[i]) = angle.sin_cos();
                (now[half + i], now[i]) = (angle * start as f64).sin_cos();
            }
            for row in x.chunks_exact_mut(heads * head_dim) {
                position(row, turn, now, step, head_dim);
            }
        });
    });
}

vectorized! {
    /// One position: all heads by `now = [cosines, sines]`, which then goes on by `step`.
    fn position<T: Real>(row: &mut [T], turn: &mut [T], now: &mut [f64], step: &[f64], head_dim: usize) {
        let half = step.len() / 2;
        let ((now_cos, now_sin), (step_cos, step_sin)) = (now.split_at_mut(half), step.split_at(half));
        let (turn_cos, turn_sin) = turn.split_at_mut(half);
        for i in 0..half {
            let (c, s) = (now_cos[i], now_sin[i]);
            (turn_cos[i], turn_sin[i]) = (T::from_f64(c), T::from_f64(s));
            now_cos[i] = c * step_cos[i] - s * step_sin[i];
            now_sin[i] = s * step_cos[i] + c * step_sin[i];
        }
        for head in row.chunks_exact_mut(head_dim) {
            let (low, high) = head[..2 * half].split_at_mut(half);
            for (((a, b), &c), &s) in low.iter_mut().zip(high).zip(&*turn_cos).zip(&*turn_sin) {
                (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
            }
        }
    }
}
