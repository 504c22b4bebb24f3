//! One suite for every device: each operation on small and odd shapes against plain f64 loops.
//!
//! ```
//! use espalier_kernels::{CpuDevice, Unlimited, conformance};
//! let device = CpuDevice::new(1, std::sync::Arc::new(Unlimited)).unwrap();
//! assert_eq!(conformance::run(&device, conformance::F32_TOLERANCE), []);
//! ```

mod attention;
mod elementwise;
mod fused;
mod layouts;
mod lookups;
mod products;
mod quantised;
mod training;

use std::cell::{Cell, RefCell};
use std::fmt;

use crate::device::{Device, NormKind};
use crate::error::{KernelError, Result};

/// What f32 arithmetic in any order stays within, relative to a tensor's largest value.
pub const F32_TOLERANCE: f64 = 2e-5;

/// A case in which a device is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The operation and its shape.
    pub case: String,
    /// What is wrong.
    pub detail: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.case, self.detail)
    }
}

/// Runs every case on `device` and returns those that fail. `tolerance` is relative to each result's largest value.
pub fn run<D: Device>(device: &D, tolerance: f64) -> Vec<Failure> {
    run_families(device, tolerance, |_| true)
}

/// As [`run`], the families that `wanted` chooses: `products`, `elementwise`, `fused`, `attention`, `lookups`, `layouts`, `training`,
/// `quantised`.
pub fn run_families<D: Device>(device: &D, tolerance: f64, wanted: impl Fn(&str) -> bool) -> Vec<Failure> {
    let suite = Suite { device, tolerance, state: Cell::new(0x9e37_79b9_7f4a_7c15), failures: RefCell::new(Vec::new()) };
    type Family<D> = fn(&Suite<D>) -> Result<()>;
    let families: [(&str, Family<D>); 8] = [
        ("products", products::run),
        ("elementwise", elementwise::run),
        ("fused", fused::run),
        ("attention", attention::run),
        ("lookups", lookups::run),
        ("layouts", layouts::run),
        ("training", training::run),
        ("quantised", quantised::run),
    ];
    for (name, family) in families.into_iter().filter(|(name, _)| wanted(name)) {
        if let Err(error) = family(&suite) {
            suite.fail(name.to_string(), format!("stopped: {error}"));
        }
    }
    suite.failures.into_inner()
}

/// Numbers behind the end of every buffer, which no operation may touch.
const GUARD: usize = 5;
const GUARD_VALUE: f32 = -77.25;

pub(crate) struct Suite<'a, D> {
    pub device: &'a D,
    tolerance: f64,
    state: Cell<u64>,
    failures: RefCell<Vec<Failure>>,
}

impl<D: Device> Suite<'_, D> {
    /// The next pseudo-random 64 bits (SplitMix64, Steele et al., 2014).
    pub fn next(&self) -> u64 {
        let state = self.state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.state.set(state);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Numbers from −1 to 1.
    pub fn random(&self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    /// A buffer of `numbers` with a guard behind them.
    pub fn buffer(&self, numbers: &[f32]) -> Result<D::Buffer> {
        let mut buffer = self.device.zeros(numbers.len() + GUARD)?;
        self.device.write(&mut buffer, 0, numbers)?;
        self.device.write(&mut buffer, numbers.len(), &[GUARD_VALUE; GUARD])?;
        Ok(buffer)
    }

    /// A buffer of exactly `numbers`, for those whose length is a dimension.
    pub fn exact(&self, numbers: &[f32]) -> Result<D::Buffer> {
        let mut buffer = self.device.zeros(numbers.len())?;
        self.device.write(&mut buffer, 0, numbers)?;
        Ok(buffer)
    }

    pub fn fail(&self, case: String, detail: String) {
        self.failures.borrow_mut().push(Failure { case, detail });
    }

    /// Compares numbers, and the guard where there is one.
    pub fn check(&self, case: &str, buffer: &D::Buffer, expected: &[f64]) -> Result<()> {
        self.check_of_size(case, buffer, expected, 1e-30)
    }

    /// As [`check`](Suite::check), for differences of numbers of at least `size`, which may cancel to much less.
    pub fn check_of_size(&self, case: &str, buffer: &D::Buffer, expected: &[f64], size: f64) -> Result<()> {
        let len = self.device.len(buffer);
        let mut got = vec![0.0; len];
        self.device.read(buffer, 0, &mut got)?;
        self.compare_of_size(case, &got[..expected.len()], expected, size);
        if got[expected.len()..].iter().any(|x| *x != GUARD_VALUE) {
            self.fail(case.to_string(), "wrote beyond its end".to_string());
        }
        Ok(())
    }

    /// Compares numbers relative to the largest.
    pub fn compare(&self, case: &str, got: &[f32], expected: &[f64]) {
        self.compare_of_size(case, got, expected, 1e-30);
    }

    /// Compares numbers relative to the largest, or to `size` where that is larger.
    fn compare_of_size(&self, case: &str, got: &[f32], expected: &[f64], size: f64) {
        let scale = expected.iter().fold(size, |largest, x| largest.max(x.abs()));
        let wrong = |(got, expected): (&f32, &f64)| {
            let difference = (f64::from(*got) - expected).abs();
            // Also true for a NaN.
            !matches!(difference.partial_cmp(&(self.tolerance * scale)), Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal))
        };
        let count = got.iter().zip(expected).filter(|pair| wrong(*pair)).count();
        if let Some(i) = got.iter().zip(expected).position(wrong) {
            let detail = format!("{count} of {} numbers differ; number {i} is {} instead of {}", got.len(), got[i], expected[i]);
            self.fail(case.to_string(), detail);
        }
    }

    /// Compares one number.
    pub fn check_scalar(&self, case: &str, got: f64, expected: f64) {
        self.compare(case, &[got as f32], &[expected]);
    }

    /// A call that has to be refused for its shape.
    pub fn refused<R>(&self, case: &str, result: Result<R>) {
        match result {
            Err(KernelError::Shape { .. }) => {}
            Err(other) => self.fail(case.to_string(), format!("was refused with another error: {other}")),
            Ok(_) => self.fail(case.to_string(), "was not refused".to_string()),
        }
    }
}

pub(crate) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// `C [m, n] = A [m, k] · B [k, n]` by strides `(row, column)`.
pub(crate) fn multiply(
    m: usize,
    n: usize,
    k: usize,
    a: &[f64],
    a_strides: (usize, usize),
    b: &[f64],
    b_strides: (usize, usize),
) -> Vec<f64> {
    let mut c = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            c[i * n + j] = (0..k).map(|p| a[i * a_strides.0 + p * a_strides.1] * b[p * b_strides.0 + j * b_strides.1]).sum();
        }
    }
    c
}

/// The mean and the reciprocal deviation of a row.
pub(crate) fn norm_statistics(kind: NormKind, row: &[f64], epsilon: f64) -> (f64, f64) {
    let d = row.len() as f64;
    let mean = if kind == NormKind::LayerNorm { row.iter().sum::<f64>() / d } else { 0.0 };
    let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / d;
    (mean, 1.0 / (variance + epsilon).sqrt())
}
