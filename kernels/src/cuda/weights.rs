//! What reads a stored matrix row by row: launches `weights.cu`.

use super::elementwise::blocks;
use super::launch::{Args, Grid, Work};
use super::memory::{Buffer, Indices, Pointer};
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

/// Bytes of a stored number of a format that is not quantised.
pub(super) fn number_bytes(format: Format) -> u64 {
    if format == Format::F32 { 4 } else { 2 }
}

/// Bytes of `numbers` of a matrix; of quantised ones with their share of scales and minima.
fn table_bytes(format: Format, numbers: u64) -> u64 {
    match format {
        Format::Q8 | Format::Q8Units => numbers.saturating_mul(32 + 2).div_ceil(32),
        Format::Q4 | Format::Q4Units => numbers.saturating_mul(16 + 4).div_ceil(32),
        format => numbers.saturating_mul(number_bytes(format)),
    }
}

/// The argument for the numbers of a matrix, and those for its scales and minima.
fn table_args(args: Args, table: &Weight) -> Result<Args> {
    Ok(match table.quants()? {
        Some(planes) => args.pointer(planes.quants).pointer(planes.scales).pointer(planes.minima),
        None => args.pointer(table.pointer()?).pointer(Pointer::NULL).pointer(Pointer::NULL),
    })
}

/// A pass over `table` numbers of a matrix and `numbers` of f32, with one operation each of the former.
fn pass(format: Format, table: usize, numbers: usize) -> Work {
    let (table, numbers) = (table as u64, numbers as u64);
    Work { bytes: table_bytes(format, table).saturating_add(numbers.saturating_mul(4)), flops: table }
}

pub(super) fn embed(device: &CudaDevice, out: &mut Buffer, table: &Weight, ids: &Indices, count: usize) -> Result<()> {
    const NAME: &str = "embed";
    let (rows, columns) = table.shape();
    let out = output(NAME, "out", out, &[count, columns])?;
    let at = input(NAME, "ids", ids, &[count])?;
    check_ids(NAME, ids, count, rows)?;
    let numbers = count * columns;
    let args = table_args(Args::new().pointer(out), table)?.pointer(at);
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
    stored: Option<&Indices>,
) -> Result<()> {
    const NAME: &str = "add_positions";
    let (rows, columns) = table.shape();
    let x = output(NAME, "x", x, &[batch, sequence, columns])?;
    let first = start.saturating_add(stored.map_or(Ok(0), Indices::first)?);
    require(NAME, first.checked_add(sequence).is_some_and(|end| end <= rows), || {
        format!("positions {first} to {first} + {sequence} were asked for, but the table has {rows}")
    })?;
    let at = match stored {
        Some(stored) => {
            stored.note_limit((rows - start - sequence).saturating_add(1));
            input(NAME, "start", stored, &[1])?
        }
        None => Pointer::NULL,
    };
    let numbers = batch * sequence * columns;
    let args = table_args(Args::new().pointer(x), table)?.pointer(at).u32(size32(NAME, "batch", batch)?);
    let args = args.u32(size32(NAME, "sequence", sequence)?).u32(size32(NAME, "columns", columns)?).u32(size32(NAME, "start", start)?);
    let work = Work { flops: numbers as u64, ..pass(table.format(), sequence * columns, 2 * numbers) };
    device.launch(NAME, Grid::linear(numbers, THREADS)?, args.u32(number_of(table.format())), work)
}

pub(super) fn row_l1(device: &CudaDevice, out: &mut Buffer, w: &Weight) -> Result<()> {
    const NAME: &str = "row_l1";
    let (rows, columns) = w.shape();
    let out = output(NAME, "out", out, &[rows])?;
    let args = table_args(Args::new().pointer(out), w)?.u32(size32(NAME, "rows", rows)?).u32(size32(NAME, "columns", columns)?);
    let grid = blocks(rows.div_ceil(ROWS_OF_BLOCK), THREADS)?;
    device.launch(NAME, grid, args.u32(number_of(w.format())), pass(w.format(), rows * columns, rows))
}
