//! The CUDA device's products: every kernel is as exact as it is said to be, whichever is chosen.
#![cfg(feature = "cuda")]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use espalier_kernels::cuda::{CudaDevice, Plan, Precision, Weight};
use espalier_kernels::{Device, Format, HostBytes, conformance};
use half::{bf16, f16};
use support::real_or_emulated;

/// Together they choose every kernel: large tiles, small ones, cut sums, with tensor cores for f32 and without.
const PLANS: [Plan; 3] = [
    Plan { precision: Precision::Exact, multiprocessors: Some(1), tf32: Some(true) },
    Plan { precision: Precision::Exact, multiprocessors: Some(1), tf32: Some(false) },
    Plan { precision: Precision::Exact, multiprocessors: Some(256), tf32: Some(true) },
];

/// The kernels of a source.
fn kernels(source: &str) -> impl Iterator<Item = &str> {
    source.lines().filter_map(|line| line.strip_prefix("EXPORT(")?.strip_suffix(')'))
}

/// What fails of the cases with stored matrices, a line each.
fn products(device: &CudaDevice, tolerance: f64) -> impl Iterator<Item = String> {
    let failures = conformance::run_families(device, tolerance, |family| matches!(family, "products" | "lookups" | "fused" | "quantised"));
    failures.into_iter().map(|failure| format!("{failure}\n"))
}

#[test]
fn every_cuda_product_kernel_is_as_exact_as_f32() {
    let Some((device, _emulator)) = real_or_emulated("") else { return };
    let mut failures = Vec::new();
    for plan in PLANS {
        let device = device.with_plan(plan);
        failures.extend(products(&device, conformance::F32_TOLERANCE).map(|failure| format!("{plan:?}: {failure}")));
    }
    assert!(failures.is_empty(), "{}", failures.concat());
    let ran: BTreeSet<_> = device.kernel_counts().iter().map(|count| count.name).collect();
    let sources = [
        include_str!("../src/cuda/products_f32.cu"),
        include_str!("../src/cuda/products_tf32.cu"),
        include_str!("../src/cuda/products_half.cu"),
        include_str!("../src/cuda/products_half_rows.cu"),
        include_str!("../src/cuda/products_half_units.cu"),
        include_str!("../src/cuda/products_quantized_rows.cu"),
        include_str!("../src/cuda/products_quantized_units.cu"),
        include_str!("../src/cuda/products_quantized_backward.cu"),
        include_str!("../src/cuda/gemv_rows.cu"),
        include_str!("../src/cuda/gemv_units.cu"),
        include_str!("../src/cuda/gemv_fused.cu"),
        include_str!("../src/cuda/gemv_quantized.cu"),
        include_str!("../src/cuda/weights.cu"),
    ];
    let all: Vec<_> = sources.iter().flat_map(|source| kernels(source)).filter(|name| !name.contains("_fast_")).collect();
    let missing: Vec<_> = all.iter().filter(|name| !ran.contains(*name)).collect();
    println!("{} product kernels conform", all.len());
    assert!(all.len() > 80 && missing.is_empty(), "these kernels never ran: {missing:?}");
}

/// A matrix of f16 or bf16 from −1 to 1, as bytes and as it reads back.
fn stored(format: Format, len: usize) -> (HostBytes, Vec<f64>) {
    let (mut bytes, mut read) = (Vec::new(), Vec::new());
    for x in random(len) {
        let (bits, value) = match format {
            Format::F16 | Format::F16Pairs => (f16::from_f32(x).to_bits(), f16::from_f32(x).to_f64()),
            _ => (bf16::from_f32(x).to_bits(), bf16::from_f32(x).to_f64()),
        };
        bytes.extend(bits.to_le_bytes());
        read.push(value);
    }
    let range = 0..bytes.len();
    (HostBytes { owner: Arc::new(bytes), range }, read)
}

const QUANTISED: [Format; 4] = [Format::Q8, Format::Q4, Format::Q8Units, Format::Q4Units];

