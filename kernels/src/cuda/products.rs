//! Matrix products: which kernel, which tile, how many blocks. Launches `products_f32.cu`, `products_tf32.cu`, `products_half.cu`,
//! `products_half_rows.cu` and `products_half_units.cu`; few tokens go to `gemv.rs`, quantised weights to `products_quantized.rs`.

use super::epilogue::{Terms, is_fused_by_rows, is_fused_by_units};
use super::launch::{Args, Grid, Work};
use super::memory::{Buffer, Pointer, Scratch};
use super::weight::Weight;
use super::{CudaDevice, gemv, gemv_quantized, input, output, products_quantized, size32};
use crate::device::{Format, Product};
use crate::error::Result;

/// How f32 activations meet 16-bit and quantised weights on tensor cores, which take 16-bit numbers only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// As a sum of two f16 or three bf16: as exact as f32 arithmetic, at half or a third of the speed.
    #[default]
    Exact,
    /// Rounded to the format of the weight, with f32 sums: relative errors up to 2⁻¹¹ for f16 and 2⁻⁸ for bf16 in every activation. For
    /// quantised weights as for f16, and as for bf16 in the backward pass.
    Fast,
}

/// What decides between kernels that make the same product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Plan {
    /// Of products with 16-bit and quantised weights for more than 8 tokens.
    pub precision: Precision,
    /// The multiprocessors that tiles and parts are planned for; the device's own where there is none. One makes every tile large, many
    /// make them small and cut every sum: so a test reaches all kernels with small matrices.
    pub multiprocessors: Option<u32>,
    /// Whether f32 products may run on tensor cores, as three tf32 products; where there is none, if that is faster on the device.
    pub tf32: Option<bool>,
}

/// As in `prelude.cuh`.
pub(super) const ACCUMULATE: u32 = 1;
pub(super) const VECTOR_A: u32 = 2;
pub(super) const VECTOR_B: u32 = 4;
const VECTOR_C: u32 = 8;
const TRANSPOSE_A: u32 = 16;
const TRANSPOSE_B: u32 = 32;

/// What 16-byte loads need an address to be a multiple of.
pub(super) const VECTOR_BYTES: u64 = 16;

pub(super) fn flag(set: bool, flag: u32) -> u32 {
    if set { flag } else { 0 }
}

/// `flag` where rows of `inner` numbers from `pointer` on can be read `count` at a time.
pub(super) fn vector(pointer: Pointer, inner: usize, count: usize, bit: u32) -> u32 {
    flag(inner.is_multiple_of(count) && pointer.address().is_multiple_of(VECTOR_BYTES), bit)
}

/// A product `C [m, n] (+)= alpha · A [m, k] · B [k, n]`, its sizes checked.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub operation: &'static str,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub alpha: f32,
    pub accumulate: bool,
}

impl Sizes {
    /// Bytes at the least, for a B of `b_bytes` a number, and flops.
    pub fn work(&self, b_bytes: u64) -> Work {
        self.work_with((self.k as u64).saturating_mul(self.n as u64).saturating_mul(b_bytes))
    }

    /// Bytes at the least, for a B of `b_bytes` altogether, and flops.
    pub fn work_with(&self, b_bytes: u64) -> Work {
        let product = |a: usize, b: usize| (a as u64).saturating_mul(b as u64);
        let c = product(self.m, self.n).saturating_mul(if self.accumulate { 8 } else { 4 });
        let bytes = product(self.m, self.k).saturating_mul(4).saturating_add(b_bytes);
        Work { bytes: bytes.saturating_add(c), flops: product(self.m, self.n).saturating_mul(self.k as u64).saturating_mul(2) }
    }

    pub fn args32(&self) -> Result<(u32, u32, u32)> {
        let size = |name, n| size32(self.operation, name, n);
        Ok((size("m", self.m)?, size("n", self.n)?, size("k", self.k)?))
    }
}

/// The tiles of a launch.
#[derive(Clone, Copy)]
pub(super) struct Tiling {
    pub m: usize,
    pub n: usize,
    /// The step in which k is gone through.
    pub slice: usize,
    pub threads: u32,
    pub shared_bytes: usize,
}

impl Tiling {
    pub fn blocks(&self, sizes: &Sizes) -> usize {
        sizes.m.div_ceil(self.m).saturating_mul(sizes.n.div_ceil(self.n))
    }

