//! One token's products of the same input in one launch: launches `gemv_fused.cu`, and what is quantised by `gemv_quantized.rs`.

use super::epilogue::Terms;
use super::gemv::{chunk, warps_a_row};
use super::gemv_quantized::{self, Rows};
use super::launch::{Args, Grid, Work};
use super::memory::{Buffer, Pointer};
use super::products::{Sizes, VECTOR_B, vector};
use super::products_quantized::unexpected;
use super::weights::number_bytes;
use super::{CudaDevice, activation, input, output, size32};
use crate::device::{Activation, Format};
use crate::error::Result;
use crate::fused::Projection;

/// Matrices of a launch of `gemv_each`.
const MOST: usize = 3;

/// The name of a kernel by format; false is returned for one that has none.
macro_rules! by_format {
    ($name:literal, $format:expr) => {
        match $format {
            Format::F32 => concat!($name, "_f32"),
            Format::F16 => concat!($name, "_f16"),
            Format::Bf16 => concat!($name, "_bf16"),
            _ => return Ok(false),
        }
    };
}

/// The products of one token: its columns, and the flags of 16-byte loads where all matrices allow them.
struct Shared {
    columns: usize,
    x: Pointer,
    vectors: u32,
    format: Format,
}

/// What `projections` share, or none where they have no kernel in common: with adapters each is a product of its own.
fn shared<'p, 'b: 'p>(
    operation: &'static str,
    mut projections: impl Iterator<Item = &'p Projection<'b, CudaDevice>> + Clone,
    x: &Buffer,
) -> Result<Option<Shared>> {
    let Some(first) = projections.clone().next() else { return Ok(None) };
    let ((_, columns), format) = (first.weight.shape(), first.weight.format());
    let alike = |p: &Projection<'_, CudaDevice>| {
        p.weight.shape().1 == columns && p.weight.format() == format && p.epilogue.low_rank.is_none() && p.weight.shape().0 > 0
    };
    if !projections.clone().all(alike) {
        return Ok(None);
    }
    let x = input(operation, "x", x, &[columns])?;
    let (_, chunk_columns) = chunk(format);
    let mut vectors = vector(x, columns, chunk_columns, VECTOR_B);
    for projection in projections.by_ref() {
        vectors &= vector(projection.weight.pointer()?, columns, chunk_columns, VECTOR_B);
    }
    Ok(Some(Shared { columns, x, vectors, format }))
}

fn bias(operation: &'static str, projection: &Projection<'_, CudaDevice>) -> Result<Pointer> {
    let (rows, _) = projection.weight.shape();
    projection.epilogue.bias.map_or(Ok(Pointer::NULL), |bias| input(operation, "bias", bias, &[rows]))
}

/// Work of one product with its bias.
fn sizes(operation: &'static str, rows: usize, columns: usize) -> Sizes {
    Sizes { operation, m: 1, n: rows, k: columns, alpha: 1.0, accumulate: false }
}

