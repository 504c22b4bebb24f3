//! Matrices as they are stored, and how products read them.

use std::ops::Range;

use bytemuck::Pod;

use super::buffer::Buffer;
use super::gemv;
use super::half::{Bf16, F16, Half};
use super::quantised::{BlockRows, BlockUnits, Eight, Four, Stored};
use super::real::Real;
use super::vector::vectorized;
use crate::device::{Format, HostBytes};
use crate::error::{KernelError, Result};

enum Data {
    Owned(Buffer),
    Mapped(HostBytes, Format),
}

/// A matrix `[rows, columns]`, owned or mapped.
pub struct Weight {
    rows: usize,
    columns: usize,
    data: Data,
}

/// The numbers of a [`Weight`] by how they are stored.
#[derive(Clone, Copy)]
pub enum View<'a> {
    F32(Plain<'a, f32>),
    F16(HalfRows<'a, F16>),
    Bf16(HalfRows<'a, Bf16>),
    F16Pairs(HalfPairs<'a, F16>),
    Bf16Pairs(HalfPairs<'a, Bf16>),
    Q8(BlockRows<'a, Eight>),
    Q4(BlockRows<'a, Four>),
    Q8Units(BlockUnits<'a, Eight>),
    Q4Units(BlockUnits<'a, Four>),
}

/// Calls `$body` with the matrix of a [`View`], of whatever type.
macro_rules! with_matrix {
    ($view:expr, $matrix:ident => $body:expr) => {
        match $view {
            $crate::cpu::weight::View::F32($matrix) => $body,
            $crate::cpu::weight::View::F16($matrix) => $body,
            $crate::cpu::weight::View::Bf16($matrix) => $body,
            $crate::cpu::weight::View::F16Pairs($matrix) => $body,
            $crate::cpu::weight::View::Bf16Pairs($matrix) => $body,
            $crate::cpu::weight::View::Q8($matrix) => $body,
            $crate::cpu::weight::View::Q4($matrix) => $body,
            $crate::cpu::weight::View::Q8Units($matrix) => $body,
            $crate::cpu::weight::View::Q4Units($matrix) => $body,
        }
    };
}
pub(super) use with_matrix;

fn numbers<T: Pod>(bytes: &[u8], len: usize, rows: usize, columns: usize, format: Format) -> Result<&[T]> {
    let shape = |detail| KernelError::Shape { operation: "map_weight", detail };
    let needed = len.checked_mul(size_of::<T>()).ok_or_else(|| shape(format!("[{rows}, {columns}] does not fit in memory")))?;
    let bytes = bytes
        .get(..needed)
        .ok_or_else(|| shape(format!("a {format:?} matrix [{rows}, {columns}] takes {needed} bytes, but {} were given", bytes.len())))?;
    bytemuck::try_cast_slice(bytes).map_err(|_| {
        let (address, alignment) = (bytes.as_ptr() as usize, align_of::<T>());
        shape(format!(
            "a {format:?} matrix [{rows}, {columns}] starts {} bytes past a multiple of {alignment} bytes; it is read in place and has to \
             start at one",
            address % alignment
        ))
    })
}

fn view(bytes: &[u8], format: Format, rows: usize, columns: usize) -> Result<View<'_>> {
    let overflow = || KernelError::Shape { operation: "map_weight", detail: format!("[{rows}, {columns}] does not fit in memory") };
    let stored_rows = match format {
        Format::F16Pairs | Format::Bf16Pairs => rows.div_ceil(2),
        _ => rows,
    };
    let len = stored_rows.checked_mul(columns).ok_or_else(overflow)?;
    Ok(match format {
        Format::F32 => View::F32(Plain { data: numbers(bytes, len, rows, columns, format)?, columns }),
        Format::F16 => View::F16(HalfRows { data: numbers(bytes, len, rows, columns, format)?, columns, half: F16 }),
        Format::Bf16 => View::Bf16(HalfRows { data: numbers(bytes, len, rows, columns, format)?, columns, half: Bf16 }),
        Format::F16Pairs => View::F16Pairs(HalfPairs { data: numbers(bytes, len, rows, columns, format)?, columns, half: F16 }),
        Format::Bf16Pairs => View::Bf16Pairs(HalfPairs { data: numbers(bytes, len, rows, columns, format)?, columns, half: Bf16 }),
        Format::Q8 => View::Q8(BlockRows(planes(bytes, format, rows, columns, Eight)?)),
        Format::Q4 => View::Q4(BlockRows(planes(bytes, format, rows, columns, Four)?)),
        Format::Q8Units => View::Q8Units(BlockUnits(planes(bytes, format, rows, columns, Eight)?)),
        Format::Q4Units => View::Q4Units(BlockUnits(planes(bytes, format, rows, columns, Four)?)),
    })
}

/// The planes of a quantised matrix.
fn planes<Q>(bytes: &[u8], format: Format, rows: usize, columns: usize, packing: Q) -> Result<Stored<'_, Q>> {
    let shape = |detail| KernelError::Shape { operation: "map_weight", detail };
    let planes = format.planes(rows, columns).ok_or_else(|| shape(format!("[{rows}, {columns}] does not fit in memory")))?;
    // Once for the length of all of them; a plane then starts at a multiple of two bytes where the matrix does.
    let bytes: &[u8] = numbers(bytes, planes.bytes(), rows, columns, format)?;
    let halves = |plane: Range<usize>| {
        bytemuck::try_cast_slice(&bytes[plane]).map_err(|_| {
            shape(format!(
                "a {format:?} matrix [{rows}, {columns}] starts at an odd address; it is read in place and has to start at an even one"
            ))
        })
    };
    Ok(Stored { quants: &bytes[planes.quants], scales: halves(planes.scales)?, minima: halves(planes.minima)?, columns, packing })
}

impl Weight {
    /// A matrix read in place. An error where `bytes` is too short or does not start at a multiple of its numbers' size.
    pub fn mapped(bytes: HostBytes, format: Format, rows: usize, columns: usize) -> Result<Self> {
        view(bytes.bytes(), format, rows, columns)?;
        Ok(Self { rows, columns, data: Data::Mapped(bytes, format) })
    }

    /// A matrix of its own. An error where the buffer is too short.
    pub fn owned(buffer: Buffer, rows: usize, columns: usize) -> Result<Self> {
        if rows.checked_mul(columns).is_none_or(|len| len > buffer.len()) {
            let detail = format!("a matrix [{rows}, {columns}] was to be made of a buffer of {} numbers", buffer.len());
            return Err(KernelError::Shape { operation: "own_weight", detail });
        }
        Ok(Self { rows, columns, data: Data::Owned(buffer) })
    }

    /// Whether it is read in the bytes that it was mapped from.
    pub fn is_mapped(&self) -> bool {
        matches!(self.data, Data::Mapped(..))
    }

    /// `(rows, columns)`.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// The buffer of an owned matrix.
    pub fn buffer(&self) -> Option<&Buffer> {
        match &self.data {
            Data::Owned(buffer) => Some(buffer),
            Data::Mapped(..) => None,
        }
    }

    /// The buffer of an owned matrix, to be written.
    pub fn buffer_mut(&mut self) -> Option<&mut Buffer> {
        match &mut self.data {
            Data::Owned(buffer) => Some(buffer),
            Data::Mapped(..) => None,
        }
    }

    /// The numbers.
    pub fn view(&self) -> Result<View<'_>> {
        match &self.data {
            Data::Owned(buffer) => Ok(View::F32(Plain { data: &buffer.as_slice()[..self.rows * self.columns], columns: self.columns })),
            Data::Mapped(bytes, format) => view(bytes.bytes(), *format, self.rows, self.columns),
        }
    }
}

/// What a product needs of a stored matrix. Ranges are the caller's to keep inside the matrix.
pub trait Matrix<T: Real>: Copy + Sync {
    /// Whether it is stored as rows of `T`; if not, [`panel`](Matrix::panel) needs as much scratch as the panel has numbers.
    const IN_PLACE: bool;
    /// Rows `rows` of columns `columns` as `T`, and the distance between neighbouring rows; widened into `scratch` where they are stored
    /// otherwise. `rows` starts at an even row, `columns` at a multiple of 32.
    fn panel<'s>(&'s self, rows: Range<usize>, columns: Range<usize>, scratch: &'s mut [T]) -> (&'s [T], usize);
    /// Calls `work` with row `row` as `T`.
    fn row<R>(&self, row: usize, work: impl FnOnce(&[T]) -> R) -> R;
    /// `y[i] = W[rows.start + i] · x`, added to `y` where `accumulate`. `rows` starts at a multiple of 8.
    fn dots(&self, y: &mut [T], rows: Range<usize>, x: &[T], accumulate: bool);
    /// `y += Σ_r a[r] · W[r, columns]`. `columns` starts at a multiple of 32.
    fn axpys(&self, y: &mut [T], columns: Range<usize>, a: &[T]);
}

/// Rows of `T`.
#[derive(Clone, Copy)]
pub struct Plain<'a, T> {
    pub data: &'a [T],
    pub columns: usize,
}

impl<T: Real> Matrix<T> for Plain<'_, T> {
    const IN_PLACE: bool = true;
    fn panel<'s>(&'s self, rows: Range<usize>, columns: Range<usize>, _scratch: &'s mut [T]) -> (&'s [T], usize) {
        if rows.is_empty() {
            return (&[], self.columns);
        }
        (&self.data[rows.start * self.columns + columns.start..(rows.end - 1) * self.columns + columns.end], self.columns)
    }
    fn row<R>(&self, row: usize, work: impl FnOnce(&[T]) -> R) -> R {
        work(&self.data[row * self.columns..][..self.columns])
    }
    fn dots(&self, y: &mut [T], rows: Range<usize>, x: &[T], accumulate: bool) {
        gemv::dots(y, &self.data[rows.start * self.columns..rows.end * self.columns], self.columns, x, T::ONE, accumulate);
    }
    fn axpys(&self, y: &mut [T], columns: Range<usize>, a: &[T]) {
        if let Some(data) = self.data.get(columns.start..) {
            gemv::axpys(y, data, self.columns, a);
        }
    }
}

/// [`Matrix::dots`] of a matrix that has to be widened: a few rows at a time, which then stay in the first-level cache.
pub(super) fn widened_dots(w: &impl Matrix<f32>, y: &mut [f32], rows: Range<usize>, x: &[f32], accumulate: bool) {
    const ROWS: usize = 8;
    f32::with_scratch(ROWS * x.len(), |scratch| {
        for (start, y) in rows.clone().step_by(ROWS).zip(y.chunks_mut(ROWS)) {
            let (panel, stride) = w.panel(start..rows.end.min(start + ROWS), 0..x.len(), scratch);
            gemv::dots(y, panel, stride, x, 1.0, accumulate);
        }
    });
}

/// Rows of 16-bit numbers.
#[derive(Clone, Copy)]
pub struct HalfRows<'a, H> {
    pub data: &'a [u16],
    pub columns: usize,
    half: H,
}

