//! A matrix times one vector. Each number of the matrix is used once, so these run at the speed of memory: rows are read side by side in
//! order, and nothing is packed.

use pulp::{Arch, Simd, WithSimd};

use super::real::Real;

/// Rows that are read side by side: enough streams to keep memory busy, few enough for the prefetcher.
const ROWS: usize = 4;

/// `y[i] = alpha · W[i] · x`, added to `y` where `accumulate`; `W[i]` starts at `i · row_stride` and is as long as `x`.
pub fn dots<T: Real>(y: &mut [T], w: &[T], row_stride: usize, x: &[T], alpha: T, accumulate: bool) {
    Arch::new().dispatch(Dots { y, w, row_stride, x, alpha, accumulate });
}

/// `y += Σ_r a[r] · W[r]`; `W[r]` starts at `r · row_stride` and is as long as `y`.
pub fn axpys<T: Real>(y: &mut [T], w: &[T], row_stride: usize, a: &[T]) {
    Arch::new().dispatch(Axpys { y, w, row_stride, a });
}

struct Dots<'a, T> {
    y: &'a mut [T],
    w: &'a [T],
    row_stride: usize,
    x: &'a [T],
    alpha: T,
    accumulate: bool,
}

impl<T: Real> WithSimd for Dots<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { y, w, row_stride, x, alpha, accumulate } = self;
        let row = |i: usize| &w[i * row_stride..][..x.len()];
        let put = |y: &mut T, dot: T| *y = if accumulate { *y + alpha * dot } else { alpha * dot };
        let (blocks, rest) = y.as_chunks_mut::<ROWS>();
        let done = blocks.len() * ROWS;
        for (i, y) in blocks.iter_mut().enumerate() {
            let sums = dot_rows::<S, T, ROWS>(simd, std::array::from_fn(|r| row(i * ROWS + r)), x);
            y.iter_mut().zip(sums).for_each(|(y, sum)| put(y, sum));
        }
        for (i, y) in rest.iter_mut().enumerate() {
            let [sum] = dot_rows::<S, T, 1>(simd, [row(done + i)], x);
            put(y, sum);
        }
    }
}

/// Dot products of `R` rows with `x`, all of one length; two registers of sums a row.
#[inline(always)]
fn dot_rows<S: Simd, T: Real, const R: usize>(simd: S, rows: [&[T]; R], x: &[T]) -> [T; R] {
    let (lanes, len) = (T::lanes::<S>(), x.len());
    assert!(rows.iter().all(|row| row.len() == len));
    let mut sums = [[T::splat(simd, T::ZERO); 2]; R];
    let mut p = 0;
    // SAFETY: whole registers are read while p + 2 · lanes ≤ len, then masked ones of what is left; every row is `len` long.
    unsafe {
        while p + 2 * lanes <= len {
            for v in 0..2 {
                let right = T::load(simd, x.as_ptr().add(p + v * lanes));
                for (sums, row) in sums.iter_mut().zip(&rows) {
                    sums[v] = T::mul_add(simd, T::load(simd, row.as_ptr().add(p + v * lanes)), right, sums[v]);
                }
            }
            p += 2 * lanes;
        }
        while p < len {
            let mask = T::mask(simd, lanes.min(len - p));
            let right = T::load_masked(simd, mask, x.as_ptr().add(p));
            for (sums, row) in sums.iter_mut().zip(&rows) {
                sums[0] = T::mul_add(simd, T::load_masked(simd, mask, row.as_ptr().add(p)), right, sums[0]);
            }
            p += lanes.min(len - p);
        }
    }
    let mut dots = [T::ZERO; R];
    for r in 0..R {
        dots[r] = T::sum(simd, T::mul_add(simd, T::splat(simd, T::ONE), sums[r][0], sums[r][1]));
    }
    dots
}

struct Axpys<'a, T> {
    y: &'a mut [T],
    w: &'a [T],
    row_stride: usize,
    a: &'a [T],
}

impl<T: Real> WithSimd for Axpys<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { y, w, row_stride, a } = self;
        let len = y.len();
        let row = |r: usize| &w[r * row_stride..][..len];
        let (blocks, rest) = a.as_chunks::<ROWS>();
        for (i, a) in blocks.iter().enumerate() {
            let rows: [&[T]; ROWS] = std::array::from_fn(|r| row(i * ROWS + r));
            axpy_rows::<S, T, ROWS>(simd, y, rows, *a);
        }
        for (i, &a) in rest.iter().enumerate() {
            axpy_rows::<S, T, 1>(simd, y, [row(blocks.len() * ROWS + i)], [a]);
        }
    }
}

#[inline(always)]
fn axpy_rows<S: Simd, T: Real, const R: usize>(simd: S, y: &mut [T], rows: [&[T]; R], a: [T; R]) {
    let (lanes, len) = (T::lanes::<S>(), y.len());
    assert!(rows.iter().all(|row| row.len() == len));
    let mut factors = [T::splat(simd, T::ZERO); R];
    for r in 0..R {
        factors[r] = T::splat(simd, a[r]);
    }
    let mut p = 0;
    // SAFETY: whole registers while p + lanes ≤ len, then a masked one of what is left; every row is `len` long.
    unsafe {
        while p + lanes <= len {
            let mut sum = T::load(simd, y.as_ptr().add(p));
            for (row, &factor) in rows.iter().zip(&factors) {
                sum = T::mul_add(simd, factor, T::load(simd, row.as_ptr().add(p)), sum);
            }
            T::store(simd, y.as_mut_ptr().add(p), sum);
            p += lanes;
        }
        if p < len {
            let mask = T::mask(simd, len - p);
            let mut sum = T::load_masked(simd, mask, y.as_ptr().add(p));
            for (row, &factor) in rows.iter().zip(&factors) {
                sum = T::mul_add(simd, factor, T::load_masked(simd, mask, row.as_ptr().add(p)), sum);
            }
            T::store_masked(simd, mask, y.as_mut_ptr().add(p), sum);
        }
    }
}
