//! The numbers that the maths is written over.
//!
//! Every operation is generic over [`Real`], so that the code that runs in f32 is the code that the tests differentiate in f64.
//!
//! The f32 functions are branch-free, so that a loop over them is compiled to vector instructions. Their polynomials were fitted by
//! Chebyshev interpolation for this crate, on the reductions of Cody and Waite, "Software Manual for the Elementary Functions" (1980).

use std::cell::RefCell;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub};

use bytemuck::Pod;
use pulp::{MemMask, Simd};

/// A real number: f32 on a device, f64 in tests.
pub trait Real:
    Pod
    + Send
    + Sync
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + MulAssign
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// −∞.
    const NEG_INFINITY: Self;

    /// Rounds an f64.
    fn from_f64(x: f64) -> Self;
    /// Widens to f64.
    fn to_f64(self) -> f64;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Absolute value.
    fn abs(self) -> Self;
    /// e to the power of `self`; f32 within 2 ulp.
    fn exp(self) -> Self;
    /// `(Φ(x), exp(−x²/2))`, Φ the cumulative normal distribution; f32 within 4 ulp, Φ within 8 where x < 0.
    fn normal(self) -> (Self, Self);
    /// Runs `work` with `len` numbers of the thread's own scratch memory, whose content is arbitrary. Kept for the next call.
    fn with_scratch<R>(len: usize, work: impl FnOnce(&mut [Self]) -> R) -> R;

    /// A vector register.
    type Vector<S: Simd>: Copy;
    /// Which lanes of a register are meant.
    type Mask<S: Simd>: Copy;
    /// Numbers in a register.
    fn lanes<S: Simd>() -> usize;
    /// The first `count` lanes.
    fn mask<S: Simd>(simd: S, count: usize) -> Self::Mask<S>;
    /// `x` in every lane.
    fn splat<S: Simd>(simd: S, x: Self) -> Self::Vector<S>;
    /// `a · b + c`, rounded once where the instruction set can.
    fn mul_add<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>, c: Self::Vector<S>) -> Self::Vector<S>;
    /// The sum of the lanes, in a fixed order.
    fn sum<S: Simd>(simd: S, x: Self::Vector<S>) -> Self;
    /// Loads a register.
    /// # Safety
    /// A register's worth of numbers can be read at `from`.
    unsafe fn load<S: Simd>(simd: S, from: *const Self) -> Self::Vector<S>;
    /// Loads the lanes of `mask`, zero elsewhere.
    /// # Safety
    /// The lanes of `mask` can be read at `from`.
    unsafe fn load_masked<S: Simd>(simd: S, mask: Self::Mask<S>, from: *const Self) -> Self::Vector<S>;
    /// Stores a register.
    /// # Safety
    /// A register's worth of numbers can be written at `to`.
    unsafe fn store<S: Simd>(simd: S, to: *mut Self, x: Self::Vector<S>);
    /// Stores the lanes of `mask`.
    /// # Safety
    /// The lanes of `mask` can be written at `to`.
    unsafe fn store_masked<S: Simd>(simd: S, mask: Self::Mask<S>, to: *mut Self, x: Self::Vector<S>);

    /// The larger, `self` where one is not a number.
    #[inline(always)]
    fn maximum(self, other: Self) -> Self {
        if other > self { other } else { self }
    }
    /// `1 / (1 + exp(−x))`.
    #[inline(always)]
    fn sigmoid(self) -> Self {
        Self::ONE / (Self::ONE + (-self).exp())
    }
}

/// Least bytes of a scratch vector: what the operations of a small model need at most, so that no later call grows it. Its pages are
/// resident only where they have been used.
const SMALLEST_SCRATCH_BYTES: usize = 256 * 1024;

