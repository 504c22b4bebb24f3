//! Matrix products: every form, every stored format, one token to more than a hundred, matrices with no rows.

use std::sync::Arc;

use super::{Suite, multiply, wide};
use crate::device::{Device, Format, HostBytes, Product};
use crate::error::Result;

const FORMATS: [Format; 5] = [Format::F32, Format::F16, Format::Bf16, Format::F16Pairs, Format::Bf16Pairs];

/// `(m, rows, columns)`.
pub(super) const SHAPES: [(usize, usize, usize); 20] = [
    (1, 1, 1),
    (1, 7, 33),
    (1, 96, 64),
    (2, 13, 40),
    (3, 9, 5),
    (4, 65, 17),
    (17, 31, 48),
    (32, 192, 96),
    (37, 70, 35),
    (101, 19, 23),
    (130, 300, 65),
    (5, 0, 24),
    (33, 6, 200),
    // Up to eight tokens; sums that are long enough to be cut, by columns and by rows, at even and odd places.
    (8, 40, 72),
    (7, 33, 31),
    (3, 6, 2056),
    (2, 131, 40),
    (20, 21, 517),
    (9, 517, 20),
    // More than a tile of 128 each way, and than three slices of a sum.
    (140, 136, 136),
];

/// `values [rows, columns]` as stored, and as they read back. Behind an odd number of rows of pairs stands a NaN in place of another unit.
pub(crate) fn encode(values: &[f32], format: Format, columns: usize) -> (Vec<u8>, Vec<f32>) {
    let f16 = |x: f32| half::f16::from_f32(x);
    let bf16 = |x: f32| half::bf16::from_f32(x);
    let (bits, read): (fn(f32) -> u16, Vec<f32>) = match format {
        Format::F32 => return (bytemuck::cast_slice(values).to_vec(), values.to_vec()),
        Format::F16 | Format::F16Pairs => (|x| half::f16::from_f32(x).to_bits(), values.iter().map(|x| f16(*x).to_f32()).collect()),
        Format::Bf16 | Format::Bf16Pairs => (|x| half::bf16::from_f32(x).to_bits(), values.iter().map(|x| bf16(*x).to_f32()).collect()),
        Format::Q8 | Format::Q4 | Format::Q8Units | Format::Q4Units => return super::quantised::encode(values, format, columns),
    };
    let mut stored: Vec<u16> = Vec::new();
    if matches!(format, Format::F16Pairs | Format::Bf16Pairs) {
        for pair in values.chunks((2 * columns).max(1)) {
            for c in 0..columns {
                stored.push(bits(pair[c]));
                stored.push(bits(pair.get(columns + c).copied().unwrap_or(f32::NAN)));
            }
        }
    } else {
        stored.extend(values.iter().map(|x| bits(*x)));
    }
    (bytemuck::cast_slice(&stored).to_vec(), read)
}

/// Bytes that are aligned for any number.
struct Aligned(Vec<u64>, usize);

impl AsRef<[u8]> for Aligned {
    fn as_ref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.0)[..self.1]
    }
}

/// `bytes`, `offset` bytes behind an aligned address.
pub(crate) fn host_bytes(bytes: &[u8], offset: usize) -> HostBytes {
    let mut words = vec![0_u64; (offset + bytes.len()).div_ceil(8) + 1];
    bytemuck::cast_slice_mut::<u64, u8>(&mut words)[offset..offset + bytes.len()].copy_from_slice(bytes);
    HostBytes { owner: Arc::new(Aligned(words, offset + bytes.len())), range: offset..offset + bytes.len() }
}

pub fn run<D: Device>(suite: &Suite<D>) -> Result<()> {
    for (m, rows, columns) in SHAPES {
        let values = suite.random(rows * columns);
        every_format(suite, &FORMATS, (m, rows, columns))?;
        let owned = suite.device.own_weight(suite.buffer(&values)?, rows, columns)?;
        stored(suite, &format!("owned [{rows}, {columns}] with {m} tokens"), &owned, &values, m)?;
        for (transpose_a, transpose_b) in [(false, false), (false, true), (true, false), (true, true)] {
            let product = Product { m, n: rows, k: columns, transpose_a, transpose_b, alpha: 1.5, accumulate: m % 2 == 1 };
            buffers(suite, product)?;
        }
    }
    nothing_to_sum(suite, &FORMATS)?;
    for m in [3, 20] {
        for (transpose_a, transpose_b) in [(false, false), (false, true), (true, false), (true, true)] {
            for accumulate in [false, true] {
                buffers(suite, Product { m, n: 4, k: 0, transpose_a, transpose_b, alpha: 1.0, accumulate })?;
            }
        }
    }
    refusals(suite)
}

