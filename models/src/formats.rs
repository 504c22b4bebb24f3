//! How numbers become bytes: every format that an artifact's tensors may have.
//!
//! All numbers are little-endian. A tensor has `rows` units of `columns` numbers each.
//!
//! | format | layout `Rows` | layout `Interleaved` |
//! |---|---|---|
//! | `F32` | `[rows, columns]` | not defined: single precision gains nothing from it |
//! | `F16`, `Bf16` | `[rows, columns]` | `[rows / 2, columns, 2]`, a missing last row is zero |
//! | `Q8`, `Q4` | blocks of 32 along the columns | blocks of 32 rows at one column |
//!
//! The quantised formats are described in [`blocks`]. In every layout the first `n` rows are a prefix of each plane, so that a smaller
//! network reads less of the same tensor.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::tensor::{DType, Layout, Part, TensorSpec};

pub mod blocks;

/// Numbers converted at once on the stack.
const CONVERT: usize = 512;

/// The format of one stored tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// Number format.
    pub dtype: DType,
    /// How rows lie.
    pub layout: Layout,
    /// Rows; 1 for a vector.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
}

/// The number format and layout in which an artifact of `dtype` stores `part`: vectors are always f32; matrices that reduce over units are
/// interleaved in formats below 32 bits.
pub fn stored_as(part: Part, dtype: DType) -> (DType, Layout) {
    match (part.is_vector(), part.is_unit_reduction(), dtype) {
        (true, ..) => (DType::F32, Layout::Rows),
        (false, true, DType::F16 | DType::Bf16 | DType::Q8 | DType::Q4) => (dtype, Layout::Interleaved),
        _ => (dtype, Layout::Rows),
    }
}

impl Format {
    /// The format of `spec` in an artifact of `dtype`.
    pub fn of(spec: &TensorSpec, dtype: DType) -> Self {
        let (dtype, layout) = stored_as(spec.key.part, dtype);
        Self { dtype, layout, rows: spec.rows, columns: spec.columns }
    }

    /// Length in bytes, planes and the gaps between them included; none where it does not fit `usize` or the format is not defined.
    pub fn bytes(&self) -> Option<usize> {
        match (self.dtype, self.layout) {
            (DType::F32, Layout::Rows) => self.rows.checked_mul(self.columns)?.checked_mul(4),
            (DType::F32, Layout::Interleaved) => None,
            (DType::F16 | DType::Bf16, Layout::Rows) => self.rows.checked_mul(self.columns)?.checked_mul(2),
            (DType::F16 | DType::Bf16, Layout::Interleaved) => {
                self.rows.checked_next_multiple_of(2)?.checked_mul(self.columns)?.checked_mul(2)
            }
            (DType::Q8 | DType::Q4, _) => blocks::Planes::of(self).map(|planes| planes.bytes()),
        }
    }

    /// Bytes that the first `rows` rows occupy, summed over the planes; at most all rows. A row that shares a block with the next counts
    /// the whole block.
    pub fn prefix_bytes(&self, rows: usize) -> usize {
        let prefix = Self { rows: rows.min(self.rows), ..*self };
        match self.dtype {
            DType::Q8 | DType::Q4 => blocks::Planes::of(&prefix).map_or(0, |planes| planes.stored_bytes()),
            _ => prefix.bytes().unwrap_or(0),
        }
    }

    /// The bytes that the rows `rows` touch, counted from the tensor's first byte. Quantised tensors touch all of theirs.
    pub fn touched(&self, rows: &Range<usize>) -> Range<usize> {
        match (self.dtype, self.layout) {
            (DType::Q8 | DType::Q4, _) => 0..self.bytes().unwrap_or(0),
            _ => {
                let first = match self.layout {
                    Layout::Rows => rows.start,
                    Layout::Interleaved => rows.start & !1,
                };
                let start = if first == 0 { 0 } else { self.prefix_bytes(first) };
                start..self.prefix_bytes(rows.end).max(start)
            }
        }
    }

