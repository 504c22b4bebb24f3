//! The operations that every engine has, and nothing that assumes where its memory is.
//!
//! A forward or backward pass is written once over [`Device`]; the CPU (and, beside it, any other device) implements the operations.
//! Activations, gradients, adapters and moments are f32 [`Device::Buffer`]s. A stored matrix is a [`Device::Weight`]: in its stored
//! number format, read in place where the device can.
//!
//! Conventions. `m` is the number of tokens (batch · sequence). Matrices are row-major. A weight has `rows` and `columns`: in the
//! row-dot form (query, key, value, up, gate, output head) a row makes one output; in the unit-row form (attention output, down) a row
//! belongs to one input unit. A backward operation *adds* to the gradients that it is given, except where it says otherwise.
//! Every operation checks the lengths of its buffers and returns [`KernelError::Shape`] for a mismatch.

use std::ops::Range;
use std::sync::Arc;

use crate::error::{KernelError, Result};
pub use crate::format::Format;
use crate::fused::{self, Epilogue, KeyValues, Projection, Start, TokenShape};
use crate::memory::Purpose;

/// Bytes that live as long as anyone holds them: a memory-mapped artifact or a vector.
#[derive(Clone)]
pub struct HostBytes {
    /// Keeps the bytes alive.
    pub owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    /// The part of them that is meant.
    pub range: Range<usize>,
}

impl HostBytes {
    /// The bytes; empty where the range does not fit the owner.
    pub fn bytes(&self) -> &[u8] {
        (*self.owner).as_ref().get(self.range.clone()).unwrap_or(&[])
    }
}

/// Which normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `(x − mean) / sqrt(var + ε) · w + b`, biased variance.
    LayerNorm,
    /// `x / sqrt(mean(x²) + ε) · w`.
    RmsNorm,
}

/// Which activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · Φ(x)`, error function.
    GeluExact,
    /// `0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
    GeluTanh,
    /// `x · sigmoid(x)`.
    Silu,
    /// `max(x, 0)`.
    Relu,
}

/// The sizes of an attention. Queries are `[batch, queries, heads · head_dim]`; keys and values `[batch, key_capacity, groups · head_dim]`
/// of which the first `keys` positions of every sequence are used. Query `i` of a sequence stands at position `keys − queries + i` and
/// sees keys at its own position and before, the last `window` of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Sequences.
    pub batch: usize,
    /// Query positions in every sequence.
    pub queries: usize,
    /// Key positions in every sequence, at least `queries`.
    pub keys: usize,
    /// Key positions between the starts of neighbouring sequences, at least `keys`.
    pub key_capacity: usize,
    /// Query heads.
    pub heads: usize,
    /// KV groups.
    pub groups: usize,
    /// Dimensions of a head.
    pub head_dim: usize,
    /// What scores are multiplied by; `1 / √head_dim` in most models.
    pub scale: f32,
    /// The most keys that a query sees, at least 1; none where it sees all.
    pub window: Option<usize>,
}

/// The sizes and signs of a matrix product `C = alpha · op(A) · op(B) (+ C)`, `C [m, n]`, `op(A) [m, k]`, `op(B) [k, n]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Product {
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// The dimension that is summed.
    pub k: usize,
    /// A is stored as `[k, m]`.
    pub transpose_a: bool,
    /// B is stored as `[n, k]`.
    pub transpose_b: bool,
    /// Factor of the product.
    pub alpha: f32,
    /// Add to C instead of replacing it.
    pub accumulate: bool,
}

/// The constants of AdamW (Loshchilov and Hutter, 2019).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub learning_rate: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// The step, from 1.
    pub step: u32,
}

/// A target that [`Device::cross_entropy`] leaves out.
pub const NO_TARGET: u32 = u32::MAX;