/// Any quants of a matrix, with scales from 2⁻¹⁴ to 2 and minima from −2 to 2.
fn quantised(format: Format, rows: usize, columns: usize) -> HostBytes {
    let planes = format.planes(rows, columns).unwrap();
    let mut bytes = vec![0_u8; planes.bytes()];
    let numbers = random(planes.bytes());
    bytes[planes.quants.clone()].iter_mut().zip(&numbers).for_each(|(byte, x)| *byte = ((x + 1.0) * 127.9) as u8);
    // −128 is no quant.
    bytes[planes.quants.clone()].iter_mut().for_each(|byte| *byte = if *byte == 128 { 127 } else { *byte });
    let halves = |plane: &mut [u8], half: &dyn Fn(f32) -> f32| {
        plane.chunks_exact_mut(2).zip(&numbers).for_each(|(to, x)| to.copy_from_slice(&f16::from_f32(half(*x)).to_le_bytes()));
    };
    halves(&mut bytes[planes.scales], &|x| 2.0_f32.powf(7.5 * x - 6.5));
    halves(&mut bytes[planes.minima], &|x| 2.0 * x);
    let range = 0..bytes.len();
    HostBytes { owner: Arc::new(bytes), range }
}

/// Numbers from −1 to 1 (a linear congruential generator; Knuth, "The Art of Computer Programming", 3.3.4).
fn random(len: usize) -> Vec<f32> {
    let mut state = 1_u64;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(next).collect()
}

/// The rows of a weight as f64.
fn read(device: &CudaDevice, weight: &Weight) -> Vec<f64> {
    let (rows, columns) = device.weight_shape(weight);
    let ids: Vec<u32> = (0..rows as u32).collect();
    let (mut out, mut numbers) = (device.zeros(rows * columns).unwrap(), vec![0.0; rows * columns]);
    device.embed(&mut out, weight, &device.indices(&ids).unwrap(), rows).unwrap();
    device.read(&out, 0, &mut numbers).unwrap();
    numbers.into_iter().map(f64::from).collect()
}

const M: usize = 80;
const ROWS: usize = 48;
const COLUMNS: usize = 192;

/// Row `i` of `x [M, k]` times `scale` to the power of `i % 3 − 1`, and the largest error of a row of its product with `weight` relative to
/// the row's largest number; `x · Wᵀ`, or `x · W` where `units`.
fn largest_error(device: &CudaDevice, weight: &Weight, w: &[f64], units: bool, scale: f32) -> f64 {
    let (rows, columns) = device.weight_shape(weight);
    let (k, n) = if units { (rows, columns) } else { (columns, rows) };
    let mut x = random(M * k);
    x.chunks_mut(k).enumerate().for_each(|(i, row)| row.iter_mut().for_each(|x| *x *= scale.powi(i as i32 % 3 - 1)));
    let (mut y, mut buffer) = (device.zeros(M * n).unwrap(), device.zeros(x.len()).unwrap());
    device.write(&mut buffer, 0, &x).unwrap();
    if units {
        device.matmul_units(&mut y, &buffer, weight, M, false).unwrap();
    } else {
        device.matmul_rows(&mut y, &buffer, weight, M, false).unwrap();
    }
    let mut got = vec![0.0; M * n];
    device.read(&y, 0, &mut got).unwrap();
    let row = |x: &[f32], got: &[f32]| {
        let at = |p: usize, j: usize| if units { w[p * columns + j] } else { w[j * columns + p] };
        let expected: Vec<f64> = (0..n).map(|j| x.iter().enumerate().map(|(p, x)| at(p, j) * f64::from(*x)).sum()).collect();
        let largest = expected.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
        let error = expected.iter().zip(got).map(|(e, g)| (e - f64::from(*g)).abs() / largest);
        error.fold(0.0, |worst: f64, e| if e.is_nan() { f64::INFINITY } else { worst.max(e) })
    };
    x.chunks(k).zip(got.chunks(n)).map(|(x, got)| row(x, got)).fold(0.0, f64::max)
}

