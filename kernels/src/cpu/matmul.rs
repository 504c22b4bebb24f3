//! Matrix products with stored matrices and between buffers.
//!
//! Three ways, by the number of tokens `m`: up to [`FEW_TOKENS`] matrix times vector, at the speed of memory; up to [`SOME_TOKENS`] tiles of
//! registers over the matrix as it lies, with no allocation; beyond that the `gemm` crate, which packs.

use std::ops::Range;

use gemm::Parallelism;

use super::parallel::{Shared, Team};
use super::real::Real;
use super::tile::{self, Operand, Sizes, Target};
use super::weight::Matrix;
use crate::device::Product;

/// Tokens for which matrix times vector, once each, is fastest.
pub const FEW_TOKENS: usize = 3;
/// Tokens for which tiles over the matrix as it lies are fastest.
pub const SOME_TOKENS: usize = 96;
/// Tokens whose columns are packed together: two AVX-512 registers, so that a tile covers them.
const TOKENS: usize = 32;
/// Rows of a stored matrix that are widened at a time: with 1024 columns, 256 KiB, which stay in the second-level cache.
const PANEL_ROWS: usize = 64;
/// Rows of a stored matrix that are widened at a time for the `gemm` crate, which wants more to pay for its packing.
const LARGE_PANEL_ROWS: usize = 256;

/// Nanoseconds that a product of this many multiplications takes on one thread, for deciding whether to split it.
fn product_ns(m: usize, n: usize, k: usize) -> usize {
    /// Multiplications a nanosecond: from memory for a vector, from registers otherwise.
    const VECTOR: usize = 8;
    const TILES: usize = 40;
    m.saturating_mul(n).saturating_mul(k) / if m <= FEW_TOKENS { VECTOR } else { TILES }
}

/// Row-dot form: `y [m, rows] = x [m, columns] · Wᵀ`, added to `y` where `accumulate`.
pub fn rows_form<T: Real>(
    team: &Team,
    y: &mut [T],
    x: &[T],
    w: &impl Matrix<T>,
    m: usize,
    (rows, columns): (usize, usize),
    accumulate: bool,
) {
    if m == 0 || rows == 0 {
        return;
    }
    let ns = product_ns(m, rows, columns);
    let (x, shared) = (&x[..m * columns], Shared::new(&mut y[..m * rows]));
    if m <= FEW_TOKENS {
        // A block of rows serves every token while it is in the cache. Blocks are even, as pairs of rows need.
        return team.ranges(rows, 16, ns, |range| {
            for start in range.clone().step_by(16) {
                let block = start..range.end.min(start + 16);
                for t in 0..m {
                    // SAFETY: `ranges` gives every row of W to one thread.
                    let y = unsafe { shared.part(t * rows + block.start..t * rows + block.end) };
                    w.dots(y, block.clone(), &x[t * columns..][..columns], accumulate);
                }
            }
        });
    }
    if m <= SOME_TOKENS {
        for first in (0..m).step_by(TOKENS) {
            let tokens = TOKENS.min(m - first);
            let width = tokens.next_multiple_of(16);
            T::with_scratch(columns * width, |packed| {
                tile::pack_columns(packed, width, &x[first * columns..], columns, tokens, columns, T::ONE);
                let packed = &*packed;
                let ns = product_ns(tokens, rows, columns);
                team.ranges(rows, 8, ns, |range| {
                    let y = Target { pointer: shared.at(first * rows), row_stride: 1, column_stride: rows };
                    // SAFETY: `y` starts in the slice that `shared` is of, and `ranges` gives every row of W, thus column of y, to one thread.
                    unsafe { rows_tiles(y, packed, width, tokens, w, range, columns, accumulate) }
                });
            });
        }
        return;
    }
    for range in panels(w, rows, LARGE_PANEL_ROWS) {
        with_panel(w, range.clone(), 0..columns, |panel, stride| {
            let sizes = Sizes { m, n: range.len(), k: columns };
            let c = Target { pointer: shared.at(range.start), row_stride: rows, column_stride: 1 };
            // SAFETY: columns `range` of y, which only this call writes; x is [m, columns] and the panel [range, columns].
            unsafe { large(team, sizes, c, Operand::rows(x, columns), Operand::columns(panel, stride), T::ONE, accumulate) }
        });
    }
}

/// Rows `range` of W against packed columns of tokens, into the columns `range` of `y`.
///
/// # Safety
/// `y` is `[tokens, rows]` transposed, its rows `range` this thread's alone.
#[allow(clippy::too_many_arguments)]
unsafe fn rows_tiles<T: Real>(
    y: Target<T>,
    packed: &[T],
    width: usize,
    tokens: usize,
    w: &impl Matrix<T>,
    range: Range<usize>,
    columns: usize,
    accumulate: bool,
) {
    for panel_start in range.clone().step_by(PANEL_ROWS) {
        let panel_rows = panel_start..range.end.min(panel_start + PANEL_ROWS);
        with_panel(w, panel_rows.clone(), 0..columns, |panel, stride| {
            let sizes = Sizes { m: panel_rows.len(), n: tokens, k: columns };
            let c = Target { pointer: y.pointer.wrapping_add(panel_start), ..y };
            // SAFETY: the caller's promise for y; the panel is [panel rows, columns], the packed tokens [columns, width ≥ tokens].
            unsafe { tile::product(sizes, c, Operand::rows(panel, stride), Operand::rows(packed, width), T::ONE, accumulate) }
        });
    }
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
    if m <= SOME_TOKENS {
        return team.ranges(columns, 32, ns, |range| {
            for units in panels(w, rows, PANEL_ROWS) {
                with_panel(w, units.clone(), range.clone(), |panel, stride| {
                    let sizes = Sizes { m, n: range.len(), k: units.len() };
                    let c = Target { pointer: shared.at(range.start), row_stride: columns, column_stride: 1 };
                    let a = Operand::rows(&a[units.start..], rows);
                    // SAFETY: columns `range` of y are this thread's; a is [m, units] and the panel [units, range].
                    unsafe { tile::product(sizes, c, a, Operand::rows(panel, stride), T::ONE, accumulate || units.start > 0) }
                });
            }
        });
    }
    for units in panels(w, rows, LARGE_PANEL_ROWS) {
        with_panel(w, units.clone(), 0..columns, |panel, stride| {
            let sizes = Sizes { m, n: columns, k: units.len() };
            let c = Target { pointer: shared.at(0), row_stride: columns, column_stride: 1 };
            let a = Operand::rows(&a[units.start..], rows);
            // SAFETY: only this call writes y; a is [m, units] and the panel [units, columns].
            unsafe { large(team, sizes, c, a, Operand::rows(panel, stride), T::ONE, accumulate || units.start > 0) }
        });
    }
}

