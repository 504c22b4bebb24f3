//! The buffers of a forward or backward pass, allocated once for the largest batch and used for every smaller one.

use espalier_kernels::{Device, Purpose, buffer_bytes};
use espalier_models::architecture::{Input, Output, Residual};
use espalier_models::{Architecture, ModelShape};

use crate::error::Result;

/// What a pass keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: one set of layer buffers, for inference.
    Nothing,
    /// The input of every layer; a layer's inner activations are computed again when its turn comes backward. Least memory.
    LayerInputs,
    /// All activations. Fastest.
    Everything,
}

/// For which positions logits are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitRows {
    /// Every position (or every window, for a classifier).
    All,
    /// The last position of every sequence.
    Last,
    /// None by the pass itself; afterwards [`Pass::logit_block`](crate::Pass::logit_block) computes up to this many rows at a time.
    Blocks(usize),
}

/// How large a pass may be and what it keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkspaceSize {
    /// Sequences or windows at once.
    pub batch: usize,
    /// Tokens or patches of each.
    pub sequence: usize,
    /// What is kept for a backward pass.
    pub keep: Keep,
    /// Where logits are wanted.
    pub logits: LogitRows,
    /// The largest rank of an adapter; 0 without adapters.
    pub rank: usize,
    /// Whether gates may be given.
    pub gates: bool,
}

/// Buffers of a pass; `m = batch · sequence`.
pub struct Workspace<D: Device> {
    pub(crate) size: WorkspaceSize,
    /// `[batch, window]`; empty for tokens.
    pub(crate) windows: D::Buffer,
    /// `[m, patch]`; empty for tokens.
    pub(crate) patches: D::Buffer,
    /// `[m]`; empty for patches.
    pub(crate) ids: D::Indices,
    /// `[m, d]`: one, or the input of every kept layer and the last output.
    pub(crate) hidden: Vec<D::Buffer>,
    /// One, or one a kept layer.
    pub(crate) layers: Vec<LayerBuffers<D>>,
    pub(crate) scratch: Scratch<D>,
    /// `[m, d]`, after the final norm.
    pub(crate) normed: D::Buffer,
    /// `[batch, d]`: mean or last position, or the rows of a block; empty where the head reads every position.
    pub(crate) pooled: D::Buffer,
    /// `[rows, output width]`.
    pub(crate) logits: D::Buffer,
    pub(crate) backward: Option<BackwardBuffers<D>>,
}

/// What any layer uses for a moment.
pub(crate) struct Scratch<D: Device> {
    /// `[m, rank]`.
    pub low: D::Buffer,
    /// `[m, d]`, a block's output after its post norm; empty without post norms.
    pub post: D::Buffer,
}

/// Activations inside one layer.
pub(crate) struct LayerBuffers<D: Device> {
    /// Whether a backward pass reads them, so that each holds what its name says. Else only those that the next operation reads do.
    pub kept: bool,
    /// `[m, d]`, after the attention norm.
    pub normed_attention: D::Buffer,
    /// `[m, heads · head_dim]`, before the norm of query heads; empty without one.
    pub q_raw: D::Buffer,
    /// `[m, groups · head_dim]`, before the norm of key heads; empty without one.
    pub k_raw: D::Buffer,
    /// `[m, heads · head_dim]`.
    pub q: D::Buffer,
    /// `[m, groups · head_dim]`.
    pub k: D::Buffer,
    /// `[m, groups · head_dim]`.
    pub v: D::Buffer,
    /// `[m, heads · head_dim]`, before the gates.
    pub attended: D::Buffer,
    /// `[m, heads · head_dim]`, after the gates; empty without gates.
    pub attended_gated: D::Buffer,
    /// `[m, d]`, what attention adds, before its post norm; empty without post norms.
    pub attention_out: D::Buffer,
    /// `[m, d]`, between attention and FFN; empty where nothing is kept, and where the FFN does not read it.
    pub middle: D::Buffer,
    /// `[m, d]`, after the FFN norm; empty where the attention norm's buffer serves: it is shared, or nothing is kept and it is free by
    /// then.
    pub normed_ffn: D::Buffer,
    /// `[m, channels]`, gate projection; empty without one.
    pub gate: D::Buffer,
    /// `[m, channels]`, up projection.
    pub up: D::Buffer,
    /// `[m, channels]`, before the gates.
    pub active: D::Buffer,
    /// `[m, channels]`, after the gates; empty without gates.
    pub active_gated: D::Buffer,
    /// `[m, d]`, what the FFN adds, before its post norm; empty without post norms, and where nothing is kept (attention's is free by
    /// then).
    pub ffn_out: D::Buffer,
}