    /// How many parts k is cut into, and numbers of k in each. Where the tiles of C are fewer than the multiprocessors, so many that all
    /// have a block, but none less than 8 slices: fewer are over before the loads of the first have come.
    pub fn split(&self, sizes: &Sizes, multiprocessors: usize) -> (usize, usize) {
        let splits = (multiprocessors / self.blocks(sizes).max(1)).min(sizes.k / (8 * self.slice)).max(1);
        // A slice even where k is 0: C is to be zeroed, or kept, all the same.
        let each = sizes.k.div_ceil(splits).next_multiple_of(self.slice).max(self.slice);
        (sizes.k.div_ceil(each).max(1), each)
    }
}

pub(super) fn multiprocessors(device: &CudaDevice) -> usize {
    (device.plan().multiprocessors.unwrap_or(device.attributes().multiprocessors) as usize).max(1)
}

/// Launches `kernel` over `splits` parts of the sum, with an epilogue: `start` is given where the parts go, the flags of C, and the terms
/// that are the kernel's to add. More than one part goes to scratch memory and is summed up in order, so that a result does not depend on
/// timing; the epilogue is then that of the sum.
pub(super) fn finished(
    device: &CudaDevice,
    sizes: &Sizes,
    terms: &Terms,
    c: Pointer,
    splits: usize,
    start: impl FnOnce(Pointer, u32, &Terms) -> Result<()>,
) -> Result<()> {
    let flags = |c, accumulate| vector(c, sizes.n, 4, VECTOR_C) | flag(accumulate, ACCUMULATE);
    if splits <= 1 {
        return start(c, flags(c, sizes.accumulate) | terms.flags(), terms);
    }
    let count = sizes.m * sizes.n;
    let parts = device.scratch(splits * count)?;
    start(parts.pointer(), flags(parts.pointer(), false), &Terms::NONE)?;
    finish(device, sizes, terms, c, parts.pointer(), splits)
}

/// As [`finished`], by a kernel whose last block of each of `blocks` adds the parts up: `start` is given the arguments that such a kernel
/// begins with (where the result goes, where parts and counters are), the flags of C, and what the parts add to the work.
pub(super) fn joined(
    device: &CudaDevice,
    sizes: &Sizes,
    c: Pointer,
    (blocks, splits): (usize, usize),
    start: impl FnOnce(Args, u32, Work) -> Result<()>,
) -> Result<()> {
    let args = Args::new().pointer(c);
    let flags = flag(sizes.accumulate, ACCUMULATE);
    if splits <= 1 {
        return start(args.pointer(Pointer::NULL).pointer(Pointer::NULL), flags, Work { bytes: 0, flops: 0 });
    }
    let numbers = splits * sizes.m * sizes.n;
    let parts = device.scratch_parts(numbers, blocks)?;
    let (sums, counters) = parts.pointers();
    start(args.pointer(sums).pointer(counters), flags, Work { bytes: 8 * numbers as u64, flops: numbers as u64 })
}

/// Sums the parts of a product in their order and finishes it.
fn finish(device: &CudaDevice, sizes: &Sizes, terms: &Terms, c: Pointer, parts: Pointer, splits: usize) -> Result<()> {
    let count = sizes.m * sizes.n;
    let args = terms.pointers(Args::new().pointer(c).pointer(parts), true).u64(count as u64);
    let args = args.u32(size32(sizes.operation, "n", sizes.n)?).u32(splits as u32).u32(flag(sizes.accumulate, ACCUMULATE) | terms.flags());
    let numbers = (splits + 1 + usize::from(sizes.accumulate)) as u64 * count as u64;
    let work = Work { bytes: numbers.saturating_mul(4), flops: (splits * count) as u64 };
    device.launch("sum_splits", Grid::linear(count, 256)?, terms.numbers(args, true), work.plus(terms.work(sizes.m, sizes.n)))
}

pub(super) fn matmul_rows(device: &CudaDevice, y: &mut Buffer, x: &Buffer, w: &Weight, m: usize, accumulate: bool) -> Result<()> {
    const NAME: &str = "matmul_rows";
    let (rows, columns) = w.shape();
    let y = output(NAME, "y", y, &[m, rows])?;
    let x = input(NAME, "x", x, &[m, columns])?;
    let sizes = Sizes { operation: NAME, m, n: rows, k: columns, alpha: 1.0, accumulate };
    rows_form(device, &sizes, y, x, w, &Terms::NONE)
}

