//! Element by element, and sums over rows: launches `elementwise.cu`.

use super::launch::{Args, Grid, Work};
use super::memory::{Buffer, Pointer};
use super::{CudaDevice, input, output, size32};
use crate::error::Result;

const THREADS: u32 = 256;
/// Numbers that a thread takes where they lie side by side.
const VECTOR: usize = 4;
/// Columns, and rows at a time, of a block that adds up rows.
const STRIPE: usize = 32;

/// What a launch that reads and writes `numbers` of 4 bytes does.
pub(super) fn work(numbers: usize, flops: usize) -> Work {
    Work { bytes: (numbers as u64).saturating_mul(4), flops: flops as u64 }
}

/// One block for each of `count`.
pub(super) fn blocks(count: usize, threads: u32) -> Result<Grid> {
    Grid::linear(count.saturating_mul(threads as usize), threads)
}

/// A thread for every four of `len` numbers.
pub(super) fn fours(len: usize) -> Result<Grid> {
    Grid::linear(len.div_ceil(VECTOR), THREADS)
}

/// A grid over `m` rows of `n`: a thread takes four columns where rows start at 16 bytes, else one, and walks the rows that are too many
/// for a grid.
fn rows(m: usize, n: usize) -> Result<Grid> {
    let columns = if n.is_multiple_of(VECTOR) { n / VECTOR } else { n };
    let Grid { blocks: [x, _, z], threads, shared_bytes } = Grid::linear(columns, THREADS)?;
    Ok(Grid { blocks: [x, m.min(65_535) as u32, z], threads, shared_bytes })
}

/// How a sum over `m` rows of `n` columns is split into blocks of rows.
pub(super) struct Columns {
    /// Blocks of 32 columns by blocks of rows.
    pub grid: Grid,
    /// Rows of a block.
    pub rows: u32,
    /// Blocks of rows, each of which leaves `n` sums.
    pub parts: usize,
}

impl Columns {
    /// Few columns are split into more blocks of rows, of 64 rows at least; by the shape alone, so that a run is repeatable.
    pub fn new(operation: &'static str, m: usize, n: usize) -> Result<Self> {
        const BLOCKS: usize = 512;
        const LEAST_ROWS: usize = 64;
        let stripes = n.div_ceil(STRIPE);
        let parts = (BLOCKS / stripes.max(1)).clamp(1, m.div_ceil(LEAST_ROWS).max(1));
        let rows = m.div_ceil(parts).max(1);
        let parts = m.div_ceil(rows);
        let grid = Grid { blocks: [size32(operation, "stripes of columns", stripes)?, parts as u32, 1], threads: THREADS, shared_bytes: 0 };
        Ok(Self { grid, rows: size32(operation, "rows", rows)?, parts })
    }
}

/// `to [n] +=` the sum of the `parts` rows of `partial`.
pub(super) fn finish_columns(device: &CudaDevice, to: Pointer, partial: Pointer, parts: usize, n: usize) -> Result<()> {
    let args = Args::new().pointer(to).pointer(partial).u32(parts as u32).u32(size32("column_finish", "n", n)?);
    device.launch("column_finish", Grid::linear(n, THREADS)?, args, work((parts + 2) * n, parts * n))
}

pub(super) fn fill(device: &CudaDevice, buffer: &mut Buffer, len: usize, value: f32) -> Result<()> {
    let x = output("fill", "buffer", buffer, &[len])?;
    device.launch("fill", fours(len)?, Args::new().pointer(x).u64(len as u64).f32(value), work(len, 0))
}

pub(super) fn add(device: &CudaDevice, y: &mut Buffer, x: &Buffer, len: usize, alpha: f32) -> Result<()> {
    let y = output("add", "y", y, &[len])?;
    let x = input("add", "x", x, &[len])?;
    device.launch("add", fours(len)?, Args::new().pointer(y).pointer(x).u64(len as u64).f32(alpha), work(3 * len, 2 * len))
}

pub(super) fn scale(device: &CudaDevice, x: &mut Buffer, len: usize, alpha: f32) -> Result<()> {
    let x = output("scale", "x", x, &[len])?;
    device.launch("scale", fours(len)?, Args::new().pointer(x).u64(len as u64).f32(alpha), work(2 * len, len))
}

