//! Where the planes of a quantised matrix lie on the device, and how they are moved together when rows are given back.

use std::ops::Range;

use super::arena::copy_down;
use super::device::Core;
use super::memory::Pointer;
use crate::error::{KernelError, Result};
use crate::format::{BLOCK, Format, PLANE_ALIGNMENT};

/// A plane is left where it is where closing the gap before it would take more copies than this: each goes no further than the gap is wide.
const MOST_COPIES: usize = 64;

/// The planes of a quantised matrix, in bytes from its first. They need not be as close as [`Format::planes`] puts them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Planes {
    quants: Range<usize>,
    scales: Range<usize>,
    minima: Range<usize>,
}

/// A quantised matrix as its kernels take it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quants {
    pub format: Format,
    pub quants: Pointer,
    pub scales: Pointer,
    /// In the 8-bit formats, which have none, the quants.
    pub minima: Pointer,
    /// Bytes of all planes.
    pub bytes: u64,
}

impl Planes {
    /// The planes of a matrix as an artifact stores it; none where it has none.
    pub fn stored(format: Format, rows: usize, columns: usize) -> Option<Self> {
        let planes = format.planes(rows, columns)?;
        Some(Self { quants: planes.quants, scales: planes.scales, minima: planes.minima })
    }

    /// Length of the matrix in bytes, the gaps between planes included.
    pub fn bytes(&self) -> usize {
        self.minima.end.max(self.scales.end)
    }

    /// Each plane.
    pub fn parts(&self) -> [Range<usize>; 3] {
        [self.quants.clone(), self.scales.clone(), self.minima.clone()]
    }

    /// The matrix that begins at `start`.
    pub fn at(&self, format: Format, start: Pointer) -> Quants {
        // A plane that is empty may lie where nothing is registered any more.
        let plane = |plane: &Range<usize>| start.plus_bytes(if plane.is_empty() { 0 } else { plane.start as u64 });
        let bytes = (self.quants.len() + self.scales.len() + self.minima.len()) as u64;
        Quants { format, quants: plane(&self.quants), scales: plane(&self.scales), minima: plane(&self.minima), bytes }
    }

    /// The first rows, whose planes are as long as those of `kept`, where they are.
    pub fn first(&self, kept: &Self) -> Self {
        let first = |of: &Range<usize>, kept: &Range<usize>| of.start..of.start + kept.len();
        Self {
            quants: first(&self.quants, &kept.quants),
            scales: first(&self.scales, &kept.scales),
            minima: first(&self.minima, &kept.minima),
        }
    }

    /// Moves the planes of a matrix that begins at `start` together, on the compute stream. The caller is inside [`Core::enter`].
    pub fn compact(&mut self, core: &Core, start: Pointer) -> Result<()> {
        let mut end = self.quants.end;
        for plane in [&mut self.scales, &mut self.minima] {
            if plane.start == plane.end {
                *plane = end..end;
                continue;
            }
            let closest = end.next_multiple_of(PLANE_ALIGNMENT);
            let to = if (plane.start - closest).saturating_mul(MOST_COPIES) < plane.len() { plane.start } else { closest };
            let address = |offset: usize| start.plus_bytes(offset as u64).address();
            copy_down(core, address(to), address(plane.start), plane.len() as u64)?;
            *plane = to..to + plane.len();
            end = plane.end;
        }
        Ok(())
    }
}

/// Refuses to keep the first `kept` of `rows` rows where their blocks go on in the others.
pub(super) fn check_kept(format: Format, rows: usize, kept: usize) -> Result<()> {
    if matches!(format, Format::Q8Units | Format::Q4Units) && kept < rows && !kept.is_multiple_of(BLOCK) {
        let detail = format!("{kept} rows of a {format:?} matrix of {rows} were to be kept; its blocks are {BLOCK} rows: keep a multiple");
        return Err(KernelError::Shape { operation: "shrink", detail });
    }
    Ok(())
}
