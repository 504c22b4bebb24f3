//! Quantised matrices in every operation that reads a stored matrix: exact as the numbers that the quants stand for.

use half::f16;

use super::{Suite, lookups, products};
use crate::device::Device;
use crate::error::Result;
use crate::format::{BLOCK, Format};

const FORMATS: [Format; 4] = [Format::Q8, Format::Q4, Format::Q8Units, Format::Q4Units];

/// `(m, rows, columns)`: several blocks each way, their ends, and odd places behind them.
const SHAPES: [(usize, usize, usize); 8] =
    [(1, 64, 96), (1, 33, 288), (2, 257, 64), (1, 131, 70), (3, 96, 33), (4, 64, 64), (33, 100, 100), (9, 70, 1000)];

pub fn run<D: Device>(suite: &Suite<D>) -> Result<()> {
    for shape in products::SHAPES.into_iter().chain(SHAPES) {
        products::every_format(suite, &FORMATS, shape)?;
    }
    products::nothing_to_sum(suite, &FORMATS)?;
    for format in FORMATS {
        for (rows, columns) in [(7, 33), (70, 64), (33, 100)] {
            lookups::tables(suite, format, rows, columns)?;
        }
    }
    let mapped =
        |bytes: usize, format, rows, columns| suite.device.map_weight(products::host_bytes(&vec![0; bytes], 0), format, rows, columns);
    suite.refused("map_weight, Q8 without its last scale", mapped(64 + 3, Format::Q8, 1, 33));
    suite.refused("map_weight, Q4 without its last minimum", mapped(128 + 3, Format::Q4, 2, 32));
    suite.refused("map_weight, Q4 of a size that overflows", mapped(64, Format::Q4Units, 64, usize::MAX / 8));
    Ok(())
}

/// `values [rows, columns]` as `format` stores them, and as they read back.
pub(super) fn encode(values: &[f32], format: Format, columns: usize) -> (Vec<u8>, Vec<f32>) {
    let rows = values.len().checked_div(columns).unwrap_or(0);
    let Some(planes) = format.planes(rows, columns) else { return (Vec::new(), Vec::new()) };
    let (mut stored, mut read) = (vec![0; planes.bytes()], vec![0.0; values.len()]);
    let units = matches!(format, Format::Q8Units | Format::Q4Units);
    for block in 0..planes.scales.len() / 2 {
        // Where the numbers of the block stand among the values.
        let numbers: Vec<usize> = if units {
            let (first, column) = (block / columns * BLOCK, block % columns);
            (first..rows.min(first + BLOCK)).map(|row| row * columns + column).collect()
        } else {
            let blocks = columns.div_ceil(BLOCK);
            let (row, first) = (block / blocks, block % blocks * BLOCK);
            (first..columns.min(first + BLOCK)).map(|column| row * columns + column).collect()
        };
        let of = |pick: fn(f32, f32) -> f32| numbers.iter().map(|&i| values[i]).reduce(pick).unwrap_or(0.0);
        let (least, most) = (of(f32::min), of(f32::max));
        let four_bits = !planes.minima.is_empty();
        let minimum = if four_bits { f16::from_f32(least) } else { f16::ZERO };
        let step = if four_bits { (most - minimum.to_f32()).max(0.0) / 15.0 } else { most.max(-least) / 127.0 };
        let scale = f16::from_f32(step);
        stored[planes.scales.start + 2 * block..][..2].copy_from_slice(&scale.to_le_bytes());
        if four_bits {
            stored[planes.minima.start + 2 * block..][..2].copy_from_slice(&minimum.to_le_bytes());
        }
        for (index, &at) in numbers.iter().enumerate() {
            let exact = if step > 0.0 { (values[at] - minimum.to_f32()) / scale.to_f32() } else { 0.0 };
            let quant = if four_bits { exact.round().clamp(0.0, 15.0) } else { exact.round().clamp(-127.0, 127.0) };
            read[at] = scale.to_f32() * quant + minimum.to_f32();
            let (row, column) = (at / columns, at % columns);
            let (byte, shift) = match format {
                Format::Q8 => (block * BLOCK + index, 0),
                Format::Q4 => (block * (BLOCK / 2) + index % (BLOCK / 2), 4 * (index / (BLOCK / 2))),
                Format::Q8Units => ((row / 4 * columns + column) * 4 + row % 4, 0),
                _ => ((row / 8 * columns + column) * 4 + row % 8 / 2, 4 * (row % 2)),
            };
            stored[byte] |= (quant as i8 as u8) << shift;
        }
    }
    (stored, read)
}