/// Gradients of 10⁻⁹ and outliers of 10⁹, which f16 cannot hold, lose nothing; the fast kernels lose what their numbers have not got.
#[test]
fn cuda_products_of_16_bit_weights_keep_what_their_precision_says() {
    let Some((device, _emulator)) = real_or_emulated("") else { return };
    let cases = [
        (Format::F16, Precision::Exact, 1e-6),
        (Format::Bf16, Precision::Exact, 1e-6),
        (Format::F16, Precision::Fast, 1e-3),
        (Format::Bf16, Precision::Fast, 8e-3),
    ];
    let mut wrong = String::new();
    for (format, precision, bound) in cases {
        for multiprocessors in [Some(1), Some(4)] {
            let device = device.with_plan(Plan { precision, multiprocessors, tf32: None });
            for scale in [1.0, 1e9] {
                let (bytes, w) = stored(format, ROWS * COLUMNS);
                let weight = device.map_weight(bytes, format, ROWS, COLUMNS).unwrap();
                let error = largest_error(&device, &weight, &w, false, scale);
                println!("{format:?} {precision:?} for {multiprocessors:?} multiprocessors, scale {scale:e}: error {error:.1e}");
                if error > bound {
                    wrong += &format!("{format:?} {precision:?}, scale {scale:e}: an error of {error:e} of the largest, above {bound:e}\n");
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// As of 16-bit weights, in both directions: the forward pass of plain rows and interleaved units, and their backward.
#[test]
fn cuda_products_of_quantised_weights_keep_what_their_precision_says() {
    let Some((device, _emulator)) = real_or_emulated("") else { return };
    // Rounded activations: f16 in the forward pass, bf16 in the backward.
    let cases = [(Precision::Exact, [1e-6, 1e-6]), (Precision::Fast, [1e-3, 8e-3])];
    let mut wrong = String::new();
    for format in QUANTISED {
        let weight = device.map_weight(quantised(format, ROWS, COLUMNS), format, ROWS, COLUMNS).unwrap();
        let w = read(&device, &weight);
        for units in [false, true] {
            let backward = units != matches!(format, Format::Q8Units | Format::Q4Units);
            for (precision, bounds) in cases {
                for (multiprocessors, scale) in [(1, 1.0), (1, 1e9), (4, 1.0), (4, 1e9)] {
                    let device = device.with_plan(Plan { precision, multiprocessors: Some(multiprocessors), tf32: None });
                    let error = largest_error(&device, &weight, &w, units, scale);
                    let (bound, form) = (bounds[usize::from(backward)], if units { "units" } else { "rows" });
                    let case = format!("{format:?} by {form}, {precision:?} for {multiprocessors} multiprocessors, scale {scale:e}");
                    println!("{case}: error {error:.1e}");
                    if error > bound {
                        wrong += &format!("{case}: an error of {error:e} of the largest, above {bound:e}\n");
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Every layout, by the same numbers: the fast kernels of each read the same matrix.
#[test]
fn fast_cuda_products_conform_within_the_rounding_of_activations() {
    let Some((device, _emulator)) = real_or_emulated("") else { return };
    let mut failures = Vec::new();
    for multiprocessors in [Some(1), Some(256)] {
        let device = device.with_plan(Plan { precision: Precision::Fast, multiprocessors, tf32: None });
        failures.extend(products(&device, 1e-2));
    }
    assert!(failures.is_empty(), "{}", failures.concat());
    let count = device.kernel_counts().iter().filter(|count| count.name.contains("_fast_")).count();
    assert_eq!(count, 24, "fast kernels ran");
}

/// A NaN in one token's activations shows in all of its results and in no other token's.
#[test]
fn a_nan_stays_in_its_row_of_a_cuda_product() {
    let Some((device, _emulator)) = real_or_emulated("") else { return };
    let (rows, columns, m) = (40, 64, 40);
    let mut wrong = String::new();
    for format in [Format::F32, Format::F16, Format::Bf16, Format::F16Pairs, Format::Bf16Pairs].into_iter().chain(QUANTISED) {
        let weight = match format {
            _ if format.is_quantised() => device.map_weight(quantised(format, rows, columns), format, rows, columns).unwrap(),
            Format::F32 => {
                let mut buffer = device.zeros(rows * columns).unwrap();
                device.write(&mut buffer, 0, &random(rows * columns)).unwrap();
                device.own_weight(buffer, rows, columns).unwrap()
            }
            _ => device.map_weight(stored(format, rows * columns).0, format, rows, columns).unwrap(),
        };
        for tf32 in [true, false] {
            let device = device.with_plan(Plan { tf32: Some(tf32), ..Plan::default() });
            let mut x = random(m * columns);
            // All ones, as devices write it.
            x[7 * columns + 5] = f32::from_bits(0x7fff_ffff);
            let (mut y, mut buffer) = (device.zeros(m * rows).unwrap(), device.zeros(x.len()).unwrap());
            device.write(&mut buffer, 0, &x).unwrap();
            device.matmul_rows(&mut y, &buffer, &weight, m, false).unwrap();
            let mut got = vec![0.0; m * rows];
            device.read(&y, 0, &mut got).unwrap();
            let misplaced = got.chunks(rows).enumerate().filter(|(i, row)| row.iter().any(|y| y.is_nan() != (*i == 7))).count();
            if misplaced > 0 {
                wrong += &format!("{format:?}, tf32 {tf32}: {misplaced} rows are wrong\n");
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
