//! The quantised formats: blocks of 32 numbers along the dimension that a product reduces over.
//!
//! A block of `Q8` is `x = scale · q` with `q` in −127..=127; a block of `Q4` is `x = scale · q + minimum` with `q` in 0..=15. Scales and
//! minima are f16. Each kind is a plane of its own; a plane starts at a multiple of 64 bytes from the tensor's first byte, the gap
//! before it is zero.
//!
//! | plane | `Rows` (Q, K, V, up, gate, tables) | `Interleaved` (O and down; `units` = rows rounded up to 32) |
//! |---|---|---|
//! | `Q8` quants | `[rows, blocks, 32]` i8 | `[units / 4, columns, 4]` i8 |
//! | `Q4` quants | `[rows, blocks, 16]`, byte `i` holds number `i` low and number `i + 16` high | `[units / 8, columns, 4]`, byte `i` holds row `2i` low and row `2i + 1` high |
//! | scales, then minima (`Q4`) | `[rows, blocks]` f16 | `[units / 32, columns]` f16 |
//!
//! The quants of a short block's missing numbers are zero and its range is that of the numbers which are there; a kernel that works on
//! whole blocks multiplies the missing ones by zero.

use std::ops::Range;

use half::f16;

use super::Format;
use crate::tensor::{DType, Layout};

/// Numbers in a block.
pub const BLOCK: usize = 32;

/// Every plane starts at a multiple of this many bytes from the tensor's first.
pub const PLANE_ALIGNMENT: usize = 64;

/// Where the planes of a quantised tensor lie, counted from its first byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planes {
    /// The quants.
    pub quants: Range<usize>,
    /// The f16 scales.
    pub scales: Range<usize>,
    /// The f16 minima; empty for `Q8`.
    pub minima: Range<usize>,
}

impl Planes {
    /// The planes of `format`; none where it is not quantised or a length does not fit `usize`.
    pub fn of(format: &Format) -> Option<Self> {
        let blocks = match format.layout {
            Layout::Rows => format.rows.checked_mul(format.columns.div_ceil(BLOCK))?,
            Layout::Interleaved => format.rows.div_ceil(BLOCK).checked_mul(format.columns)?,
        };
        let (block_bytes, minima) = match format.dtype {
            DType::Q8 => (BLOCK, 0),
            DType::Q4 => (BLOCK / 2, blocks.checked_mul(2)?),
            DType::F32 | DType::F16 | DType::Bf16 => return None,
        };
        let quants = blocks.checked_mul(block_bytes)?;
        let scales = quants.checked_next_multiple_of(PLANE_ALIGNMENT)?;
        let scales_end = scales.checked_add(blocks.checked_mul(2)?)?;
        if minima == 0 {
            return Some(Self { quants: 0..quants, scales: scales..scales_end, minima: scales_end..scales_end });
        }
        let minima_start = scales_end.checked_next_multiple_of(PLANE_ALIGNMENT)?;
        Some(Self { quants: 0..quants, scales: scales..scales_end, minima: minima_start..minima_start.checked_add(minima)? })
    }

    /// Length of the tensor in bytes.
    pub fn bytes(&self) -> usize {
        self.minima.end
    }

    /// Bytes in the planes, without the gaps between them.
    pub fn stored_bytes(&self) -> usize {
        self.quants.len() + self.scales.len() + self.minima.len()
    }
}

/// Where the block with index `block` in the scale plane finds its numbers: first row and column, and how many numbers there are.
fn numbers(format: &Format, block: usize) -> (usize, usize, usize) {
    match format.layout {
        Layout::Rows => {
            let blocks = format.columns.div_ceil(BLOCK);
            let (row, column) = (block / blocks, block % blocks * BLOCK);
            (row, column, BLOCK.min(format.columns - column))
        }
        Layout::Interleaved => {
            let (row, column) = (block / format.columns * BLOCK, block % format.columns);
            (row, column, BLOCK.min(format.rows - row))
        }
    }
}

/// Rows that share the four bytes of a column in an interleaved tensor.
fn group(dtype: DType) -> usize {
    if dtype == DType::Q4 { 8 } else { 4 }
}