impl<H: Half> Matrix<f32> for HalfRows<'_, H> {
    const IN_PLACE: bool = false;
    fn panel<'s>(&'s self, rows: Range<usize>, columns: Range<usize>, scratch: &'s mut [f32]) -> (&'s [f32], usize) {
        let width = columns.len();
        let panel = &mut scratch[..rows.len() * width];
        for (to, row) in panel.chunks_exact_mut(width.max(1)).zip(rows) {
            widen(self.half, to, &self.data[row * self.columns + columns.start..][..width]);
        }
        (panel, width)
    }
    fn row<R>(&self, row: usize, work: impl FnOnce(&[f32]) -> R) -> R {
        f32::with_scratch(self.columns, |scratch| work(self.panel(row..row + 1, 0..self.columns, scratch).0))
    }
    fn dots(&self, y: &mut [f32], rows: Range<usize>, x: &[f32], accumulate: bool) {
        widened_dots(self, y, rows, x, accumulate);
    }
    fn axpys(&self, y: &mut [f32], columns: Range<usize>, a: &[f32]) {
        for (row, &a) in self.data.chunks_exact(self.columns.max(1)).zip(a) {
            half_axpy(self.half, &mut *y, &row[columns.clone()], a);
        }
    }
}

vectorized! {
    /// Widens 16-bit numbers.
    pub fn widen<H: Half>(_half: H, to: &mut [f32], from: &[u16]) {
        for (to, &from) in to.iter_mut().zip(from) {
            *to = H::widen(from);
        }
    }
}