/// Buffers that only the backward pass needs.
pub(crate) struct BackwardBuffers<D: Device> {
    /// `[m, d]`, gradient of the residual stream.
    pub d_hidden: D::Buffer,
    /// `[m, d]`.
    pub d_normed: D::Buffer,
    /// `[m, d]`, that of the FFN's own norm where attention reads the same input; else empty.
    pub d_normed_ffn: D::Buffer,
    /// `[m, d]`, gradient of a block's output before its post norm; empty without post norms.
    pub d_out: D::Buffer,
    /// `[m, widest block]`.
    pub d_block: D::Buffer,
    /// `[m, heads · head_dim]`.
    pub dq: D::Buffer,
    /// `[m, groups · head_dim]`.
    pub dk: D::Buffer,
    /// `[m, groups · head_dim]`.
    pub dv: D::Buffer,
    /// `[m, channels]`.
    pub d_up: D::Buffer,
    /// `[m, channels]`.
    pub d_gate: D::Buffer,
    /// `[m, rank]`.
    pub d_low: D::Buffer,
    /// `[m, d]`, the stream of a layer that is computed again; empty where everything is kept.
    pub again: D::Buffer,
    /// `[rows, output width]`.
    pub d_logits: D::Buffer,
    /// `[batch, d]`.
    pub d_pooled: D::Buffer,
}

/// The numbers in each group of buffers, so that a plan and an allocation cannot disagree.
struct Lengths {
    m: usize,
    d: usize,
    q: usize,
    kv: usize,
    channels: usize,
    rows: usize,
    width: usize,
    pooled: usize,
    window: usize,
    patch: usize,
    gated: bool,
    qk_norm: bool,
    post_norms: bool,
    residual: Residual,
}

/// Buffers of [`LayerBuffers`] and of [`BackwardBuffers`].
const LAYER_BUFFERS: usize = 16;
const BACKWARD_BUFFERS: usize = 14;

impl Lengths {
    fn new(architecture: &Architecture, shape: &ModelShape, size: &WorkspaceSize) -> Self {
        let head_dim = architecture.attention.head_dim;
        let widest = |of: fn(&espalier_models::Units) -> usize| shape.kept().map(|(_, units)| of(units)).max().unwrap_or(0);
        let classifier = matches!(architecture.output, Output::Classes { .. });
        let m = size.batch * size.sequence;
        let by_sequence = classifier || size.logits == LogitRows::Last;
        let rows = match size.logits {
            LogitRows::Blocks(rows) if !classifier => rows,
            _ if by_sequence => size.batch,
            _ => m,
        };
        let (window, patch) = match architecture.input {
            Input::Patches { window, patch, .. } => (window, patch),
            Input::Tokens { .. } => (0, 0),
        };
        Self {
            m,
            d: architecture.d_model,
            q: widest(|units| units.heads.len()) * head_dim,
            kv: widest(|units| units.groups) * head_dim,
            channels: widest(|units| units.channels),
            rows,
            width: architecture.output_width(),
            pooled: if by_sequence || matches!(size.logits, LogitRows::Blocks(_)) { rows * architecture.d_model } else { 0 },
            window,
            patch,
            gated: architecture.ffn.gated,
            qk_norm: architecture.attention.qk_norm,
            post_norms: architecture.post_norms,
            residual: architecture.residual,
        }
    }

