//! A matrix product on tiles of registers, for operands that are small or that must not be copied.
//!
//! `C = alpha · A · B (+ C)`: A is read a number at a time and may have any strides; B is read a register at a time and has contiguous
//! rows; C has contiguous rows, or contiguous columns, into which a tile is turned. Against a general product it allocates nothing and packs
//! nothing, which is what counts for a window of some dozen tokens. Every output is one sum over `k` in order, so the result does not
//! depend on how C is split.

use pulp::{Arch, Simd, WithSimd};

use super::real::Real;
use super::vector::vectorized;

/// A matrix that is read: element `(i, j)` is at `pointer + i · row_stride + j · column_stride`.
#[derive(Clone, Copy)]
pub struct Operand<T> {
    pub pointer: *const T,
    pub row_stride: usize,
    pub column_stride: usize,
}

impl<T> Operand<T> {
    /// Rows of `slice`, `row_stride` apart.
    pub fn rows(slice: &[T], row_stride: usize) -> Self {
        Self { pointer: slice.as_ptr(), row_stride, column_stride: 1 }
    }
    /// The transpose of [`rows`](Operand::rows).
    pub fn columns(slice: &[T], row_stride: usize) -> Self {
        Self { pointer: slice.as_ptr(), row_stride: 1, column_stride: row_stride }
    }
    /// From row `i` and column `j` on.
    pub fn at(self, i: usize, j: usize) -> Self {
        Self { pointer: self.pointer.wrapping_add(i * self.row_stride + j * self.column_stride), ..self }
    }
}

/// A matrix that is written; one of its strides is 1.
#[derive(Clone, Copy)]
pub struct Target<T> {
    pub pointer: *mut T,
    pub row_stride: usize,
    pub column_stride: usize,
}

impl<T> Target<T> {
    /// The same matrix transposed.
    pub fn transposed(self) -> Self {
        Self { pointer: self.pointer, row_stride: self.column_stride, column_stride: self.row_stride }
    }
    /// From row `i` and column `j` on.
    pub fn at(self, i: usize, j: usize) -> Self {
        Self { pointer: self.pointer.wrapping_add(i * self.row_stride + j * self.column_stride), ..self }
    }
}

// SAFETY: a place and its strides; who reads or writes through them makes the promises of `product`.
unsafe impl<T: Send + Sync> Send for Operand<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Operand<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Send for Target<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Target<T> {}

/// The sizes of a product: C `[m, n]`, A `[m, k]`, B `[k, n]`.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

/// `C = alpha · A · B`, added to C where `accumulate`.
///
/// # Safety
/// Every element of A and B can be read, every element of C written by this thread alone and, where `accumulate`, read; C overlaps neither.
/// `b.column_stride` is 1, and `c.column_stride` or `c.row_stride` is 1.
pub unsafe fn product<T: Real>(sizes: Sizes, c: Target<T>, a: Operand<T>, b: Operand<T>, alpha: T, accumulate: bool) {
    debug_assert!(b.column_stride == 1 && (c.column_stride == 1 || c.row_stride == 1));
    Arch::new().dispatch(Call { sizes, c, a, b, alpha, accumulate });
}

struct Call<T> {
    sizes: Sizes,
    c: Target<T>,
    a: Operand<T>,
    b: Operand<T>,
    alpha: T,
    accumulate: bool,
}

impl<T: Real> WithSimd for Call<T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // SAFETY: `product`'s caller vouches for the operands.
        unsafe {
            // 8 × 2 registers of sums, two of B and one of A need more than sixteen.
            if S::REGISTER_COUNT >= 32 { self.panels::<S, 8>(simd) } else { self.panels::<S, 4>(simd) }
        }
    }
}

impl<T: Real> Call<T> {
    /// Panels of two registers' columns, then one, then the columns that are left.
    #[inline(always)]
    unsafe fn panels<S: Simd, const MR: usize>(&self, simd: S) {
        let (lanes, n) = (T::lanes::<S>(), self.sizes.n);
        let mut j = 0;
        // SAFETY: `j` stays below n, and each call covers only columns below n.
        unsafe {
            while n - j >= 2 * lanes {
                self.panel::<S, MR, 2, false>(simd, j, 2 * lanes);
                j += 2 * lanes;
            }
            while n - j >= lanes {
                self.panel::<S, MR, 1, false>(simd, j, lanes);
                j += lanes;
            }
            if j < n {
                self.panel::<S, MR, 1, true>(simd, j, n - j);
            }
        }
    }

    #[inline(always)]
    unsafe fn panel<S: Simd, const MR: usize, const NV: usize, const MASKED: bool>(&self, simd: S, j: usize, width: usize) {
        let m = self.sizes.m;
        let mut i = 0;
        // SAFETY: each call covers rows i..i + MR, i + MR ≤ m.
        unsafe {
            while m - i >= MR {
                self.tile::<S, MR, NV, MASKED>(simd, i, j, width);
                i += MR;
            }
            if MR > 4 && m - i >= 4 {
                self.tile::<S, 4, NV, MASKED>(simd, i, j, width);
                i += 4;
            }
            if m - i >= 2 {
                self.tile::<S, 2, NV, MASKED>(simd, i, j, width);
                i += 2;
            }
            if m - i >= 1 {
                self.tile::<S, 1, NV, MASKED>(simd, i, j, width);
                i += 1;
            }
        }
        debug_assert_eq!(i, m);
    }

