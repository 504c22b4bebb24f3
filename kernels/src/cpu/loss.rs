//! Softmax and cross entropy. A row is one token's `n` logits.

use super::real::Real;
use super::vector::{self, vectorized};

/// `x = exp(x − max)`; returns the sum and the largest.
#[inline(always)]
fn exponentials<T: Real>(out: &mut [T], x: &[T]) -> (T, T) {
    let largest = vector::largest(x);
    for (out, &x) in out.iter_mut().zip(x) {
        *out = (x - largest).exp();
    }
    (vector::sum(out, |e| e), largest)
}

vectorized! {
    /// Softmax of every row in place.
    pub fn softmax<T: Real>(x: &mut [T], n: usize) {
        for row in x.chunks_exact_mut(n) {
            let largest = vector::largest(row);
            for x in row.iter_mut() {
                *x = (*x - largest).exp();
            }
            let inverse = T::ONE / vector::sum(row, |e| e);
            for x in row.iter_mut() {
                *x *= inverse;
            }
        }
    }
}

/// Cross entropy in nats of one row against `target`; `d_logits` becomes `(softmax − one-hot) · weight`.
pub fn cross_entropy<T: Real>(d_logits: &mut [T], logits: &[T], target: usize, weight: T) -> f64 {
    let loss = loss_and_softmax(d_logits, logits, target, weight);
    d_logits[target] = d_logits[target] - weight;
    loss
}

vectorized! {
    fn loss_and_softmax<T: Real>(d_logits: &mut [T], logits: &[T], target: usize, weight: T) -> f64 {
        let (sum, largest) = exponentials(d_logits, logits);
        let factor = weight / sum;
        for d in d_logits {
            *d *= factor;
        }
        sum.to_f64().ln() + largest.to_f64() - logits[target].to_f64()
    }
}