    /// Lengths of the buffers of one layer, in the order of [`LayerBuffers`].
    fn layer(&self, size: &WorkspaceSize) -> [usize; LAYER_BUFFERS] {
        let Self { m, d, q, kv, channels, gated, qk_norm, post_norms, residual, .. } = *self;
        let kept = size.keep != Keep::Nothing;
        let when = |condition: bool, len: usize| if condition { len } else { 0 };
        let sequential = residual == Residual::Sequential;
        let own_norm = residual == Residual::Parallel { shared_norm: false };
        [
            m * d,
            when(qk_norm, m * q),
            when(qk_norm, m * kv),
            m * q,
            m * kv,
            m * kv,
            m * q,
            when(size.gates, m * q),
            when(post_norms, m * d),
            when(kept && sequential, m * d),
            when(own_norm || kept && sequential, m * d),
            when(gated, m * channels),
            m * channels,
            m * channels,
            when(size.gates, m * channels),
            when(post_norms && kept, m * d),
        ]
    }

    /// Lengths of the buffers of the backward pass, in the order of [`BackwardBuffers`].
    fn backward(&self, size: &WorkspaceSize) -> [usize; BACKWARD_BUFFERS] {
        let Self { m, d, q, kv, channels, gated, qk_norm, post_norms, residual, .. } = *self;
        let when = |condition: bool, len: usize| if condition { len } else { 0 };
        [
            m * d,
            m * d,
            when(residual == Residual::Parallel { shared_norm: false }, m * d),
            when(post_norms, m * d),
            m * q.max(channels).max(when(qk_norm, kv)),
            m * q,
            m * kv,
            m * kv,
            m * channels,
            when(gated, m * channels),
            m * size.rank,
            when(size.keep == Keep::LayerInputs, m * d),
            self.rows * self.width,
            self.pooled,
        ]
    }

    /// Lengths of the buffers that a workspace has once: windows, patches, low, post, normed, pooled, logits.
    fn single(&self, size: &WorkspaceSize) -> [usize; 7] {
        let Self { m, d, window, patch, rows, width, pooled, post_norms, .. } = *self;
        [size.batch * window, m * patch, m * size.rank, if post_norms { m * d } else { 0 }, m * d, pooled, rows * width]
    }
}

fn copies(shape: &ModelShape, keep: Keep) -> (usize, usize) {
    let kept = shape.kept().count();
    match keep {
        Keep::Nothing => (1, 1),
        Keep::LayerInputs => (kept + 1, 1),
        Keep::Everything => (kept + 1, kept.max(1)),
    }
}

/// Bytes that a workspace of this size books on the CPU.
pub fn workspace_bytes(architecture: &Architecture, shape: &ModelShape, size: &WorkspaceSize) -> u64 {
    let lengths = Lengths::new(architecture, shape, size);
    let (hidden, layers) = copies(shape, size.keep);
    let booked = |lengths: &[usize]| lengths.iter().map(|length| buffer_bytes(*length)).sum::<u64>();
    let backward = if size.keep == Keep::Nothing { 0 } else { booked(&lengths.backward(size)) };
    let indices = if lengths.window == 0 { lengths.m } else { 0 };
    booked(&lengths.single(size))
        + hidden as u64 * buffer_bytes(lengths.m * lengths.d)
        + layers as u64 * booked(&lengths.layer(size))
        + backward
        + buffer_bytes(indices)
}

