//! Matrix products with stored matrices and between buffers.
//!
//! Up to [`FEW_TOKENS`] tokens are matrix times vector, at the speed of memory; more are tiles of registers (see [`tile`]) over the
//! operands as they lie, in blocks that the caches hold. Only the tokens of a row-dot product are packed, and only 16-bit and quantised
//! matrices are widened, both a block at a time, so nothing is allocated once a thread's scratch has grown. On AVX-512 this is faster than
//! the `gemm` crate at every size that a model here has, and a batch of one window does not pay for packing a matrix that it uses once.
//!
//! Every output is summed over `k` in one order, whatever the threads.

use std::ops::Range;

use super::parallel::{Shared, Team};
use super::real::Real;
use super::tile::{self, Operand, Sizes, Target};
use super::weight::{Matrix, Plain};
use crate::device::Product;

/// Tokens for which matrix times vector, once each, is fastest.
pub const FEW_TOKENS: usize = 3;
/// Tokens whose columns are packed together: two AVX-512 registers, so that a tile covers them.
const TOKENS: usize = 32;
/// Tokens that a panel of a stored matrix meets while it is in the second-level cache.
const BLOCK_TOKENS: usize = 128;
/// Rows of a stored matrix that are read, or widened, at a time: with 1024 columns, 256 KiB.
const PANEL_ROWS: usize = 64;
/// Terms that are summed at a time: two registers' columns of as many rows, 32 KiB, stay in the first-level cache.
const BLOCK_TERMS: usize = 256;

/// Numbers of a right operand that may be packed whole: an adapter's.
const PACKED_NUMBERS: usize = 64 * 1024;

/// Nanoseconds that a product of this many multiplications takes on one thread, for deciding whether to split it.
fn product_ns(m: usize, n: usize, k: usize) -> usize {
    /// Multiplications a nanosecond: from memory for a vector, from registers otherwise.
    const VECTOR: usize = 10;
    const TILES: usize = 80;
    m.saturating_mul(n).saturating_mul(k) / if m <= FEW_TOKENS { VECTOR } else { TILES }
}

/// Row-dot form: `y [m, rows] = alpha · x [m, columns] · Wᵀ`, added to `y` where `accumulate`.
#[allow(clippy::too_many_arguments)]
pub fn rows_form<T: Real>(
    team: &Team,
    y: &mut [T],
    x: &[T],
    w: &impl Matrix<T>,
    m: usize,
    (rows, columns): (usize, usize),
    alpha: T,
    accumulate: bool,
) {
    if m == 0 || rows == 0 {
        return;
    }
    let (x, shared) = (&x[..m * columns], Shared::new(&mut y[..m * rows]));
    let ns = product_ns(m, rows, columns);
    if m <= FEW_TOKENS && alpha == T::ONE {
        // A block of rows serves every token while it is in the cache. Blocks start at multiples of 16, as rows that are stored in groups
        // need.
        return team.ranges(rows, 16, ns, |range| {
            let at_once = if m == 1 { range.len().max(1) } else { 16 };
            for start in range.clone().step_by(at_once) {
                let block = start..range.end.min(start + at_once);
                for t in 0..m {
                    // SAFETY: `ranges` gives every row of W to one thread.
                    let y = unsafe { shared.part(t * rows + block.start..t * rows + block.end) };
                    w.dots(y, block.clone(), &x[t * columns..][..columns], accumulate);
                }
            }
        });
    }
    let each_block = |tokens: Range<usize>, work: &dyn Fn(RowsBlock<T>)| {
        let (count, x) = (tokens.len(), &x[tokens.start * columns..tokens.end * columns]);
        T::with_scratch(packed_len(count, columns), |packed| {
            pack(packed, x, count, columns, alpha);
            let y = Target { pointer: shared.at(tokens.start * rows), row_stride: 1, column_stride: rows };
            work(RowsBlock { y, packed, count, columns, accumulate });
        });
    };
    if split_tokens(team, m) {
        return team.ranges(m, BLOCK_TOKENS, ns, |range| {
            for start in range.clone().step_by(BLOCK_TOKENS) {
                // SAFETY: `ranges` gives every token to one thread.
                each_block(start..range.end.min(start + BLOCK_TOKENS), &|block| unsafe { block.run(w, 0..rows) });
            }
        });
    }
    for start in (0..m).step_by(BLOCK_TOKENS) {
        let tokens = start..m.min(start + BLOCK_TOKENS);
        let ns = product_ns(tokens.len(), rows, columns);
        // SAFETY: `ranges` gives every row of W, thus column of y, to one thread.
        each_block(tokens, &|block| team.ranges(rows, 8, ns, |range| unsafe { block.run(w, range) }));
    }
}

