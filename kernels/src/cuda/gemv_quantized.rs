//! Products of quantised weights with one token, where the blocks run along the sum: launches `gemv_quantized.cu`.

use super::epilogue::Terms;
use super::launch::{Args, Grid, Work};
use super::memory::Pointer;
use super::planes::Quants;
use super::products::{ACCUMULATE, Sizes, VECTOR_A, VECTOR_B, flag, joined, multiprocessors, vector};
use super::products_quantized::{quants_args, unexpected};
use super::{CudaDevice, size32};
use crate::device::Format;
use crate::error::Result;
use crate::format::BLOCK;

/// The most tokens. Several have more sums in flight than a lane has registers for, and go to the tensor cores, which wait for the weights
/// as this does.
pub(super) const TOKENS: usize = 1;

/// The warps of a block in the row-dot form, and in the unit-row form.
const ROW_WARPS: usize = 4;
const UNIT_WARPS: usize = 8;

/// The rows of a warp in the row-dot form, and the lanes that share the columns of a row.
const WARP_ROWS: usize = 16;
const ROW_LANES: usize = 8;

/// The columns of a block of threads in the unit-row form: four a lane.
const UNIT_COLUMNS: usize = 32 * 4;

/// As in `gemv_quantized.cu`.
const GATED: u32 = 128;

/// The most matrices of a launch in row-dot form.
pub(super) const MOST: usize = 3;

/// A matrix of a launch in row-dot form, and its result.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub y: Pointer,
    pub w: Quants,
    pub rows: usize,
    pub bias: Pointer,
}

pub(super) fn rows_form(device: &CudaDevice, sizes: &Sizes, y: Pointer, x: Pointer, w: Quants, terms: &Terms) -> Result<()> {
    if sizes.m == 0 || sizes.n == 0 {
        return Ok(());
    }
    let work = sizes.work_with(w.bytes).plus(terms.work(sizes.m, sizes.n));
    let flags = flag(sizes.accumulate, ACCUMULATE);
    rows_together(device, sizes.operation, &[Rows { y, w, rows: sizes.n, bias: terms.bias() }], (x, sizes.k), flags, terms, work)
}

/// Up and gate, of as many rows each, and what follows them: `f(gate · x) · (up · x)`, in the place of the gate's result.
pub(super) fn rows_gated(
    device: &CudaDevice,
    operation: &'static str,
    up_and_gate: &[Rows; 2],
    x: (Pointer, usize),
    terms: &Terms,
    work: Work,
) -> Result<()> {
    rows_together(device, operation, up_and_gate, x, GATED, terms, work)
}

