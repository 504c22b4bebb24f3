//! Whole passes, operation by operation as runtime/src/forward.rs and layer_forward.rs make them: with every launch on the stream, and as a
//! graph. A window goes through the signal network of 85 million parameters; a token through a language model, always at the same position,
//! so that it can be recorded.

use std::time::Instant;

use espalier_kernels::cuda::{Buffer, Graph, Indices, Plan, Precision, Weight};
use espalier_kernels::{
    Activation, AttentionShape, CudaDevice, Device, Epilogue, Format, KeyValues, NormKind, Projection, Result, Start, TokenShape,
};

use super::buffers::{buffer, stored};

const EPSILON: f32 = 1e-5;

/// The shape of a network.
#[derive(Clone, Copy)]
struct Shape {
    layers: usize,
    d: usize,
    heads: usize,
    groups: usize,
    channels: usize,
    /// Patches of a window, or positions in the cache.
    positions: usize,
    /// Samples of a patch, or tokens of the vocabulary.
    input: usize,
}

const SIGNAL: Shape = Shape { layers: 12, d: 768, heads: 12, groups: 12, channels: 3072, positions: 32, input: 64 };
const LANGUAGE_SMALL: Shape = Shape { layers: 12, d: 768, heads: 12, groups: 12, channels: 2048, positions: 1024, input: 32_000 };
const LANGUAGE: Shape = Shape { layers: 16, d: 2048, heads: 32, groups: 8, channels: 8192, positions: 1024, input: 128_256 };
const CLASSES: usize = 10;

impl Shape {
    /// The same network, small enough for the emulator.
    fn small(self) -> Self {
        Self {
            layers: 2,
            d: 64,
            heads: 4,
            groups: if self.groups < self.heads { 2 } else { 4 },
            channels: 96,
            input: self.input.min(97),
            ..self
        }
    }

    fn head_dim(self) -> usize {
        self.d / self.heads
    }

    fn attention(self, queries: usize) -> AttentionShape {
        let Self { heads, groups, positions, .. } = self;
        let (head_dim, scale) = (self.head_dim(), 1.0 / (self.head_dim() as f32).sqrt());
        AttentionShape { batch: 1, queries, keys: positions, key_capacity: positions, heads, groups, head_dim, scale, window: None }
    }

    /// Numbers of all matrices that a pass reads.
    fn parameters(self) -> usize {
        let kv = self.groups * self.head_dim();
        let gated = if self.is_language() { 3 } else { 2 };
        self.layers * (2 * self.d * self.d + 2 * kv * self.d + gated * self.channels * self.d) + self.input * self.d
    }

    fn is_language(self) -> bool {
        self.positions > SIGNAL.positions
    }
}

/// The format of matrices whose rows are units.
fn paired(format: Format) -> Format {
    match format {
        Format::F16 => Format::F16Pairs,
        Format::Bf16 => Format::Bf16Pairs,
        Format::Q8 => Format::Q8Units,
        Format::Q4 => Format::Q4Units,
        other => other,
    }
}

struct Layer {
    query: Weight,
    key: Weight,
    value: Weight,
    output: Weight,
    up: Weight,
    gate: Option<Weight>,
    down: Weight,
    cache: Option<[Buffer; 2]>,
}

/// Weights, and buffers for `m` tokens.
struct Pass {
    device: CudaDevice,
    shape: Shape,
    m: usize,
    layers: Vec<Layer>,
    table: Weight,
    groups: Indices,
    /// Zeros and noise, long enough for every bias and norm.
    bias: Buffer,
    norm: Buffer,
    hidden: Buffer,
    normed: Buffer,
    q: Buffer,
    k: Buffer,
    v: Buffer,
    attended: Buffer,
    up: Buffer,
    gate: Buffer,
    active: Buffer,
}

