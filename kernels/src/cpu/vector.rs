//! Compiling plain loops for the instruction set that the machine has, and reductions in a fixed order.

use super::real::Real;

/// What [`vectorized`] makes of a function's body.
pub trait Body<A> {
    type Output;
    fn call(arguments: A) -> Self::Output;
}

/// A [`Body`] with its arguments, as `pulp` wants it.
pub struct Call<A, B>(pub A, pub B);

impl<A, B: Body<A>> pulp::NullaryFnOnce for Call<A, B> {
    type Output = B::Output;
    #[inline(always)]
    fn call(self) -> B::Output {
        B::call(self.0)
    }
}

/// Defines a function whose body is compiled for every instruction set that `pulp` knows, and which runs the widest that this machine has.
/// The body may only call functions that are marked `#[inline(always)]`: what is left out of line, closures and function pointers among
/// it, is compiled for the oldest machine.
macro_rules! vectorized {
    (@output) => { () };
    (@output $output:ty) => { $output };
    ($(#[$attribute:meta])*
     $visibility:vis fn $name:ident<$($generic:ident: $bound:path),+ $(; const $size:ident)?>
     ($($argument:ident: $type:ty),* $(,)?) $(-> $output:ty)? $body:block) => {
        $(#[$attribute])*
        #[allow(clippy::too_many_arguments)]
        $visibility fn $name<$($generic: $bound,)+ $(const $size: usize)?>($($argument: $type),*) $(-> $output)? {
            struct This;
            impl<$($generic: $bound,)+ $(const $size: usize)?> $crate::cpu::vector::Body<($($type,)*)> for This {
                type Output = vectorized!(@output $($output)?);
                #[inline(always)]
                fn call(($($argument,)*): ($($type,)*)) -> Self::Output {
                    body($($argument),*)
                }
            }
            // A function of its own, so that its slices are known not to overlap.
            #[inline(always)]
            fn body<$($generic: $bound,)+ $(const $size: usize)?>($($argument: $type),*) $(-> $output)? $body
            pulp::Arch::new().dispatch($crate::cpu::vector::Call(($($argument,)*), This))
        }
    };
}
pub(super) use vectorized;

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