    /// C[i..i + MR, j..j + width].
    #[inline(always)]
    unsafe fn tile<S: Simd, const MR: usize, const NV: usize, const MASKED: bool>(&self, simd: S, i: usize, j: usize, width: usize) {
        let lanes = T::lanes::<S>();
        let mask = T::mask(simd, if MASKED { width } else { lanes });
        let (a, b, c) = (self.a.at(i, 0), self.b.at(0, j), self.c.at(i, j));
        let mut sums = [[T::splat(simd, T::ZERO); NV]; MR];
        let (mut a_column, mut b_row) = (a.pointer, b.pointer);
        for _ in 0..self.sizes.k {
            // SAFETY: row `p` of B has `width` columns at j, which is what is read; A has rows i..i + MR at column `p`.
            unsafe {
                let mut right = [T::splat(simd, T::ZERO); NV];
                for (v, right) in right.iter_mut().enumerate() {
                    *right = if MASKED { T::load_masked(simd, mask, b_row) } else { T::load(simd, b_row.add(v * lanes)) };
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let left = T::splat(simd, *a_column.add(r * a.row_stride));
                    for v in 0..NV {
                        sums[v] = T::mul_add(simd, left, right[v], sums[v]);
                    }
                }
            }
            a_column = a_column.wrapping_add(a.column_stride);
            b_row = b_row.wrapping_add(b.row_stride);
        }
        // SAFETY: the tile lies in C.
        unsafe {
            if c.column_stride == 1 {
                self.store::<S, MR, NV, MASKED>(simd, c, mask, sums);
            } else {
                self.store_turned::<S, MR, NV>(simd, c, width, sums);
            }
        }
    }

    #[inline(always)]
    unsafe fn store<S: Simd, const MR: usize, const NV: usize, const MASKED: bool>(
        &self,
        simd: S,
        c: Target<T>,
        mask: T::Mask<S>,
        sums: [[T::Vector<S>; NV]; MR],
    ) {
        let (lanes, alpha) = (T::lanes::<S>(), T::splat(simd, self.alpha));
        for (r, sums) in sums.into_iter().enumerate() {
            for (v, sum) in sums.into_iter().enumerate() {
                // SAFETY: as `tile`.
                unsafe {
                    let to = c.pointer.add(r * c.row_stride + v * lanes);
                    let old = match (self.accumulate, MASKED) {
                        (false, _) => T::splat(simd, T::ZERO),
                        (true, true) => T::load_masked(simd, mask, to),
                        (true, false) => T::load(simd, to),
                    };
                    let new = T::mul_add(simd, alpha, sum, old);
                    if MASKED { T::store_masked(simd, mask, to, new) } else { T::store(simd, to, new) }
                }
            }
        }
    }

    /// The columns of the tile are contiguous in C: MR numbers each.
    #[inline(always)]
    unsafe fn store_turned<S: Simd, const MR: usize, const NV: usize>(
        &self,
        simd: S,
        c: Target<T>,
        width: usize,
        sums: [[T::Vector<S>; NV]; MR],
    ) {
        /// Columns of the widest tile: two registers of 16.
        const WIDEST: usize = 32;
        let lanes = T::lanes::<S>();
        assert!(NV * lanes <= WIDEST);
        let mut tile = [[T::ZERO; WIDEST]; MR];
        for (row, sums) in tile.iter_mut().zip(sums) {
            for (v, sum) in sums.into_iter().enumerate() {
                // SAFETY: a row holds NV registers.
                unsafe { T::store(simd, row.as_mut_ptr().add(v * lanes), sum) };
            }
        }
        for column in 0..width {
            for (r, row) in tile.iter().enumerate() {
                // SAFETY: as `tile`.
                unsafe {
                    let to = c.pointer.add(column * c.column_stride + r);
                    let old = if self.accumulate { *to } else { T::ZERO };
                    *to = old + self.alpha * row[column];
                }
            }
        }
    }
}

/// Copies `count` rows of `k` numbers, `row_stride` apart, into columns: `to[p · width + i] = alpha · from[i · row_stride + p]`, and zeros
/// for `count ≤ i < width`.
pub fn pack_columns<T: Real>(to: &mut [T], width: usize, from: &[T], row_stride: usize, count: usize, k: usize, alpha: T) {
    let to = &mut to[..k * width];
    if count < width {
        to.fill(T::ZERO);
    }
    fill_columns(to, width, from, row_stride, count, k, alpha);
}

vectorized! {
    fn fill_columns<T: Real>(to: &mut [T], width: usize, from: &[T], row_stride: usize, count: usize, k: usize, alpha: T) {
        /// Rows at a time: their numbers lie side by side in `to`, in one line of the cache.
        const BLOCK: usize = 8;
        let mut i = 0;
        while i + BLOCK <= count {
            let rows: [&[T]; BLOCK] = std::array::from_fn(|r| &from[(i + r) * row_stride..][..k]);
            for (p, to) in to.chunks_exact_mut(width).enumerate() {
                let to = &mut to[i..i + BLOCK];
                for r in 0..BLOCK {
                    to[r] = alpha * rows[r][p];
                }
            }
            i += BLOCK;
        }
        for i in i..count {
            let row = &from[i * row_stride..][..k];
            for (to, &x) in to.chunks_exact_mut(width).zip(row) {
                to[i] = alpha * x;
            }
        }
    }
}