/// Scratch vectors of one thread: nested uses take one each.
fn with_pooled<T: Pod, R>(pool: &RefCell<Vec<Vec<T>>>, len: usize, work: impl FnOnce(&mut [T]) -> R) -> R {
    let mut memory = pool.borrow_mut().pop().unwrap_or_default();
    if memory.len() < len {
        memory = vec![T::zeroed(); len.next_power_of_two().max(SMALLEST_SCRATCH_BYTES / size_of::<T>())];
    }
    let result = work(&mut memory[..len]);
    pool.borrow_mut().push(memory);
    result
}

/// Gives this thread its scratch vectors, as many as operations nest: a thread that is seldom given work would otherwise allocate late.
pub fn warm_scratch() {
    f32::with_scratch(1, |_| f32::with_scratch(1, |_| f32::with_scratch(1, |_| f64::with_scratch(1, |_| ()))));
}

macro_rules! real {
    ($t:ident, $vector:ident, $mask:ident, $lanes:ident, $between:ident, $splat:ident, $mul_add:ident, $sum:ident, $load:ident, $store:ident,
     exp: $exp:path, normal: $normal:path) => {
        impl Real for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NEG_INFINITY: Self = $t::NEG_INFINITY;
            #[inline(always)]
            fn from_f64(x: f64) -> Self {
                x as $t
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                self as f64
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                $t::sqrt(self)
            }
            #[inline(always)]
            fn abs(self) -> Self {
                $t::abs(self)
            }
            #[inline(always)]
            fn exp(self) -> Self {
                $exp(self)
            }
            #[inline(always)]
            fn normal(self) -> (Self, Self) {
                $normal(self)
            }
            fn with_scratch<R>(len: usize, work: impl FnOnce(&mut [Self]) -> R) -> R {
                thread_local! {
                    static POOL: RefCell<Vec<Vec<$t>>> = const { RefCell::new(Vec::new()) };
                }
                POOL.with(|pool| with_pooled(pool, len, work))
            }
            type Vector<S: Simd> = S::$vector;
            type Mask<S: Simd> = MemMask<S::$mask>;
            #[inline(always)]
            fn lanes<S: Simd>() -> usize {
                S::$lanes
            }
            #[inline(always)]
            fn mask<S: Simd>(simd: S, count: usize) -> Self::Mask<S> {
                simd.$between(0, count as _)
            }
            #[inline(always)]
            fn splat<S: Simd>(simd: S, x: Self) -> Self::Vector<S> {
                simd.$splat(x)
            }
            #[inline(always)]
            fn mul_add<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>, c: Self::Vector<S>) -> Self::Vector<S> {
                simd.$mul_add(a, b, c)
            }
            #[inline(always)]
            fn sum<S: Simd>(simd: S, x: Self::Vector<S>) -> Self {
                simd.$sum(x)
            }
            #[inline(always)]
            unsafe fn load<S: Simd>(_simd: S, from: *const Self) -> Self::Vector<S> {
                // SAFETY: the caller's promise; a register is plain numbers.
                unsafe { from.cast::<Self::Vector<S>>().read_unaligned() }
            }
            #[inline(always)]
            unsafe fn load_masked<S: Simd>(simd: S, mask: Self::Mask<S>, from: *const Self) -> Self::Vector<S> {
                // SAFETY: the caller's promise.
                unsafe { simd.$load(mask, from) }
            }
            #[inline(always)]
            unsafe fn store<S: Simd>(_simd: S, to: *mut Self, x: Self::Vector<S>) {
                // SAFETY: the caller's promise.
                unsafe { to.cast::<Self::Vector<S>>().write_unaligned(x) }
            }
            #[inline(always)]
            unsafe fn store_masked<S: Simd>(simd: S, mask: Self::Mask<S>, to: *mut Self, x: Self::Vector<S>) {
                // SAFETY: the caller's promise.
                unsafe { simd.$store(mask, to, x) }
            }
        }
    };
}

real!(f32, f32s, m32s, F32_LANES, mask_between_m32s, splat_f32s, mul_add_e_f32s, reduce_sum_f32s, mask_load_ptr_f32s, mask_store_ptr_f32s,
      exp: exp_f32, normal: normal_f32);
