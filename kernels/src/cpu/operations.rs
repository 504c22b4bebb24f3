//! The operations of the CPU device: every one checks its shapes, decides whether several threads are worth it, and calls the maths.

use super::parallel::Shared;
use super::real::Real;
use super::weight::{Matrix, with_matrix};
use super::{Buffer, CpuDevice, Indices, Weight};
use super::{activation, adamw, elements, elementwise, embedding, importance, input, loss, matmul, norm, output, pooling, require, rotary};
use crate::device::{Activation, AdamW, AttentionShape, Device, Format, HostBytes, NO_TARGET, NormKind, Product};
use crate::error::{KernelError, Result};
use crate::memory::Purpose;

/// Picoseconds that an operation takes a number on one thread, for deciding whether to split it: a few loads and a store, a pass with
/// sums, an exponential or more.
const COPY_PS: usize = 150;
const SUMS_PS: usize = 500;
const EXPONENTIAL_PS: usize = 800;

fn ns(numbers: usize, ps: usize) -> usize {
    numbers.saturating_mul(ps) / 1000
}

/// Numbers of a block of a sum, which is added up by one thread.
const SUM_BLOCK: usize = 16 * 1024;

impl CpuDevice {
    fn check_ids(operation: &'static str, ids: &[u32], rows: usize) -> Result<()> {
        match ids.iter().enumerate().find(|(_, id)| **id as usize >= rows) {
            Some((position, id)) => Err(KernelError::Shape {
                operation,
                detail: format!("index {id} at position {position} is not below the {rows} rows of the table"),
            }),
            None => Ok(()),
        }
    }

    /// `length - patch` over `stride`, plus one: how many patches a window has.
    fn patch_count(window: usize, patch: usize, stride: usize) -> Result<usize> {
        require("patches", patch > 0 && stride > 0 && patch <= window, || {
            format!("a window of {window} samples cannot be cut into patches of {patch} every {stride} samples")
        })?;
        Ok((window - patch) / stride + 1)
    }
}

impl Device for CpuDevice {
    type Buffer = Buffer;
    type Indices = Indices;
    type Weight = Weight;
    /// Operations start fast enough: nothing is recorded.
    type Graph = ();

    fn name(&self) -> String {
        let architecture = format!("{:?}", pulp::Arch::new());
        let instructions = match architecture.split('(').next() {
            Some("V4") => "AVX-512",
            Some("V3") => "AVX2",
            Some("Neon") => "NEON",
            _ => "no vector instructions",
        };
        format!("CPU ({} threads, {instructions})", self.threads())
    }

    fn for_purpose(&self, purpose: Purpose) -> Self {
        Self { purpose, ..self.clone() }
    }

    fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.team.enter(work)
    }

    fn replay<E: From<KernelError>>(
        &self,
        (): &mut (),
        mut work: impl FnMut() -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        work()
    }

    fn zeros(&self, len: usize) -> Result<Buffer> {
        Buffer::zeros(self.ledger.clone(), self.purpose, len)
    }

    fn len(&self, buffer: &Buffer) -> usize {
        buffer.len()
    }

    fn write(&self, to: &mut Buffer, offset: usize, from: &[f32]) -> Result<()> {
        part_mut("write", to, offset, from.len())?.copy_from_slice(from);
        Ok(())
    }

    fn read(&self, from: &Buffer, offset: usize, to: &mut [f32]) -> Result<()> {
        to.copy_from_slice(part("read", from, offset, to.len())?);
        Ok(())
    }

    fn copy(&self, to: &mut Buffer, to_offset: usize, from: &Buffer, from_offset: usize, len: usize) -> Result<()> {
        let from = part("copy", from, from_offset, len)?;
        let to = part_mut("copy", to, to_offset, len)?;
        self.team.rows(to, 1, ns(len, COPY_PS), |first, to| to.copy_from_slice(&from[first..][..to.len()]));
        Ok(())
    }

    fn fill(&self, buffer: &mut Buffer, len: usize, value: f32) -> Result<()> {
        output("fill", "buffer", buffer, &[len])?.fill(value);
        Ok(())
    }

    fn indices(&self, from: &[u32]) -> Result<Indices> {
        let mut indices = Indices::zeros(self.ledger.clone(), self.purpose, from.len())?;
        indices.as_mut_slice().copy_from_slice(from);
        Ok(indices)
    }

    fn write_indices(&self, to: &mut Indices, from: &[u32]) -> Result<()> {
        output("write_indices", "indices", to, &[from.len()])?.copy_from_slice(from);
        Ok(())
    }

    fn first_index(&self, indices: &Indices) -> Result<usize> {
        Ok(input("first_index", "indices", indices, &[1])?[0] as usize)
    }

    fn reads_in_place(&self) -> bool {
        true
    }

    fn reads_host(&self, weight: &Weight) -> bool {
        weight.is_mapped()
    }

    fn map_weight(&self, bytes: HostBytes, format: Format, rows: usize, columns: usize) -> Result<Weight> {
        Weight::mapped(bytes, format, rows, columns)
    }

    fn own_weight(&self, buffer: Buffer, rows: usize, columns: usize) -> Result<Weight> {
        Weight::owned(buffer, rows, columns)
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

    fn matmul_rows(&self, y: &mut Buffer, x: &Buffer, w: &Weight, m: usize, accumulate: bool) -> Result<()> {
        let (rows, columns) = w.shape();
        let y = output("matmul_rows", "y", y, &[m, rows])?;
        let x = input("matmul_rows", "x", x, &[m, columns])?;
        with_matrix!(w.view()?, w => matmul::rows_form(&self.team, y, x, &w, m, (rows, columns), 1.0, accumulate));
        Ok(())
    }

    fn matmul_units(&self, y: &mut Buffer, a: &Buffer, w: &Weight, m: usize, accumulate: bool) -> Result<()> {
        let (rows, columns) = w.shape();
        let y = output("matmul_units", "y", y, &[m, columns])?;
        let a = input("matmul_units", "a", a, &[m, rows])?;
        with_matrix!(w.view()?, w => matmul::units_form(&self.team, y, a, &w, m, (rows, columns), accumulate));
        Ok(())
    }

    fn matmul(&self, c: &mut Buffer, a: &Buffer, b: &Buffer, product: Product) -> Result<()> {
        let Product { m, n, k, .. } = product;
        let c = output("matmul", "C", c, &[m, n])?;
        let a = input("matmul", "A", a, &[m, k])?;
        let b = input("matmul", "B", b, &[k, n])?;
        matmul::buffers(&self.team, c, a, b, product);
        Ok(())
    }

    fn add_bias(&self, y: &mut Buffer, bias: &Buffer, m: usize, n: usize) -> Result<()> {
        let y = output("add_bias", "y", y, &[m, n])?;
        let bias = input("add_bias", "bias", bias, &[n])?;
        if n > 0 {
            self.team.rows(y, n, ns(m * n, COPY_PS), |_, y| elementwise::add_bias(y, bias));
        }
        Ok(())
    }

    fn bias_backward(&self, d_bias: &mut Buffer, dy: &Buffer, m: usize, n: usize) -> Result<()> {
        let d_bias = output("bias_backward", "d_bias", d_bias, &[n])?;
        let dy = input("bias_backward", "dy", dy, &[m, n])?;
        self.team.rows(d_bias, 1, ns(m * n, COPY_PS), |first, d_bias| elementwise::bias_backward(d_bias, dy, n, first));
        Ok(())
    }

    fn add(&self, y: &mut Buffer, x: &Buffer, len: usize, alpha: f32) -> Result<()> {
        let y = output("add", "y", y, &[len])?;
        let x = input("add", "x", x, &[len])?;
        self.team.rows(y, 1, ns(len, COPY_PS), |first, y| elementwise::add(y, &x[first..], alpha));
        Ok(())
    }

    fn scale(&self, x: &mut Buffer, len: usize, alpha: f32) -> Result<()> {
        let x = output("scale", "x", x, &[len])?;
        self.team.rows(x, 1, ns(len, COPY_PS), |_, x| elementwise::scale(x, alpha));
        Ok(())
    }

    fn gate_columns(&self, x: &mut Buffer, gates: &Buffer, m: usize, width: usize) -> Result<()> {
        let units = gates.len();
        let x = output("gate_columns", "x", x, &[m, units, width])?;
        if units * width > 0 {
            let numbers = x.len();
            self.team.rows(x, units * width, ns(numbers, COPY_PS), |_, x| elementwise::gate_columns(x, gates.as_slice(), width));
        }
        Ok(())
    }

    fn gate_backward(&self, d_gates: &mut Buffer, dy: &Buffer, x: &Buffer, m: usize, width: usize) -> Result<()> {
        let units = d_gates.len();
        let dy = input("gate_backward", "dy", dy, &[m, units, width])?;
        let x = input("gate_backward", "x", x, &[m, units, width])?;
        if width > 0 {
            self.team.rows(d_gates.as_mut_slice(), 1, ns(dy.len(), SUMS_PS), |first, d_gates| {
                elementwise::gate_backward(d_gates, dy, x, units, width, first);
            });
        }
        Ok(())
    }

    fn activate(&self, kind: Activation, out: &mut Buffer, up: &Buffer, gate: Option<&Buffer>, len: usize) -> Result<()> {
        let out = output("activate", "out", out, &[len])?;
        let up = input("activate", "up", up, &[len])?;
        let gate = gate.map(|gate| input("activate", "gate", gate, &[len])).transpose()?;
        self.team.rows(out, 1, ns(len, EXPONENTIAL_PS), |first, out| {
            let range = first..first + out.len();
            activation::forward(kind, out, &up[range.clone()], gate.map(|gate| &gate[range]));
        });
        Ok(())
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
        const NAME: &str = "activate_backward";
        let d_up = output(NAME, "d_up", d_up, &[len])?;
        let (dy, up) = (input(NAME, "dy", dy, &[len])?, input(NAME, "up", up, &[len])?);
        let ns = ns(len, EXPONENTIAL_PS);
        match (d_gate, gate) {
            (None, None) => self.team.rows(d_up, 1, ns, |first, d_up| {
                let range = first..first + d_up.len();
                activation::backward(kind, d_up, &dy[range.clone()], &up[range]);
            }),
            (Some(d_gate), Some(gate)) => {
                let (d_gate, gate) = (output(NAME, "d_gate", d_gate, &[len])?, input(NAME, "gate", gate, &[len])?);
                self.team.rows2((d_up, 1), (d_gate, 1), ns, |first, d_up, d_gate| {
                    let range = first..first + d_up.len();
                    activation::gated_backward(kind, d_up, d_gate, &dy[range.clone()], &up[range.clone()], &gate[range]);
                });
            }
            (d_gate, _) => {
                let given = if d_gate.is_some() { "d_gate without gate" } else { "gate without d_gate" };
                return Err(KernelError::Shape { operation: NAME, detail: format!("{given} was given; both or neither belong there") });
            }
        }
        Ok(())
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
        let d = weight.len();
        let y = output("norm", "y", y, &[m, d])?;
        let x = input("norm", "x", x, &[m, d])?;
        let bias = bias.map(|bias| input("norm", "bias", bias, &[d])).transpose()?;
        if d > 0 {
            self.team.rows(y, d, ns(m * d, SUMS_PS), |first, y| norm::forward(kind, y, &x[first * d..], weight.as_slice(), bias, epsilon));
        }
        Ok(())
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
        const NAME: &str = "norm_backward";
        let d = weight.len();
        let dx = output(NAME, "dx", dx, &[m, d])?;
        let (dy, x) = (input(NAME, "dy", dy, &[m, d])?, input(NAME, "x", x, &[m, d])?);
        let d_weight = d_weight.map(|d_weight| output(NAME, "d_weight", d_weight, &[d])).transpose()?;
        let d_bias = d_bias.map(|d_bias| output(NAME, "d_bias", d_bias, &[d])).transpose()?;
        if d == 0 || m == 0 {
            return Ok(());
        }
        let ns = ns(m * d, SUMS_PS);
        f32::with_scratch(2 * m, |stats| {
            self.team.rows2((dx, d), (&mut *stats, 2), ns, |first, dx, stats| {
                norm::backward(kind, dx, stats, &dy[first * d..], &x[first * d..], weight.as_slice(), epsilon);
            });
            if let Some(d_weight) = d_weight {
                let stats = &*stats;
                self.team.rows(d_weight, 1, ns, |first, d_weight| norm::backward_weight(d_weight, dy, x, stats, d, first));
            }
        });
        if let Some(d_bias) = d_bias {
            self.team.rows(d_bias, 1, ns, |first, d_bias| elementwise::bias_backward(d_bias, dy, d, first));
        }
        Ok(())
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
        let x = output("rotate", "x", x, &[batch, sequence, heads, head_dim])?;
        let turned = elements("rotate", &[2, frequencies.len()])?;
        require("rotate", turned <= head_dim, || {
            format!("{} frequencies turn {turned} dimensions, but a head has {head_dim}", frequencies.len())
        })?;
        require("rotate", start.checked_add(sequence).is_some(), || format!("position {start} + {sequence} is out of range"))?;
        if x.is_empty() || turned == 0 {
            return Ok(());
        }
        let (width, blocks, ns) = (heads * head_dim, sequence.div_ceil(rotary::BLOCK), ns(x.len(), COPY_PS));
        let shared = Shared::new(x);
        self.team.ranges(batch * blocks, 1, ns, |tasks| {
            for task in tasks {
                let first = task % blocks * rotary::BLOCK;
                let (row, count) = (task / blocks * sequence + first, rotary::BLOCK.min(sequence - first));
                // SAFETY: `ranges` gives every block of positions to one thread.
                let x = unsafe { shared.part(row * width..(row + count) * width) };
                rotary::rotate(x, frequencies.as_slice(), heads, head_dim, start + first, inverse);
            }
        });
        Ok(())
    }

    fn attention(&self, shape: AttentionShape, out: &mut Buffer, q: &Buffer, k: &Buffer, v: &Buffer, groups: &Indices) -> Result<()> {
        self.attend(shape, out, q, k, v, groups)
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
        self.attend_backward(shape, [dq, dk, dv], d_out, [q, k, v], groups)
    }

    fn embed(&self, out: &mut Buffer, table: &Weight, ids: &Indices, count: usize) -> Result<()> {
        let (rows, columns) = table.shape();
        let out = output("embed", "out", out, &[count, columns])?;
        let ids = input("embed", "ids", ids, &[count])?;
        Self::check_ids("embed", ids, rows)?;
        if columns > 0 {
            with_matrix!(table.view()?, table => embedding::lookup(out, &table, ids, columns));
        }
        Ok(())
    }

    fn embed_backward(&self, d_table: &mut Buffer, dy: &Buffer, ids: &Indices, count: usize, columns: usize) -> Result<()> {
        let dy = input("embed_backward", "dy", dy, &[count, columns])?;
        let ids = input("embed_backward", "ids", ids, &[count])?;
        if let Some(rows) = d_table.len().checked_div(columns) {
            Self::check_ids("embed_backward", ids, rows)?;
            embedding::lookup_backward(d_table.as_mut_slice(), dy, ids, columns);
        }
        Ok(())
    }

    fn add_positions(&self, x: &mut Buffer, table: &Weight, batch: usize, sequence: usize, start: usize) -> Result<()> {
        let (rows, d) = table.shape();
        let x = output("add_positions", "x", x, &[batch, sequence, d])?;
        require("add_positions", start.checked_add(sequence).is_some_and(|end| end <= rows), || {
            format!("positions {start} to {start} + {sequence} were asked for, but the table has {rows}")
        })?;
        if d > 0 {
            with_matrix!(table.view()?, table => embedding::add_positions(x, &table, sequence, d, start));
        }
        Ok(())
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
        const NAME: &str = "positions_backward";
        let dy = input(NAME, "dy", dy, &[batch, sequence, columns])?;
        let end = start
            .checked_add(sequence)
            .ok_or_else(|| KernelError::Shape { operation: NAME, detail: format!("position {start} + {sequence} is out of range") })?;
        let d_table = &mut output(NAME, "d_table", d_table, &[end, columns])?[start * columns..];
        if dy.is_empty() {
            return Ok(());
        }
        self.team.rows(d_table, columns, ns(dy.len(), COPY_PS), |first, d_table| {
            embedding::positions_backward(d_table, dy, sequence * columns, columns, first);
        });
        Ok(())
    }

    fn patches(&self, out: &mut Buffer, windows: &Buffer, batch: usize, window: usize, patch: usize, stride: usize) -> Result<()> {
        let count = Self::patch_count(window, patch, stride)?;
        let out = output("patches", "out", out, &[batch, count, patch])?;
        let windows = input("patches", "windows", windows, &[batch, window])?;
        for (out, window) in out.chunks_exact_mut(count * patch).zip(windows.chunks_exact(window)) {
            pooling::patches(out, window, patch, stride);
        }
        Ok(())
    }

    fn mean_pool(&self, out: &mut Buffer, x: &Buffer, batch: usize, sequence: usize, d: usize) -> Result<()> {
        let out = output("mean_pool", "out", out, &[batch, d])?;
        let x = input("mean_pool", "x", x, &[batch, sequence, d])?;
        require("mean_pool", sequence > 0, || "a sequence without positions has no mean".to_string())?;
        for (out, x) in out.chunks_exact_mut(d.max(1)).zip(x.chunks_exact((sequence * d).max(1))) {
            pooling::mean(out, x, sequence);
        }
        Ok(())
    }

    fn mean_pool_backward(&self, dx: &mut Buffer, dy: &Buffer, batch: usize, sequence: usize, d: usize) -> Result<()> {
        let dx = output("mean_pool_backward", "dx", dx, &[batch, sequence, d])?;
        let dy = input("mean_pool_backward", "dy", dy, &[batch, d])?;
        for (dx, dy) in dx.chunks_exact_mut((sequence * d).max(1)).zip(dy.chunks_exact(d.max(1))) {
            pooling::mean_backward(dx, dy, sequence);
        }
        Ok(())
    }

    fn softmax(&self, x: &mut Buffer, m: usize, n: usize) -> Result<()> {
        let x = output("softmax", "x", x, &[m, n])?;
        if n > 0 {
            self.team.rows(x, n, ns(m * n, EXPONENTIAL_PS), |_, x| loss::softmax(x, n));
        }
        Ok(())
    }

    fn cross_entropy(&self, d_logits: Option<&mut Buffer>, logits: &Buffer, targets: &Indices, m: usize, n: usize) -> Result<f64> {
        const NAME: &str = "cross_entropy";
        let logits = input(NAME, "logits", logits, &[m, n])?;
        let targets = input(NAME, "targets", targets, &[m])?;
        let d_logits = d_logits.map(|d_logits| output(NAME, "d_logits", d_logits, &[m, n])).transpose()?;
        if let Some((row, target)) = targets.iter().enumerate().find(|(_, t)| **t != NO_TARGET && **t as usize >= n) {
            return Err(KernelError::Shape {
                operation: NAME,
                detail: format!("target {target} of row {row} is not below the {n} logits"),
            });
        }
        let count = targets.iter().filter(|target| **target != NO_TARGET).count();
        require(NAME, count > 0, || format!("none of the {m} rows has a target"))?;
        let weight = 1.0 / count as f32;
        let row = |d: &mut [f32], loss: &mut f64, row: usize| match targets[row] {
            NO_TARGET => {
                d.fill(0.0);
                *loss = 0.0;
            }
            target => *loss = loss::cross_entropy(d, &logits[row * n..][..n], target as usize, weight),
        };
        let ns = ns(m * n, EXPONENTIAL_PS);
        // The losses are added up in the order of the rows, whichever thread computed them.
        let total: f64 = f64::with_scratch(m, |losses| {
            match d_logits {
                Some(d_logits) => self.team.rows2((d_logits, n), (&mut *losses, 1), ns, |first, d_logits, losses| {
                    d_logits.chunks_exact_mut(n).zip(losses).enumerate().for_each(|(i, (d, loss))| row(d, loss, first + i));
                }),
                None => self.team.rows(&mut *losses, 1, ns, |first, losses| {
                    f32::with_scratch(n, |d| losses.iter_mut().enumerate().for_each(|(i, loss)| row(d, loss, first + i)));
                }),
            }
            losses.iter().sum()
        });
        Ok(total / count as f64)
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
        require("adamw", constants.step > 0, || "step 0 was given; steps count from 1".to_string())?;
        let gradient = input("adamw", "gradient", gradient, &[len])?;
        let [parameter, first, second] = [
            Shared::new(output("adamw", "parameter", parameter, &[len])?),
            Shared::new(output("adamw", "first moment", first, &[len])?),
            Shared::new(output("adamw", "second moment", second, &[len])?),
        ];
        self.team.ranges(len, 1024, ns(len, SUMS_PS), |range| {
            // SAFETY: `ranges` gives every number to one thread.
            let (p, m, v) = unsafe { (parameter.part(range.clone()), first.part(range.clone()), second.part(range.clone())) };
            adamw::step(p, &gradient[range], m, v, constants);
        });
        Ok(())
    }

    fn sum_of_squares(&self, x: &Buffer, len: usize) -> Result<f64> {
        let x = input("sum_of_squares", "x", x, &[len])?;
        Ok(self.team.reduce(len, SUM_BLOCK, ns(len, COPY_PS), |range| [importance::sum_of_squares(&x[range]), 0.0])[0])
    }

    fn residual_change(&self, before: &Buffer, after: &Buffer, m: usize, d: usize) -> Result<(f64, f64)> {
        let before = input("residual_change", "before", before, &[m, d])?;
        let after = input("residual_change", "after", after, &[m, d])?;
        if d == 0 {
            return Ok((0.0, 0.0));
        }
        let [change, turn] = self.team.reduce(m, (SUM_BLOCK / d).max(1), ns(m * d, SUMS_PS), |rows| {
            importance::residual_change(&before[rows.start * d..rows.end * d], &after[rows.start * d..rows.end * d], d)
        });
        Ok((change, turn))
    }

    fn row_l1(&self, out: &mut Buffer, w: &Weight) -> Result<()> {
        let (rows, columns) = w.shape();
        let out = output("row_l1", "out", out, &[rows])?;
        let view = w.view()?;
        self.team.rows(out, 1, ns(rows * columns, SUMS_PS), |first, out| {
            for (i, out) in out.iter_mut().enumerate() {
                *out = with_matrix!(view, w => w.row(first + i, importance::sum_of_magnitudes)) as f32;
            }
        });
        Ok(())
    }
}

fn part<'a>(operation: &'static str, buffer: &'a Buffer, offset: usize, len: usize) -> Result<&'a [f32]> {
    let range = offset..offset.saturating_add(len);
    buffer.as_slice().get(range).ok_or_else(|| outside(operation, offset, len, buffer.len()))
}

fn part_mut<'a>(operation: &'static str, buffer: &'a mut Buffer, offset: usize, len: usize) -> Result<&'a mut [f32]> {
    let (range, have) = (offset..offset.saturating_add(len), buffer.len());
    buffer.as_mut_slice().get_mut(range).ok_or_else(|| outside(operation, offset, len, have))
}

fn outside(operation: &'static str, offset: usize, len: usize, have: usize) -> KernelError {
    KernelError::Shape { operation, detail: format!("{len} numbers from number {offset} on were meant of a buffer that holds {have}") }
}
