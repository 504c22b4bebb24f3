//! Quantised matrices: products with the numbers that their quants stand for, in f32. Activations are not quantised.
//!
//! A product with few tokens reads the planes once, in order, and multiplies a block's sum by its scale; with more tokens a panel is
//! written out in f32, a block of the caches at a time. No matrix is ever written out whole.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::gemv;
use super::half::{F16, Half};
use super::real::Real;
use super::vector::{self, vectorized};
use super::weight::{Matrix, widen, widened_dots};
use crate::format::BLOCK;

#[cfg(target_arch = "x86_64")]
mod avx512;

mod packing;

use packing::{CHUNK, HALF};
pub use packing::{Eight, Four, Quants};

/// The planes of a quantised matrix.
#[derive(Clone, Copy)]
pub struct Stored<'a, Q> {
    pub quants: &'a [u8],
    pub scales: &'a [u16],
    /// None where blocks have no minimum.
    pub minima: &'a [u16],
    pub columns: usize,
    pub packing: Q,
}

/// Blocks along the rows.
#[derive(Clone, Copy)]
pub struct BlockRows<'a, Q>(pub Stored<'a, Q>);

/// Blocks of 32 rows at a column, rows interleaved.
#[derive(Clone, Copy)]
pub struct BlockUnits<'a, Q>(pub Stored<'a, Q>);

impl<'a, Q: Quants> BlockRows<'a, Q> {
    /// The planes of the rows from `row` on.
    fn rows_from(&self, row: usize) -> Stored<'a, Q> {
        let Stored { quants, scales, minima, columns, packing } = self.0;
        let first = row * columns.div_ceil(BLOCK);
        let minima = if Q::MINIMUM { &minima[first..] } else { minima };
        Stored { quants: &quants[first * Q::BLOCK_BYTES..], scales: &scales[first..], minima, columns, packing }
    }
}

impl<Q: Quants> Matrix<f32> for BlockRows<'_, Q> {
    const IN_PLACE: bool = false;
    fn panel<'s>(&'s self, rows: Range<usize>, columns: Range<usize>, scratch: &'s mut [f32]) -> (&'s [f32], usize) {
        let width = columns.len();
        let panel = &mut scratch[..rows.len() * width];
        if width > 0 {
            row_panel(self.rows_from(rows.start), &mut *panel, columns.start / BLOCK, width);
        }
        (panel, width)
    }
    fn row<R>(&self, row: usize, work: impl FnOnce(&[f32]) -> R) -> R {
        f32::with_scratch(self.0.columns, |scratch| work(self.panel(row..row + 1, 0..self.0.columns, scratch).0))
    }
    fn dots(&self, y: &mut [f32], rows: Range<usize>, x: &[f32], accumulate: bool) {
        let blocks = x.len().div_ceil(BLOCK);
        f32::with_scratch(blocks * (BLOCK + 1 + ROWS), |scratch| {
            let (padded, scratch) = scratch.split_at_mut(blocks * BLOCK);
            let (sums, scratch) = scratch.split_at_mut(blocks);
            padded[..x.len()].copy_from_slice(x);
            padded[x.len()..].fill(0.0);
            if Q::MINIMUM {
                block_sums(&mut *sums, padded);
            }
            for (row, y) in rows.step_by(ROWS).zip(y.chunks_mut(ROWS)) {
                let w = self.rows_from(row);
                let count = y.len() * blocks;
                let wide = &mut scratch[..count];
                if Q::MINIMUM {
                    widen(F16, &mut *wide, &w.minima[..count]);
                    gemv::dots(y, wide, blocks, sums, 1.0, accumulate);
                }
                widen(F16, &mut *wide, &w.scales[..count]);
                Arch::new().dispatch(RowDots { y, w, scales: wide, x: padded, accumulate: accumulate || Q::MINIMUM });
            }
        });
    }
    fn axpys(&self, y: &mut [f32], columns: Range<usize>, a: &[f32]) {
        row_axpys(self.0, y, columns.start / BLOCK, a);
    }
}

impl<Q: Quants> Matrix<f32> for BlockUnits<'_, Q> {
    const IN_PLACE: bool = false;
    fn panel<'s>(&'s self, rows: Range<usize>, columns: Range<usize>, scratch: &'s mut [f32]) -> (&'s [f32], usize) {
        let width = columns.len();
        let panel = &mut scratch[..rows.len() * width];
        if width > 0 {
            unit_panel(self.0, &mut *panel, rows.start, columns.start, width);
        }
        (panel, width)
    }
    fn row<R>(&self, row: usize, work: impl FnOnce(&[f32]) -> R) -> R {
        f32::with_scratch(self.0.columns, |scratch| work(self.panel(row..row + 1, 0..self.0.columns, scratch).0))
    }
    fn dots(&self, y: &mut [f32], rows: Range<usize>, x: &[f32], accumulate: bool) {
        widened_dots(self, y, rows, x, accumulate);
    }
    fn axpys(&self, y: &mut [f32], columns: Range<usize>, a: &[f32]) {
        Arch::new().dispatch(UnitAxpys { w: self.0, y, first: columns.start, a });
    }
}

