//! The CUDA device on an emulator as hard on it as can be: streams run only when someone waits for them, memory can be touched only by
//! kernels and copies, and the device has no virtual memory management, so that every buffer is an allocation of its own.
#![cfg(feature = "cuda")]

mod support;

use espalier_kernels::conformance;
use support::Emulator;

#[test]
fn the_cuda_device_conforms_where_nothing_runs_before_it_is_waited_for() {
    let Some(emulator) = Emulator::start("lazy=1,protect=1,vmm=0") else { return };
    let failures = conformance::run(&emulator.device(), conformance::F32_TOLERANCE);
    assert!(emulator.counter("kernels") > 100);
    assert!(failures.is_empty(), "{}", failures.iter().map(|failure| format!("{failure}\n")).collect::<String>());
}
