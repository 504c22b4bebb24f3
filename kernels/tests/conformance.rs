//! The CPU device does what the suite for every device asks, on one thread and on several.

use std::sync::Arc;

use espalier_kernels::{CpuDevice, Device, Unlimited, conformance};

fn failures(threads: usize, entered: bool) -> String {
    let device = CpuDevice::new(threads, Arc::new(Unlimited)).unwrap();
    let run = || conformance::run(&device, conformance::F32_TOLERANCE);
    let failures = if entered { device.enter(run) } else { run() };
    failures.iter().map(|failure| format!("{failure}\n")).collect()
}

#[test]
fn the_cpu_device_conforms_on_one_thread() {
    assert_eq!(failures(1, false), "");
}

#[test]
fn the_cpu_device_conforms_on_two_threads() {
    assert_eq!(failures(2, false), "");
}

#[test]
fn the_cpu_device_conforms_on_five_threads_inside_its_pool() {
    assert_eq!(failures(5, true), "");
}