/// Rows whose scales are widened together.
const ROWS: usize = 16;

vectorized! {
    /// Sums of blocks.
    fn block_sums<T: Real>(sums: &mut [T], x: &[T]) {
        for (sum, x) in sums.iter_mut().zip(x.chunks_exact(BLOCK)) {
            *sum = vector::sum(x, |x| x);
        }
    }
}

/// `y[i] = Σ scale · (q · x)` over the blocks of row `i`, without minima; added to `y` where `accumulate`.
struct RowDots<'a, Q> {
    y: &'a mut [f32],
    w: Stored<'a, Q>,
    /// `[rows, blocks]`.
    scales: &'a [f32],
    /// Whole blocks.
    x: &'a [f32],
    accumulate: bool,
}

impl<Q: Quants> WithSimd for RowDots<'_, Q> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { y, w, scales, x, accumulate } = self;
        let blocks = x.len() / BLOCK;
        for (i, y) in y.iter_mut().enumerate() {
            let quants = &w.quants[i * blocks * Q::BLOCK_BYTES..][..blocks * Q::BLOCK_BYTES];
            let dot = row_dot::<S, Q>(simd, quants, &scales[i * blocks..][..blocks], x);
            *y = if accumulate { *y + dot } else { dot };
        }
    }
}

/// `Σ scale · (q · x)` over the blocks of a row.
#[inline(always)]
fn row_dot<S: Simd, Q: Quants>(simd: S, quants: &[u8], scales: &[f32], x: &[f32]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if avx512::is_compiled_for::<S>() {
        // SAFETY: code for these instructions runs where the machine has them.
        return unsafe { avx512::row_dot::<Q>(quants, scales, x) };
    }
    let mut numbers = [0.0; CHUNK * BLOCK];
    let mut sums = f32::splat(simd, 0.0);
    let parts = quants.chunks(CHUNK * Q::BLOCK_BYTES).zip(x.chunks(CHUNK * BLOCK)).zip(scales.chunks(CHUNK));
    for ((quants, x), scales) in parts {
        Q::chunk(quants, &mut numbers);
        for (block, (x, &scale)) in x.chunks_exact(BLOCK).zip(scales).enumerate() {
            let halves = Q::halves_of(block).map(|start| &numbers[start..][..HALF]);
            sums = <f32 as Real>::mul_add(simd, f32::splat(simd, scale), block_product(simd, halves, x), sums);
        }
    }
    f32::sum(simd, sums)
}

/// The product of a block's halves with `x`, a register's worth of sums.
#[inline(always)]
fn block_product<S: Simd>(simd: S, halves: [&[f32]; 2], x: &[f32]) -> <f32 as Real>::Vector<S> {
    let lanes = f32::lanes::<S>();
    assert!(HALF.is_multiple_of(lanes) && x.len() == BLOCK && halves[0].len() == HALF && halves[1].len() == HALF);
    let mut sums = f32::splat(simd, 0.0);
    for at in (0..HALF).step_by(lanes) {
        for (half, q) in halves.iter().enumerate() {
            // SAFETY: at + lanes ≤ HALF, the length of a half; x holds two.
            let (q, x) = unsafe { (f32::load(simd, q.as_ptr().add(at)), f32::load(simd, x.as_ptr().add(half * HALF + at))) };
            sums = <f32 as Real>::mul_add(simd, q, x, sums);
        }
    }
    sums
}

/// Up to `N` scales or minima, zeros behind them.
#[inline(always)]
fn widened<const N: usize>(halves: &[u16]) -> [f32; N] {
    let mut wide = [0.0; N];
    for (wide, &half) in wide.iter_mut().zip(halves) {
        *wide = F16::widen(half);
    }
    wide
}

/// The scale of a block, and its minimum where it has one.
#[inline(always)]
fn range_of<Q: Quants>(w: &Stored<Q>, block: usize) -> (f32, f32) {
    (F16::widen(w.scales[block]), if Q::MINIMUM { F16::widen(w.minima[block]) } else { 0.0 })
}