    /// Decodes the rows `rows` of the tensor `bytes` to `out [rows, columns]`.
    ///
    /// # Errors
    /// One sentence where the rows are out of range or a length does not fit.
    pub fn decode_rows(&self, bytes: &[u8], rows: Range<usize>, out: &mut [f32]) -> Result<(), String> {
        if rows.start > rows.end || rows.end > self.rows {
            return Err(format!("rows {}..{} were asked for, but there are {}", rows.start, rows.end, self.rows));
        }
        if self.bytes() != Some(bytes.len()) {
            return Err(format!("{} bytes were given, but {self:?} needs {:?}", bytes.len(), self.bytes()));
        }
        if (rows.end - rows.start).checked_mul(self.columns) != Some(out.len()) {
            return Err(format!("{} numbers of space for {} rows of {}", out.len(), rows.end - rows.start, self.columns));
        }
        if out.is_empty() {
            return Ok(());
        }
        match (self.dtype, self.layout) {
            (DType::Q8 | DType::Q4, _) => blocks::decode_rows(self, bytes, rows, out),
            (DType::F32, _) => {
                let bytes = &bytes[rows.start * self.columns * 4..][..out.len() * 4];
                for (value, quad) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                    *value = f32::from_le_bytes([quad[0], quad[1], quad[2], quad[3]]);
                }
            }
            (dtype, Layout::Rows) => widen(dtype, &bytes[rows.start * self.columns * 2..][..out.len() * 2], 2, out),
            (dtype, Layout::Interleaved) => {
                for (row, out) in rows.zip(out.chunks_exact_mut(self.columns)) {
                    let pair = &bytes[row / 2 * self.columns * 4..][..self.columns * 4];
                    widen(dtype, &pair[row % 2 * 2..], 4, out);
                }
            }
        }
        Ok(())
    }

    /// Encodes a whole tensor, `values [rows, columns]`, all finite.
    ///
    /// # Errors
    /// One sentence where a length does not fit or the format is not defined.
    pub fn encode(&self, values: &[f32]) -> Result<Vec<u8>, String> {
        let bytes = self.bytes().ok_or_else(|| format!("{self:?} is not a format that can be stored"))?;
        if self.rows.checked_mul(self.columns) != Some(values.len()) {
            return Err(format!("{} numbers were given for {} rows of {}", values.len(), self.rows, self.columns));
        }
        let mut out = Vec::with_capacity(bytes);
        match (self.dtype, self.layout) {
            (DType::Q8 | DType::Q4, _) => blocks::encode(self, values, &mut out),
            (_, Layout::Rows) => encode_values(self.dtype, values, &mut out),
            (_, Layout::Interleaved) => {
                for pair in values.chunks(self.columns.max(1) * 2) {
                    let (even, odd) = pair.split_at(self.columns);
                    encode_pair(self.dtype, even, odd, &mut out);
                }
            }
        }
        Ok(out)
    }
}

/// `value` as f16 or bf16 holds it; other formats are taken to hold it as it is.
pub(crate) fn rounded(dtype: DType, value: f32) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(value).to_f32(),
        DType::Bf16 => bf16::from_f32(value).to_f32(),
        _ => value,
    }
}

/// Appends `values` to `out`, one after the other, in a format without blocks.
pub(crate) fn encode_values(dtype: DType, values: &[f32], out: &mut Vec<u8>) {
    match dtype {
        DType::F32 => values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes())),
        _ => {
            for values in values.chunks(CONVERT) {
                let mut bits = [0u16; CONVERT];
                narrow(dtype, values, &mut bits[..values.len()]);
                bits[..values.len()].iter().for_each(|bits| out.extend_from_slice(&bits.to_le_bytes()));
            }
        }
    }
}

/// Appends two neighbouring rows of a 16-bit interleaved matrix to `out`; `odd` is empty where there is no second row.
pub(crate) fn encode_pair(dtype: DType, even: &[f32], odd: &[f32], out: &mut Vec<u8>) {
    for start in (0..even.len()).step_by(CONVERT) {
        let count = CONVERT.min(even.len() - start);
        let (mut first, mut second) = ([0u16; CONVERT], [0u16; CONVERT]);
        narrow(dtype, &even[start..start + count], &mut first[..count]);
        if !odd.is_empty() {
            narrow(dtype, &odd[start..start + count], &mut second[..count]);
        }
        for (first, second) in first[..count].iter().zip(&second[..count]) {
            out.extend_from_slice(&first.to_le_bytes());
            out.extend_from_slice(&second.to_le_bytes());
        }
    }
}

/// Rounds to 16 bits, to nearest, ties to even; a value beyond the format's range becomes infinite.
fn narrow(dtype: DType, values: &[f32], bits: &mut [u16]) {
    if dtype == DType::F16 {
        let mut halves = [f16::ZERO; CONVERT];
        let halves = &mut halves[..values.len()];
        halves.convert_from_f32_slice(values);
        bits.iter_mut().zip(halves).for_each(|(bits, half)| *bits = half.to_bits());
    } else {
        bits.iter_mut().zip(values).for_each(|(bits, &value)| *bits = half::bf16::from_f32(value).to_bits());
    }
}