pub(super) fn add_bias(device: &CudaDevice, y: &mut Buffer, bias: &Buffer, m: usize, n: usize) -> Result<()> {
    const NAME: &str = "add_bias";
    let y = output(NAME, "y", y, &[m, n])?;
    let bias = input(NAME, "bias", bias, &[n])?;
    if m == 0 || n == 0 {
        return Ok(());
    }
    let args = Args::new().pointer(y).pointer(bias).u32(size32(NAME, "m", m)?).u32(size32(NAME, "n", n)?);
    device.launch(NAME, rows(m, n)?, args, work(2 * m * n + n, m * n))
}

pub(super) fn bias_backward(device: &CudaDevice, d_bias: &mut Buffer, dy: &Buffer, m: usize, n: usize) -> Result<()> {
    const NAME: &str = "bias_backward";
    let d_bias = output(NAME, "d_bias", d_bias, &[n])?;
    let dy = input(NAME, "dy", dy, &[m, n])?;
    if m == 0 || n == 0 {
        return Ok(());
    }
    column_sums(device, NAME, d_bias, dy, m, n)
}

/// `to [n] += Σ_m dy [m, n]`, neither m nor n 0.
pub(super) fn column_sums(device: &CudaDevice, name: &'static str, to: Pointer, dy: Pointer, m: usize, n: usize) -> Result<()> {
    let columns = Columns::new(name, m, n)?;
    let partial = device.scratch(columns.parts * n)?;
    let args = Args::new().pointer(partial.pointer()).pointer(dy).u32(size32(name, "m", m)?).u32(size32(name, "n", n)?).u32(columns.rows);
    device.launch("column_sums", columns.grid, args, work((m + columns.parts) * n, m * n))?;
    finish_columns(device, to, partial.pointer(), columns.parts, n)
}

pub(super) fn gate_columns(device: &CudaDevice, x: &mut Buffer, gates: &Buffer, m: usize, width: usize) -> Result<()> {
    const NAME: &str = "gate_columns";
    let units = gates.len();
    let x = output(NAME, "x", x, &[m, units, width])?;
    let gates = input(NAME, "gates", gates, &[units])?;
    let n = units * width;
    if m == 0 || n == 0 {
        return Ok(());
    }
    let args = Args::new().pointer(x).pointer(gates).u32(size32(NAME, "m", m)?).u32(size32(NAME, "columns", n)?);
    device.launch(NAME, rows(m, n)?, args.u32(size32(NAME, "width", width)?), work(2 * m * n + units, m * n))
}

pub(super) fn gate_backward(device: &CudaDevice, d_gates: &mut Buffer, dy: &Buffer, x: &Buffer, m: usize, width: usize) -> Result<()> {
    const NAME: &str = "gate_backward";
    let units = d_gates.len();
    let dy = input(NAME, "dy", dy, &[m, units, width])?;
    let x = input(NAME, "x", x, &[m, units, width])?;
    let d_gates = output(NAME, "d_gates", d_gates, &[units])?;
    let n = units * width;
    if m == 0 || n == 0 {
        return Ok(());
    }
    let columns = Columns::new(NAME, m, n)?;
    let partial = device.scratch(columns.parts * n)?;
    let args = Args::new().pointer(partial.pointer()).pointer(dy).pointer(x);
    let args = args.u32(size32(NAME, "m", m)?).u32(size32(NAME, "columns", n)?).u32(columns.rows);
    device.launch("column_products", columns.grid, args, work((2 * m + columns.parts) * n, 2 * m * n))?;
    let (units32, width32) = (size32(NAME, "units", units)?, size32(NAME, "width", width)?);
    let args = Args::new().pointer(d_gates).pointer(partial.pointer()).u32(columns.parts as u32).u32(units32).u32(width32);
    let grid = Grid::linear(units.saturating_mul(32), THREADS)?;
    device.launch("column_finish_units", grid, args, work(columns.parts * n + 2 * units, columns.parts * n))
}
