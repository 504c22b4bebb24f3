//! Operations that are several at once: what they are given, and what they are made of on a device that has no kernel for the whole.

use std::slice;

use crate::device::{Activation, AttentionShape, Device, Product};
use crate::error::{KernelError, Result};

/// A low-rank addition to a product with `n` outputs: `y [m, n] += scale · low · S`, where `low [m, rank]` is the product's input through
/// the adapter's other side.
pub struct LowRank<'a, B> {
    /// `[m, rank]`.
    pub low: &'a B,
    /// S: stored as `[n, rank]` beside a row-dot product, as `[rank, n]` beside a unit-row product.
    pub side: &'a B,
    /// Columns of `low`.
    pub rank: usize,
    /// The factor.
    pub scale: f32,
}

/// What is added to a product before it is stored.
pub struct Epilogue<'a, B> {
    /// `[n]`, to every row.
    pub bias: Option<&'a B>,
    /// An adapter.
    pub low_rank: Option<LowRank<'a, B>>,
}

impl<B> Clone for LowRank<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for LowRank<'_, B> {}

impl<B> Clone for Epilogue<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for Epilogue<'_, B> {}

impl<B> Default for Epilogue<'_, B> {
    fn default() -> Self {
        Self { bias: None, low_rank: None }
    }
}

/// A product in row-dot form and where it goes: `y [m, rows] = x [m, columns] · Wᵀ`, and the epilogue.
pub struct Projection<'a, D: Device> {
    /// `[m, rows]`.
    pub y: &'a mut D::Buffer,
    /// `[rows, columns]`.
    pub weight: &'a D::Weight,
    /// What is added.
    pub epilogue: Epilogue<'a, D::Buffer>,
}

/// The first position of a sequence of tokens.
pub enum Start<'a, I> {
    /// Known to the host.
    At(usize),
    /// The first index, which the device reads when the work runs: so one recording serves every position.
    Stored(&'a I),
}

impl<I> Clone for Start<'_, I> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<I> Copy for Start<'_, I> {}

impl<I> Start<'_, I> {
    /// The position.
    pub fn position<D: Device<Indices = I>>(self, device: &D) -> Result<usize> {
        match self {
            Start::At(position) => Ok(position),
            Start::Stored(position) => device.first_index(position),
        }
    }
}

/// Keys and values of one sequence, and room for those to come.
pub struct KeyValues<'a, B> {
    /// `[capacity, groups · head_dim]`.
    pub keys: &'a mut B,
    /// `[capacity, groups · head_dim]`.
    pub values: &'a mut B,
    /// Positions that there is room for.
    pub capacity: usize,
}

/// The queries and keys of tokens that follow each other in one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenShape {
    /// Tokens.
    pub sequence: usize,
    /// Query heads.
    pub heads: usize,
    /// KV groups.
    pub groups: usize,
    /// Dimensions of a head.
    pub head_dim: usize,
}

impl TokenShape {
    /// Checks that `start` is known and leaves room for the tokens in `capacity` positions.
    pub(crate) fn check(self, start: usize, capacity: usize) -> Result<()> {
        if start.checked_add(self.sequence).is_some_and(|end| end <= capacity) {
            return Ok(());
        }
        let detail = format!("{} tokens from position {start} on were given, but the cache has room for {capacity}", self.sequence);
        Err(KernelError::Shape { operation: "cache_tokens", detail })
    }
}

/// The adapter's part of a product with `n` outputs.
fn add_low_rank<D: Device>(
    device: &D,
    y: &mut D::Buffer,
    m: usize,
    n: usize,
    transpose_b: bool,
    low_rank: Option<LowRank<'_, D::Buffer>>,
) -> Result<()> {
    let Some(LowRank { low, side, rank, scale }) = low_rank else { return Ok(()) };
    device.matmul(y, low, side, Product { m, n, k: rank, transpose_a: false, transpose_b, alpha: scale, accumulate: true })
}

/// See [`Device::project_rows`].
pub(crate) fn project_rows<D: Device>(device: &D, projection: &mut Projection<'_, D>, x: &D::Buffer, m: usize) -> Result<()> {
    let Projection { y, weight, epilogue } = projection;
    let (rows, _) = device.weight_shape(weight);
    device.matmul_rows(y, x, weight, m, false)?;
    if let Some(bias) = epilogue.bias {
        device.add_bias(y, bias, m, rows)?;
    }
    add_low_rank(device, y, m, rows, true, epilogue.low_rank)
}

/// See [`Device::project_units`].
pub(crate) fn project_units<D: Device>(
    device: &D,
    y: &mut D::Buffer,
    a: &D::Buffer,
    w: &D::Weight,
    m: usize,
    accumulate: bool,
    epilogue: Epilogue<'_, D::Buffer>,
) -> Result<()> {
    let (_, columns) = device.weight_shape(w);
    device.matmul_units(y, a, w, m, accumulate)?;
    add_low_rank(device, y, m, columns, false, epilogue.low_rank)?;
    match epilogue.bias {
        Some(bias) => device.add_bias(y, bias, m, columns),
        None => Ok(()),
    }
}

/// See [`Device::project_activated`].
pub(crate) fn project_activated<D: Device>(
    device: &D,
    kind: Activation,
    out: &mut D::Buffer,
    x: &D::Buffer,
    m: usize,
    mut up: Projection<'_, D>,
    mut gate: Option<Projection<'_, D>>,
) -> Result<()> {
    let (rows, _) = device.weight_shape(up.weight);
    device.project_rows(slice::from_mut(&mut up), x, m)?;
    if let Some(gate) = &mut gate {
        device.project_rows(slice::from_mut(gate), x, m)?;
    }
    device.activate(kind, out, up.y, gate.as_ref().map(|gate| &*gate.y), m * rows)
}

/// See [`Device::cache_tokens`].
#[allow(clippy::too_many_arguments)]
pub(crate) fn cache_tokens<D: Device>(
    device: &D,
    cache: KeyValues<'_, D::Buffer>,
    q: &mut D::Buffer,
    k: &mut D::Buffer,
    v: &D::Buffer,
    frequencies: Option<&D::Buffer>,
    shape: TokenShape,
    start: Start<'_, D::Indices>,
) -> Result<()> {
    let TokenShape { sequence, heads, groups, head_dim } = shape;
    let start = start.position(device)?;
    shape.check(start, cache.capacity)?;
    if let Some(frequencies) = frequencies {
        device.rotate(q, frequencies, 1, sequence, heads, head_dim, start, false)?;
        device.rotate(k, frequencies, 1, sequence, groups, head_dim, start, false)?;
    }
    let width = groups * head_dim;
    device.copy(cache.keys, start * width, k, 0, sequence * width)?;
    device.copy(cache.values, start * width, v, 0, sequence * width)
}

/// The shape of an attention whose last query stands `queries` behind the stored position; `shape.keys` is the most keys.
pub(crate) fn attended<D: Device>(device: &D, shape: AttentionShape, position: &D::Indices) -> Result<AttentionShape> {
    let start = device.first_index(position)?;
    match start.checked_add(shape.queries) {
        Some(keys) if keys <= shape.keys => Ok(AttentionShape { keys, ..shape }),
        _ => {
            let detail = format!("{} queries from position {start} on were given, but at most {} keys", shape.queries, shape.keys);
            Err(KernelError::Shape { operation: "attention_at", detail })
        }
    }
}
