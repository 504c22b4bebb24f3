//! Activations of a feed-forward network, plain and gated (Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202).
//!
//! GELU with tanh is computed as `x · sigmoid(2u)`, `u = √(2/π) (x + 0.044715 x³)`: the same function, since `1 + tanh u = 2 sigmoid(2u)`,
//! without the cancellation in the negative tail.

use super::real::Real;
use super::vector::vectorized;
use crate::device::Activation;

/// One activation, as a type, so that its loop has no choice in it.
trait Function {
    fn value<T: Real>(x: T) -> T;
    /// The value and the derivative.
    fn both<T: Real>(x: T) -> (T, T);
}

struct GeluExact;
struct GeluTanh;
struct Silu;
struct Relu;

impl Function for GeluExact {
    #[inline(always)]
    fn value<T: Real>(x: T) -> T {
        x * x.normal().0
    }
    #[inline(always)]
    fn both<T: Real>(x: T) -> (T, T) {
        let (cumulative, density) = x.normal();
        (x * cumulative, cumulative + x * density * T::from_f64(0.398_942_280_401_432_7))
    }
}

/// `2 √(2/π)`.
const TWO_ROOT: f64 = 1.595_769_121_605_731;
const CUBIC: f64 = 0.044_715;

impl Function for GeluTanh {
    #[inline(always)]
    fn value<T: Real>(x: T) -> T {
        x * (T::from_f64(TWO_ROOT) * x * (T::ONE + T::from_f64(CUBIC) * x * x)).sigmoid()
    }
    #[inline(always)]
    fn both<T: Real>(x: T) -> (T, T) {
        let (square, root) = (x * x, T::from_f64(TWO_ROOT));
        let s = (root * x * (T::ONE + T::from_f64(CUBIC) * square)).sigmoid();
        let inner = root * (T::ONE + T::from_f64(3.0 * CUBIC) * square);
        (x * s, s + x * s * (T::ONE - s) * inner)
    }
}

impl Function for Silu {
    #[inline(always)]
    fn value<T: Real>(x: T) -> T {
        x * x.sigmoid()
    }
    #[inline(always)]
    fn both<T: Real>(x: T) -> (T, T) {
        let s = x.sigmoid();
        (x * s, s + x * s * (T::ONE - s))
    }
}

impl Function for Relu {
    #[inline(always)]
    fn value<T: Real>(x: T) -> T {
        // NaN stays NaN: bad numbers must show.
        if x <= T::ZERO { T::ZERO } else { x }
    }
    #[inline(always)]
    fn both<T: Real>(x: T) -> (T, T) {
        if x <= T::ZERO { (T::ZERO, T::ZERO) } else { (x, T::ONE) }
    }
}

/// Calls `$body` with the activation's type and the arguments.
macro_rules! of {
    ($kind:expr, $body:ident($($argument:expr),*)) => {
        match $kind {
            Activation::GeluExact => $body(GeluExact, $($argument),*),
            Activation::GeluTanh => $body(GeluTanh, $($argument),*),
            Activation::Silu => $body(Silu, $($argument),*),
            Activation::Relu => $body(Relu, $($argument),*),
        }
    };
}

/// `out = f(up)`, or `f(gate) · up`; all of one length.
pub fn forward<T: Real>(kind: Activation, out: &mut [T], up: &[T], gate: Option<&[T]>) {
    match gate {
        None => of!(kind, plain(out, up)),
        Some(gate) => of!(kind, gated(out, up, gate)),
    }
}

vectorized! {
    fn plain<T: Real, F: Function>(_function: F, out: &mut [T], up: &[T]) {
        for (out, &up) in out.iter_mut().zip(up) {
            *out = F::value(up);
        }
    }
}

vectorized! {
    fn gated<T: Real, F: Function>(_function: F, out: &mut [T], up: &[T], gate: &[T]) {
        for ((out, &up), &gate) in out.iter_mut().zip(up).zip(gate) {
            *out = F::value(gate) * up;
        }
    }
}

/// `d_up = dy · f'(up)`.
pub fn backward<T: Real>(kind: Activation, d_up: &mut [T], dy: &[T], up: &[T]) {
    of!(kind, plain_backward(d_up, dy, up));
}

vectorized! {
    fn plain_backward<T: Real, F: Function>(_function: F, d_up: &mut [T], dy: &[T], up: &[T]) {
        for ((d_up, &dy), &up) in d_up.iter_mut().zip(dy).zip(up) {
            *d_up = dy * F::both(up).1;
        }
    }
}

/// `d_up = dy · f(gate)`, `d_gate = dy · up · f'(gate)`.
pub fn gated_backward<T: Real>(kind: Activation, d_up: &mut [T], d_gate: &mut [T], dy: &[T], up: &[T], gate: &[T]) {
    of!(kind, gated_backward_body(d_up, d_gate, dy, up, gate));
}

vectorized! {
    fn gated_backward_body<T: Real, F: Function>(_function: F, d_up: &mut [T], d_gate: &mut [T], dy: &[T], up: &[T], gate: &[T]) {
        for ((((d_up, d_gate), &dy), &up), &gate) in d_up.iter_mut().zip(d_gate).zip(dy).zip(up).zip(gate) {
            let (value, slope) = F::both(gate);
            *d_up = dy * value;
            *d_gate = dy * up * slope;
        }
    }
}
