//! What PyTorch computes on small checkpoints of real architectures, against what Espalier computes on the CPU.

use std::sync::Arc;

use espalier_kernels::{CpuDevice, Unlimited};
use espalier_models::DType;

#[path = "support/parity.rs"]
mod parity;

use parity::{Exactness, GEMMA3, compare_all};

fn device() -> CpuDevice {
    CpuDevice::new(1, Arc::new(Unlimited)).expect("a CPU device")
}

#[test]
fn parity_with_pytorch() {
    compare_all(&device(), Exactness::Everything);
}

#[test]
fn parity_with_pytorch_in_16_bits() {
    compare_all(&device(), Exactness::Logits(DType::F16, 3e-3, GEMMA3));
    compare_all(&device(), Exactness::Logits(DType::Bf16, 2e-2, GEMMA3));
}
