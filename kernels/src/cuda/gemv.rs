//! Products with few tokens: launches `gemv_rows.cu` and `gemv_units.cu`.

use super::epilogue::Terms;
use super::launch::{Args, Grid};
use super::memory::Pointer;
use super::products::{ACCUMULATE, Sizes, VECTOR_B, flag, joined, multiprocessors, vector};
use super::products_quantized::unexpected;
use super::weights::number_bytes;
use super::{CudaDevice, size32};
use crate::device::Format;
use crate::error::Result;

/// The most tokens. With more, a lane would hold more sums than it has registers, and a weight that was loaded is used often enough for
/// tiles to be worth it.
pub(super) const TOKENS: usize = 8;

/// The kernels of a form and a format by the most tokens: 1, 4, 8.
macro_rules! gemv_kernels {
    ($name:literal) => {
        [concat!($name, "_1"), concat!($name, "_4"), concat!($name, "_8")]
    };
}

/// The kernel for `m` tokens.
fn for_tokens(kernels: [&'static str; 3], m: usize) -> &'static str {
    match m {
        0 | 1 => kernels[0],
        2..=4 => kernels[1],
        _ => kernels[2],
    }
}

/// The rows and columns of 16 bytes of a matrix.
pub(super) fn chunk(format: Format) -> (usize, usize) {
    match format {
        Format::F16 | Format::Bf16 => (1, 8),
        Format::F16Pairs | Format::Bf16Pairs => (2, 4),
        _ => (1, 4),
    }
}

/// How many warps share four of `rows` rows in row-dot form. A warp has 4 rows. It takes some 16 warps a multiprocessor to keep memory busy:
/// with fewer rows several share them, down to one load of every lane.
pub(super) fn warps_a_row(device: &CudaDevice, rows: usize, columns: usize, chunk_columns: usize) -> usize {
    let warps = rows.div_ceil(4);
    let enough = |split: usize| warps * split >= 16 * multiprocessors(device) || columns < 2 * split * 32 * chunk_columns;
    [1, 2, 4].into_iter().find(|split| enough(*split)).unwrap_or(4)
}

pub(super) fn rows_form(
    device: &CudaDevice,
    sizes: &Sizes,
    y: Pointer,
    x: Pointer,
    w: Pointer,
    format: Format,
    terms: &Terms,
) -> Result<()> {
    if sizes.m == 0 || sizes.n == 0 {
        return Ok(());
    }
    let kernels = match format {
        Format::F32 => gemv_kernels!("gemv_rows_f32"),
        Format::F16 => gemv_kernels!("gemv_rows_f16"),
        Format::Bf16 => gemv_kernels!("gemv_rows_bf16"),
        Format::F16Pairs => gemv_kernels!("gemv_rows_f16_pairs"),
        Format::Bf16Pairs => gemv_kernels!("gemv_rows_bf16_pairs"),
        Format::Q8 | Format::Q4 | Format::Q8Units | Format::Q4Units => return Err(unexpected(sizes.operation, format)),
    };
    let (m, rows, columns) = sizes.args32()?;
    let (_, chunk_columns) = chunk(format);
    let split = warps_a_row(device, sizes.n, sizes.k, chunk_columns);
    let vectors = vector(x, sizes.k, chunk_columns, VECTOR_B) & vector(w, sizes.k, chunk_columns, VECTOR_B);
    let args = terms.pointers(Args::new().pointer(y).pointer(x).pointer(w), true);
    let args = args.u32(m).u32(rows).u32(columns).u32(split as u32).f32(sizes.alpha);
    let blocks = size32(sizes.operation, "rows", sizes.n.div_ceil(4).div_ceil(4 / split))?;
    let grid = Grid { blocks: [blocks, 1, 1], threads: 128, shared_bytes: 0 };
    let args = terms.numbers(args.u32(vectors | flag(sizes.accumulate, ACCUMULATE) | terms.flags()), true);
    let work = sizes.work(number_bytes(format)).plus(terms.work(sizes.m, sizes.n));
    device.launch(for_tokens(kernels, sizes.m), grid, args, work)
}

pub(super) fn units_form(
    device: &CudaDevice,
    sizes: &Sizes,
    y: Pointer,
    a: Pointer,
    w: Pointer,
    format: Format,
    terms: &Terms,
) -> Result<()> {
    if sizes.m == 0 || sizes.n == 0 {
        return Ok(());
    }
    let kernels = match format {
        Format::F32 => gemv_kernels!("gemv_units_f32"),
        Format::F16 => gemv_kernels!("gemv_units_f16"),
        Format::Bf16 => gemv_kernels!("gemv_units_bf16"),
        Format::F16Pairs => gemv_kernels!("gemv_units_f16_pairs"),
        Format::Bf16Pairs => gemv_kernels!("gemv_units_bf16_pairs"),
        Format::Q8 | Format::Q4 | Format::Q8Units | Format::Q4Units => return Err(unexpected(sizes.operation, format)),
    };
    let (m, columns, rows) = sizes.args32()?;
    let (chunk_rows, chunk_columns) = chunk(format);
    let (blocks, outers) = (sizes.n.div_ceil(32 * chunk_columns), sizes.k.div_ceil(chunk_rows));
    // Two blocks of 8 warps a multiprocessor; but 4 loads for every lane, or the sums of the parts would cost more than is won.
    let splits = (2 * multiprocessors(device)).div_ceil(blocks).min(outers / (8 * 4)).max(1);
    let each = outers.div_ceil(splits).max(1);
    let splits = outers.div_ceil(each).max(1);
    let vectors = vector(w, sizes.n, chunk_columns, VECTOR_B);
    joined(device, sizes, y, (blocks, splits), |args, flags, summing| {
        let args = terms.pointers(args.pointer(a).pointer(w), false).u32(m).u32(rows).u32(columns);
        let args = args.u32(size32(sizes.operation, "rows", each)?).f32(sizes.alpha).u32(flags | vectors | terms.flags());
        let args = terms.numbers(args, false);
        let (x, y) = (size32(sizes.operation, "columns", blocks)?, size32(sizes.operation, "rows", splits)?);
        let grid = Grid { blocks: [x, y, 1], threads: 256, shared_bytes: 0 };
        let work = sizes.work(number_bytes(format)).plus(terms.work(sizes.m, sizes.n)).plus(summing);
        device.launch(for_tokens(kernels, sizes.m), grid, args, work)
    })
}
