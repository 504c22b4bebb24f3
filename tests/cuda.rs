//! Espalier on a CUDA device: the machine's own where it has a driver, else the emulator of kernels/emulator, which scripts/emulator.sh
//! builds. Where neither can be had, a test says so and is passed over; with CI=true it fails.
//!
//! | module | what a user relies on |
//! |--|--|
//! | [`parity`] | the same numbers as PyTorch |
//! | [`journeys`] | training, pruning and serving a squeezed model, all on the device |
//! | [`choice`] | which engine is taken, and what takes over from one that cannot be used or fails |
#![cfg(feature = "cuda")]

// Shared with tests that use all of it.
#[allow(dead_code)]
#[path = "support/mod.rs"]
mod support;

#[path = "../kernels/tests/support/mod.rs"]
mod device;

#[path = "support/parity.rs"]
mod parity;

#[path = "cuda/choice.rs"]
mod choice;
#[path = "cuda/journeys.rs"]
mod journeys;

use device::real_or_emulated;
use espalier_kernels::cuda::{Plan, Precision};
use espalier_models::DType;
use parity::{Exactness, GEMMA3, compare_all};

#[test]
fn cuda_parity_with_pytorch() {
    let Some((device, _emulator)) = real_or_emulated("") else { return };
    compare_all(&device, Exactness::Everything);
}

#[test]
fn cuda_parity_with_pytorch_in_16_bits() {
    let Some((device, _emulator)) = real_or_emulated("") else { return };
    compare_all(&device, Exactness::Logits(DType::F16, 3e-3, GEMMA3));
    compare_all(&device, Exactness::Logits(DType::Bf16, 2e-2, GEMMA3));
    // Rounding every activation to bf16 costs Gemma 3 as much again: so it is not the default.
    let fast = device.with_plan(Plan { precision: Precision::Fast, ..device.plan() });
    compare_all(&fast, Exactness::Logits(DType::F16, 3e-3, GEMMA3));
    compare_all(&fast, Exactness::Logits(DType::Bf16, 2e-2, 2.0 * GEMMA3));
}