impl<D: Device> Workspace<D> {
    /// Allocates the buffers for models of up to `shape`.
    pub fn new(device: &D, architecture: &Architecture, shape: &ModelShape, size: WorkspaceSize) -> Result<Self> {
        let device = device.for_purpose(Purpose::Activations);
        let lengths = Lengths::new(architecture, shape, &size);
        let (hidden, layers) = copies(shape, size.keep);
        let zeros = |len| device.zeros(len);
        let [windows, patches, low, post, normed, pooled, logits] = lengths.single(&size);
        let ids = vec![0; if lengths.window == 0 { lengths.m } else { 0 }];
        Ok(Self {
            windows: zeros(windows)?,
            patches: zeros(patches)?,
            ids: device.indices(&ids)?,
            hidden: (0..hidden).map(|_| zeros(lengths.m * lengths.d)).collect::<espalier_kernels::Result<_>>()?,
            layers: (0..layers)
                .map(|_| LayerBuffers::new(&device, lengths.layer(&size), size.keep != Keep::Nothing))
                .collect::<Result<_>>()?,
            scratch: Scratch { low: zeros(low)?, post: zeros(post)? },
            normed: zeros(normed)?,
            pooled: zeros(pooled)?,
            logits: zeros(logits)?,
            backward: if size.keep == Keep::Nothing { None } else { Some(BackwardBuffers::new(&device, lengths.backward(&size))?) },
            size,
        })
    }

    /// The size it was made for.
    pub fn size(&self) -> WorkspaceSize {
        self.size
    }

    /// The logits of the last pass, `[rows, output width]`.
    pub fn logits(&self) -> &D::Buffer {
        &self.logits
    }

    /// The input of the `position`-th kept layer (or, one further, the last layer's output) of the last pass, `[m, d]`. Only where
    /// something is kept.
    pub fn hidden(&self, position: usize) -> Option<&D::Buffer> {
        if self.size.keep == Keep::Nothing { None } else { self.hidden.get(position) }
    }
}

impl<D: Device> LayerBuffers<D> {
    fn new(device: &D, lengths: [usize; LAYER_BUFFERS], kept: bool) -> Result<Self> {
        let [
            normed_attention,
            q_raw,
            k_raw,
            q,
            k,
            v,
            attended,
            attended_gated,
            attention_out,
            middle,
            normed_ffn,
            gate,
            up,
            active,
            active_gated,
            ffn_out,
        ] = lengths;
        Ok(Self {
            kept,
            normed_attention: device.zeros(normed_attention)?,
            q_raw: device.zeros(q_raw)?,
            k_raw: device.zeros(k_raw)?,
            q: device.zeros(q)?,
            k: device.zeros(k)?,
            v: device.zeros(v)?,
            attended: device.zeros(attended)?,
            attended_gated: device.zeros(attended_gated)?,
            attention_out: device.zeros(attention_out)?,
            middle: device.zeros(middle)?,
            normed_ffn: device.zeros(normed_ffn)?,
            gate: device.zeros(gate)?,
            up: device.zeros(up)?,
            active: device.zeros(active)?,
            active_gated: device.zeros(active_gated)?,
            ffn_out: device.zeros(ffn_out)?,
        })
    }
}

impl<D: Device> BackwardBuffers<D> {
    fn new(device: &D, lengths: [usize; BACKWARD_BUFFERS]) -> Result<Self> {
        let [d_hidden, d_normed, d_normed_ffn, d_out, d_block, dq, dk, dv, d_up, d_gate, d_low, again, d_logits, d_pooled] = lengths;
        Ok(Self {
            d_hidden: device.zeros(d_hidden)?,
            d_normed: device.zeros(d_normed)?,
            d_normed_ffn: device.zeros(d_normed_ffn)?,
            d_out: device.zeros(d_out)?,
            d_block: device.zeros(d_block)?,
            dq: device.zeros(dq)?,
            dk: device.zeros(dk)?,
            dv: device.zeros(dv)?,
            d_up: device.zeros(d_up)?,
            d_gate: device.zeros(d_gate)?,
            d_low: device.zeros(d_low)?,
            again: device.zeros(again)?,
            d_logits: device.zeros(d_logits)?,
            d_pooled: device.zeros(d_pooled)?,
        })
    }
}
