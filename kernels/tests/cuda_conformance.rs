//! The CUDA device does what the suite for every device asks: the machine's own, or the emulator.
#![cfg(feature = "cuda")]

mod support;

use espalier_kernels::{Device, conformance};
use support::real_or_emulated;

#[test]
fn the_cuda_device_conforms() {
    let Some((device, _emulator)) = real_or_emulated("") else { return };
    let failures = conformance::run(&device, conformance::F32_TOLERANCE);
    let launches: u64 = device.kernel_counts().iter().map(|count| count.launches).sum();
    println!("{}: {launches} launches of {} kernels from {}", device.name(), device.kernel_counts().len(), device.image());
    assert!(launches > 100, "the suite launched {launches} kernels");
    assert!(failures.is_empty(), "{}", failures.iter().map(|failure| format!("{failure}\n")).collect::<String>());
}