vectorized! {
    /// `y += Σ_r a[r] · W[r]`, the columns of `y` from block `first` on.
    fn row_axpys<Q: Quants>(w: Stored<'_, Q>, y: &mut [f32], first: usize, a: &[f32]) {
        let blocks = w.columns.div_ceil(BLOCK);
        for (row, &a) in a.iter().enumerate() {
            for (index, y) in y.chunks_mut(BLOCK).enumerate() {
                let block = row * blocks + first + index;
                let (scale, minimum) = range_of(&w, block);
                let numbers = Q::block(&w.quants[block * Q::BLOCK_BYTES..][..Q::BLOCK_BYTES]);
                let (scale, minimum) = (a * scale, a * minimum);
                for (y, number) in y.iter_mut().zip(numbers) {
                    *y += scale * number + minimum;
                }
            }
        }
    }
}

vectorized! {
    /// Rows of `width` columns from block `first` on, as many as `to` holds.
    fn row_panel<Q: Quants>(w: Stored<'_, Q>, to: &mut [f32], first: usize, width: usize) {
        let blocks = w.columns.div_ceil(BLOCK);
        for (row, to) in to.chunks_exact_mut(width).enumerate() {
            for (index, to) in to.chunks_mut(BLOCK).enumerate() {
                let block = row * blocks + first + index;
                let (scale, minimum) = range_of(&w, block);
                let numbers = Q::block(&w.quants[block * Q::BLOCK_BYTES..][..Q::BLOCK_BYTES]);
                for (to, number) in to.iter_mut().zip(numbers) {
                    *to = scale * number + minimum;
                }
            }
        }
    }
}

/// Columns at a time where rows are interleaved: two registers of sums, one for each cache line of a group.
const WIDTH: usize = 32;

/// `y += Σ_r a[r] · W[r]`, the columns of `y` from `first` on.
struct UnitAxpys<'a, Q> {
    w: Stored<'a, Q>,
    y: &'a mut [f32],
    first: usize,
    a: &'a [f32],
}

impl<Q: Quants> WithSimd for UnitAxpys<'_, Q> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let Self { w, y, first, a } = self;
        for (block, a) in a.chunks(BLOCK).enumerate() {
            // Rows beyond the last count 0 times.
            let mut factors = [0.0; BLOCK];
            factors[..a.len()].copy_from_slice(a);
            let mut total = 0.0;
            for factor in factors {
                total += factor;
            }
            #[allow(unused_mut, reason = "only where there are instructions for more columns at a time")]
            let (mut y, mut first) = (&mut *y, first);
            #[cfg(target_arch = "x86_64")]
            if avx512::is_compiled_for::<S>() {
                let (parts, rest) = y.as_chunks_mut::<{ avx512::COLUMNS }>();
                for y in parts {
                    // SAFETY: code for these instructions runs where the machine has them.
                    unsafe { avx512::unit_block(&w, y, block, first, a.len(), &factors, total) };
                    first += avx512::COLUMNS;
                }
                y = rest;
            }
            let (parts, rest) = y.as_chunks_mut::<WIDTH>();
            for (index, y) in parts.iter_mut().enumerate() {
                unit_block(&w, y, block, first + index * WIDTH, a.len(), &factors, total);
            }
            unit_block(&w, rest, block, first + parts.len() * WIDTH, a.len(), &factors, total);
        }
    }
}

/// `y += Σ factors[r] · W[r]` over the first `rows` rows of a block, at most [`WIDTH`] columns from `first` on.
#[inline(always)]
fn unit_block<Q: Quants>(w: &Stored<Q>, y: &mut [f32], block: usize, first: usize, rows: usize, factors: &[f32; BLOCK], total: f32) {
    let mut sums = [0.0; WIDTH];
    for (group, factors) in factors[..rows.next_multiple_of(Q::GROUP)].chunks_exact(Q::GROUP).enumerate() {
        let at = ((block * (BLOCK / Q::GROUP) + group) * w.columns + first) * 4;
        let (words, _) = w.quants[at..][..y.len() * 4].as_chunks::<4>();
        for (sum, word) in sums.iter_mut().zip(words) {
            let word = u32::from_le_bytes(*word);
            // By pairs, so that a sum is no long chain of additions.
            for pair in 0..Q::GROUP / 2 {
                let (even, odd) = (2 * pair, 2 * pair + 1);
                *sum += factors[even] * Q::quant_of_group(word, even) + factors[odd] * Q::quant_of_group(word, odd);
            }
        }
    }
    let (scales, minima) = ranges_of(w, block * w.columns + first, y.len());
    for (y, (sum, &scale)) in y.iter_mut().zip(sums.iter().zip(scales)) {
        *y += F16::widen(scale) * sum;
    }
    for (y, &minimum) in y.iter_mut().zip(minima) {
        *y += F16::widen(minimum) * total;
    }
}

/// The scales of `count` blocks from `first` on, and their minima where they have any.
#[inline(always)]
fn ranges_of<'a, Q: Quants>(w: &Stored<'a, Q>, first: usize, count: usize) -> (&'a [u16], &'a [u16]) {
    (&w.scales[first..][..count], if Q::MINIMUM { &w.minima[first..][..count] } else { &[] })
}