/// One to [`MOST`] matrices of one format in one launch, each with its own bias, and `terms`, if there is one matrix or it is gated. `x` is
/// where the activations are, and how many.
pub(super) fn rows_together(
    device: &CudaDevice,
    operation: &'static str,
    matrices: &[Rows],
    (x, columns): (Pointer, usize),
    flags: u32,
    terms: &Terms,
    work: Work,
) -> Result<()> {
    // The kernel, and the columns of 16 bytes of the matrix.
    let format = matrices[0].w.format;
    let (kernel, chunk) = match format {
        Format::Q8 => ("gemv_rows_q8", 16),
        Format::Q4 => ("gemv_rows_q4", 32),
        format => return Err(unexpected(operation, format)),
    };
    // It takes some 16 warps a multiprocessor to keep memory busy: with fewer rows several share them, down to one load of every lane. Up and
    // gate take turns within a block, which leaves two warps for a row.
    let gated = flags & GATED != 0;
    let warps = |matrix: &Rows| matrix.rows.div_ceil(WARP_ROWS);
    let (all, chunks) = (matrices.iter().map(warps).sum::<usize>(), columns.div_ceil(chunk));
    let enough = |split: usize| all * split >= 16 * multiprocessors(device) || chunks < 2 * split * ROW_LANES;
    let most = if gated { 2 } else { 4 };
    let split = [1, 2, 4].into_iter().find(|split| *split == most || enough(*split)).unwrap_or(most);
    let groups = ROW_WARPS / split / if gated { 2 } else { 1 };
    let (mut rows, mut blocks) = ([0; MOST], [0; MOST]);
    for (i, matrix) in matrices.iter().enumerate() {
        rows[i] = size32(operation, "rows", matrix.rows)?;
        blocks[i] = size32(operation, "rows", warps(matrix).div_ceil(groups))?;
    }
    let total = if gated { Some(blocks[0]) } else { blocks.iter().try_fold(0_u32, |total, blocks| total.checked_add(*blocks)) };
    let total = size32(operation, "blocks", total.map_or(usize::MAX, |total| total as usize))?;
    let each = |args: Args, pointer: fn(&Rows) -> Pointer| {
        (0..MOST).fold(args, |args, i| args.pointer(matrices.get(i).map_or(Pointer::NULL, pointer)))
    };
    let args = each(Args::new(), |matrix| matrix.y).pointer(x);
    let args = each(each(args, |matrix| matrix.w.quants), |matrix| matrix.w.scales);
    let args = if format == Format::Q4 { each(args, |matrix| matrix.w.minima) } else { args };
    // Those of the second and the third stand before the terms, which begin with that of the first.
    let args = [1, 2].into_iter().fold(args, |args, i| args.pointer(matrices.get(i).map_or(Pointer::NULL, |matrix| matrix.bias)));
    let args = terms.with_bias(matrices[0].bias).pointers(args, true);
    let args = rows.into_iter().fold(args, Args::u32).u32(blocks[0]).u32(blocks[1]);
    let args = args.u32(size32(operation, "columns", columns)?).u32(split as u32);
    let args = terms.numbers(args.u32(vector(x, columns, 4, VECTOR_A) | flags | terms.flags()), true);
    device.launch(kernel, Grid { blocks: [total, 1, 1], threads: 32 * ROW_WARPS as u32, shared_bytes: 0 }, args, work)
}

pub(super) fn units_form(device: &CudaDevice, sizes: &Sizes, y: Pointer, a: Pointer, w: Quants, terms: &Terms) -> Result<()> {
    if sizes.m == 0 || sizes.n == 0 {
        return Ok(());
    }
    // The kernel, and the loads of a block of 32 rows.
    let (kernel, loads) = match w.format {
        Format::Q8Units => ("gemv_units_q8_interleaved", 8),
        Format::Q4Units => ("gemv_units_q4_interleaved", 4),
        format => return Err(unexpected(sizes.operation, format)),
    };
    let (_, columns, rows) = sizes.args32()?;
    let (blocks, steps) = (sizes.n.div_ceil(UNIT_COLUMNS), sizes.k.div_ceil(BLOCK));
    // Two blocks a multiprocessor; but 4 loads for every lane, or the sums of the parts would cost more than is won.
    let least = UNIT_WARPS * 4_usize.div_ceil(loads);
    let splits = (2 * multiprocessors(device)).div_ceil(blocks).min(steps / least).max(1);
    let each = steps.div_ceil(splits).max(1);
    let splits = steps.div_ceil(each).max(1);
    let vectors = vector(a, sizes.k, 4, VECTOR_A) | vector(w.quants, sizes.n, 4, VECTOR_B);
    joined(device, sizes, y, (blocks, splits), |args, flags, summing| {
        let size = |name, n| size32(sizes.operation, name, n);
        let args = terms.pointers(quants_args(args.pointer(a), &w), false).u32(rows).u32(columns);
        let args = terms.numbers(args.u32(size("rows", each)?).u32(flags | vectors | terms.flags()), false);
        let grid = Grid { blocks: [size("columns", blocks)?, size("rows", splits)?, 1], threads: 32 * UNIT_WARPS as u32, shared_bytes: 0 };
        device.launch(kernel, grid, args, sizes.work_with(w.bytes).plus(terms.work(sizes.m, sizes.n)).plus(summing))
    })
}