/// Appends the planes of `values [rows, columns]` to the empty `out`; `format` is quantised and its planes fit.
pub(super) fn encode(format: &Format, values: &[f32], out: &mut Vec<u8>) {
    let Some(planes) = Planes::of(format) else { return };
    out.resize(planes.bytes(), 0);
    let (columns, group) = (format.columns, group(format.dtype));
    for block in 0..planes.scales.len() / 2 {
        let (row, column, count) = numbers(format, block);
        let mut gathered = [0.0; BLOCK];
        match format.layout {
            Layout::Rows => gathered[..count].copy_from_slice(&values[row * columns + column..][..count]),
            Layout::Interleaved => {
                let column = values[row * columns + column..].iter().step_by(columns);
                gathered[..count].iter_mut().zip(column).for_each(|(number, value)| *number = *value);
            }
        }
        let (scale, minimum, quants) = match format.dtype {
            DType::Q4 => quantise_4(&gathered[..count]),
            _ => quantise_8(&gathered[..count]),
        };
        out[planes.scales.start + block * 2..][..2].copy_from_slice(&scale.to_le_bytes());
        if !planes.minima.is_empty() {
            out[planes.minima.start + block * 2..][..2].copy_from_slice(&minimum.to_le_bytes());
        }
        match (format.layout, format.dtype) {
            (Layout::Rows, DType::Q4) => {
                let (low, high) = quants.split_at(BLOCK / 2);
                let bytes = &mut out[block * (BLOCK / 2)..][..BLOCK / 2];
                bytes.iter_mut().zip(low.iter().zip(high)).for_each(|(byte, (low, high))| *byte = low | high << 4);
            }
            (Layout::Rows, _) => out[block * BLOCK..][..BLOCK].copy_from_slice(&quants),
            (Layout::Interleaved, dtype) => {
                for (index, quants) in quants.chunks_exact(group).enumerate() {
                    let bytes = &mut out[((row + index * group) / group * columns + column) * 4..][..4];
                    match dtype {
                        DType::Q4 => bytes.iter_mut().zip(quants.chunks_exact(2)).for_each(|(byte, pair)| *byte = pair[0] | pair[1] << 4),
                        _ => bytes.copy_from_slice(quants),
                    }
                }
            }
        }
    }
}

/// Decodes the rows `rows` to `out [rows, columns]`; every length has been checked by the caller.
pub(super) fn decode_rows(format: &Format, bytes: &[u8], rows: Range<usize>, out: &mut [f32]) {
    let Some(planes) = Planes::of(format) else { return };
    let half = |plane: &Range<usize>, block: usize| {
        f16::from_le_bytes([bytes[plane.start + block * 2], bytes[plane.start + block * 2 + 1]]).to_f32()
    };
    let range = |block: usize| (half(&planes.scales, block), if planes.minima.is_empty() { 0.0 } else { half(&planes.minima, block) });
    for (row, out) in rows.zip(out.chunks_exact_mut(format.columns)) {
        match format.layout {
            Layout::Rows => {
                let first = row * format.columns.div_ceil(BLOCK);
                for (block, out) in out.chunks_mut(BLOCK).enumerate() {
                    let (scale, minimum) = range(first + block);
                    decode_block(format.dtype, bytes, first + block, out);
                    out.iter_mut().for_each(|value| *value = scale * *value + minimum);
                }
            }
            Layout::Interleaved => {
                let (group, first) = (group(format.dtype), row / BLOCK * format.columns);
                let (words, place) = (&bytes[row / group * format.columns * 4..], row % group);
                for (column, (value, word)) in out.iter_mut().zip(words.chunks_exact(4)).enumerate() {
                    let (scale, minimum) = range(first + column);
                    let quant = match format.dtype {
                        DType::Q4 => f32::from(word[place / 2] >> (place % 2 * 4) & 15),
                        _ => f32::from(word[place] as i8),
                    };
                    *value = scale * quant + minimum;
                }
            }
        }
    }
}

/// The quants of the block `block` along a row.
fn decode_block(dtype: DType, bytes: &[u8], block: usize, out: &mut [f32]) {
    match dtype {
        DType::Q4 => {
            let bytes = &bytes[block * (BLOCK / 2)..][..BLOCK / 2];
            out.iter_mut()
                .zip(bytes.iter().map(|byte| byte & 15).chain(bytes.iter().map(|byte| byte >> 4)))
                .for_each(|(value, quant)| *value = f32::from(quant));
        }
        _ => out.iter_mut().zip(&bytes[block * BLOCK..]).for_each(|(value, &byte)| *value = f32::from(byte as i8)),
    }
}

/// Scale, zero and the quants of a symmetric 8-bit block.
fn quantise_8(values: &[f32]) -> (f16, f16, [u8; BLOCK]) {
    let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let scale = covering(largest / 127.0);
    let mut quants = [0; BLOCK];
    if scale > f16::ZERO {
        for (quant, value) in quants.iter_mut().zip(values) {
            *quant = (value / scale.to_f32()).round().clamp(-127.0, 127.0) as i8 as u8;
        }
    }
    (scale, f16::ZERO, quants)
}