impl Pass {
    fn new(device: &CudaDevice, shape: Shape, format: Format) -> Result<Self> {
        let Shape { d, groups, channels, positions, .. } = shape;
        let (language, kv) = (shape.is_language(), groups * shape.head_dim());
        let m = if language { 1 } else { positions };
        let layer = |_| {
            Ok(Layer {
                query: stored(device, format, d, d)?,
                key: stored(device, format, kv, d)?,
                value: stored(device, format, kv, d)?,
                output: stored(device, paired(format), d, d)?,
                up: stored(device, format, channels, d)?,
                gate: if language { Some(stored(device, format, channels, d)?) } else { None },
                down: stored(device, paired(format), channels, d)?,
                cache: if language { Some([buffer(device, positions * kv)?, buffer(device, positions * kv)?]) } else { None },
            })
        };
        let of_heads: Vec<u32> = (0..shape.heads).map(|head| (head * groups / shape.heads) as u32).collect();
        let zeros = |len| device.zeros(len);
        Ok(Self {
            device: device.clone(),
            shape,
            m,
            layers: (0..shape.layers).map(layer).collect::<Result<_>>()?,
            table: if language { stored(device, format, shape.input, d)? } else { stored(device, format, d, shape.input)? },
            groups: device.indices(&of_heads)?,
            bias: zeros(channels.max(d))?,
            norm: buffer(device, d)?,
            hidden: buffer(device, m * d)?,
            normed: zeros(m * d)?,
            q: zeros(m * d)?,
            k: zeros(m * kv)?,
            v: zeros(m * kv)?,
            attended: zeros(m * d)?,
            up: zeros(m * channels)?,
            gate: zeros(m * channels)?,
            active: zeros(m * channels)?,
        })
    }

    fn normalise(&mut self) -> Result<()> {
        let (kind, bias) = if self.shape.is_language() { (NormKind::RmsNorm, None) } else { (NormKind::LayerNorm, Some(&self.bias)) };
        self.device.norm(kind, &mut self.normed, &self.hidden, &self.norm, bias, EPSILON, self.m)
    }

    /// The biases of a signal network; a language model has none.
    fn epilogue(shape: Shape, bias: &Buffer) -> Epilogue<'_, Buffer> {
        Epilogue { bias: (!shape.is_language()).then_some(bias), low_rank: None }
    }

    fn attention(&mut self, index: usize, frequencies: &Buffer) -> Result<()> {
        self.normalise()?;
        let Self { device, shape, m, layers, groups, bias, hidden, normed, q, k, v, attended, .. } = self;
        let (m, epilogue, layer) = (*m, Self::epilogue(*shape, bias), &mut layers[index]);
        let projections = [(&mut *q, &layer.query), (&mut *k, &layer.key), (&mut *v, &layer.value)];
        let mut projections = projections.map(|(y, weight)| Projection { y, weight, epilogue });
        device.project_rows(&mut projections, normed, m)?;
        match &mut layer.cache {
            None => device.attention(shape.attention(m), attended, q, k, v, groups)?,
            Some([keys, values]) => {
                let tokens = TokenShape { sequence: 1, heads: shape.heads, groups: shape.groups, head_dim: shape.head_dim() };
                let cache = KeyValues { keys: &mut *keys, values: &mut *values, capacity: shape.positions };
                device.cache_tokens(cache, q, k, v, Some(frequencies), tokens, Start::At(shape.positions - 1))?;
                device.attention(shape.attention(1), attended, q, keys, values, groups)?;
            }
        }
        device.project_units(hidden, attended, &layer.output, m, true, epilogue)
    }

    fn ffn(&mut self, index: usize) -> Result<()> {
        self.normalise()?;
        let Self { device, shape, m, layers, bias, hidden, normed, up, gate, active, .. } = self;
        let (layer, m, epilogue) = (&layers[index], *m, Self::epilogue(*shape, bias));
        let kind = if layer.gate.is_some() { Activation::Silu } else { Activation::GeluTanh };
        let up = Projection { y: up, weight: &layer.up, epilogue };
        let gate = layer.gate.as_ref().map(|weight| Projection { y: gate, weight, epilogue });
        device.project_activated(kind, active, normed, m, up, gate)?;
        device.project_units(hidden, active, &layer.down, m, true, epilogue)
    }

    fn layers(&mut self, frequencies: &Buffer) -> Result<()> {
        for index in 0..self.shape.layers {
            self.attention(index, frequencies)?;
            self.ffn(index)?;
        }
        self.normalise()
    }
}

/// The work of a window.
fn window(device: &CudaDevice, shape: Shape, format: Format) -> Result<impl FnMut() -> Result<()>> {
    let mut pass = Pass::new(device, shape, format)?;
    let (m, d, patch) = (pass.m, shape.d, shape.input);
    let (windows, mut patches) = (buffer(device, m * patch)?, device.zeros(m * patch)?);
    let positions = stored(device, format, m, d)?;
    let head = stored(device, format, CLASSES, d)?;
    let (mut pooled, mut logits, none) = (device.zeros(d)?, device.zeros(CLASSES)?, device.zeros(1)?);
    let device = device.clone();
    Ok(move || {
        device.patches(&mut patches, &windows, 1, m * patch, patch, patch)?;
        let epilogue = Pass::epilogue(shape, &pass.bias);
        device.project_rows(&mut [Projection { y: &mut pass.hidden, weight: &pass.table, epilogue }], &patches, m)?;
        device.add_positions(&mut pass.hidden, &positions, 1, m, 0)?;
        pass.layers(&none)?;
        device.mean_pool(&mut pooled, &pass.normed, 1, m, d)?;
        let epilogue = Pass::epilogue(shape, &pass.bias);
        device.project_rows(&mut [Projection { y: &mut logits, weight: &head, epilogue }], &pooled, 1)?;
        device.softmax(&mut logits, 1, CLASSES)
    })
}

