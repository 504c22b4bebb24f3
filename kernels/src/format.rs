//! How a stored matrix is written, and where the planes of a quantised one lie.

use std::ops::Range;

/// How a stored matrix `[rows, columns]` is written. All numbers are little-endian.
///
/// The quantised formats have blocks of [`BLOCK`] numbers: `x = scale · q`, `q` in −127..=127 (`Q8`), or `x = scale · q + minimum`, `q` in
/// 0..=15 (`Q4`), scale and minimum f16. Quants, scales and minima are planes ([`Planes`]), one behind the other:
///
/// | format | block | quants | scales, and minima of `Q4` |
/// |---|---|---|---|
/// | `Q8` | 32 columns of a row | `[rows, blocks, 32]` i8 | `[rows, blocks]` |
/// | `Q4` | 32 columns of a row | `[rows, blocks, 16]` u8: byte `i` holds column `i` low, column `i + 16` high | `[rows, blocks]` |
/// | `Q8Units` | 32 rows at a column | `[⌈rows⌉ / 4, columns, 4]` i8 | `[⌈rows⌉ / 32, columns]` |
/// | `Q4Units` | 32 rows at a column | `[⌈rows⌉ / 8, columns, 4]` u8: byte `i` holds row `2i` low, row `2i + 1` high | `[⌈rows⌉ / 32, columns]` |
///
/// `blocks` is `columns / 32` rounded up, `⌈rows⌉` is `rows` rounded up to a multiple of 32. The quants of a last block's missing numbers
/// are zero; a missing number of a `Q4` block still reads as its minimum, so whoever reads whole blocks leaves it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// f32 rows.
    F32,
    /// f16 rows.
    F16,
    /// bf16 rows.
    Bf16,
    /// f16, two neighbouring rows element by element: `[rows / 2, columns, 2]`.
    F16Pairs,
    /// bf16, two neighbouring rows element by element: `[rows / 2, columns, 2]`.
    Bf16Pairs,
    /// Symmetric 8-bit blocks along a row.
    Q8,
    /// 4-bit blocks with a minimum along a row.
    Q4,
    /// Symmetric 8-bit blocks along 32 rows, four neighbouring rows element by element.
    Q8Units,
    /// 4-bit blocks with a minimum along 32 rows, eight neighbouring rows element by element.
    Q4Units,
}

/// Numbers in a block of a quantised format.
pub const BLOCK: usize = 32;

/// Every plane starts at a multiple of this many bytes from the matrix's first byte.
pub const PLANE_ALIGNMENT: usize = 64;

/// Where the planes of a quantised matrix lie, in bytes from its first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planes {
    /// The quants.
    pub quants: Range<usize>,
    /// The f16 scales.
    pub scales: Range<usize>,
    /// The f16 minima; empty in the 8-bit formats.
    pub minima: Range<usize>,
}

impl Planes {
    /// Length of the matrix in bytes, the gaps between planes included.
    pub fn bytes(&self) -> usize {
        self.minima.end
    }
}

impl Format {
    /// Whether numbers are stored in blocks of quants.
    pub fn is_quantised(self) -> bool {
        matches!(self, Format::Q8 | Format::Q4 | Format::Q8Units | Format::Q4Units)
    }

    /// The planes of a quantised matrix `[rows, columns]`; none in another format, and where a length does not fit `usize`.
    pub fn planes(self, rows: usize, columns: usize) -> Option<Planes> {
        let (blocks, block_bytes) = match self {
            Format::F32 | Format::F16 | Format::Bf16 | Format::F16Pairs | Format::Bf16Pairs => return None,
            Format::Q8 => (rows.checked_mul(columns.div_ceil(BLOCK))?, BLOCK),
            Format::Q4 => (rows.checked_mul(columns.div_ceil(BLOCK))?, BLOCK / 2),
            Format::Q8Units => (rows.div_ceil(BLOCK).checked_mul(columns)?, BLOCK),
            Format::Q4Units => (rows.div_ceil(BLOCK).checked_mul(columns)?, BLOCK / 2),
        };
        let behind = |start: usize, bytes: usize| start.checked_add(bytes).map(|end| start..end);
        let quants = behind(0, blocks.checked_mul(block_bytes)?)?;
        let scales = behind(quants.end.checked_next_multiple_of(PLANE_ALIGNMENT)?, blocks.checked_mul(2)?)?;
        let minima = match self {
            Format::Q4 | Format::Q4Units if blocks > 0 => behind(scales.end.checked_next_multiple_of(PLANE_ALIGNMENT)?, scales.len())?,
            _ => scales.end..scales.end,
        };
        Some(Planes { quants, scales, minima })
    }

    /// Bytes of a matrix `[rows, columns]`; none where they do not fit `usize`.
    pub fn stored_bytes(self, rows: usize, columns: usize) -> Option<usize> {
        let (stored_rows, number_bytes) = match self {
            Format::F32 => (rows, 4),
            Format::F16 | Format::Bf16 => (rows, 2),
            Format::F16Pairs | Format::Bf16Pairs => (rows.div_ceil(2), 4),
            Format::Q8 | Format::Q4 | Format::Q8Units | Format::Q4Units => return self.planes(rows, columns).map(|planes| planes.bytes()),
        };
        stored_rows.checked_mul(columns)?.checked_mul(number_bytes)
    }
}
