//! Compiling plain loops for the instruction set that the machine has, and reductions in a fixed order.

use pulp::{Arch, NullaryFnOnce};

use super::real::Real;

struct Call<A, F>(A, F);

impl<A, R, F: FnOnce(A) -> R> NullaryFnOnce for Call<A, F> {
    type Output = R;
    #[inline(always)]
    fn call(self) -> R {
        (self.1)(self.0)
    }
}

/// Runs `body(arguments)` compiled for the widest vectors of this machine. `body` is a function item marked `#[inline(always)]`: a
/// closure might be left out of line, where it would be compiled for the oldest machine.
#[inline(always)]
pub fn run<A, R, F: FnOnce(A) -> R>(body: F, arguments: A) -> R {
    Arch::new().dispatch(Call(arguments, body))
}

/// Independent sums in a reduction, so that it is neither one long chain of additions nor as inexact as one.
const LANES: usize = 16;

/// Adds the lanes pairwise.
#[inline(always)]
fn total<T: Real>(mut lanes: [T; LANES]) -> T {
    let mut n = LANES / 2;
    while n > 0 {
        for i in 0..n {
            lanes[i] += lanes[i + n];
        }
        n /= 2;
    }
    lanes[0]
}

/// `Σ f(x)`.
#[inline(always)]
pub fn sum<T: Real>(x: &[T], f: impl Fn(T) -> T) -> T {
    let mut lanes = [T::ZERO; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for l in 0..LANES {
            lanes[l] += f(block[l]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f(x);
    }
    total(lanes)
}

/// `Σ f(x, y)`.
#[inline(always)]
pub fn sum2<T: Real>(x: &[T], y: &[T], f: impl Fn(T, T) -> T) -> T {
    let mut lanes = [T::ZERO; LANES];
    let ((xs, x_rest), (ys, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    for (x, y) in xs.iter().zip(ys) {
        for l in 0..LANES {
            lanes[l] += f(x[l], y[l]);
        }
    }
    for ((lane, &x), &y) in lanes.iter_mut().zip(x_rest).zip(y_rest) {
        *lane += f(x, y);
    }
    total(lanes)
}

/// `Σ f(x, y, z)`.
#[inline(always)]
pub fn sum3<T: Real>(x: &[T], y: &[T], z: &[T], f: impl Fn(T, T, T) -> T) -> T {
    let mut lanes = [T::ZERO; LANES];
    let ((xs, x_rest), (ys, y_rest), (zs, z_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>(), z.as_chunks::<LANES>());
    for ((x, y), z) in xs.iter().zip(ys).zip(zs) {
        for l in 0..LANES {
            lanes[l] += f(x[l], y[l], z[l]);
        }
    }
    for (((lane, &x), &y), &z) in lanes.iter_mut().zip(x_rest).zip(y_rest).zip(z_rest) {
        *lane += f(x, y, z);
    }
    total(lanes)
}

/// The largest of `x`, −∞ of none.
#[inline(always)]
pub fn largest<T: Real>(x: &[T]) -> T {
    let mut lanes = [T::NEG_INFINITY; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for l in 0..LANES {
            lanes[l] = lanes[l].maximum(block[l]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = lane.maximum(x);
    }
    lanes.into_iter().fold(T::NEG_INFINITY, T::maximum)
}