/// Makes two or three products of one token in one launch; false where it takes one each.
pub(super) fn each(device: &CudaDevice, projections: &mut [Projection<'_, CudaDevice>], x: &Buffer) -> Result<bool> {
    const NAME: &str = "project_rows";
    if !(2..=MOST).contains(&projections.len()) {
        return Ok(false);
    }
    let Some(Shared { columns, x, vectors, format }) = shared(NAME, projections.iter(), x)? else { return Ok(false) };
    if matches!(format, Format::Q8 | Format::Q4) {
        return each_quantised(device, projections, x, columns);
    }
    let kernel = by_format!("gemv_each", format);
    let all: usize = projections.iter().map(|projection| projection.weight.shape().0).sum();
    let split = warps_a_row(device, all, columns, chunk(format).1);
    let (mut y, mut w, mut biases) = ([Pointer::NULL; MOST], [Pointer::NULL; MOST], [Pointer::NULL; MOST]);
    let (mut rows, mut blocks) = ([0; MOST], [0; MOST]);
    let mut work = Work { bytes: 0, flops: 0 };
    for (i, projection) in projections.iter_mut().enumerate() {
        let (count, _) = projection.weight.shape();
        (w[i], biases[i], rows[i]) = (projection.weight.pointer()?, bias(NAME, projection)?, size32(NAME, "rows", count)?);
        blocks[i] = size32(NAME, "rows", count.div_ceil(4).div_ceil(4 / split))?;
        let of_bias = if biases[i] == Pointer::NULL { 0 } else { count as u64 };
        y[i] = output(NAME, "y", projection.y, &[count])?;
        work = work.plus(sizes(NAME, count, columns).work(number_bytes(format)));
        work = work.plus(Work { bytes: 4 * of_bias, flops: of_bias });
    }
    let args = y.into_iter().fold(Args::new(), Args::pointer).pointer(x);
    let args = w.into_iter().chain(biases).fold(args, Args::pointer);
    let args = rows.into_iter().fold(args, Args::u32).u32(blocks[0]).u32(blocks[1]);
    let args = args.u32(size32(NAME, "columns", columns)?).u32(split as u32).u32(vectors);
    let total = blocks.iter().try_fold(0_u32, |total, blocks| total.checked_add(*blocks));
    let total = size32(NAME, "blocks", total.map_or(usize::MAX, |total| total as usize))?;
    device.launch(kernel, Grid { blocks: [total, 1, 1], threads: 128, shared_bytes: 0 }, args, work)?;
    Ok(true)
}

/// A quantised matrix for a launch with others, whose result goes to `y`.
fn quantised(operation: &'static str, projection: &Projection<'_, CudaDevice>, y: Pointer) -> Result<Rows> {
    let (weight, (rows, _)) = (projection.weight, projection.weight.shape());
    let w = weight.quants()?.ok_or_else(|| unexpected(operation, weight.format()))?;
    Ok(Rows { y, w, rows, bias: bias(operation, projection)? })
}

fn each_quantised(device: &CudaDevice, projections: &mut [Projection<'_, CudaDevice>], x: Pointer, columns: usize) -> Result<bool> {
    const NAME: &str = "project_rows";
    let mut matrices = [quantised(NAME, &projections[0], Pointer::NULL)?; MOST];
    let mut work = Work { bytes: 0, flops: 0 };
    for (matrix, projection) in matrices.iter_mut().zip(projections.iter_mut()) {
        let (rows, _) = projection.weight.shape();
        let y = output(NAME, "y", projection.y, &[rows])?;
        *matrix = quantised(NAME, projection, y)?;
        work = work.plus(sizes(NAME, rows, columns).work_with(matrix.w.bytes)).plus(Terms::NONE.with_bias(matrix.bias).work(1, rows));
    }
    gemv_quantized::rows_together(device, NAME, &matrices[..projections.len()], (x, columns), 0, &Terms::NONE, work)?;
    Ok(true)
}

/// Makes up and gate of one token and activates them in one launch; false where it takes more.
pub(super) fn gated(
    device: &CudaDevice,
    kind: Activation,
    out: &mut Buffer,
    x: &Buffer,
    up: &Projection<'_, CudaDevice>,
    gate: &Projection<'_, CudaDevice>,
) -> Result<bool> {
    const NAME: &str = "project_activated";
    let Some(Shared { columns, x, vectors, format }) = shared(NAME, [up, gate].into_iter(), x)? else { return Ok(false) };
    let (rows, _) = up.weight.shape();
    let out = output(NAME, "out", out, &[rows])?;
    if matches!(format, Format::Q8 | Format::Q4) {
        let matrices = [quantised(NAME, up, out)?, quantised(NAME, gate, out)?];
        let [bytes, biases] = [matrices.iter().map(|matrix| matrix.w.bytes).sum(), biases_of(matrices.map(|matrix| matrix.bias))];
        let terms = Terms::NONE.activated(kind, None);
        gemv_quantized::rows_gated(device, NAME, &matrices, (x, columns), &terms, gated_work(rows, columns, bytes, biases))?;
        return Ok(true);
    }
    let kernel = by_format!("gemv_gated", format);
    let split = warps_a_row(device, rows, columns, chunk(format).1);
    let biases = [bias(NAME, up)?, bias(NAME, gate)?];
    let args = Args::new().pointer(out).pointer(x).pointer(up.weight.pointer()?).pointer(gate.weight.pointer()?);
    let args = biases.into_iter().fold(args, Args::pointer).u32(size32(NAME, "rows", rows)?).u32(size32(NAME, "columns", columns)?);
    let args = args.u32(split as u32).u32(vectors).u32(activation::number(kind));
    let bytes = (2 * rows as u64).saturating_mul(columns as u64).saturating_mul(number_bytes(format));
    let blocks = size32(NAME, "rows", rows.div_ceil(4).div_ceil(4 / split))?;
    let work = gated_work(rows, columns, bytes, biases_of(biases));
    device.launch(kernel, Grid { blocks: [blocks, 1, 1], threads: 128, shared_bytes: 0 }, args, work)?;
    Ok(true)
}

/// How many of two matrices have a bias.
fn biases_of(biases: [Pointer; 2]) -> u64 {
    biases.iter().filter(|bias| **bias != Pointer::NULL).count() as u64
}

/// Work of up and gate of `bytes` together, of which so many have a bias: x is read, and the result written, once for both.
fn gated_work(rows: usize, columns: usize, bytes: u64, biases: u64) -> Work {
    let (rows, columns) = (rows as u64, columns as u64);
    let flops = (4 * rows).saturating_mul(columns).saturating_add((biases + activation::FLOPS as u64 + 1) * rows);
    Work { bytes: bytes.saturating_add(4 * (columns + rows + biases * rows)), flops }
}
