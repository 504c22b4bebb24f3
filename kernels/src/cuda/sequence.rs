//! Patches, means over a sequence, and the gradients of tables: launches `sequence.cu`.

use super::elementwise::{blocks, work};
use super::launch::{Args, Grid};
use super::memory::{Buffer, Indices};
use super::{CudaDevice, input, output, require, size32};
use crate::error::{KernelError, Result};

const THREADS: u32 = 256;
/// Columns of a block that takes a mean.
const STRIPE: usize = 32;

/// Refuses an index that a table of `rows` has no row for.
pub(super) fn check_ids(operation: &'static str, ids: &Indices, count: usize, rows: usize) -> Result<()> {
    ids.note_limit(rows);
    match ids.host(count).iter().enumerate().find(|(_, id)| **id as usize >= rows) {
        Some((position, id)) => Err(KernelError::Shape {
            operation,
            detail: format!("index {id} at position {position} is not below the {rows} rows of the table"),
        }),
        None => Ok(()),
    }
}

pub(super) fn embed_backward(
    device: &CudaDevice,
    d_table: &mut Buffer,
    dy: &Buffer,
    ids: &Indices,
    count: usize,
    columns: usize,
) -> Result<()> {
    const NAME: &str = "embed_backward";
    let dy = input(NAME, "dy", dy, &[count, columns])?;
    let at = input(NAME, "ids", ids, &[count])?;
    let Some(rows) = d_table.len().checked_div(columns) else { return Ok(()) };
    check_ids(NAME, ids, count, rows)?;
    let d_table = output(NAME, "d_table", d_table, &[rows, columns])?;
    let (count32, columns32) = (size32(NAME, "count", count)?, size32(NAME, "columns", columns)?);
    let y = size32(NAME, "columns", columns.div_ceil(THREADS as usize))?;
    let grid = Grid { blocks: [count32, y, 1], threads: THREADS, shared_bytes: 0 };
    let args = Args::new().pointer(d_table).pointer(dy).pointer(at).u32(count32).u32(columns32);
    device.launch(NAME, grid, args, work(3 * count * columns + count, count * columns))
}

pub(super) fn positions_backward(
    device: &CudaDevice,
    d_table: &mut Buffer,
    dy: &Buffer,
    batch: usize,
    sequence: usize,
    columns: usize,
    start: usize,
) -> Result<()> {
    const NAME: &str = "positions_backward";
    let dy = input(NAME, "dy", dy, &[batch, sequence, columns])?;
    let end = start
        .checked_add(sequence)
        .ok_or_else(|| KernelError::Shape { operation: NAME, detail: format!("position {start} + {sequence} is out of range") })?;
    let d_table = output(NAME, "d_table", d_table, &[end, columns])?;
    if batch == 0 {
        return Ok(());
    }
    let numbers = sequence * columns;
    let args = Args::new().pointer(d_table).pointer(dy).u32(size32(NAME, "batch", batch)?);
    let args = args.u64(numbers as u64).u64((start * columns) as u64);
    device.launch(NAME, Grid::linear(numbers, THREADS)?, args, work((batch + 2) * numbers, batch * numbers))
}

pub(super) fn patches(
    device: &CudaDevice,
    out: &mut Buffer,
    windows: &Buffer,
    batch: usize,
    window: usize,
    patch: usize,
    stride: usize,
) -> Result<()> {
    const NAME: &str = "patches";
    require(NAME, patch > 0 && stride > 0 && patch <= window, || {
        format!("a window of {window} samples cannot be cut into patches of {patch} every {stride} samples")
    })?;
    let count = (window - patch) / stride + 1;
    let out = output(NAME, "out", out, &[batch, count, patch])?;
    let windows = input(NAME, "windows", windows, &[batch, window])?;
    let len = batch * count * patch;
    // A stride beyond the window is never walked.
    let stride = stride.min(window);
    let args = Args::new().pointer(out).pointer(windows).u64(len as u64).u32(size32(NAME, "window", window)?);
    let args = args.u32(size32(NAME, "patches", count)?).u32(size32(NAME, "patch", patch)?).u32(size32(NAME, "stride", stride)?);
    device.launch(NAME, Grid::linear(len, THREADS)?, args, work(len + batch * window, 0))
}

pub(super) fn mean_pool(device: &CudaDevice, out: &mut Buffer, x: &Buffer, batch: usize, sequence: usize, d: usize) -> Result<()> {
    const NAME: &str = "mean_pool";
    let out = output(NAME, "out", out, &[batch, d])?;
    let x = input(NAME, "x", x, &[batch, sequence, d])?;
    require(NAME, sequence > 0, || "a sequence without positions has no mean".to_string())?;
    if batch == 0 || d == 0 {
        return Ok(());
    }
    let args = Args::new().pointer(out).pointer(x).u32(size32(NAME, "sequence", sequence)?).u32(size32(NAME, "d", d)?);
    device.launch(NAME, blocks(d.div_ceil(STRIPE) * batch, THREADS)?, args, work(batch * (sequence + 1) * d, batch * sequence * d))
}

pub(super) fn mean_pool_backward(device: &CudaDevice, dx: &mut Buffer, dy: &Buffer, batch: usize, sequence: usize, d: usize) -> Result<()> {
    const NAME: &str = "mean_pool_backward";
    let dx = output(NAME, "dx", dx, &[batch, sequence, d])?;
    let dy = input(NAME, "dy", dy, &[batch, d])?;
    let len = batch * sequence * d;
    let args = Args::new().pointer(dx).pointer(dy).u64(len as u64).u32(size32(NAME, "sequence", sequence)?).u32(size32(NAME, "d", d)?);
    device.launch(NAME, Grid::linear(len, THREADS)?, args, work(len + batch * d, len))
}
