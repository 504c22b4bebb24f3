//! Products with an epilogue: which of them share a launch. Launches `gemv_fused.cu` by `gemv_fused.rs`, and whatever `products.rs` chooses.

use super::epilogue::{self, Terms};
use super::memory::Buffer;
use super::products::{Sizes, rows_form, units_form};
use super::weight::Weight;
use super::{CudaDevice, gemv_fused, input, output, require};
use crate::device::Activation;
use crate::error::Result;
use crate::fused::{self, Epilogue, Projection};

/// See [`Device::project_rows`](crate::Device::project_rows): one token's products of one input start together.
pub(super) fn project_rows(device: &CudaDevice, projections: &mut [Projection<'_, CudaDevice>], x: &Buffer, m: usize) -> Result<()> {
    if m == 1 && gemv_fused::each(device, projections, x)? {
        return Ok(());
    }
    projections.iter_mut().try_for_each(|projection| project(device, projection, x, m, |terms| terms, None))
}

/// A row-dot product into `to`, or where it goes otherwise, and its epilogue, with what `finish` adds to that.
fn project(
    device: &CudaDevice,
    projection: &mut Projection<'_, CudaDevice>,
    x: &Buffer,
    m: usize,
    finish: impl FnOnce(Terms) -> Terms,
    to: Option<&mut Buffer>,
) -> Result<()> {
    const NAME: &str = "project_rows";
    let Projection { y, weight, epilogue } = projection;
    let (rows, columns) = weight.shape();
    if !epilogue::is_fused_by_rows(weight.format()) {
        return fused::project_rows(device, projection, x, m);
    }
    let y = output(NAME, "y", to.unwrap_or(y), &[m, rows])?;
    let x = input(NAME, "x", x, &[m, columns])?;
    let terms = finish(Terms::new(NAME, *epilogue, m, rows, true)?);
    let sizes = Sizes { operation: NAME, m, n: rows, k: columns, alpha: 1.0, accumulate: false };
    rows_form(device, &sizes, y, x, weight, &terms)
}

/// See [`Device::project_units`](crate::Device::project_units).
pub(super) fn project_units(
    device: &CudaDevice,
    y: &mut Buffer,
    a: &Buffer,
    w: &Weight,
    m: usize,
    accumulate: bool,
    epilogue: Epilogue<'_, Buffer>,
) -> Result<()> {
    const NAME: &str = "project_units";
    if !epilogue::is_fused_by_units(w.format()) {
        return fused::project_units(device, y, a, w, m, accumulate, epilogue);
    }
    let (rows, columns) = w.shape();
    let y = output(NAME, "y", y, &[m, columns])?;
    let a = input(NAME, "a", a, &[m, rows])?;
    let sizes = Sizes { operation: NAME, m, n: columns, k: rows, alpha: 1.0, accumulate };
    units_form(device, &sizes, y, a, w, &Terms::new(NAME, epilogue, m, columns, false)?)
}

/// See [`Device::project_activated`](crate::Device::project_activated). The last product activates: without a gate that of up, else that of
/// the gate, which reads what up left. One token has both in one launch.
pub(super) fn project_activated(
    device: &CudaDevice,
    kind: Activation,
    out: &mut Buffer,
    x: &Buffer,
    m: usize,
    mut up: Projection<'_, CudaDevice>,
    mut gate: Option<Projection<'_, CudaDevice>>,
) -> Result<()> {
    const NAME: &str = "project_activated";
    let last = gate.as_ref().unwrap_or(&up);
    if !epilogue::is_fused_by_rows(last.weight.format()) {
        return fused::project_activated(device, kind, out, x, m, up, gate);
    }
    let Some(gate) = &mut gate else { return project(device, &mut up, x, m, |terms| terms.activated(kind, None), Some(out)) };
    let (rows, gates) = (up.weight.shape().0, gate.weight.shape().0);
    require(NAME, rows == gates, || format!("up has {rows} rows, but the gate {gates}"))?;
    if m == 1 && gemv_fused::gated(device, kind, out, x, &up, gate)? {
        return Ok(());
    }
    project(device, &mut up, x, m, |terms| terms, None)?;
    let up = input(NAME, "up", up.y, &[m, rows])?;
    project(device, gate, x, m, |terms| terms.activated(kind, Some(up)), Some(out))
}