/// A row-dot product, its sizes checked.
pub(super) fn rows_form(device: &CudaDevice, sizes: &Sizes, y: Pointer, x: Pointer, w: &Weight, terms: &Terms) -> Result<()> {
    if let Some(w) = w.quants()? {
        let few = sizes.m <= gemv_quantized::TOKENS && is_fused_by_rows(w.format);
        let launch = if few { gemv_quantized::rows_form } else { products_quantized::rows_form };
        return launch(device, sizes, y, x, w, terms);
    }
    match w.format() {
        _ if sizes.m <= gemv::TOKENS => gemv::rows_form(device, sizes, y, x, w.pointer()?, w.format(), terms),
        Format::F32 => gemm_f32(device, sizes, y, (x, false), (w.pointer()?, true), terms),
        format => gemm_half(device, sizes, y, x, w.pointer()?, (format, Form::Rows), terms),
    }
}

pub(super) fn matmul_units(device: &CudaDevice, y: &mut Buffer, a: &Buffer, w: &Weight, m: usize, accumulate: bool) -> Result<()> {
    const NAME: &str = "matmul_units";
    let (rows, columns) = w.shape();
    let y = output(NAME, "y", y, &[m, columns])?;
    let a = input(NAME, "a", a, &[m, rows])?;
    let sizes = Sizes { operation: NAME, m, n: columns, k: rows, alpha: 1.0, accumulate };
    units_form(device, &sizes, y, a, w, &Terms::NONE)
}

/// A unit-row product, its sizes checked.
pub(super) fn units_form(device: &CudaDevice, sizes: &Sizes, y: Pointer, a: Pointer, w: &Weight, terms: &Terms) -> Result<()> {
    if let Some(w) = w.quants()? {
        let few = sizes.m <= gemv_quantized::TOKENS && is_fused_by_units(w.format);
        let launch = if few { gemv_quantized::units_form } else { products_quantized::units_form };
        return launch(device, sizes, y, a, w, terms);
    }
    match w.format() {
        _ if sizes.m <= gemv::TOKENS => gemv::units_form(device, sizes, y, a, w.pointer()?, w.format(), terms),
        Format::F32 => gemm_f32(device, sizes, y, (a, false), (w.pointer()?, false), terms),
        format => gemm_half(device, sizes, y, a, w.pointer()?, (format, Form::Units), terms),
    }
}

pub(super) fn matmul(device: &CudaDevice, c: &mut Buffer, a: &Buffer, b: &Buffer, product: Product) -> Result<()> {
    const NAME: &str = "matmul";
    let Product { m, n, k, transpose_a, transpose_b, alpha, accumulate } = product;
    let c = output(NAME, "C", c, &[m, n])?;
    let a = input(NAME, "A", a, &[m, k])?;
    let b = input(NAME, "B", b, &[k, n])?;
    let sizes = Sizes { operation: NAME, m, n, k, alpha, accumulate };
    match (m <= gemv::TOKENS && !transpose_a, transpose_b) {
        (true, true) => gemv::rows_form(device, &sizes, c, a, b, Format::F32, &Terms::NONE),
        (true, false) => gemv::units_form(device, &sizes, c, a, b, Format::F32, &Terms::NONE),
        (false, _) => gemm_f32(device, &sizes, c, (a, transpose_a), (b, transpose_b), &Terms::NONE),
    }
}

/// The slice and the stages of `products_tf32.cu`.
const TF32_SLICE: usize = 16;
const TF32_STAGES: usize = 3;

fn tf32_tiling(side: usize, k_inside_a: bool, k_inside_b: bool) -> Tiling {
    // 4 bytes a number; where k is outside, its rows are padded by 32 bytes.
    let tile = |k_inside| side * TF32_SLICE * 4 + if k_inside { 0 } else { TF32_SLICE * 32 };
    let shared_bytes = TF32_STAGES * (tile(k_inside_a) + tile(k_inside_b));
    Tiling { m: side, n: side, slice: TF32_SLICE, threads: if side == 128 { 256 } else { 128 }, shared_bytes }
}

/// Whether three tf32 products are faster than one of f32. The tensor cores of data centre parts, Orin and Thor do 4 to 8 times as many tf32
/// operations as the ordinary cores do f32; those of GeForce and its relatives (8.6, 8.9, 12.x) as many.
fn has_fast_tf32(capability: (u32, u32)) -> bool {
    matches!(capability, (8, 0 | 7) | (9..=11, _))
}

/// The side of a square tile: 128 where that gives every multiprocessor a block, since it reads half as much, and would not be half empty;
/// else 64.
fn side(device: &CudaDevice, sizes: &Sizes) -> usize {
    let blocks = sizes.m.div_ceil(128).saturating_mul(sizes.n.div_ceil(128));
    if sizes.m > 64 && blocks >= multiprocessors(device) { 128 } else { 64 }
}