vectorized! {
    /// `width` columns from `first_column` on of the rows from `first_row` on, as many as `to` holds.
    fn unit_panel<Q: Quants>(w: Stored<'_, Q>, to: &mut [f32], first_row: usize, first_column: usize, width: usize) {
        let end = first_row + to.len() / width;
        for start in (0..width).step_by(WIDTH) {
            let count = WIDTH.min(width - start);
            let column = first_column + start;
            for block in first_row / BLOCK..end.div_ceil(BLOCK) {
                let (scales, minima) = ranges_of(&w, block * w.columns + column, count);
                let (scales, minima) = (widened::<WIDTH>(scales), widened::<WIDTH>(minima));
                for row in first_row.max(block * BLOCK)..end.min((block + 1) * BLOCK) {
                    let to = &mut to[(row - first_row) * width + start..][..count];
                    let at = (row / Q::GROUP * w.columns + column) * 4;
                    let (words, _) = w.quants[at..][..count * 4].as_chunks::<4>();
                    let place = row % Q::GROUP;
                    for ((to, word), (scale, minimum)) in to.iter_mut().zip(words).zip(scales.iter().zip(&minima)) {
                        *to = scale * Q::quant_of_group(u32::from_le_bytes(*word), place) + minimum;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look random, in f16, in bytes and in f32.
    fn noise(len: usize) -> impl Iterator<Item = u32> {
        let mut state = 0x2545_f491_u32;
        (0..len).map(move |_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state
        })
    }

    fn stored<Q: Quants>(planes: &(Vec<u8>, Vec<u16>), columns: usize, packing: Q) -> Stored<'_, Q> {
        Stored { quants: &planes.0, scales: &planes.1, minima: if Q::MINIMUM { &planes.1 } else { &[] }, columns, packing }
    }

    /// What [`Arch`] runs on this machine, and what it runs on one that has no vector instructions.
    fn compare<Q: Quants>(packing: Q, rows: usize, columns: usize) -> Option<String> {
        let blocks = rows.next_multiple_of(BLOCK) * columns.next_multiple_of(BLOCK) / BLOCK;
        let quants = noise(blocks * BLOCK).map(|bits| bits as u8).collect();
        let scales = noise(blocks).map(|bits| half::f16::from_f32((bits >> 8) as f32 / (1 << 24) as f32).to_bits()).collect();
        let planes = (quants, scales);
        let x: Vec<f32> =
            noise(rows.max(columns).next_multiple_of(BLOCK)).map(|bits| (bits >> 8) as f32 / (1 << 23) as f32 - 1.0).collect();
        let w = stored(&planes, columns, packing);
        let [mut by_rows, mut by_units] = [[vec![0.5; rows], vec![0.5; rows]], [vec![0.5; columns], vec![0.5; columns]]];
        for (plain, y) in [false, true].into_iter().zip(&mut by_rows) {
            let scales: Vec<f32> = planes.1.iter().map(|&scale| F16::widen(scale)).collect();
            let work = RowDots { y, w, scales: &scales, x: &x[..columns.next_multiple_of(BLOCK)], accumulate: true };
            if plain { work.with_simd(pulp::Scalar::new()) } else { Arch::new().dispatch(work) }
        }
        for (plain, y) in [false, true].into_iter().zip(&mut by_units) {
            let work = UnitAxpys { w, y, first: 0, a: &x[..rows] };
            if plain { work.with_simd(pulp::Scalar::new()) } else { Arch::new().dispatch(work) }
        }
        let off = |[a, b]: [Vec<f32>; 2]| {
            let largest = b.iter().fold(0.0, |largest: f32, y| largest.max(y.abs()));
            a.iter().zip(&b).map(|(a, b)| (a - b).abs() / largest).fold(0.0, f32::max)
        };
        let (rows_off, units_off) = (off(by_rows), off(by_units));
        (rows_off.max(units_off) > 1e-5).then(|| format!("[{rows}, {columns}]: off by {rows_off:.1e} and {units_off:.1e}"))
    }

    /// The conformance suite runs what this machine has; another machine runs the plain code.
    #[test]
    fn vector_instructions_compute_what_plain_code_does() {
        let mut wrong = Vec::new();
        for (rows, columns) in [(1, 1), (5, 33), (32, 32), (33, 64), (70, 100), (3, 530), (100, 15), (40, 200)] {
            wrong.extend(compare(Eight, rows, columns).map(|fault| format!("8 bits {fault}")));
            wrong.extend(compare(Four, rows, columns).map(|fault| format!("4 bits {fault}")));
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}
