//! Products of quantised weights with few tokens: launches `gemv_quantized.cu`.

use super::epilogue::{Terms, is_fused_by_rows, is_fused_by_units};
use super::gemv::{for_tokens, gemv_kernels};
use super::launch::{Args, Grid};
use super::memory::Pointer;
use super::planes::Quants;
use super::products::{ACCUMULATE, Sizes, VECTOR_A, VECTOR_B, finished, flag, multiprocessors, vector};
use super::products_quantized::{quants_args, unexpected};
use super::{CudaDevice, size32};
use crate::device::Format;
use crate::error::Result;
use crate::format::BLOCK;

/// The warps of a block in the row-dot form, and in the unit-row form.
const ROW_WARPS: usize = 4;
const UNIT_WARPS: usize = 8;

/// Columns of 16 bytes of a matrix.
fn chunk_columns(format: Format) -> usize {
    match format {
        Format::Q8 => 16,
        Format::Q4 => 32,
        _ => 4,
    }
}

/// How tokens are gone through: a kernel, and how many it takes at a time.
fn at_a_time(kernels: [&'static str; 2], most: usize, m: usize) -> (&'static str, usize) {
    if m <= 1 { (kernels[0], 1) } else { (kernels[1], most) }
}

pub(super) fn rows_form(device: &CudaDevice, sizes: &Sizes, y: Pointer, x: Pointer, w: Quants, terms: &Terms) -> Result<()> {
    if sizes.m == 0 || sizes.n == 0 {
        return Ok(());
    }
    let one = sizes.m == 1;
    // The kernel, the tokens that it takes at a time, the rows of a warp, and the lanes that share the columns of a row.
    let ((kernel, tokens), rows_of_warp, lanes) = match w.format {
        Format::Q8 => ((for_tokens(gemv_kernels!("gemv_rows_q8"), sizes.m), sizes.m), if one { 16 } else { 32 }, if one { 8 } else { 4 }),
        Format::Q4 => ((for_tokens(gemv_kernels!("gemv_rows_q4"), sizes.m), sizes.m), if one { 16 } else { 32 }, if one { 8 } else { 4 }),
        Format::Q8Units => {
            (at_a_time(["gemv_rows_q8_interleaved_1", "gemv_rows_q8_interleaved_4"], 4, sizes.m), if one { 32 } else { 16 }, 32)
        }
        Format::Q4Units => {
            (at_a_time(["gemv_rows_q4_interleaved_1", "gemv_rows_q4_interleaved_4"], 4, sizes.m), if one { 32 } else { 16 }, 32)
        }
        format => return Err(unexpected(sizes.operation, format)),
    };
    let (m, rows, columns) = sizes.args32()?;
    // It takes some 16 warps a multiprocessor to keep memory busy: with fewer rows several share them, down to one load of every lane.
    let (warps, chunks) = (sizes.n.div_ceil(rows_of_warp), sizes.k.div_ceil(chunk_columns(w.format)));
    let enough = |split: usize| warps * split >= 16 * multiprocessors(device) || chunks < 2 * split * lanes;
    let split = [1, 2, 4].into_iter().find(|split| enough(*split)).unwrap_or(4);
    let vectors = vector(x, sizes.k, 4, VECTOR_A) | vector(w.quants, sizes.k, 4, VECTOR_B);
    let args = quants_args(Args::new().pointer(y).pointer(x), &w);
    let forward = is_fused_by_rows(w.format);
    let args = if forward { terms.pointers(args, true) } else { args }.u32(m).u32(rows).u32(columns).u32(split as u32);
    let args = args.u32(vectors | flag(sizes.accumulate, ACCUMULATE) | terms.flags());
    let args = if forward { terms.numbers(args, true) } else { args };
    let size = |name, n| size32(sizes.operation, name, n);
    let blocks = [size("rows", warps.div_ceil(ROW_WARPS / split))?, 1, size("tokens", sizes.m.div_ceil(tokens))?];
    let grid = Grid { blocks, threads: 32 * ROW_WARPS as u32, shared_bytes: 0 };
    device.launch(kernel, grid, args, sizes.work_with(w.bytes).plus(terms.work(sizes.m, sizes.n)))
}

pub(super) fn units_form(device: &CudaDevice, sizes: &Sizes, y: Pointer, a: Pointer, w: Quants, terms: &Terms) -> Result<()> {
    if sizes.m == 0 || sizes.n == 0 {
        return Ok(());
    }
    // The kernel, the tokens that it takes at a time, the rows of a step, and the loads of it.
    let ((kernel, tokens), step, loads) = match w.format {
        Format::Q8 => (at_a_time(["gemv_units_q8_1", "gemv_units_q8_4"], 4, sizes.m), 1, 1),
        Format::Q4 => (at_a_time(["gemv_units_q4_1", "gemv_units_q4_2"], 2, sizes.m), 1, 1),
        Format::Q8Units => ((for_tokens(gemv_kernels!("gemv_units_q8_interleaved"), sizes.m), sizes.m), BLOCK, 8),
        Format::Q4Units => ((for_tokens(gemv_kernels!("gemv_units_q4_interleaved"), sizes.m), sizes.m), BLOCK, 4),
        format => return Err(unexpected(sizes.operation, format)),
    };
    let (m, columns, rows) = sizes.args32()?;
    let (blocks, steps) = (sizes.n.div_ceil(32 * chunk_columns(w.format)), sizes.k.div_ceil(step));
    // Two blocks a multiprocessor; but 4 loads for every lane, or the sums of the parts would cost more than is won.
    let least = UNIT_WARPS * 4_usize.div_ceil(loads);
    let splits = (2 * multiprocessors(device)).div_ceil(blocks).min(steps / least).max(1);
    let each = steps.div_ceil(splits).max(1);
    let splits = steps.div_ceil(each).max(1);
    let vectors = vector(a, sizes.k, 4, VECTOR_A) | vector(w.quants, sizes.n, 4, VECTOR_B);
    finished(device, sizes, terms, y, splits, |to, flags, terms| {
        let size = |name, n| size32(sizes.operation, name, n);
        let args = quants_args(Args::new().pointer(to).pointer(a), &w);
        let forward = is_fused_by_units(w.format);
        let args = if forward { terms.pointers(args, false) } else { args }.u32(m).u32(rows).u32(columns);
        let args = args.u32(size("rows", each)?).u32(flags | vectors);
        let args = if forward { terms.numbers(args, false) } else { args };
        let blocks = [size("columns", blocks)?, size("rows", splits)?, size("tokens", sizes.m.div_ceil(tokens))?];
        let grid = Grid { blocks, threads: 32 * UNIT_WARPS as u32, shared_bytes: 0 };
        device.launch(kernel, grid, args, sizes.work_with(w.bytes).plus(terms.work(sizes.m, sizes.n)))
    })
}