/// Scale, minimum and the quants of a 4-bit block.
fn quantise_4(values: &[f32]) -> (f16, f16, [u8; BLOCK]) {
    let least = values.iter().fold(f32::INFINITY, |least, &value| least.min(value));
    let most = values.iter().fold(f32::NEG_INFINITY, |most, &value| most.max(value));
    let minimum = finite(least);
    let scale = covering(((most - minimum.to_f32()) / 15.0).max(0.0));
    let mut quants = [0; BLOCK];
    if scale > f16::ZERO {
        for (quant, value) in quants.iter_mut().zip(values) {
            *quant = ((value - minimum.to_f32()) / scale.to_f32()).round().clamp(0.0, 15.0) as u8;
        }
    }
    (scale, minimum, quants)
}

/// Rounds a scale to f16, upwards where f16 is so coarse there (below its normal numbers) that the largest quants would be cut off.
fn covering(scale: f32) -> f16 {
    /// Relative; a quarter of a step of the largest quant.
    const SLACK: f32 = 0.002;
    let rounded = finite(scale);
    if rounded.to_f32() * (1.0 + SLACK) < scale && rounded < f16::MAX { f16::from_bits(rounded.to_bits() + 1) } else { rounded }
}

/// Rounds to f16; beyond its range, the nearest finite number.
fn finite(value: f32) -> f16 {
    f16::from_f32(value.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_lie_where_the_table_says() {
        let values: Vec<f32> = (0..40 * 3).map(|index| index as f32 - 60.0).collect();
        let format = Format { dtype: DType::Q8, layout: Layout::Interleaved, rows: 40, columns: 3 };
        let bytes = format.encode(&values).unwrap();
        let planes = Planes::of(&format).unwrap();
        assert_eq!(planes, Planes { quants: 0..192, scales: 192..204, minima: 204..204 });
        // Row 33, column 2 is in the second block of its column: scale 3 + 2, quant group 33 / 4 = 8.
        let scale = f16::from_le_bytes([bytes[192 + 10], bytes[192 + 11]]).to_f32();
        let quant = bytes[(8 * 3 + 2) * 4 + 1] as i8;
        let value = values[33 * 3 + 2];
        assert!((scale * f32::from(quant) - value).abs() <= scale, "{scale} {quant} {value}");
    }

    #[test]
    fn tiny_numbers_keep_their_largest() {
        // A scale of 1.5 steps of f16's smallest numbers: rounded down, the block's largest numbers would lose a third.
        for (dtype, most) in [(DType::Q8, 127.0), (DType::Q4, 15.0)] {
            let format = Format { dtype, layout: Layout::Rows, rows: 1, columns: 3 };
            let largest = 1.4 * 2_f32.powi(-24) * most;
            let values = [largest, 0.0, largest / 2.0];
            let mut out = [0.0; 3];
            format.decode_rows(&format.encode(&values).unwrap(), 0..1, &mut out).unwrap();
            for (value, out) in values.iter().zip(out) {
                assert!((value - out).abs() <= 2_f32.powi(-24), "{dtype:?}: {values:?} became {out}");
            }
        }
    }

    #[test]
    fn what_is_quantised_is_quantised_again_without_loss_along_rows() {
        let mut state = 7_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        for dtype in [DType::Q8, DType::Q4] {
            let format = Format { dtype, layout: Layout::Rows, rows: 40, columns: 70 };
            let values: Vec<f32> = (0..40 * 70).map(|_| next()).collect();
            let (mut once, mut twice) = (vec![0.0; values.len()], vec![0.0; values.len()]);
            format.decode_rows(&format.encode(&values).unwrap(), 0..40, &mut once).unwrap();
            format.decode_rows(&format.encode(&once).unwrap(), 0..40, &mut twice).unwrap();
            let changed = once.iter().zip(&twice).filter(|(once, twice)| once != twice).count();
            assert_eq!(changed, 0, "{dtype:?}: {changed} numbers changed");
        }
    }

    #[test]
    fn a_block_of_equal_numbers_is_exact_in_f16() {
        let format = Format { dtype: DType::Q4, layout: Layout::Rows, rows: 2, columns: 37 };
        let values = vec![0.75; 74];
        let bytes = format.encode(&values).unwrap();
        let mut out = vec![0.0; 74];
        format.decode_rows(&bytes, 0..2, &mut out).unwrap();
        assert_eq!(out, values);
    }
}