/// The work of a token.
fn token(device: &CudaDevice, shape: Shape, format: Format) -> Result<impl FnMut() -> Result<()>> {
    let mut pass = Pass::new(device, shape, format)?;
    let (ids, frequencies) = (device.indices(&[7])?, buffer(device, shape.head_dim() / 2)?);
    let mut logits = device.zeros(shape.input)?;
    let device = device.clone();
    Ok(move || {
        device.embed(&mut pass.hidden, &pass.table, &ids, 1)?;
        pass.layers(&frequencies)?;
        device.matmul_rows(&mut logits, &pass.normed, &pass.table, 1, false)
    })
}

/// Median and 99th percentile in milliseconds of `runs` runs, each until the device is done.
fn time(device: &CudaDevice, runs: usize, mut work: impl FnMut() -> Result<()>) -> Result<(f64, f64)> {
    let done = device.zeros(1)?;
    let mut times = Vec::new();
    for _ in 0..runs {
        device.read(&done, 0, &mut [0.0])?;
        let started = Instant::now();
        work()?;
        device.read(&done, 0, &mut [0.0])?;
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok((times[runs / 2], times[(runs * 99).div_ceil(100) - 1]))
}

fn measure_one(device: &CudaDevice, name: &str, bytes: usize, runs: usize, mut work: impl FnMut() -> Result<()>) -> Result<()> {
    let launches = || device.kernel_counts().iter().map(|count| count.launches).sum::<u64>();
    work()?;
    let before = launches();
    work()?;
    let launches = launches() - before;
    let (p50, p99) = time(device, runs, &mut work)?;
    let mut graph = Graph::default();
    // Run once as it is, then recorded.
    (0..2).try_for_each(|_| device.replay(&mut graph, &mut work))?;
    let (graph_p50, graph_p99) = time(device, runs, || device.replay(&mut graph, &mut work))?;
    println!(
        "{{\"what\":\"pass\",\"name\":\"{name}\",\"launches\":{launches},\"weight_bytes\":{bytes},\"stream_p50_ms\":{p50:.4},\
         \"stream_p99_ms\":{p99:.4},\"graph_p50_ms\":{graph_p50:.4},\"graph_p99_ms\":{graph_p99:.4},\"graph_gb_per_s\":{:.1}}}",
        bytes as f64 / graph_p50 / 1e6
    );
    Ok(())
}

/// Prints a line of JSON for every pass that fits the device's memory.
pub fn measure(device: &CudaDevice, small: bool) -> Result<()> {
    let runs = if small { 2 } else { 200 };
    let formats = [("f32", Format::F32), ("bf16", Format::Bf16), ("f16", Format::F16)];
    let signal = if small { SIGNAL.small() } else { SIGNAL };
    for (format, stored_as) in formats {
        for (precision, word) in [(Precision::Exact, "exact"), (Precision::Fast, "fast")] {
            if stored_as == Format::F32 && precision == Precision::Fast {
                continue;
            }
            let device = device.with_plan(Plan { precision, ..device.plan() });
            let work = window(&device, signal, stored_as)?;
            let bytes = stored_as.stored_bytes(1, signal.parameters()).unwrap_or(usize::MAX);
            measure_one(&device, &format!("window, {format}, {word}"), bytes, runs, work)?;
        }
    }
    for (name, shape) in [("0.11 B", LANGUAGE_SMALL), ("1.2 B", LANGUAGE)] {
        let shape = if small { Shape { positions: 64, ..shape.small() } } else { shape };
        for (format, stored_as) in [("bf16", Format::Bf16), ("q8", Format::Q8), ("q4", Format::Q4)] {
            let bytes = stored_as.stored_bytes(1, shape.parameters()).unwrap_or(usize::MAX);
            let name = format!("token, {name}, {format}");
            // Weights, and half as much again for all else.
            if device.memory_bytes()?.0 < bytes as u64 * 3 / 2 {
                println!("{{\"what\":\"failed\",\"case\":\"{name}\",\"reason\":\"the device has too little free memory\"}}");
                continue;
            }
            measure_one(device, &name, bytes, runs, token(device, shape, stored_as)?)?;
        }
    }
    Ok(())
}