fn gemm_f32(device: &CudaDevice, sizes: &Sizes, c: Pointer, a: (Pointer, bool), b: (Pointer, bool), terms: &Terms) -> Result<()> {
    if sizes.m == 0 || sizes.n == 0 {
        return Ok(());
    }
    let ((a, transpose_a), (b, transpose_b)) = (a, b);
    let side = side(device, sizes);
    // A half empty tile of tensor cores does no more than the whole one of ordinary ones.
    let fast = device.plan().tf32.unwrap_or_else(|| has_fast_tf32(device.attributes().capability));
    let tensor_cores = fast && sizes.m.min(sizes.n) >= 32 && sizes.k >= 32;
    let (kernel, tiling) = if tensor_cores {
        let kernel = match (side, transpose_a, transpose_b) {
            (128, false, false) => "gemm_tf32_128_nn",
            (128, false, true) => "gemm_tf32_128_nt",
            (128, true, false) => "gemm_tf32_128_tn",
            (128, true, true) => "gemm_tf32_128_tt",
            (_, false, false) => "gemm_tf32_64_nn",
            (_, false, true) => "gemm_tf32_64_nt",
            (_, true, false) => "gemm_tf32_64_tn",
            (_, true, true) => "gemm_tf32_64_tt",
        };
        (kernel, tf32_tiling(side, !transpose_a, transpose_b))
    } else {
        let kernel = if side == 128 { "gemm_f32_128" } else { "gemm_f32_64" };
        (kernel, Tiling { m: side, n: side, slice: 16, threads: 256, shared_bytes: 0 })
    };
    let vectors = vector(a, if transpose_a { sizes.m } else { sizes.k }, 4, VECTOR_A)
        | vector(b, if transpose_b { sizes.k } else { sizes.n }, 4, VECTOR_B)
        | flag(transpose_a, TRANSPOSE_A)
        | flag(transpose_b, TRANSPOSE_B);
    let (m, n, k) = sizes.args32()?;
    let (splits, each) = tiling.split(sizes, multiprocessors(device));
    // On tensor cores, products of which A is transposed are those of gradients, and activations follow row-dot products. Large tiles on the
    // ordinary cores have no registers for an epilogue.
    let (fused, activates) = if tensor_cores { (!transpose_a, transpose_b) } else { (side == 64, true) };
    if !fused && splits == 1 && !terms.is_none() {
        gemm_f32(device, sizes, c, (a, transpose_a), (b, transpose_b), &Terms::NONE)?;
        return finish(device, &Sizes { accumulate: false, ..*sizes }, terms, c, c, 1);
    }
    finished(device, sizes, terms, c, splits, |to, flags, terms| {
        let args = Args::new().pointer(to).pointer(a).pointer(b);
        let args = if fused { terms.pointers(args, activates) } else { args };
        let args = args.u32(m).u32(n).u32(k).u32(size32(sizes.operation, "k", each)?).f32(sizes.alpha).u32(flags | vectors);
        let args = if fused { terms.numbers(args, activates) } else { args };
        device.launch(kernel, grid(sizes, &tiling, splits)?, args, sizes.work(4).plus(terms.work(sizes.m, sizes.n)))
    })
}

/// Tiles of rows along x: neighbours in time share the columns of B, which is the larger where weights are multiplied.
pub(super) fn grid(sizes: &Sizes, tiling: &Tiling, splits: usize) -> Result<Grid> {
    let size = |name, n| size32(sizes.operation, name, n);
    let (x, y) = (size("m", sizes.m.div_ceil(tiling.m))?, size("n", sizes.n.div_ceil(tiling.n))?);
    let blocks = [x, y, size("k", splits)?];
    Ok(Grid { blocks, threads: tiling.threads, shared_bytes: size("shared memory", tiling.shared_bytes)? })
}

/// Which dimension of a weight is summed: its columns (row-dot) or its rows (unit-row).
#[derive(Clone, Copy)]
enum Form {
    Rows,
    Units,
}

/// The kernels of `products_half_rows.cu` and `products_half_units.cu` by precision and tile.
macro_rules! half_kernels {
    ($name:literal) => {
        [[concat!($name, "_exact_32"), concat!($name, "_exact_128")], [concat!($name, "_fast_32"), concat!($name, "_fast_128")]]
    };
}