/// Packed tokens and where their outputs go.
struct RowsBlock<'a, T> {
    /// `[rows, count]`: the transpose of the tokens' outputs.
    y: Target<T>,
    /// Panels of [`TOKENS`] tokens, each `[columns, width]`.
    packed: &'a [T],
    count: usize,
    columns: usize,
    accumulate: bool,
}

impl<T: Real> RowsBlock<'_, T> {
    /// # Safety
    /// The rows `range` of `y` are this thread's alone.
    unsafe fn run(&self, w: &impl Matrix<T>, range: Range<usize>) {
        for start in range.clone().step_by(PANEL_ROWS) {
            let rows = start..range.end.min(start + PANEL_ROWS);
            with_panel(w, rows.clone(), 0..self.columns, |panel, stride| {
                for first in (0..self.count).step_by(TOKENS) {
                    let tokens = TOKENS.min(self.count - first);
                    let sizes = Sizes { m: rows.len(), n: tokens, k: self.columns };
                    let packed = Operand::rows(&self.packed[first * self.columns..], packed_width(tokens));
                    // SAFETY: the caller's promise for y; the panel is [rows, columns], the packed tokens [columns, width ≥ tokens].
                    unsafe { tile::product(sizes, self.y.at(start, first), Operand::rows(panel, stride), packed, T::ONE, self.accumulate) };
                }
            });
        }
    }
}

/// Columns of a panel of `tokens` tokens.
fn packed_width(tokens: usize) -> usize {
    tokens.next_multiple_of(16)
}

fn packed_len(tokens: usize, columns: usize) -> usize {
    (tokens / TOKENS * TOKENS + packed_width(tokens % TOKENS)) * columns
}

/// Packs `x [tokens, columns]`, times alpha, as [`RowsBlock`] wants it.
fn pack<T: Real>(packed: &mut [T], x: &[T], tokens: usize, columns: usize, alpha: T) {
    for first in (0..tokens).step_by(TOKENS) {
        let count = TOKENS.min(tokens - first);
        let to = &mut packed[first * columns..];
        tile::pack_columns(to, packed_width(count), &x[first * columns..], columns, count, columns, alpha);
    }
}

/// Whether there are enough blocks of tokens to split by them: each thread then packs and widens for itself, with no waiting between blocks.
fn split_tokens(team: &Team, m: usize) -> bool {
    m.div_ceil(BLOCK_TOKENS) >= 2 * team.threads()
}

/// Unit-row form: `y [m, columns] = a [m, rows] · W`, added to `y` where `accumulate`.
pub fn units_form<T: Real>(
    team: &Team,
    y: &mut [T],
    a: &[T],
    w: &impl Matrix<T>,
    m: usize,
    (rows, columns): (usize, usize),
    accumulate: bool,
) {
    if m == 0 || columns == 0 {
        return;
    }
    let (a, y) = (&a[..m * rows], &mut y[..m * columns]);
    if rows == 0 {
        if !accumulate {
            y.fill(T::ZERO);
        }
        return;
    }
    let ns = product_ns(m, rows, columns);
    let shared = Shared::new(y);
    if m <= FEW_TOKENS {
        return team.ranges(columns, 64, ns, |range| {
            for t in 0..m {
                // SAFETY: `ranges` gives every column to one thread.
                let y = unsafe { shared.part(t * columns + range.start..t * columns + range.end) };
                if !accumulate {
                    y.fill(T::ZERO);
                }
                w.axpys(y, range.clone(), &a[t * rows..][..rows]);
            }
        });
    }
    let to = Target { pointer: shared.at(0), row_stride: columns, column_stride: 1 };
    if split_tokens(team, m) {
        return team.ranges(m, BLOCK_TOKENS, ns, |range| {
            for start in range.clone().step_by(BLOCK_TOKENS) {
                let tokens = start..range.end.min(start + BLOCK_TOKENS);
                let a = &a[tokens.start * rows..];
                // SAFETY: `ranges` gives every token to one thread.
                unsafe { units_block(to.at(tokens.start, 0), a, w, tokens.len(), rows, 0..columns, accumulate) }
            }
        });
    }
    team.ranges(columns, TOKENS, ns, |range| {
        // SAFETY: `ranges` gives every column to one thread.
        unsafe { units_block(to.at(0, range.start), a, w, m, rows, range, accumulate) }
    });
}