/// Both products of a matrix `[rows, columns]` with `m` tokens, in every one of `formats`.
pub(super) fn every_format<D: Device>(suite: &Suite<D>, formats: &[Format], (m, rows, columns): (usize, usize, usize)) -> Result<()> {
    let values = suite.random(rows * columns);
    for &format in formats {
        let (bytes, read) = encode(&values, format, columns);
        let weight = suite.device.map_weight(host_bytes(&bytes, 16), format, rows, columns)?;
        stored(suite, &format!("{format:?} [{rows}, {columns}] with {m} tokens"), &weight, &read, m)?;
    }
    Ok(())
}

/// Matrices without rows or columns: y is zeroed, or kept.
pub(super) fn nothing_to_sum<D: Device>(suite: &Suite<D>, formats: &[Format]) -> Result<()> {
    for m in [3, 20] {
        for &format in formats {
            for (rows, columns) in [(40, 0), (0, 40)] {
                let weight = suite.device.map_weight(host_bytes(&[], 16), format, rows, columns)?;
                stored(suite, &format!("{format:?} [{rows}, {columns}] with {m} tokens"), &weight, &[], m)?;
            }
        }
    }
    Ok(())
}

fn stored<D: Device>(suite: &Suite<D>, case: &str, weight: &D::Weight, values: &[f32], m: usize) -> Result<()> {
    let (rows, columns) = suite.device.weight_shape(weight);
    let values = wide(values);
    for accumulate in [false, true] {
        let add = |y: Vec<f64>, before: &[f32]| -> Vec<f64> {
            y.iter().zip(before).map(|(y, b)| y + if accumulate { f64::from(*b) } else { 0.0 }).collect()
        };
        let (x, before) = (suite.random(m * columns), suite.random(m * rows));
        let mut y = suite.buffer(&before)?;
        suite.device.matmul_rows(&mut y, &suite.buffer(&x)?, weight, m, accumulate)?;
        let expected = multiply(m, rows, columns, &wide(&x), (columns, 1), &values, (1, columns));
        suite.check(&format!("matmul_rows, {case}, accumulate {accumulate}"), &y, &add(expected, &before))?;

        let (a, before) = (suite.random(m * rows), suite.random(m * columns));
        let mut y = suite.buffer(&before)?;
        suite.device.matmul_units(&mut y, &suite.buffer(&a)?, weight, m, accumulate)?;
        let expected = multiply(m, columns, rows, &wide(&a), (rows, 1), &values, (columns, 1));
        suite.check(&format!("matmul_units, {case}, accumulate {accumulate}"), &y, &add(expected, &before))?;
    }
    Ok(())
}

fn buffers<D: Device>(suite: &Suite<D>, product: Product) -> Result<()> {
    let Product { m, n, k, transpose_a, transpose_b, alpha, accumulate } = product;
    let (a, b, before) = (suite.random(m * k), suite.random(k * n), suite.random(m * n));
    let mut c = suite.buffer(&before)?;
    suite.device.matmul(&mut c, &suite.buffer(&a)?, &suite.buffer(&b)?, product)?;
    let a_strides = if transpose_a { (1, m) } else { (k, 1) };
    let b_strides = if transpose_b { (1, k) } else { (n, 1) };
    let expected: Vec<f64> = multiply(m, n, k, &wide(&a), a_strides, &wide(&b), b_strides)
        .iter()
        .zip(&before)
        .map(|(c, before)| f64::from(alpha) * c + if accumulate { f64::from(*before) } else { 0.0 })
        .collect();
    suite.check(&format!("matmul {product:?}"), &c, &expected)
}

fn refusals<D: Device>(suite: &Suite<D>) -> Result<()> {
    let device = suite.device;
    let weight = device.own_weight(suite.exact(&[1.0; 12])?, 3, 4)?;
    let (mut y, x) = (suite.exact(&[0.0; 6])?, suite.exact(&[0.0; 8])?);
    suite.refused("matmul_rows, y too short", device.matmul_rows(&mut y, &x, &weight, 3, false));
    suite.refused("matmul_units, y too short", device.matmul_units(&mut y, &x, &weight, 2, false));
    suite.refused("matmul_rows, a size that overflows", device.matmul_rows(&mut y, &x, &weight, usize::MAX, false));
    let product = Product { m: 2, n: 3, k: 5, transpose_a: false, transpose_b: false, alpha: 1.0, accumulate: false };
    suite.refused("matmul, A too short", device.matmul(&mut y, &x, &x, product));
    suite.refused("own_weight, too short", device.own_weight(suite.exact(&[0.0; 11])?, 3, 4));
    let mapped = |bytes: usize, format, rows, columns| device.map_weight(host_bytes(&vec![0; bytes], 0), format, rows, columns);
    suite.refused("map_weight, too short", mapped(47, Format::F32, 3, 4));
    suite.refused("map_weight, odd rows of pairs too short", mapped(24, Format::Bf16Pairs, 3, 4));
    suite.refused("map_weight, a size that overflows", mapped(64, Format::F32, usize::MAX, 2));
    Ok(())
}