/// `C = alpha · op(A) · op(B)`, added to C where `accumulate`; the sizes are in `product`.
pub fn buffers<T: Real>(team: &Team, c: &mut [T], a: &[T], b: &[T], product: Product) {
    let Product { m, n, k, transpose_a, transpose_b, alpha, accumulate } = product;
    let (alpha, c) = (T::from_f64(f64::from(alpha)), &mut c[..m * n]);
    let (a, b) = (&a[..m * k], &b[..k * n]);
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        if !accumulate {
            c.fill(T::ZERO);
        }
        return;
    }
    let left = if transpose_a { Operand::columns(a, m) } else { Operand::rows(a, k) };
    let right = if transpose_b { Operand::columns(b, k) } else { Operand::rows(b, n) };
    let (sizes, shared) = (Sizes { m, n, k }, Shared::new(c));
    let to = Target { pointer: shared.at(0), row_stride: n, column_stride: 1 };
    // A forward pass over some tokens: products with adapters, whose rank is small. The tile needs rows of its right operand contiguous;
    // where B is transposed, C is computed transposed, with A packed.
    if !transpose_a && m <= SOME_TOKENS {
        let ns = product_ns(m, n, k);
        if !transpose_b {
            return team.ranges(n, 32, ns, |range| {
                let (sizes, c, right) = (Sizes { m, n: range.len(), k }, to.at(0, range.start), right.at(0, range.start));
                // SAFETY: columns `range` of C are this thread's; A is [m, k] and B [k, n].
                unsafe { tile::product(sizes, c, left, right, alpha, accumulate) }
            });
        }
        for first in (0..m).step_by(TOKENS) {
            let tokens = TOKENS.min(m - first);
            let width = tokens.next_multiple_of(16);
            T::with_scratch(k * width, |packed| {
                tile::pack_columns(packed, width, &a[first * k..], k, tokens, k, alpha);
                let packed = &*packed;
                team.ranges(n, 8, product_ns(tokens, n, k), |range| {
                    let sizes = Sizes { m: range.len(), n: tokens, k };
                    let c = Target { pointer: shared.at(first * n + range.start), row_stride: 1, column_stride: n };
                    // SAFETY: columns `range` of C are this thread's; B is [n, k], the packed tokens [k, width ≥ tokens].
                    unsafe {
                        tile::product(sizes, c, Operand::rows(&b[range.start * k..], k), Operand::rows(packed, width), T::ONE, accumulate)
                    }
                });
            });
        }
        return;
    }
    // SAFETY: C is this call's alone; op(A) is [m, k] and op(B) [k, n].
    unsafe { large(team, sizes, to, left, right, alpha, accumulate) }
}

/// Ranges of rows of which a panel is made: all rows at once where nothing needs widening.
fn panels<T: Real, W: Matrix<T>>(_: &W, rows: usize, panel_rows: usize) -> impl Iterator<Item = Range<usize>> + use<T, W> {
    let panel_rows = if W::IN_PLACE { rows } else { panel_rows };
    (0..rows).step_by(panel_rows.max(1)).map(move |start| start..rows.min(start + panel_rows))
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

/// A product by the `gemm` crate, on all threads where it is large enough.
///
/// # Safety
/// Every element of A and B can be read, every element of C written by this call alone; C overlaps neither.
unsafe fn large<T: Real>(team: &Team, sizes: Sizes, c: Target<T>, a: Operand<T>, b: Operand<T>, alpha: T, accumulate: bool) {
    let Sizes { m, n, k } = sizes;
    let stride = |stride: usize| stride as isize;
    let call = move |parallelism| {
        let (c, a, b) = (c, a, b);
        // SAFETY: the caller's promise. `gemm` computes `alpha · C + beta · A · B`.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                c.pointer,
                stride(c.column_stride),
                stride(c.row_stride),
                accumulate,
                a.pointer,
                stride(a.column_stride),
                stride(a.row_stride),
                b.pointer,
                stride(b.column_stride),
                stride(b.row_stride),
                if accumulate { T::ONE } else { T::ZERO },
                alpha,
                false,
                false,
                false,
                parallelism,
            );
        }
    };
    if team.worth(product_ns(m, n, k)) {
        let threads = team.threads();
        team.enter(move || call(Parallelism::Rayon(threads)));
    } else {
        call(Parallelism::None);
    }
}