/// A device: memory and operations.
pub trait Device: Clone + Send + Sync + 'static {
    /// f32 numbers on the device.
    type Buffer: Send + Sync;
    /// u32 numbers on the device.
    type Indices: Send + Sync;
    /// A matrix as stored.
    type Weight: Send + Sync;
    /// Work that [`replay`](Device::replay) has recorded; dropped, it is forgotten.
    type Graph: Default + Send + Sync;

    /// A name for people.
    fn name(&self) -> String;
    /// The same device, whose allocations are booked under `purpose`.
    fn for_purpose(&self, purpose: Purpose) -> Self;
    /// The same device, which packs the weights that are mapped from now on into memory of their own, where it copies them at all: those of
    /// one model.
    fn for_model(&self) -> Self {
        self.clone()
    }
    /// Runs `work` where the device's operations start fastest (on the CPU: inside its thread pool).
    fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R;

    /// Runs `work`, or, where the device can, a recording of what it did in an earlier call with the same `graph`: many small operations
    /// then start as fast as one. A device that records runs the first call as it is, so that what the work allocates once is there, and
    /// records a later one.
    ///
    /// The caller gives the same work with every call: the same operations on the same buffers, weights and sizes; what has changed since
    /// the recording are the numbers in them. While it is recorded, work may neither allocate nor drop memory of the device, nor write
    /// from or read to the host. Where it does, or where the device refuses a recording, nothing of the attempt has run on the device, and
    /// the same call runs `work` again as it is; so it may be called twice in a call. Where memory that the recorded work uses was dropped
    /// or moved since, the work is recorded anew.
    fn replay<E: From<KernelError>>(
        &self,
        graph: &mut Self::Graph,
        work: impl FnMut() -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E>;

    // Memory.

    /// `len` zeros.
    fn zeros(&self, len: usize) -> Result<Self::Buffer>;
    /// The length of a buffer.
    fn len(&self, buffer: &Self::Buffer) -> usize;
    /// Copies from the host into `to[offset..]`.
    fn write(&self, to: &mut Self::Buffer, offset: usize, from: &[f32]) -> Result<()>;
    /// Copies `from[offset..]` to the host, as many as `to` holds; waits for everything before it.
    fn read(&self, from: &Self::Buffer, offset: usize, to: &mut [f32]) -> Result<()>;
    /// `to[to_offset..][..len] = from[from_offset..][..len]`.
    fn copy(&self, to: &mut Self::Buffer, to_offset: usize, from: &Self::Buffer, from_offset: usize, len: usize) -> Result<()>;
    /// Sets the first `len` numbers to `value`.
    fn fill(&self, buffer: &mut Self::Buffer, len: usize, value: f32) -> Result<()>;
    /// Indices from the host.
    fn indices(&self, from: &[u32]) -> Result<Self::Indices>;
    /// Replaces the first indices.
    fn write_indices(&self, to: &mut Self::Indices, from: &[u32]) -> Result<()>;
    /// The first index, as the host wrote it last.
    fn first_index(&self, indices: &Self::Indices) -> Result<usize>;

    // Weights.

    /// Whether weights of an artifact are read in the pages that it is mapped to, and booked by whoever mapped it. A device that reads
    /// memory of its own, or pins those pages, books each weight itself.
    fn reads_in_place(&self) -> bool;
    /// Whether `weight` is still read in the host's bytes that it was mapped from, so that their pages stay in memory. Else nobody needs
    /// them once it is mapped.
    fn reads_host(&self, weight: &Self::Weight) -> bool;
    /// A matrix in `bytes`; on the CPU it is read in place, and needs the alignment of its numbers.
    fn map_weight(&self, bytes: HostBytes, format: Format, rows: usize, columns: usize) -> Result<Self::Weight>;
    /// A trainable f32 matrix of its own.
    fn own_weight(&self, buffer: Self::Buffer, rows: usize, columns: usize) -> Result<Self::Weight>;
    /// `(rows, columns)`.
    fn weight_shape(&self, weight: &Self::Weight) -> (usize, usize);
    /// The numbers of a weight made by [`own_weight`](Device::own_weight), to be read.
    fn owned<'a>(&self, weight: &'a Self::Weight) -> Option<&'a Self::Buffer>;
    /// The numbers of a weight made by [`own_weight`](Device::own_weight), to be trained.
    fn owned_mut<'a>(&self, weight: &'a mut Self::Weight) -> Option<&'a mut Self::Buffer>;

    // Matrix products.

    /// Row-dot form: `y [m, rows] = x [m, columns] · Wᵀ (+ y)`. It is also the backward of the unit-row form.
    fn matmul_rows(&self, y: &mut Self::Buffer, x: &Self::Buffer, w: &Self::Weight, m: usize, accumulate: bool) -> Result<()>;
    /// Unit-row form: `y [m, columns] = a [m, rows] · W (+ y)`. It is also the backward of the row-dot form.
    fn matmul_units(&self, y: &mut Self::Buffer, a: &Self::Buffer, w: &Self::Weight, m: usize, accumulate: bool) -> Result<()>;
    /// Row-dot products of one input, each with its epilogue.
    fn project_rows(&self, projections: &mut [Projection<'_, Self>], x: &Self::Buffer, m: usize) -> Result<()> {
        projections.iter_mut().try_for_each(|projection| fused::project_rows(self, projection, x, m))
    }
    /// [`matmul_units`](Device::matmul_units) with an epilogue.
    fn project_units(
        &self,
        y: &mut Self::Buffer,
        a: &Self::Buffer,
        w: &Self::Weight,
        m: usize,
        accumulate: bool,
        epilogue: Epilogue<'_, Self::Buffer>,
    ) -> Result<()> {
        fused::project_units(self, y, a, w, m, accumulate, epilogue)
    }
    /// `out [m, rows] = activation(up)`, or `activation(gate) · up` where there is a gate, of row-dot products with their epilogues. What
    /// the products' own buffers hold afterwards is nobody's: a device that activates before it stores leaves them as they were.
    fn project_activated(
        &self,
        kind: Activation,
        out: &mut Self::Buffer,
        x: &Self::Buffer,
        m: usize,
        up: Projection<'_, Self>,
        gate: Option<Projection<'_, Self>>,
    ) -> Result<()> {
        fused::project_activated(self, kind, out, x, m, up, gate)
    }
    /// A product of buffers.
    fn matmul(&self, c: &mut Self::Buffer, a: &Self::Buffer, b: &Self::Buffer, product: Product) -> Result<()>;

    // Element by element.

    /// `y [m, n] += bias [n]`.
    fn add_bias(&self, y: &mut Self::Buffer, bias: &Self::Buffer, m: usize, n: usize) -> Result<()>;
    /// `d_bias [n] += Σ_m dy [m, n]`.
    fn bias_backward(&self, d_bias: &mut Self::Buffer, dy: &Self::Buffer, m: usize, n: usize) -> Result<()>;
    /// `y[..len] += alpha · x[..len]`.
    fn add(&self, y: &mut Self::Buffer, x: &Self::Buffer, len: usize, alpha: f32) -> Result<()>;
    /// `x[..len] *= alpha`.
    fn scale(&self, x: &mut Self::Buffer, len: usize, alpha: f32) -> Result<()>;
    /// Every column times its unit's gate: `x [m, units · width]`, `gates [units]`.
    fn gate_columns(&self, x: &mut Self::Buffer, gates: &Self::Buffer, m: usize, width: usize) -> Result<()>;
    /// Gradient of gates: `d_gates [units] += Σ_m Σ_width dy · x`, both `[m, units · width]`; `x` before the gate.
    fn gate_backward(&self, d_gates: &mut Self::Buffer, dy: &Self::Buffer, x: &Self::Buffer, m: usize, width: usize) -> Result<()>;
    /// `out [m, n] = activation(up)`, or `activation(gate) · up` where there is a gate.
    fn activate(&self, kind: Activation, out: &mut Self::Buffer, up: &Self::Buffer, gate: Option<&Self::Buffer>, len: usize) -> Result<()>;
    /// Backward of [`activate`](Device::activate); *replaces* `d_up` and, where there is a gate, `d_gate`.
    #[allow(clippy::too_many_arguments)]
    fn activate_backward(
        &self,
        kind: Activation,
        d_up: &mut Self::Buffer,
        d_gate: Option<&mut Self::Buffer>,
        dy: &Self::Buffer,
        up: &Self::Buffer,
        gate: Option<&Self::Buffer>,
        len: usize,
    ) -> Result<()>;

    // Norms.

    /// `y [m, d]` from `x [m, d]`, `weight [d]`, `bias [d]`.
    #[allow(clippy::too_many_arguments)]
    fn norm(
        &self,
        kind: NormKind,
        y: &mut Self::Buffer,
        x: &Self::Buffer,
        weight: &Self::Buffer,
        bias: Option<&Self::Buffer>,
        epsilon: f32,
        m: usize,
    ) -> Result<()>;
    /// Backward of [`norm`](Device::norm): adds to `dx`, and to `d_weight` and `d_bias` where they are given.
    #[allow(clippy::too_many_arguments)]
    fn norm_backward(
        &self,
        kind: NormKind,
        dx: &mut Self::Buffer,
        d_weight: Option<&mut Self::Buffer>,
        d_bias: Option<&mut Self::Buffer>,
        dy: &Self::Buffer,
        x: &Self::Buffer,
        weight: &Self::Buffer,
        epsilon: f32,
        m: usize,
    ) -> Result<()>;

    // Attention.

    /// Rotates `x [batch, sequence, heads · head_dim]` in place: in every head, dimension `i` against `i + dims/2` for `i < dims/2`, by
    /// the angle `(start + position) · frequencies[i]`, where `frequencies` has `dims/2` entries. `inverse` rotates back, which is the
    /// backward operation.
    #[allow(clippy::too_many_arguments)]
    fn rotate(
        &self,
        x: &mut Self::Buffer,
        frequencies: &Self::Buffer,
        batch: usize,
        sequence: usize,
        heads: usize,
        head_dim: usize,
        start: usize,
        inverse: bool,
    ) -> Result<()>;
    /// Causal attention `softmax(scale · q kᵀ) v` with grouped keys: `out [batch, queries, heads · head_dim]`; `groups [heads]`
    /// names the KV group of every head.
    fn attention(
        &self,
        shape: AttentionShape,
        out: &mut Self::Buffer,
        q: &Self::Buffer,
        k: &Self::Buffer,
        v: &Self::Buffer,
        groups: &Self::Indices,
    ) -> Result<()>;
    /// Turns the queries and keys of new tokens of one sequence by their positions, as [`rotate`](Device::rotate) does, where there are
    /// frequencies, and puts keys and values into the cache at these positions. `q [sequence, heads · head_dim]`, `k` and `v [sequence,
    /// groups · head_dim]`; `k` may be left turned or not.
    #[allow(clippy::too_many_arguments)]
    fn cache_tokens(
        &self,
        cache: KeyValues<'_, Self::Buffer>,
        q: &mut Self::Buffer,
        k: &mut Self::Buffer,
        v: &Self::Buffer,
        frequencies: Option<&Self::Buffer>,
        shape: TokenShape,
        start: Start<'_, Self::Indices>,
    ) -> Result<()> {
        fused::cache_tokens(self, cache, q, k, v, frequencies, shape, start)
    }
    /// [`attention`](Device::attention) where the first query of every sequence stands at the position that is the first index, so that
    /// `position + queries` keys are used, which the device reads when the work runs: `shape.keys` is the most that they may be.
    #[allow(clippy::too_many_arguments)]
    fn attention_at(
        &self,
        shape: AttentionShape,
        out: &mut Self::Buffer,
        q: &Self::Buffer,
        k: &Self::Buffer,
        v: &Self::Buffer,
        groups: &Self::Indices,
        position: &Self::Indices,
    ) -> Result<()> {
        self.attention(fused::attended(self, shape, position)?, out, q, k, v, groups)
    }
    /// Backward of [`attention`](Device::attention), probabilities computed again; *replaces* `dq`, `dk`, `dv`. `queries == keys`.
    #[allow(clippy::too_many_arguments)]
    fn attention_backward(
        &self,
        shape: AttentionShape,
        dq: &mut Self::Buffer,
        dk: &mut Self::Buffer,
        dv: &mut Self::Buffer,
        d_out: &Self::Buffer,
        q: &Self::Buffer,
        k: &Self::Buffer,
        v: &Self::Buffer,
        groups: &Self::Indices,
    ) -> Result<()>;

    // Input and output.

    /// `out [ids, columns]` = rows of `table` by id.
    fn embed(&self, out: &mut Self::Buffer, table: &Self::Weight, ids: &Self::Indices, count: usize) -> Result<()>;
    /// `d_table[id] += dy[token]`, `d_table [rows, columns]`.
    fn embed_backward(
        &self,
        d_table: &mut Self::Buffer,
        dy: &Self::Buffer,
        ids: &Self::Indices,
        count: usize,
        columns: usize,
    ) -> Result<()>;
    /// `x [batch, sequence, d] += table[start + position]`.
    fn add_positions(&self, x: &mut Self::Buffer, table: &Self::Weight, batch: usize, sequence: usize, start: usize) -> Result<()>;
    /// `x [sequence, d] += table[offset + first index + position]`, the first index of `start` read when the work runs.
    fn add_positions_at(
        &self,
        x: &mut Self::Buffer,
        table: &Self::Weight,
        sequence: usize,
        offset: usize,
        start: &Self::Indices,
    ) -> Result<()> {
        self.add_positions(x, table, 1, sequence, offset.saturating_add(self.first_index(start)?))
    }
    /// `d_table[start + position] += Σ_batch dy`.
    fn positions_backward(
        &self,
        d_table: &mut Self::Buffer,
        dy: &Self::Buffer,
        batch: usize,
        sequence: usize,
        columns: usize,
        start: usize,
    ) -> Result<()>;
    /// Cuts `windows [batch, window]` into `out [batch · patches, patch]`.
    fn patches(
        &self,
        out: &mut Self::Buffer,
        windows: &Self::Buffer,
        batch: usize,
        window: usize,
        patch: usize,
        stride: usize,
    ) -> Result<()>;
    /// `out [batch, d]` = mean over the sequence of `x [batch, sequence, d]`.
    fn mean_pool(&self, out: &mut Self::Buffer, x: &Self::Buffer, batch: usize, sequence: usize, d: usize) -> Result<()>;
    /// Backward of [`mean_pool`](Device::mean_pool); *replaces* `dx`.
    fn mean_pool_backward(&self, dx: &mut Self::Buffer, dy: &Self::Buffer, batch: usize, sequence: usize, d: usize) -> Result<()>;
    /// Softmax of every row in place, `x [m, n]`.
    fn softmax(&self, x: &mut Self::Buffer, m: usize, n: usize) -> Result<()>;
    /// Mean softmax cross entropy in nats of `logits [m, n]` over the rows whose target is not [`NO_TARGET`]; *replaces* `d_logits`
    /// with the gradient of the mean where it is given.
    fn cross_entropy(
        &self,
        d_logits: Option<&mut Self::Buffer>,
        logits: &Self::Buffer,
        targets: &Self::Indices,
        m: usize,
        n: usize,
    ) -> Result<f64>;

    // Training and importance.

    /// One step of AdamW on the first `len` numbers.
    fn adamw(
        &self,
        parameter: &mut Self::Buffer,
        gradient: &Self::Buffer,
        first: &mut Self::Buffer,
        second: &mut Self::Buffer,
        len: usize,
        constants: AdamW,
    ) -> Result<()>;
    /// `Σ x²` of the first `len` numbers.
    fn sum_of_squares(&self, x: &Self::Buffer, len: usize) -> Result<f64>;
    /// `Σ_rows ‖after − before‖ / ‖before‖` and `Σ_rows (1 − cos(before, after))` over `[m, d]`.
    fn residual_change(&self, before: &Self::Buffer, after: &Self::Buffer, m: usize, d: usize) -> Result<(f64, f64)>;
    /// `out [rows]` = L1 norm of every row of `w`.
    fn row_l1(&self, out: &mut Self::Buffer, w: &Self::Weight) -> Result<()>;
}