fn gemm_half(
    device: &CudaDevice,
    sizes: &Sizes,
    y: Pointer,
    x: Pointer,
    w: Pointer,
    (format, form): (Format, Form),
    terms: &Terms,
) -> Result<()> {
    if sizes.m == 0 || sizes.n == 0 {
        return Ok(());
    }
    // The kernels; the numbers of a row of the weight as stored, which are read 8 at a time; and bytes of a tile of 128 outputs by 32 of k.
    let (kernels, inner, tile_bytes) = match (format, form) {
        (Format::F16, Form::Rows) => (half_kernels!("gemm_f16_rows"), sizes.k, 128 * 64),
        (Format::Bf16, Form::Rows) => (half_kernels!("gemm_bf16_rows"), sizes.k, 128 * 64),
        (Format::F16, Form::Units) => (half_kernels!("gemm_f16_units"), sizes.n, 32 * 256),
        (Format::Bf16, Form::Units) => (half_kernels!("gemm_bf16_units"), sizes.n, 32 * 256),
        (Format::F16Pairs, Form::Rows) => (half_kernels!("gemm_f16_rows_pairs"), 2 * sizes.k, 64 * (128 + 32)),
        (Format::Bf16Pairs, Form::Rows) => (half_kernels!("gemm_bf16_rows_pairs"), 2 * sizes.k, 64 * (128 + 32)),
        (Format::F16Pairs, Form::Units) => (half_kernels!("gemm_f16_units_pairs"), 2 * sizes.n, 16 * (512 + 32)),
        (Format::Bf16Pairs, Form::Units) => (half_kernels!("gemm_bf16_units_pairs"), 2 * sizes.n, 16 * (512 + 32)),
        (Format::F32, _) => return gemm_f32(device, sizes, y, (x, false), (w, matches!(form, Form::Rows)), terms),
        (Format::Q8 | Format::Q4 | Format::Q8Units | Format::Q4Units, _) => {
            return Err(products_quantized::unexpected(sizes.operation, format));
        }
    };
    let is_f16 = matches!(format, Format::F16 | Format::F16Pairs);
    let exact = device.plan().precision == Precision::Exact;
    let parts = if !exact {
        1
    } else if is_f16 {
        2
    } else {
        3
    };
    let tiling = |m: usize| Tiling {
        m,
        n: 128,
        slice: 32,
        threads: if m == 128 { 256 } else { 128 },
        shared_bytes: 2 * parts * m * 64 + 3 * tile_bytes,
    };
    // As for `side`; and with few tokens most of a large tile would be empty.
    let large = sizes.m > 64 && tiling(128).blocks(sizes) >= multiprocessors(device);
    let tiling = tiling(if large { 128 } else { 32 });
    let kernel = kernels[usize::from(!exact)][usize::from(large)];
    size32(sizes.operation, "a row of the weight", inner)?;
    let vectors = vector(x, sizes.k, 4, VECTOR_A) | vector(w, inner, 8, VECTOR_B);
    let (m, n, k) = sizes.args32()?;
    let (splits, each) = tiling.split(sizes, multiprocessors(device));
    let scales = if is_f16 { Some(row_scales(device, sizes, x, vectors)?) } else { None };
    let activates = matches!(form, Form::Rows);
    finished(device, sizes, terms, y, splits, |to, flags, terms| {
        let args = Args::new().pointer(to).pointer(x).pointer(w);
        let args = if let Some(scales) = &scales { args.pointer(scales.pointer()) } else { args };
        let args = terms.pointers(args, activates).u32(m).u32(n).u32(k).u32(size32(sizes.operation, "k", each)?).u32(flags | vectors);
        let work = sizes.work(2).plus(terms.work(sizes.m, sizes.n));
        device.launch(kernel, grid(sizes, &tiling, splits)?, terms.numbers(args, activates), work)
    })
}

/// For every row of x the power of two that suits f16.
pub(super) fn row_scales<'a>(device: &'a CudaDevice, sizes: &Sizes, x: Pointer, flags: u32) -> Result<Scratch<'a>> {
    let scales = device.scratch(sizes.m)?;
    let (m, _, k) = sizes.args32()?;
    let args = Args::new().pointer(scales.pointer()).pointer(x).u32(m).u32(k).u32(flags & VECTOR_A);
    let numbers = (sizes.m as u64).saturating_mul(sizes.k as u64);
    let work = Work { bytes: numbers.saturating_add(sizes.m as u64).saturating_mul(4), flops: numbers };
    // A warp takes a row.
    let grid = Grid { blocks: [m.div_ceil(8), 1, 1], threads: 256, shared_bytes: 0 };
    device.launch("scale_rows", grid, args, work)?;
    Ok(scales)
}
