//! Products of quantised weights on tensor cores: launches `products_quantized_rows.cu` and `products_quantized_units.cu`, and
//! `products_quantized_backward.cu` where the blocks run across the sum; one token goes to `gemv_quantized.rs` where they run along it.

use super::epilogue::Terms;
use super::launch::Args;
use super::memory::Pointer;
use super::planes::Quants;
use super::products::{Precision, Sizes, Tiling, VECTOR_A, VECTOR_B, finished, grid, multiprocessors, row_scales, vector};
use super::{CudaDevice, size32};
use crate::device::Format;
use crate::error::{KernelError, Result};

/// The refusal of a matrix that came to the kernels of others.
pub(super) fn unexpected(operation: &'static str, format: Format) -> KernelError {
    KernelError::Shape { operation, detail: format!("a {format:?} matrix was given to kernels that do not read it") }
}

/// The planes of a matrix as arguments.
pub(super) fn quants_args(args: Args, w: &Quants) -> Args {
    let args = args.pointer(w.quants).pointer(w.scales);
    if matches!(w.format, Format::Q4 | Format::Q4Units) { args.pointer(w.minima) } else { args }
}

/// The outputs of a tile, and the numbers of k that are gone through at once: a block.
const TILE_COLUMNS: usize = 128;
const SLICE: usize = 32;

/// Bytes of shared memory through which a warp's results pass: 32 rows of 32 numbers, padded by 4.
const RESULT_BYTES: usize = 32 * 36 * 4;

/// Kernels by precision, of which the backward has one, and tile, and what a tile of them takes.
struct Kernels {
    names: [[&'static str; 2]; 2],
    /// The numbers that a row of words of the matrix has, read 4 at a time.
    inner: usize,
    /// Bytes of the quants of a tile.
    tile_bytes: usize,
    /// Whether the blocks run across the sum.
    backward: bool,
}

macro_rules! kernels {
    ($name:literal) => {
        [[concat!($name, "_exact_32"), concat!($name, "_exact_128")], [concat!($name, "_fast_32"), concat!($name, "_fast_128")]]
    };
    (backward $name:literal) => {
        [[concat!($name, "_32"), concat!($name, "_128")]; 2]
    };
}

impl Kernels {
    /// Bytes of shared memory of a tile of `m` rows, as the kernels lay it out.
    fn shared_bytes(&self, m: usize, four_bits: bool, exact: bool) -> usize {
        // A scale, and a minimum, for each of 128, twice.
        let scales = 2 * TILE_COLUMNS * 4 * if four_bits { 2 } else { 1 };
        let tiles = if self.backward {
            3 * (m * SLICE * 4 + self.tile_bytes)
        } else {
            let (parts, sums) = (if exact { 2 } else { 1 }, if four_bits { 2 * m * 4 } else { 0 });
            2 * parts * m * SLICE * 2 + 4 * self.tile_bytes + sums
        };
        (tiles + scales).max(RESULT_BYTES * threads(m) as usize / 32)
    }
}

fn threads(m: usize) -> u32 {
    if m == 128 { 256 } else { 128 }
}

pub(super) fn rows_form(device: &CudaDevice, sizes: &Sizes, y: Pointer, x: Pointer, w: Quants, terms: &Terms) -> Result<()> {
    let kernels = match w.format {
        Format::Q8 => Kernels { names: kernels!("gemm_q8_rows"), inner: 4, tile_bytes: 128 * 32, backward: false },
        Format::Q4 => Kernels { names: kernels!("gemm_q4_rows"), inner: 4, tile_bytes: 128 * 16, backward: false },
        Format::Q8Units => {
            Kernels { names: kernels!(backward "gemm_q8_rows_interleaved"), inner: sizes.k, tile_bytes: 32 * 128, backward: true }
        }
        Format::Q4Units => {
            Kernels { names: kernels!(backward "gemm_q4_rows_interleaved"), inner: sizes.k, tile_bytes: 16 * 128, backward: true }
        }
        format => return Err(unexpected(sizes.operation, format)),
    };
    gemm(device, sizes, y, x, w, (kernels, true), terms)
}

pub(super) fn units_form(device: &CudaDevice, sizes: &Sizes, y: Pointer, a: Pointer, w: Quants, terms: &Terms) -> Result<()> {
    let kernels = match w.format {
        Format::Q8 => Kernels { names: kernels!(backward "gemm_q8_units"), inner: 4, tile_bytes: 32 * 128, backward: true },
        Format::Q4 => Kernels { names: kernels!(backward "gemm_q4_units"), inner: 4, tile_bytes: 32 * 64, backward: true },
        // 8 and 4 rows of 128 words, padded by 16 and 32 bytes.
        Format::Q8Units => {
            Kernels { names: kernels!("gemm_q8_units_interleaved"), inner: sizes.n, tile_bytes: 8 * (512 + 16), backward: false }
        }
        Format::Q4Units => {
            Kernels { names: kernels!("gemm_q4_units_interleaved"), inner: sizes.n, tile_bytes: 4 * (512 + 32), backward: false }
        }
        format => return Err(unexpected(sizes.operation, format)),
    };
    gemm(device, sizes, y, a, w, (kernels, false), terms)
}

/// `kernels`, and whether theirs is the row-dot form, whose epilogue may activate.
fn gemm(
    device: &CudaDevice,
    sizes: &Sizes,
    y: Pointer,
    x: Pointer,
    w: Quants,
    (kernels, by_rows): (Kernels, bool),
    terms: &Terms,
) -> Result<()> {
    if sizes.m == 0 || sizes.n == 0 {
        return Ok(());
    }
    let exact = device.plan().precision == Precision::Exact;
    let four_bits = matches!(w.format, Format::Q4 | Format::Q4Units);
    let tiling = |m: usize| Tiling {
        m,
        n: TILE_COLUMNS,
        slice: SLICE,
        threads: threads(m),
        shared_bytes: kernels.shared_bytes(m, four_bits, exact),
    };
    // As for 16-bit weights: large tiles where they give every multiprocessor a block and would not be mostly empty.
    let large = sizes.m > 64 && tiling(128).blocks(sizes) >= multiprocessors(device);
    let tiling = tiling(if large { 128 } else { 32 });
    let kernel = kernels.names[usize::from(!exact)][usize::from(large)];
    let vectors = vector(x, sizes.k, 4, VECTOR_A) | vector(w.quants, kernels.inner, 4, VECTOR_B);
    let (m, n, k) = sizes.args32()?;
    let (splits, each) = tiling.split(sizes, multiprocessors(device));
    let powers = if kernels.backward { None } else { Some(row_scales(device, sizes, x, vectors)?) };
    finished(device, sizes, terms, y, splits, |to, flags, terms| {
        let args = quants_args(Args::new().pointer(to).pointer(x), &w);
        let args = match &powers {
            Some(powers) => terms.pointers(args.pointer(powers.pointer()), by_rows),
            None => args,
        };
        let args = args.u32(m).u32(n).u32(k).u32(size32(sizes.operation, "k", each)?).u32(flags | vectors);
        let args = if kernels.backward { args } else { terms.numbers(args, by_rows) };
        let work = sizes.work_with(w.bytes).plus(terms.work(sizes.m, sizes.n));
        device.launch(kernel, grid(sizes, &tiling, splits)?, args, work)
    })
}