/// Widens every 16-bit number that starts at a multiple of `step` bytes.
fn widen(dtype: DType, bytes: &[u8], step: usize, out: &mut [f32]) {
    for (index, out) in out.chunks_mut(CONVERT).enumerate() {
        let bytes = &bytes[index * CONVERT * step..];
        let numbers = bytes.chunks(step).map(|number| u16::from_le_bytes([number[0], number[1]]));
        if dtype == DType::F16 {
            let mut halves = [f16::ZERO; CONVERT];
            halves[..out.len()].iter_mut().zip(numbers).for_each(|(half, bits)| *half = f16::from_bits(bits));
            halves[..out.len()].convert_to_f32_slice(out);
        } else {
            out.iter_mut().zip(numbers).for_each(|(value, bits)| *value = f32::from_bits(u32::from(bits) << 16));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [DType; 5] = [DType::F32, DType::F16, DType::Bf16, DType::Q8, DType::Q4];

    /// The largest error of `dtype` on numbers of magnitude at most 1.
    fn tolerance(dtype: DType) -> f32 {
        match dtype {
            DType::F32 => 0.0,
            DType::F16 => 1.0 / 2048.0,
            DType::Bf16 => 1.0 / 256.0,
            DType::Q8 => 1.0 / 127.0,
            DType::Q4 => 2.0 / 15.0,
        }
    }

    proptest! {
        #[test]
        fn every_format_gives_back_what_it_was_given(
            rows in 0usize..70, columns in 0usize..70, from in 0usize..70, seed in any::<u64>(), part in 0usize..2,
        ) {
            let mut state = seed | 1;
            let values: Vec<f32> = (0..rows * columns).map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                ((state >> 40) as f32 / (1u64 << 23) as f32) - 1.0
            }).collect();
            for dtype in ALL {
                let (_, layout) = stored_as([Part::Query, Part::Down][part], dtype);
                let format = Format { dtype, layout, rows, columns };
                let bytes = format.encode(&values).unwrap();
                prop_assert_eq!(Some(bytes.len()), format.bytes());
                let from = from.min(rows);
                let mut out = vec![0.0; (rows - from) * columns];
                format.decode_rows(&bytes, from..rows, &mut out).unwrap();
                for (out, value) in out.iter().zip(&values[from * columns..]) {
                    prop_assert!((out - value).abs() <= tolerance(dtype), "{:?} {} became {}", format, value, out);
                }
            }
        }

        #[test]
        fn a_prefix_decodes_from_a_prefix_of_16_bit_numbers(rows in 1usize..20, columns in 1usize..20, prefix in 0usize..20) {
            let prefix = prefix.min(rows);
            let values: Vec<f32> = (0..rows * columns).map(|index| index as f32).collect();
            for layout in [Layout::Rows, Layout::Interleaved] {
                let format = Format { dtype: DType::F16, layout, rows, columns };
                let mut bytes = format.encode(&values).unwrap();
                bytes[format.prefix_bytes(prefix)..].fill(0xff);
                prop_assert_eq!(format.touched(&(0..prefix)).end, format.prefix_bytes(prefix));
                let mut out = vec![0.0; prefix * columns];
                format.decode_rows(&bytes, 0..prefix, &mut out).unwrap();
                prop_assert_eq!(&out[..], &values[..prefix * columns]);
            }
        }
    }

    #[test]
    fn sixteen_bit_numbers_survive_exactly() {
        for dtype in [DType::F16, DType::Bf16] {
            let format = Format { dtype, layout: Layout::Rows, rows: 256, columns: 256 };
            let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
            let mut values = vec![0.0; 1 << 16];
            format.decode_rows(&bytes, 0..256, &mut values).unwrap();
            let again = format.encode(&values).unwrap();
            for (index, value) in values.iter().enumerate().filter(|(_, value)| !value.is_nan()) {
                assert_eq!(bytes[index * 2..][..2], again[index * 2..][..2], "{dtype:?} {value}");
            }
        }
    }

    #[test]
    fn lengths_are_exact() {
        use DType::*;
        use Layout::*;
        let cases = [
            (F32, Rows, 3, 5, Some(60)),
            (F32, Interleaved, 3, 5, None),
            (F16, Rows, 3, 5, Some(30)),
            (Bf16, Interleaved, 3, 5, Some(40)),
            // One row of two blocks: 64 quants, then 2 scales.
            (Q8, Rows, 1, 33, Some(64 + 4)),
            // 32 rows by 5 columns of quants = 160, up to 192, then 5 scales.
            (Q8, Interleaved, 3, 5, Some(192 + 10)),
            // 2 rows of one block: 32 bytes of quants, up to 64; 2 scales, up to 128; 2 minima.
            (Q4, Rows, 2, 32, Some(128 + 4)),
            // 33 rows: 64 rows by 4 columns of half bytes = 128; 8 scales, up to 192; 8 minima.
            (Q4, Interleaved, 33, 4, Some(192 + 16)),
            (F32, Rows, usize::MAX, 5, None),
            (F16, Interleaved, usize::MAX, 1, None),
            (Q4, Rows, usize::MAX / 8, 64, None),
        ];
        let wrong: Vec<_> = cases
            .iter()
            .map(|&(dtype, layout, rows, columns, bytes)| (Format { dtype, layout, rows, columns }, bytes))
            .filter(|(format, bytes)| format.bytes() != *bytes)
            .map(|(format, bytes)| format!("{format:?}: {:?}, expected {bytes:?}", format.bytes()))
            .collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}
