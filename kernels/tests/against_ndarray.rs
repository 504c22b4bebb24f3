//! Matrix products against another library: `ndarray`, in f64.

use std::sync::Arc;

use espalier_kernels::{CpuDevice, Device, Product, Result, Unlimited};
use ndarray::Array2;
use proptest::prelude::*;

/// Numbers in [−1, 1] that depend on the seed and the place only.
fn matrix(rows: usize, columns: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, columns), |(row, column)| {
        let mixed = (seed ^ ((row * columns + column) as u64 + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((mixed >> 40) as f32 / (1 << 23) as f32) - 1.0
    })
}

fn upload(device: &CpuDevice, matrix: &Array2<f32>) -> Result<<CpuDevice as Device>::Buffer> {
    let numbers: Vec<f32> = matrix.iter().copied().collect();
    let mut buffer = device.zeros(numbers.len())?;
    device.write(&mut buffer, 0, &numbers)?;
    Ok(buffer)
}

fn largest_difference(device: &CpuDevice, found: &<CpuDevice as Device>::Buffer, expected: &Array2<f64>) -> Result<f64> {
    let mut numbers = vec![0.0; expected.len()];
    device.read(found, 0, &mut numbers)?;
    Ok(numbers.iter().zip(expected).map(|(found, expected)| (f64::from(*found) - expected).abs()).fold(0.0, f64::max))
}

fn check(m: usize, n: usize, k: usize, transpose_a: bool, transpose_b: bool, threads: usize, seed: u64) -> Result<f64> {
    let device = CpuDevice::new(threads, Arc::new(Unlimited))?;
    let (a, b) = (matrix(m, k, seed), matrix(k, n, seed + 1));
    let expected = a.mapv(f64::from).dot(&b.mapv(f64::from));
    let stored =
        |matrix: &Array2<f32>, transposed: bool| if transposed { matrix.t().as_standard_layout().to_owned() } else { matrix.clone() };
    let mut c = device.zeros(m * n)?;
    let product = Product { m, n, k, transpose_a, transpose_b, alpha: 1.0, accumulate: false };
    device.matmul(&mut c, &upload(&device, &stored(&a, transpose_a))?, &upload(&device, &stored(&b, transpose_b))?, product)?;
    let mut worst = largest_difference(&device, &c, &expected)?;
    // The two forms of a stored weight: B as [k, n] with units as rows, and its transpose with outputs as rows.
    let units = device.own_weight(upload(&device, &b)?, k, n)?;
    device.matmul_units(&mut c, &upload(&device, &a)?, &units, m, false)?;
    worst = worst.max(largest_difference(&device, &c, &expected)?);
    let rows = device.own_weight(upload(&device, &stored(&b, true))?, n, k)?;
    device.matmul_rows(&mut c, &upload(&device, &a)?, &rows, m, false)?;
    Ok(worst.max(largest_difference(&device, &c, &expected)?))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn every_form_of_a_product_is_that_of_ndarray(
        m in 1usize..70, n in 1usize..90, k in 1usize..300, ta: bool, tb: bool, threads in 1usize..3, seed in 0u64..1000
    ) {
        let worst = check(m, n, k, ta, tb, threads, seed).map_err(|error| TestCaseError::fail(error.to_string()))?;
        // Rounding of k products of numbers up to 1, with room for any order of summation.
        prop_assert!(worst <= 1e-6 * k as f64 + 1e-6, "off by {worst:e}");
    }
}