/// `y [m, range] = a [m, rows] · W[.., range]`.
///
/// # Safety
/// Those columns of `y` are this thread's alone.
unsafe fn units_block<T: Real, W: Matrix<T>>(y: Target<T>, a: &[T], w: &W, m: usize, rows: usize, range: Range<usize>, accumulate: bool) {
    let terms = if W::IN_PLACE { BLOCK_TERMS } else { PANEL_ROWS };
    for start in (0..rows).step_by(terms) {
        let units = start..rows.min(start + terms);
        with_panel(w, units.clone(), range.clone(), |panel, stride| {
            let sizes = Sizes { m, n: range.len(), k: units.len() };
            let a = Operand::rows(&a[start..], rows);
            // SAFETY: the caller's promise for y; a is [m, units] and the panel [units, range].
            unsafe { tile::product(sizes, y, a, Operand::rows(panel, stride), T::ONE, accumulate || start > 0) }
        });
    }
}

/// `C = alpha · op(A) · op(B)`, added to C where `accumulate`; the sizes are in `product`.
pub fn buffers<T: Real>(team: &Team, c: &mut [T], a: &[T], b: &[T], product: Product) {
    let Product { m, n, k, transpose_a, transpose_b, alpha, accumulate } = product;
    let (a, b, c, alpha) = (&a[..m * k], &b[..k * n], &mut c[..m * n], T::from_f64(f64::from(alpha)));
    if k == 0 && !accumulate {
        c.fill(T::ZERO);
    }
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    if transpose_b && !transpose_a && n <= m && n * k <= PACKED_NUMBERS {
        // B is the smaller to pack, once, and C is then written by rows.
        let product = Product { transpose_b: false, ..product };
        return T::with_scratch(k * n, |packed| {
            tile::pack_columns(packed, n, b, k, n, k, T::ONE);
            buffers(team, c, a, packed, product);
        });
    }
    if transpose_b && !transpose_a {
        return rows_form(team, c, a, &Plain { data: b, columns: k }, m, (n, k), alpha, accumulate);
    }
    if !transpose_b && !transpose_a && m <= FEW_TOKENS && alpha == T::ONE {
        return units_form(team, c, a, &Plain { data: b, columns: n }, m, (k, n), accumulate);
    }
    // The tile reads rows of its right operand. Where B is stored transposed, that is A, and C is computed transposed.
    let shared = Shared::new(c);
    let to = Target { pointer: shared.at(0), row_stride: n, column_stride: 1 };
    let (sizes, to, left, right) = if transpose_b {
        (Sizes { m: n, n: m, k }, to.transposed(), Operand::rows(b, k), Operand::rows(a, m))
    } else {
        let left = if transpose_a { Operand::columns(a, m) } else { Operand::rows(a, k) };
        (Sizes { m, n, k }, to, left, Operand::rows(b, n))
    };
    let ns = product_ns(m, n, k);
    if sizes.m >= sizes.n {
        team.ranges(sizes.m, 8, ns, |range| {
            let sizes = Sizes { m: range.len(), ..sizes };
            // SAFETY: `ranges` gives every row of the result to one thread; the operands have the sizes of the product.
            unsafe { by_terms(sizes, to.at(range.start, 0), left.at(range.start, 0), right, alpha, accumulate) }
        });
    } else {
        team.ranges(sizes.n, TOKENS, ns, |range| {
            let sizes = Sizes { n: range.len(), ..sizes };
            // SAFETY: as above, by columns.
            unsafe { by_terms(sizes, to.at(0, range.start), left, right.at(0, range.start), alpha, accumulate) }
        });
    }
}

/// A product a block of terms at a time.
///
/// # Safety
/// As [`tile::product`].
unsafe fn by_terms<T: Real>(sizes: Sizes, to: Target<T>, left: Operand<T>, right: Operand<T>, alpha: T, accumulate: bool) {
    for start in (0..sizes.k).step_by(BLOCK_TERMS) {
        let sizes = Sizes { k: BLOCK_TERMS.min(sizes.k - start), ..sizes };
        // SAFETY: the caller's promise.
        unsafe { tile::product(sizes, to, left.at(0, start), right.at(start, 0), alpha, accumulate || start > 0) }
    }
}

fn with_panel<T: Real, W: Matrix<T>>(w: &W, rows: Range<usize>, columns: Range<usize>, work: impl FnOnce(&[T], usize)) {
    let scratch = if W::IN_PLACE { 0 } else { rows.len() * columns.len() };
    T::with_scratch(scratch, |scratch| {
        let (panel, stride) = w.panel(rows.clone(), columns.clone(), scratch);
        // What a product reads through pointers.
        assert!(rows.is_empty() || (rows.len() - 1) * stride + columns.len() <= panel.len(), "panel {rows:?} of columns {columns:?}");
        work(panel, stride);
    });
}