vectorized! {
    fn half_axpy<H: Half>(_half: H, y: &mut [f32], row: &[u16], a: f32) {
        for (y, &w) in y.iter_mut().zip(row) {
            *y += a * H::widen(w);
        }
    }
}

/// Two neighbouring rows of 16-bit numbers, element by element.
#[derive(Clone, Copy)]
pub struct HalfPairs<'a, H> {
    pub data: &'a [[u16; 2]],
    pub columns: usize,
    half: H,
}

impl<'a, H: Half> HalfPairs<'a, H> {
    /// Rows `row` and `row + 1` of columns `columns`; `row` is even.
    fn pair(&self, row: usize, columns: Range<usize>) -> &'a [[u16; 2]] {
        &self.data[row / 2 * self.columns..][columns]
    }
}

impl<H: Half> Matrix<f32> for HalfPairs<'_, H> {
    const IN_PLACE: bool = false;
    fn panel<'s>(&'s self, rows: Range<usize>, columns: Range<usize>, scratch: &'s mut [f32]) -> (&'s [f32], usize) {
        let width = columns.len();
        let panel = &mut scratch[..rows.len() * width];
        for (pair, to) in panel.chunks_mut((2 * width).max(1)).enumerate() {
            let (even, odd) = to.split_at_mut(width);
            // A prefix with an odd number of rows has no use for the second row of its last pair, which is another unit's.
            widen_pair(self.half, even, odd, self.pair(rows.start + 2 * pair, columns.clone()));
        }
        (panel, width)
    }
    fn row<R>(&self, row: usize, work: impl FnOnce(&[f32]) -> R) -> R {
        f32::with_scratch(2 * self.columns, |scratch| {
            let (even, odd) = scratch.split_at_mut(self.columns);
            let (pair, odd_columns) = (self.pair(row - row % 2, 0..self.columns), if row.is_multiple_of(2) { 0 } else { self.columns });
            widen_pair(self.half, &mut *even, &mut odd[..odd_columns], pair);
            work(if row.is_multiple_of(2) { even } else { odd })
        })
    }
    fn dots(&self, y: &mut [f32], rows: Range<usize>, x: &[f32], accumulate: bool) {
        widened_dots(self, y, rows, x, accumulate);
    }
    fn axpys(&self, y: &mut [f32], columns: Range<usize>, a: &[f32]) {
        for (pair, a) in a.chunks(2).enumerate() {
            // Not a factor of 0 for the row beyond an odd end: what is stored there may be infinite.
            let numbers = self.pair(2 * pair, columns.clone());
            match *a {
                [even, odd] => pair_axpy(self.half, &mut *y, numbers, even, odd),
                [even] => even_axpy(self.half, &mut *y, numbers, even),
                _ => {}
            }
        }
    }
}

vectorized! {
    fn widen_pair<H: Half>(_half: H, even: &mut [f32], odd: &mut [f32], from: &[[u16; 2]]) {
        for (to, from) in even.iter_mut().zip(from) {
            *to = H::widen(from[0]);
        }
        for (to, from) in odd.iter_mut().zip(from) {
            *to = H::widen(from[1]);
        }
    }
}

vectorized! {
    fn pair_axpy<H: Half>(_half: H, y: &mut [f32], pair: &[[u16; 2]], even: f32, odd: f32) {
        for (y, w) in y.iter_mut().zip(pair) {
            *y += even * H::widen(w[0]) + odd * H::widen(w[1]);
        }
    }
}

vectorized! {
    fn even_axpy<H: Half>(_half: H, y: &mut [f32], pair: &[[u16; 2]], even: f32) {
        for (y, w) in y.iter_mut().zip(pair) {
            *y += even * H::widen(w[0]);
        }
    }
}