real!(f64, f64s, m64s, F64_LANES, mask_between_m64s, splat_f64s, mul_add_e_f64s, reduce_sum_f64s, mask_load_ptr_f64s, mask_store_ptr_f64s,
      exp: f64::exp, normal: normal_f64);

/// `2ⁿ` for −126 ≤ n ≤ 127, from the bits of the number.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

/// `exp(x) = 2ⁿ · exp(r)`, `n` the integer next to `x / ln 2`, `r = x − n ln 2` with ln 2 in two parts (Cody and Waite).
/// `exp(r) = 1 + r + r² p(r)`, p of degree 5, fitted to 1.5e-9 on |r| ≤ 0.35.
#[inline(always)]
#[allow(clippy::excessive_precision)]
fn exp_f32(x: f32) -> f32 {
    // Adding 1.5 · 2²³ rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // 0.693359375 has nine bits, so that n · LN2_HIGH is exact.
    const LN2_HIGH: f32 = 0.693_359_375;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Comparisons rather than min and max keep a NaN a NaN. Below the range the result is 0, above it ∞.
    let x = if x < -104.5 { -104.5 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = (rounded.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let n_real = rounded - ROUND;
    let r = (x - n_real * LN2_HIGH) - n_real * LN2_LOW;
    let p = 1.989_198_131e-4_f32;
    let p = p * r + 1.393_454_193e-3;
    let p = p * r + 8.333_310_024e-3;
    let p = p * r + 4.166_645_681e-2;
    let p = p * r + 1.666_666_668e-1;
    let p = p * r + 5.000_000_014e-1;
    let y = p * (r * r) + r + 1.0;
    // Two factors, so that results below the smallest normal number round instead of wrapping. The clamp only matters for a NaN.
    let n = n.clamp(-160, 140);
    let half = n >> 1;
    y * power_of_two(half) * power_of_two(n - half)
}

/// `Φ(−a) = exp(−a²/2) · t · p(t − 0.6)`, `t = 1 / (1 + 0.3 a)`, a = |x|, p of degree 9, fitted to 1.9e-9 on 0 ≤ a ≤ 14; the form is that of
/// Abramowitz and Stegun, "Handbook of Mathematical Functions" (1964), 26.2.17.
#[inline(always)]
#[allow(clippy::excessive_precision)]
fn normal_f32(x: f32) -> (f32, f32) {
    let a = x.abs();
    let a = if a > 14.0 { 14.0 } else { a };
    // a² in f32 is off by 2⁻²⁴ a², which the exponential would turn into a relative error: square a's upper half exactly, and bring the
    // rest, at most 0.03, in by its series.
    let high = f32::from_bits((a.to_bits() + 0x800) & 0xffff_f000);
    let rest = (a - high) * (a + high) * 0.5;
    let density = exp_f32(-0.5 * high * high) * (1.0 - rest * (1.0 - rest * (0.5 - rest * (1.0 / 6.0))));
    let t = 1.0 / (1.0 + 0.3 * a);
    let s = t - 0.6;
    let p = CDF[0];
    let p = p * s + CDF[1];
    let p = p * s + CDF[2];
    let p = p * s + CDF[3];
    let p = p * s + CDF[4];
    let p = p * s + CDF[5];
    let p = p * s + CDF[6];
    let p = p * s + CDF[7];
    let p = p * s + CDF[8];
    let p = p * s + CDF[9];
    let tail = density * t * p;
    (if x > 0.0 { 1.0 - tail } else { tail }, density)
}

#[allow(clippy::excessive_precision)]
const CDF: [f32; 10] = [
    -0.020_914_359_73,
    0.001_102_729_538,
    0.044_304_720_93,
    -0.007_565_151_731,
    -0.091_059_040_38,
    -0.013_818_710_89,
    0.225_356_486_8,
    0.413_744_809_9,
    0.405_136_740_1,
    0.258_572_678_9,
];

/// Series about 0 within 3 of it, continued fraction beyond (Abramowitz and Stegun 26.2.11 and 26.2.14); within 1e-13.
fn normal_f64(x: f64) -> (f64, f64) {
    let density = (-0.5 * x * x).exp();
    let scaled = density / (2.0 * std::f64::consts::PI).sqrt();
    let a = x.abs();
    if a < 3.0 {
        let (mut term, mut sum, mut k) = (a, a, 1.0);
        while term > 1e-18 * sum {
            k += 2.0;
            term *= a * a / k;
            sum += term;
        }
        let upper = scaled * sum;
        return (if x > 0.0 { 0.5 + upper } else { 0.5 - upper }, density);
    }
    let fraction = (1..=200).rev().fold(a, |below, k| a + f64::from(k) / below);
    let tail = scaled / fraction;
    (if x > 0.0 { 1.0 - tail } else { tail }, density)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest difference in units of the last place, and where, over numbers from `from` to `to`.
    fn worst_ulp(from: f32, to: f32, f: impl Fn(f32) -> f32, reference: impl Fn(f64) -> f64) -> (f64, f32) {
        let steps = 400_000;
        (0..=steps).fold((0.0, 0.0), |worst, i| {
            let x = from + (to - from) * (i as f32 / steps as f32);
            let expected = reference(f64::from(x));
            let ulp = f64::from((expected.abs() as f32).next_up()) - f64::from(expected.abs() as f32);
            let error = (f64::from(f(x)) - expected).abs() / ulp;
            if error > worst.0 { (error, x) } else { worst }
        })
    }

    #[test]
    fn exp_is_within_two_ulp() {
        let (ulp, at) = worst_ulp(-104.0, 88.7, exp_f32, f64::exp);
        assert!(ulp <= 2.0, "{ulp} ulp at {at}");
        assert_eq!([exp_f32(0.0), exp_f32(f32::NEG_INFINITY), exp_f32(-200.0)], [1.0, 0.0, 0.0]);
        assert_eq!([exp_f32(89.0), exp_f32(f32::INFINITY)], [f32::INFINITY; 2]);
        assert!(exp_f32(f32::NAN).is_nan());
    }

    #[test]
    fn normal_distribution_is_within_four_ulp_and_in_its_lower_half_eight() {
        for (from, to, limit) in [(0.0, 12.0, 4.0), (-12.0, 0.0, 8.0)] {
            let (ulp, at) = worst_ulp(from, to, |x| normal_f32(x).0, |x| normal_f64(x).0);
            assert!(ulp <= limit, "{ulp} ulp at {at}");
            let (ulp, at) = worst_ulp(from, to, |x| normal_f32(x).1, |x| normal_f64(x).1);
            assert!(ulp <= 4.0, "density: {ulp} ulp at {at}");
        }
    }

    /// Abramowitz and Stegun, table 26.1, and Φ(−x) of table 26.2 for the tail.
    #[test]
    fn normal_distribution_in_f64_is_that_of_the_tables() {
        let table = [
            (0.0, 0.5),
            (0.5, 0.691_462_461_274_013),
            (1.0, 0.841_344_746_068_543),
            (2.0, 0.977_249_868_051_821),
            (2.98, 0.998_558_758_082_660),
            (-3.0, 0.001_349_898_031_630_09),
            (-5.0, 2.866_515_718_791_94e-7),
        ];
        let wrong = |(x, expected): &(f64, f64)| ((normal_f64(*x).0 - expected) / expected).abs() > 1e-12;
        let failures: Vec<_> = table.iter().filter(|pair| wrong(pair)).map(|(x, e)| (x, normal_f64(*x).0, e)).collect();
        assert!(failures.is_empty(), "{failures:?}");
    }

    #[test]
    fn scratch_is_kept_and_nests() {
        f32::with_scratch(100, |a| {
            a.fill(1.0);
            f32::with_scratch(50_000, |b| b.fill(2.0));
            assert!(a.iter().all(|x| *x == 1.0));
        });
    }
}
