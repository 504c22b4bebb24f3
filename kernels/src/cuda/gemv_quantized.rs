//! Products of quantised weights with one token, where the blocks run along the sum: launches `gemv_quantized.cu`.

use super::epilogue::Terms;
use super::launch::{Args, Grid};
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

pub(super) fn rows_form(device: &CudaDevice, sizes: &Sizes, y: Pointer, x: Pointer, w: Quants, terms: &Terms) -> Result<()> {
    if sizes.m == 0 || sizes.n == 0 {
        return Ok(());
    }
    // The kernel, and the columns of 16 bytes of the matrix.
    let (kernel, chunk) = match w.format {
        Format::Q8 => ("gemv_rows_q8", 16),
        Format::Q4 => ("gemv_rows_q4", 32),
        format => return Err(unexpected(sizes.operation, format)),
    };
    let (_, rows, columns) = sizes.args32()?;
    // It takes some 16 warps a multiprocessor to keep memory busy: with fewer rows several share them, down to one load of every lane.
    let (warps, chunks) = (sizes.n.div_ceil(WARP_ROWS), sizes.k.div_ceil(chunk));
    let enough = |split: usize| warps * split >= 16 * multiprocessors(device) || chunks < 2 * split * ROW_LANES;
    let split = [1, 2, 4].into_iter().find(|split| enough(*split)).unwrap_or(4);
    let vectors = vector(x, sizes.k, 4, VECTOR_A) | vector(w.quants, sizes.k, 4, VECTOR_B);
    let args = terms.pointers(quants_args(Args::new().pointer(y).pointer(x), &w), true);
    let args = args.u32(rows).u32(columns).u32(split as u32);
    let args = terms.numbers(args.u32(vectors | flag(sizes.accumulate, ACCUMULATE) | terms.flags()), true);
    let blocks = [size32(sizes.operation, "rows", warps.div_ceil(ROW_WARPS / split))?, 1, 1];
    let grid = Grid { blocks, threads: 32 * ROW_WARPS as u32, shared_bytes: 0 };
    device.launch(kernel, grid, args, sizes.work_with(w.bytes).plus(terms.work(sizes.m, sizes.n)))
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
