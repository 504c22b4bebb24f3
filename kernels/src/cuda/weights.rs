//! What reads a stored matrix row by row: launches `weights.cu`.

use super::elementwise::blocks;
use super::launch::{Args, Grid, Work};
use super::memory::{Buffer, Indices};
use super::sequence::check_ids;
use super::weight::Weight;
use super::{CudaDevice, input, output, require, size32};
use crate::device::Format;
use crate::error::Result;

const THREADS: u32 = 256;
/// A warp takes a row.
const ROWS_OF_BLOCK: usize = THREADS as usize / 32;

/// As `weights::Format` in `weights.cu`.
fn number_of(format: Format) -> u32 {
    match format {
        Format::F32 => 0,
        Format::F16 => 1,
        Format::Bf16 => 2,
        Format::F16Pairs => 3,
        Format::Bf16Pairs => 4,
        Format::Q8 => 5,
        Format::Q4 => 6,
        Format::Q8Units => 7,
        Format::Q4Units => 8,
    }
}

/// Bytes of a stored number.
pub(super) fn number_bytes(format: Format) -> u64 {
    match format {
        Format::F32 => 4,
        _ if format.is_quantised() => 1,
        _ => 2,
    }
}

/// A pass over `table` numbers of a matrix and `numbers` of f32, with one operation each of the former.
fn pass(format: Format, table: usize, numbers: usize) -> Work {
    let (table, numbers) = (table as u64, numbers as u64);
    Work { bytes: table.saturating_mul(number_bytes(format)).saturating_add(numbers.saturating_mul(4)), flops: table }
}

pub(super) fn embed(device: &CudaDevice, out: &mut Buffer, table: &Weight, ids: &Indices, count: usize) -> Result<()> {
    const NAME: &str = "embed";
    let (rows, columns) = table.shape();
    let out = output(NAME, "out", out, &[count, columns])?;
    let at = input(NAME, "ids", ids, &[count])?;
    check_ids(NAME, ids, count, rows)?;
    let numbers = count * columns;
    let args = Args::new().pointer(out).pointer(table.pointer()?).pointer(at);
    let args = args.u32(size32(NAME, "count", count)?).u32(size32(NAME, "columns", columns)?).u32(number_of(table.format()));
    device.launch(NAME, Grid::linear(numbers, THREADS)?, args, Work { flops: 0, ..pass(table.format(), numbers, numbers + count) })
}

pub(super) fn add_positions(
    device: &CudaDevice,
    x: &mut Buffer,
    table: &Weight,
    batch: usize,
    sequence: usize,
    start: usize,
) -> Result<()> {
    const NAME: &str = "add_positions";
    let (rows, columns) = table.shape();
    let x = output(NAME, "x", x, &[batch, sequence, columns])?;
    require(NAME, start.checked_add(sequence).is_some_and(|end| end <= rows), || {
        format!("positions {start} to {start} + {sequence} were asked for, but the table has {rows}")
    })?;
    let numbers = batch * sequence * columns;
    let args = Args::new().pointer(x).pointer(table.pointer()?).u32(size32(NAME, "batch", batch)?);
    let args = args.u32(size32(NAME, "sequence", sequence)?).u32(size32(NAME, "columns", columns)?).u32(size32(NAME, "start", start)?);
    let work = Work { flops: numbers as u64, ..pass(table.format(), sequence * columns, 2 * numbers) };
    device.launch(NAME, Grid::linear(numbers, THREADS)?, args.u32(number_of(table.format())), work)
}

pub(super) fn row_l1(device: &CudaDevice, out: &mut Buffer, w: &Weight) -> Result<()> {
    const NAME: &str = "row_l1";
    let (rows, columns) = w.shape();
    let out = output(NAME, "out", out, &[rows])?;
    let args = Args::new().pointer(out).pointer(w.pointer()?).u32(size32(NAME, "rows", rows)?).u32(size32(NAME, "columns", columns)?);
    let grid = blocks(rows.div_ceil(ROWS_OF_BLOCK), THREADS)?;
    device.launch(NAME, grid, args.u32(number_of(w.format())), pass(w.format(), rows * columns, rows))
}
