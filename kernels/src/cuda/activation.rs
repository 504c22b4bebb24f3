//! Activations: launches `activation.cu`.

use super::elementwise::{fours, work};
use super::launch::Args;
use super::memory::Buffer;
use super::{CudaDevice, input, output};
use crate::device::Activation;
use crate::error::{KernelError, Result};

/// Additions and multiplications that an activation is counted as.
pub(super) const FLOPS: usize = 10;

/// The number by which the kernels know an activation.
pub(super) fn number(kind: Activation) -> u32 {
    match kind {
        Activation::GeluExact => 0,
        Activation::GeluTanh => 1,
        Activation::Silu => 2,
        Activation::Relu => 3,
    }
}

pub(super) fn activate(
    device: &CudaDevice,
    kind: Activation,
    out: &mut Buffer,
    up: &Buffer,
    gate: Option<&Buffer>,
    len: usize,
) -> Result<()> {
    const NAME: &str = "activate";
    let out = output(NAME, "out", out, &[len])?;
    let up = input(NAME, "up", up, &[len])?;
    let (args, grid) = (Args::new().pointer(out).pointer(up), fours(len)?);
    match gate {
        None => device.launch("activate_plain", grid, args.u64(len as u64).u32(number(kind)), work(2 * len, FLOPS * len)),
        Some(gate) => {
            let args = args.pointer(input(NAME, "gate", gate, &[len])?).u64(len as u64).u32(number(kind));
            device.launch("activate_gated", grid, args, work(3 * len, (FLOPS + 1) * len))
        }
    }
}

#[allow(clippy::too_many_arguments)]
pub(super) fn activate_backward(
    device: &CudaDevice,
    kind: Activation,
    d_up: &mut Buffer,
    d_gate: Option<&mut Buffer>,
    dy: &Buffer,
    up: &Buffer,
    gate: Option<&Buffer>,
    len: usize,
) -> Result<()> {
    const NAME: &str = "activate_backward";
    let d_up = output(NAME, "d_up", d_up, &[len])?;
    let (dy, up) = (input(NAME, "dy", dy, &[len])?, input(NAME, "up", up, &[len])?);
    let grid = fours(len)?;
    match (d_gate, gate) {
        (None, None) => {
            let args = Args::new().pointer(d_up).pointer(dy).pointer(up).u64(len as u64).u32(number(kind));
            device.launch("activate_plain_backward", grid, args, work(3 * len, (FLOPS + 1) * len))
        }
        (Some(d_gate), Some(gate)) => {
            let (d_gate, gate) = (output(NAME, "d_gate", d_gate, &[len])?, input(NAME, "gate", gate, &[len])?);
            let args = Args::new().pointer(d_up).pointer(d_gate).pointer(dy).pointer(up).pointer(gate);
            device.launch("activate_gated_backward", grid, args.u64(len as u64).u32(number(kind)), work(5 * len, (FLOPS + 3) * len))
        }
        (d_gate, _) => {
            let given = if d_gate.is_some() { "d_gate without gate" } else { "gate without d_gate" };
            Err(KernelError::Shape { operation: NAME, detail: format!("{given} was given; both or neither belong there") })
        }
    }
}
