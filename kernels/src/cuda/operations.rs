//! The operations of the CUDA device. Each forwards to the launcher beside its kernels.

use super::arena::Arena;
use super::graph::{self, Graph};
use super::memory::{Buffer, Indices, Storage};
use super::weight::Weight;
use super::{CudaDevice, activation, attention, elementwise, loss, norm, products, projections, rotary, sequence, training, weights};
use crate::device::{Activation, AdamW, AttentionShape, Device, Format, HostBytes, NormKind, Product};
use crate::error::{KernelError, Result};
use crate::fused::{Epilogue, KeyValues, Projection, Start, TokenShape};
use crate::memory::Purpose;

/// Checks that `len` numbers from `offset` on are inside a buffer, and says where they are in bytes.
fn part(operation: &'static str, buffer: &Buffer, offset: usize, len: usize) -> Result<u64> {
    match offset.checked_add(len) {
        Some(end) if end <= buffer.len() => Ok(offset as u64 * 4),
        _ => {
            let detail = format!("{len} numbers from number {offset} on were meant of a buffer that holds {}", buffer.len());
            Err(KernelError::Shape { operation, detail })
        }
    }
}

impl Device for CudaDevice {
    type Buffer = Buffer;
    type Indices = Indices;
    type Weight = Weight;
    type Graph = Graph;

    fn name(&self) -> String {
        let attributes = self.attributes();
        let (major, minor) = attributes.capability;
        format!("CUDA ({}, compute capability {major}.{minor}, {} MiB)", attributes.name, attributes.total_bytes >> 20)
    }

    fn for_purpose(&self, purpose: Purpose) -> Self {
        Self { purpose, ..self.clone() }
    }

    /// What is mapped has an arena of its own, in which [`shrink_weights`](CudaDevice::shrink_weights) can move it.
    fn for_model(&self) -> Self {
        Self { weights: Arena::new(&self.core, Purpose::Weights), ..self.clone() }
    }

    fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        work()
    }

    fn replay<E: From<KernelError>>(
        &self,
        graph: &mut Graph,
        work: impl FnMut() -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        graph::replay(&self.core, graph, work)
    }

    fn zeros(&self, len: usize) -> Result<Buffer> {
        let _entered = self.core.enter()?;
        Storage::zeros(&self.core, &self.core.arena(self.purpose), len)
    }

    fn len(&self, buffer: &Buffer) -> usize {
        buffer.len()
    }

    fn write(&self, to: &mut Buffer, offset: usize, from: &[f32]) -> Result<()> {
        let to = to.pointer().plus_bytes(part("write", to, offset, from.len())?);
        let _entered = self.core.enter()?;
        self.core.with_staging(|staging| staging.write(&self.core, to, bytemuck::cast_slice(from)))
    }

    fn read(&self, from: &Buffer, offset: usize, to: &mut [f32]) -> Result<()> {
        let from = from.pointer().plus_bytes(part("read", from, offset, to.len())?);
        let _entered = self.core.enter()?;
        self.core.with_staging(|staging| staging.read(&self.core, from, bytemuck::cast_slice_mut(to)))
    }

    fn copy(&self, to: &mut Buffer, to_offset: usize, from: &Buffer, from_offset: usize, len: usize) -> Result<()> {
        let from = from.pointer().plus_bytes(part("copy", from, from_offset, len)?);
        let to = to.pointer().plus_bytes(part("copy", to, to_offset, len)?);
        if len == 0 {
            return Ok(());
        }
        let _entered = self.core.enter()?;
        self.core.copy_on_device("copy", to.address(), from.address(), len as u64 * 4)
    }

    fn indices(&self, from: &[u32]) -> Result<Indices> {
        let _entered = self.core.enter()?;
        Indices::of(&self.core, &self.core.arena(self.purpose), from)
    }

    fn write_indices(&self, to: &mut Indices, from: &[u32]) -> Result<()> {
        if from.len() > to.len() {
            let detail = format!("indices holds {} numbers, but {:?} were expected", to.len(), [from.len()]);
            return Err(KernelError::Shape { operation: "write_indices", detail });
        }
        let _entered = self.core.enter()?;
        to.write(&self.core, from)
    }

    fn first_index(&self, indices: &Indices) -> Result<usize> {
        indices.first()
    }

    fn reads_in_place(&self) -> bool {
        self.attributes().reads_in_place()
    }

    fn reads_host(&self, weight: &Weight) -> bool {
        weight.reads_host()
    }

    fn map_weight(&self, bytes: HostBytes, format: Format, rows: usize, columns: usize) -> Result<Weight> {
        Weight::mapped(&self.core, &self.weights, bytes, format, rows, columns)
    }

    fn own_weight(&self, buffer: Buffer, rows: usize, columns: usize) -> Result<Weight> {
        Weight::owned(&self.core, buffer, rows, columns)
    }

    fn weight_shape(&self, weight: &Weight) -> (usize, usize) {
        weight.shape()
    }

    fn owned<'a>(&self, weight: &'a Weight) -> Option<&'a Buffer> {
        weight.buffer()
    }

    fn owned_mut<'a>(&self, weight: &'a mut Weight) -> Option<&'a mut Buffer> {
        weight.buffer_mut()
    }

    fn fill(&self, buffer: &mut Buffer, len: usize, value: f32) -> Result<()> {
        elementwise::fill(self, buffer, len, value)
    }

    fn matmul_rows(&self, y: &mut Buffer, x: &Buffer, w: &Weight, m: usize, accumulate: bool) -> Result<()> {
        products::matmul_rows(self, y, x, w, m, accumulate)
    }

    fn matmul_units(&self, y: &mut Buffer, a: &Buffer, w: &Weight, m: usize, accumulate: bool) -> Result<()> {
        products::matmul_units(self, y, a, w, m, accumulate)
    }

    fn project_rows(&self, projections: &mut [Projection<'_, Self>], x: &Buffer, m: usize) -> Result<()> {
        projections::project_rows(self, projections, x, m)
    }

    fn project_units(
        &self,
        y: &mut Buffer,
        a: &Buffer,
        w: &Weight,
        m: usize,
        accumulate: bool,
        epilogue: Epilogue<'_, Buffer>,
    ) -> Result<()> {
        projections::project_units(self, y, a, w, m, accumulate, epilogue)
    }

    fn project_activated(
        &self,
        kind: Activation,
        out: &mut Buffer,
        x: &Buffer,
        m: usize,
        up: Projection<'_, Self>,
        gate: Option<Projection<'_, Self>>,
    ) -> Result<()> {
        projections::project_activated(self, kind, out, x, m, up, gate)
    }

    fn matmul(&self, c: &mut Buffer, a: &Buffer, b: &Buffer, product: Product) -> Result<()> {
        products::matmul(self, c, a, b, product)
    }

    fn add_bias(&self, y: &mut Buffer, bias: &Buffer, m: usize, n: usize) -> Result<()> {
        elementwise::add_bias(self, y, bias, m, n)
    }

    fn bias_backward(&self, d_bias: &mut Buffer, dy: &Buffer, m: usize, n: usize) -> Result<()> {
        elementwise::bias_backward(self, d_bias, dy, m, n)
    }

    fn add(&self, y: &mut Buffer, x: &Buffer, len: usize, alpha: f32) -> Result<()> {
        elementwise::add(self, y, x, len, alpha)
    }

    fn scale(&self, x: &mut Buffer, len: usize, alpha: f32) -> Result<()> {
        elementwise::scale(self, x, len, alpha)
    }

    fn gate_columns(&self, x: &mut Buffer, gates: &Buffer, m: usize, width: usize) -> Result<()> {
        elementwise::gate_columns(self, x, gates, m, width)
    }

    fn gate_backward(&self, d_gates: &mut Buffer, dy: &Buffer, x: &Buffer, m: usize, width: usize) -> Result<()> {
        elementwise::gate_backward(self, d_gates, dy, x, m, width)
    }

    fn activate(&self, kind: Activation, out: &mut Buffer, up: &Buffer, gate: Option<&Buffer>, len: usize) -> Result<()> {
        activation::activate(self, kind, out, up, gate, len)
    }

    fn activate_backward(
        &self,
        kind: Activation,
        d_up: &mut Buffer,
        d_gate: Option<&mut Buffer>,
        dy: &Buffer,
        up: &Buffer,
        gate: Option<&Buffer>,
        len: usize,
    ) -> Result<()> {
        activation::activate_backward(self, kind, d_up, d_gate, dy, up, gate, len)
    }

    fn norm(
        &self,
        kind: NormKind,
        y: &mut Buffer,
        x: &Buffer,
        weight: &Buffer,
        bias: Option<&Buffer>,
        epsilon: f32,
        m: usize,
    ) -> Result<()> {
        norm::norm(self, kind, y, x, weight, bias, epsilon, m)
    }

    fn norm_backward(
        &self,
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
        norm::norm_backward(self, kind, dx, d_weight, d_bias, dy, x, weight, epsilon, m)
    }

    fn rotate(
        &self,
        x: &mut Buffer,
        frequencies: &Buffer,
        batch: usize,
        sequence: usize,
        heads: usize,
        head_dim: usize,
        start: usize,
        inverse: bool,
    ) -> Result<()> {
        rotary::rotate(self, x, frequencies, batch, sequence, heads, head_dim, start, inverse)
    }

    fn attention(&self, shape: AttentionShape, out: &mut Buffer, q: &Buffer, k: &Buffer, v: &Buffer, groups: &Indices) -> Result<()> {
        attention::attention(self, shape, out, q, k, v, groups, None)
    }

    fn cache_tokens(
        &self,
        cache: KeyValues<'_, Buffer>,
        q: &mut Buffer,
        k: &mut Buffer,
        v: &Buffer,
        frequencies: Option<&Buffer>,
        shape: TokenShape,
        start: Start<'_, Indices>,
    ) -> Result<()> {
        rotary::cache_tokens(self, cache, q, k, v, frequencies, shape, start)
    }

    fn attention_at(
        &self,
        shape: AttentionShape,
        out: &mut Buffer,
        q: &Buffer,
        k: &Buffer,
        v: &Buffer,
        groups: &Indices,
        position: &Indices,
    ) -> Result<()> {
        attention::attention(self, shape, out, q, k, v, groups, Some(position))
    }

    fn attention_backward(
        &self,
        shape: AttentionShape,
        dq: &mut Buffer,
        dk: &mut Buffer,
        dv: &mut Buffer,
        d_out: &Buffer,
        q: &Buffer,
        k: &Buffer,
        v: &Buffer,
        groups: &Indices,
    ) -> Result<()> {
        attention::attention_backward(self, shape, [dq, dk, dv], d_out, [q, k, v], groups)
    }

    fn embed(&self, out: &mut Buffer, table: &Weight, ids: &Indices, count: usize) -> Result<()> {
        weights::embed(self, out, table, ids, count)
    }

    fn embed_backward(&self, d_table: &mut Buffer, dy: &Buffer, ids: &Indices, count: usize, columns: usize) -> Result<()> {
        sequence::embed_backward(self, d_table, dy, ids, count, columns)
    }

    fn add_positions(&self, x: &mut Buffer, table: &Weight, batch: usize, sequence: usize, start: usize) -> Result<()> {
        weights::add_positions(self, x, table, batch, sequence, start, None)
    }

    fn add_positions_at(&self, x: &mut Buffer, table: &Weight, sequence: usize, offset: usize, start: &Indices) -> Result<()> {
        weights::add_positions(self, x, table, 1, sequence, offset, Some(start))
    }

    fn positions_backward(
        &self,
        d_table: &mut Buffer,
        dy: &Buffer,
        batch: usize,
        sequence: usize,
        columns: usize,
        start: usize,
    ) -> Result<()> {
        sequence::positions_backward(self, d_table, dy, batch, sequence, columns, start)
    }

    fn patches(&self, out: &mut Buffer, windows: &Buffer, batch: usize, window: usize, patch: usize, stride: usize) -> Result<()> {
        sequence::patches(self, out, windows, batch, window, patch, stride)
    }

    fn mean_pool(&self, out: &mut Buffer, x: &Buffer, batch: usize, sequence: usize, d: usize) -> Result<()> {
        sequence::mean_pool(self, out, x, batch, sequence, d)
    }

    fn mean_pool_backward(&self, dx: &mut Buffer, dy: &Buffer, batch: usize, sequence: usize, d: usize) -> Result<()> {
        sequence::mean_pool_backward(self, dx, dy, batch, sequence, d)
    }

    fn softmax(&self, x: &mut Buffer, m: usize, n: usize) -> Result<()> {
        loss::softmax(self, x, m, n)
    }

    fn cross_entropy(&self, d_logits: Option<&mut Buffer>, logits: &Buffer, targets: &Indices, m: usize, n: usize) -> Result<f64> {
        loss::cross_entropy(self, d_logits, logits, targets, m, n)
    }

    fn adamw(
        &self,
        parameter: &mut Buffer,
        gradient: &Buffer,
        first: &mut Buffer,
        second: &mut Buffer,
        len: usize,
        constants: AdamW,
    ) -> Result<()> {
        training::adamw(self, parameter, gradient, first, second, len, constants)
    }

    fn sum_of_squares(&self, x: &Buffer, len: usize) -> Result<f64> {
        training::sum_of_squares(self, x, len)
    }

    fn residual_change(&self, before: &Buffer, after: &Buffer, m: usize, d: usize) -> Result<(f64, f64)> {
        training::residual_change(self, before, after, m, d)
    }

    fn row_l1(&self, out: &mut Buffer, w: &Weight) -> Result<()> {
        weights::row_l1(self, out, w)
    }
}
