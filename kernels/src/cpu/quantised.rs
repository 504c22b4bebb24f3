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

/// How quants are packed.
pub trait Quants: Copy + Send + Sync + 'static {
    /// Bytes of a block along a row.
    const BLOCK_BYTES: usize;
    /// Rows that share the 4 bytes of a column where rows are interleaved.
    const GROUP: usize;
    /// Whether a block has a minimum.
    const MINIMUM: bool;
    /// The quants of a block along a row.
    fn block(bytes: &[u8]) -> [f32; BLOCK];
    /// The quants of up to [`CHUNK`] blocks along a row, as [`halves`](Quants::halves) says.
    fn chunk(bytes: &[u8], numbers: &mut [f32; CHUNK * BLOCK]);
    /// Where [`chunk`](Quants::chunk) writes the two halves of block `block`.
    fn halves(block: usize) -> [usize; 2];
    /// The quant of row `row` of the group whose 4 bytes are `word`.
    fn of_group(word: u32, row: usize) -> f32;
}

/// Blocks along a row whose quants are written out at a time: 2 KiB of f32.
pub const CHUNK: usize = 16;

/// Numbers in half a block, the widest register's.
const HALF: usize = BLOCK / 2;

/// i8, symmetric.
#[derive(Clone, Copy)]
pub struct Eight;
/// 4 bits above a minimum.
#[derive(Clone, Copy)]
pub struct Four;

impl Quants for Eight {
    const BLOCK_BYTES: usize = BLOCK;
    const GROUP: usize = 4;
    const MINIMUM: bool = false;
    #[inline(always)]
    fn block(bytes: &[u8]) -> [f32; BLOCK] {
        let mut numbers = [0.0; BLOCK];
        for (number, &byte) in numbers.iter_mut().zip(&bytes[..BLOCK]) {
            *number = f32::from(byte as i8);
        }
        numbers
    }
    #[inline(always)]
    fn chunk(bytes: &[u8], numbers: &mut [f32; CHUNK * BLOCK]) {
        for (number, &byte) in numbers.iter_mut().zip(bytes) {
            *number = f32::from(byte as i8);
        }
    }
    #[inline(always)]
    fn halves(block: usize) -> [usize; 2] {
        [block * BLOCK, block * BLOCK + HALF]
    }
    #[inline(always)]
    fn of_group(word: u32, row: usize) -> f32 {
        ((word << (24 - 8 * row as u32)) as i32 >> 24) as f32
    }
}

impl Quants for Four {
    const BLOCK_BYTES: usize = BLOCK / 2;
    const GROUP: usize = 8;
    const MINIMUM: bool = true;
    #[inline(always)]
    fn block(bytes: &[u8]) -> [f32; BLOCK] {
        let (mut numbers, bytes) = ([0.0; BLOCK], &bytes[..BLOCK / 2]);
        for i in 0..BLOCK / 2 {
            numbers[i] = f32::from(bytes[i] & 15);
            numbers[i + BLOCK / 2] = f32::from(bytes[i] >> 4);
        }
        numbers
    }
    /// All low halves, then all high ones.
    #[inline(always)]
    fn chunk(bytes: &[u8], numbers: &mut [f32; CHUNK * BLOCK]) {
        let (low, high) = numbers.split_at_mut(CHUNK * HALF);
        for ((low, high), &byte) in low.iter_mut().zip(high).zip(bytes) {
            *low = f32::from(byte & 15);
            *high = f32::from(byte >> 4);
        }
    }
    #[inline(always)]
    fn halves(block: usize) -> [usize; 2] {
        [block * HALF, (CHUNK + block) * HALF]
    }
    #[inline(always)]
    fn of_group(word: u32, row: usize) -> f32 {
        (word >> (4 * row as u32) & 15) as i32 as f32
    }
}

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
    fn from_row(&self, row: usize) -> Stored<'a, Q> {
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
            row_panel(self.from_row(rows.start), &mut *panel, columns.start / BLOCK, width);
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
                let w = self.from_row(row);
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
        unit_axpys(self.0, y, columns.start, a);
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
        let mut numbers = [0.0; CHUNK * BLOCK];
        for (i, y) in y.iter_mut().enumerate() {
            let quants = &w.quants[i * blocks * Q::BLOCK_BYTES..][..blocks * Q::BLOCK_BYTES];
            let scales = &scales[i * blocks..][..blocks];
            let mut sums = f32::splat(simd, 0.0);
            let parts = quants.chunks(CHUNK * Q::BLOCK_BYTES).zip(x.chunks(CHUNK * BLOCK)).zip(scales.chunks(CHUNK));
            for ((quants, x), scales) in parts {
                Q::chunk(quants, &mut numbers);
                for (block, (x, &scale)) in x.chunks_exact(BLOCK).zip(scales).enumerate() {
                    let halves = Q::halves(block).map(|start| &numbers[start..][..HALF]);
                    sums = <f32 as Real>::mul_add(simd, f32::splat(simd, scale), block_product(simd, halves, x), sums);
                }
            }
            let dot = f32::sum(simd, sums);
            *y = if accumulate { *y + dot } else { dot };
        }
    }
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

vectorized! {
    /// `y += Σ_r a[r] · W[r]`, the columns of `y` from `first` on.
    fn unit_axpys<Q: Quants>(w: Stored<'_, Q>, y: &mut [f32], first: usize, a: &[f32]) {
        for (block, a) in a.chunks(BLOCK).enumerate() {
            // Rows beyond the last count 0 times.
            let mut factors = [0.0; BLOCK];
            factors[..a.len()].copy_from_slice(a);
            let (parts, rest) = y.as_chunks_mut::<WIDTH>();
            let end = first + parts.len() * WIDTH;
            for (index, y) in parts.iter_mut().enumerate() {
                unit_block(&w, y, block, first + index * WIDTH, a.len(), &factors);
            }
            unit_block(&w, rest, block, end, a.len(), &factors);
        }
    }
}

/// `y += Σ factors[r] · W[r]` over the first `rows` rows of a block, at most [`WIDTH`] columns from `first` on.
#[inline(always)]
fn unit_block<Q: Quants>(w: &Stored<Q>, y: &mut [f32], block: usize, first: usize, rows: usize, factors: &[f32; BLOCK]) {
    let mut sums = [0.0; WIDTH];
    for (group, factors) in factors[..rows.next_multiple_of(Q::GROUP)].chunks_exact(Q::GROUP).enumerate() {
        let at = ((block * (BLOCK / Q::GROUP) + group) * w.columns + first) * 4;
        let (words, _) = w.quants[at..][..y.len() * 4].as_chunks::<4>();
        for (sum, word) in sums.iter_mut().zip(words) {
            let word = u32::from_le_bytes(*word);
            // By pairs, so that a sum is no long chain of additions.
            for pair in 0..Q::GROUP / 2 {
                let (even, odd) = (2 * pair, 2 * pair + 1);
                *sum += factors[even] * Q::of_group(word, even) + factors[odd] * Q::of_group(word, odd);
            }
        }
    }
    let mut total = 0.0;
    for factor in factors {
        total += factor;
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
                        *to = scale * Q::of_group(u32::from_le_bytes(*word), place) + minimum;
                    }
                }
            }
        }
    }
}
