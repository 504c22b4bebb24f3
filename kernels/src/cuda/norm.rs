//! LayerNorm and RMSNorm: launches `norm.cu`.

use super::elementwise::{Columns, blocks, column_sums, finish_columns, work};
use super::launch::{Args, Grid};
use super::memory::Buffer;
use super::{CudaDevice, input, output, size32};
use crate::device::NormKind;
use crate::error::Result;

const THREADS: u32 = 256;

/// The kernel and grid for `m` rows of `d`: a warp a row where rows are short and many enough to fill a device, else a block a row.
fn shape(m: usize, d: usize, warp: &'static str, block: &'static str) -> Result<(&'static str, Grid)> {
    const SHORT: usize = 1024;
    const MANY: usize = 32;
    if d <= SHORT && m >= MANY { Ok((warp, Grid::linear(m.saturating_mul(32), THREADS)?)) } else { Ok((block, blocks(m, THREADS)?)) }
}

#[allow(clippy::too_many_arguments)]
pub(super) fn norm(
    device: &CudaDevice,
    kind: NormKind,
    y: &mut Buffer,
    x: &Buffer,
    weight: &Buffer,
    bias: Option<&Buffer>,
    epsilon: f32,
    m: usize,
) -> Result<()> {
    const NAME: &str = "norm";
    let d = weight.len();
    let y = output(NAME, "y", y, &[m, d])?;
    let x = input(NAME, "x", x, &[m, d])?;
    let weight = input(NAME, "weight", weight, &[d])?;
    let bias = bias.map(|bias| input(NAME, "bias", bias, &[d])).transpose()?;
    if m == 0 || d == 0 {
        return Ok(());
    }
    let (kernel, grid) = shape(m, d, "norm_warp", "norm_block")?;
    let args = Args::new().pointer(y).pointer(x).pointer(weight).pointer(bias.unwrap_or(weight));
    let args = args.u32(size32(NAME, "m", m)?).u32(size32(NAME, "d", d)?);
    let args = args.u32(u32::from(kind == NormKind::LayerNorm)).u32(u32::from(bias.is_some())).f32(epsilon);
    device.launch(kernel, grid, args, work(2 * m * d + 2 * d, 8 * m * d))
}

#[allow(clippy::too_many_arguments)]
pub(super) fn norm_backward(
    device: &CudaDevice,
    kind: NormKind,
    dx: &mut Buffer,
    d_weight: Option<&mut Buffer>,
    d_bias: Option<&mut Buffer>,
    dy: &Buffer,
    x: &Buffer,
    weight: &Buffer,
    epsilon: f32,
    m: usize,
) -> Result<()> {
    const NAME: &str = "norm_backward";
    let d = weight.len();
    let dx = output(NAME, "dx", dx, &[m, d])?;
    let (dy, x) = (input(NAME, "dy", dy, &[m, d])?, input(NAME, "x", x, &[m, d])?);
    let weight = input(NAME, "weight", weight, &[d])?;
    let d_weight = d_weight.map(|d_weight| output(NAME, "d_weight", d_weight, &[d])).transpose()?;
    let d_bias = d_bias.map(|d_bias| output(NAME, "d_bias", d_bias, &[d])).transpose()?;
    if m == 0 || d == 0 {
        return Ok(());
    }
    let (m32, d32) = (size32(NAME, "m", m)?, size32(NAME, "d", d)?);
    let statistics = device.scratch(2 * m)?;
    let (kernel, grid) = shape(m, d, "norm_backward_warp", "norm_backward_block")?;
    let args = Args::new().pointer(dx).pointer(statistics.pointer()).pointer(dy).pointer(x).pointer(weight).u32(m32).u32(d32);
    let args = args.u32(u32::from(kind == NormKind::LayerNorm)).f32(epsilon);
    device.launch(kernel, grid, args, work(4 * m * d + d + 2 * m, 20 * m * d))?;
    if let Some(d_weight) = d_weight {
        let columns = Columns::new(NAME, m, d)?;
        let partial = device.scratch(columns.parts * d)?;
        let args = Args::new().pointer(partial.pointer()).pointer(dy).pointer(x).pointer(statistics.pointer());
        let args = args.u32(m32).u32(d32).u32(columns.rows);
        device.launch("norm_weight_columns", columns.grid, args, work((2 * m + columns.parts) * d + 2 * m, 4 * m * d))?;
        finish_columns(device, d_weight, partial.pointer(), columns.parts, d)?;
    }
    match d_bias {
        Some(d_bias) => column_sums(device, NAME, d_bias, dy, m, d),
        None => Ok(()),
    }
}
