//! Buffers for a case, and the call of its operation.

use espalier_kernels::cuda::{Buffer, Indices, Plan, Precision, Weight};
use espalier_kernels::{
    Activation, AdamW, AttentionShape, CudaDevice, Device, Epilogue, KeyValues, NormKind, Product, Projection, Result, Start, TokenShape,
};

use super::buffers::{buffer, stored};
use super::cases::Case;

/// One run of a case.
pub type Work = Box<dyn FnMut() -> Result<()>>;

fn weight(device: &CudaDevice, case: &Case) -> Result<Weight> {
    stored(device, case.format()?, case.size("rows")?, case.size("columns")?)
}

/// Ids spread over `below`, none twice while there are enough.
fn ids(device: &CudaDevice, count: usize, below: usize) -> Result<Indices> {
    let ids: Vec<u32> = (0..count).map(|i| (i * 7919 % below.max(1)) as u32).collect();
    device.indices(&ids)
}

/// Allocates and fills what a case needs.
pub fn prepare(device: &CudaDevice, case: &Case) -> Result<Work> {
    let precision = if case.is_fast() { Precision::Fast } else { Precision::Exact };
    let device = device.with_plan(Plan { precision, ..device.plan() });
    match case.operation {
        "matmul_rows" | "matmul_units" | "matmul" => product(device, case),
        "project_rows" | "project_units" | "project_activated" => projection(device, case),
        "attention" | "attention_backward" => attention(device, case),
        "norm" | "norm_backward" | "softmax" | "residual_change" | "cross_entropy" => rows(device, case),
        "fill" | "add" | "scale" | "adamw" | "sum_of_squares" | "activate" | "activate_backward" => elements(device, case),
        "add_bias" | "bias_backward" | "gate_columns" | "gate_backward" => columns(device, case),
        _ => input(device, case),
    }
}

fn product(device: CudaDevice, case: &Case) -> Result<Work> {
    let m = case.size("m")?;
    if case.operation == "matmul" {
        let (n, k) = (case.size("n")?, case.size("k")?);
        let product =
            Product { m, n, k, transpose_a: case.is("transpose_a"), transpose_b: case.is("transpose_b"), alpha: 1.0, accumulate: false };
        let (mut c, a, b) = (device.zeros(m * n)?, buffer(&device, m * k)?, buffer(&device, k * n)?);
        return Ok(Box::new(move || device.matmul(&mut c, &a, &b, product)));
    }
    let weight = weight(&device, case)?;
    let (rows, columns) = device.weight_shape(&weight);
    if case.operation == "matmul_rows" {
        let (mut y, x) = (device.zeros(m * rows)?, buffer(&device, m * columns)?);
        return Ok(Box::new(move || device.matmul_rows(&mut y, &x, &weight, m, false)));
    }
    let (mut y, a) = (device.zeros(m * columns)?, buffer(&device, m * rows)?);
    Ok(Box::new(move || device.matmul_units(&mut y, &a, &weight, m, false)))
}

fn with_bias(bias: &Option<Buffer>) -> Epilogue<'_, Buffer> {
    Epilogue { bias: bias.as_ref(), low_rank: None }
}

/// Products with an epilogue.
fn projection(device: CudaDevice, case: &Case) -> Result<Work> {
    let (m, rows, columns) = (case.size("m")?, case.size("rows")?, case.size("columns")?);
    let bias = if case.is("bias") { Some(buffer(&device, rows.max(columns))?) } else { None };
    let x = buffer(&device, m * rows.max(columns))?;
    let matrix = |rows| stored(&device, case.format()?, rows, columns);
    let (first, mut y) = (matrix(rows)?, device.zeros(m * rows.max(columns))?);
    match case.operation {
        "project_units" => Ok(Box::new(move || device.project_units(&mut y, &x, &first, m, false, with_bias(&bias)))),
        "project_rows" => {
            let count = case.size("count")?;
            let others = (1..count).map(|_| matrix(case.size("other_rows")?)).collect::<Result<Vec<_>>>()?;
            let mut ys = (1..count).map(|_| device.zeros(m * rows)).collect::<Result<Vec<_>>>()?;
            Ok(Box::new(move || {
                let mut all = vec![Projection { y: &mut y, weight: &first, epilogue: with_bias(&bias) }];
                let others = ys.iter_mut().zip(&others);
                all.extend(others.map(|(y, weight)| Projection { y, weight, epilogue: with_bias(&bias) }));
                device.project_rows(&mut all, &x, m)
            }))
        }
        _ => {
            let (gated, gate) = (case.is("gated"), matrix(rows)?);
            let (mut raw, mut raw_gate) = (device.zeros(m * rows)?, device.zeros(m * rows)?);
            let kind = if gated { Activation::Silu } else { Activation::GeluTanh };
            Ok(Box::new(move || {
                let up = Projection { y: &mut raw, weight: &first, epilogue: with_bias(&bias) };
                let gate = Projection { y: &mut raw_gate, weight: &gate, epilogue: with_bias(&bias) };
                device.project_activated(kind, &mut y, &x, m, up, gated.then_some(gate))
            }))
        }
    }
}

fn attention(device: CudaDevice, case: &Case) -> Result<Work> {
    let (batch, queries, keys) = (case.size("batch")?, case.size("queries")?, case.size("keys")?);
    let (heads, groups, head_dim) = (case.size("heads")?, case.size("groups")?, case.size("head_dim")?);
    let keys = keys.max(queries);
    let scale = 1.0 / (head_dim as f32).sqrt();
    let shape = AttentionShape { batch, queries, keys, key_capacity: keys, heads, groups, head_dim, scale, window: None };
    let of_heads: Vec<u32> = (0..heads).map(|head| (head * groups / heads) as u32).collect();
    let of_heads = device.indices(&of_heads)?;
    let (of_queries, of_keys) = (batch * queries * heads * head_dim, batch * keys * groups * head_dim);
    let (q, k, v) = (buffer(&device, of_queries)?, buffer(&device, of_keys)?, buffer(&device, of_keys)?);
    let mut out = buffer(&device, of_queries)?;
    if case.operation == "attention" {
        return Ok(Box::new(move || device.attention(shape, &mut out, &q, &k, &v, &of_heads)));
    }
    let (mut dq, mut dk, mut dv) = (device.zeros(of_queries)?, device.zeros(of_keys)?, device.zeros(of_keys)?);
    Ok(Box::new(move || device.attention_backward(shape, &mut dq, &mut dk, &mut dv, &out, &q, &k, &v, &of_heads)))
}

/// What works row by row on `[m, d]` or `[m, n]`.
fn rows(device: CudaDevice, case: &Case) -> Result<Work> {
    let (m, width) = (case.size("m")?, case.size("d").or_else(|_| case.size("n"))?);
    let (mut y, x) = (buffer(&device, m * width)?, buffer(&device, m * width)?);
    let kind = NormKind::LayerNorm;
    match case.operation {
        "softmax" => Ok(Box::new(move || device.softmax(&mut y, m, width))),
        "residual_change" => Ok(Box::new(move || device.residual_change(&x, &y, m, width).map(|_| ()))),
        "cross_entropy" => {
            let (targets, gradient) = (ids(&device, m, width)?, case.is("gradient"));
            Ok(Box::new(move || device.cross_entropy(gradient.then_some(&mut y), &x, &targets, m, width).map(|_| ())))
        }
        "norm" => {
            let (weight, bias) = (buffer(&device, width)?, buffer(&device, width)?);
            Ok(Box::new(move || device.norm(kind, &mut y, &x, &weight, Some(&bias), 1e-5, m)))
        }
        _ => {
            let (weight, dy, parameters) = (buffer(&device, width)?, buffer(&device, m * width)?, case.is("parameters"));
            let (mut d_weight, mut d_bias) = (device.zeros(width)?, device.zeros(width)?);
            Ok(Box::new(move || {
                let (d_weight, d_bias) = (parameters.then_some(&mut d_weight), parameters.then_some(&mut d_bias));
                device.norm_backward(kind, &mut y, d_weight, d_bias, &dy, &x, &weight, 1e-5, m)
            }))
        }
    }
}

/// What works on `len` numbers.
fn elements(device: CudaDevice, case: &Case) -> Result<Work> {
    let len = case.size("len")?;
    let (mut y, x) = (buffer(&device, len)?, buffer(&device, len)?);
    match case.operation {
        "fill" => Ok(Box::new(move || device.fill(&mut y, len, 1.0))),
        "add" => Ok(Box::new(move || device.add(&mut y, &x, len, 0.5))),
        "scale" => Ok(Box::new(move || device.scale(&mut y, len, 0.999))),
        "sum_of_squares" => Ok(Box::new(move || device.sum_of_squares(&x, len).map(|_| ()))),
        "adamw" => {
            let (mut first, mut second) = (device.zeros(len)?, device.zeros(len)?);
            let constants = AdamW { learning_rate: 1e-4, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.05, step: 3 };
            Ok(Box::new(move || device.adamw(&mut y, &x, &mut first, &mut second, len, constants)))
        }
        _ => {
            let (gated, other) = (case.is("gated"), buffer(&device, len)?);
            let kind = if gated { Activation::Silu } else { Activation::GeluTanh };
            if case.operation == "activate" {
                return Ok(Box::new(move || device.activate(kind, &mut y, &x, gated.then_some(&other), len)));
            }
            let (mut d_gate, gate) = (device.zeros(len)?, buffer(&device, len)?);
            Ok(Box::new(move || {
                device.activate_backward(kind, &mut y, gated.then_some(&mut d_gate), &x, &other, gated.then_some(&gate), len)
            }))
        }
    }
}

/// What works on columns of `[m, n]` or `[m, units * width]`.
fn columns(device: CudaDevice, case: &Case) -> Result<Work> {
    let m = case.size("m")?;
    if matches!(case.operation, "add_bias" | "bias_backward") {
        let n = case.size("n")?;
        let (mut y, mut bias) = (buffer(&device, m * n)?, buffer(&device, n)?);
        if case.operation == "add_bias" {
            return Ok(Box::new(move || device.add_bias(&mut y, &bias, m, n)));
        }
        return Ok(Box::new(move || device.bias_backward(&mut bias, &y, m, n)));
    }
    let (units, width) = (case.size("units")?, case.size("width")?);
    let (mut x, mut gates) = (buffer(&device, m * units * width)?, buffer(&device, units)?);
    if case.operation == "gate_columns" {
        return Ok(Box::new(move || device.gate_columns(&mut x, &gates, m, width)));
    }
    let dy = buffer(&device, m * units * width)?;
    Ok(Box::new(move || device.gate_backward(&mut gates, &dy, &x, m, width)))
}

/// What reads windows and tables, and their gradients.
fn input(device: CudaDevice, case: &Case) -> Result<Work> {
    match case.operation {
        "patches" => {
            let (batch, window) = (case.size("batch")?, case.size("window")?);
            let (patch, stride) = (case.size("patch")?, case.size("stride")?);
            let count = (window.saturating_sub(patch)) / stride.max(1) + 1;
            let (mut out, windows) = (device.zeros(batch * count * patch)?, buffer(&device, batch * window)?);
            Ok(Box::new(move || device.patches(&mut out, &windows, batch, window, patch, stride)))
        }
        "mean_pool" | "mean_pool_backward" => {
            let (batch, sequence, d) = (case.size("batch")?, case.size("sequence")?, case.size("d")?);
            let (mut x, mut y) = (buffer(&device, batch * sequence * d)?, buffer(&device, batch * d)?);
            if case.operation == "mean_pool" {
                return Ok(Box::new(move || device.mean_pool(&mut y, &x, batch, sequence, d)));
            }
            Ok(Box::new(move || device.mean_pool_backward(&mut x, &y, batch, sequence, d)))
        }
        "embed" | "embed_backward" => {
            let (count, rows, columns) = (case.size("count")?, case.size("rows")?, case.size("columns")?);
            let (mut y, ids) = (buffer(&device, count * columns)?, ids(&device, count, rows)?);
            if case.operation == "embed" {
                let table = weight(&device, case)?;
                return Ok(Box::new(move || device.embed(&mut y, &table, &ids, count)));
            }
            let mut table = device.zeros(rows * columns)?;
            Ok(Box::new(move || device.embed_backward(&mut table, &y, &ids, count, columns)))
        }
        "add_positions" => {
            let (batch, sequence, columns, table) =
                (case.size("batch")?, case.size("sequence")?, case.size("columns")?, weight(&device, case)?);
            let mut x = buffer(&device, batch * sequence * columns)?;
            Ok(Box::new(move || device.add_positions(&mut x, &table, batch, sequence, 0)))
        }
        "positions_backward" => {
            let (batch, sequence, columns) = (case.size("batch")?, case.size("sequence")?, case.size("columns")?);
            let (mut table, dy) = (device.zeros(sequence * columns)?, buffer(&device, batch * sequence * columns)?);
            Ok(Box::new(move || device.positions_backward(&mut table, &dy, batch, sequence, columns, 0)))
        }
        "rotate" => {
            let (batch, sequence) = (case.size("batch")?, case.size("sequence")?);
            let (heads, head_dim) = (case.size("heads")?, case.size("head_dim")?);
            let (mut x, frequencies) = (buffer(&device, batch * sequence * heads * head_dim)?, buffer(&device, head_dim / 2)?);
            Ok(Box::new(move || device.rotate(&mut x, &frequencies, batch, sequence, heads, head_dim, 0, false)))
        }
        "cache_tokens" => {
            let (sequence, capacity) = (case.size("sequence")?, case.size("capacity")?);
            let (heads, groups, head_dim) = (case.size("heads")?, case.size("groups")?, case.size("head_dim")?);
            let (width, shape) = (groups * head_dim, TokenShape { sequence, heads, groups, head_dim });
            let (mut keys, mut values) = (device.zeros(capacity * width)?, device.zeros(capacity * width)?);
            let (mut q, mut k) = (buffer(&device, sequence * heads * head_dim)?, buffer(&device, sequence * width)?);
            let (v, frequencies) = (buffer(&device, sequence * width)?, buffer(&device, head_dim / 2)?);
            let start = capacity.saturating_sub(sequence);
            Ok(Box::new(move || {
                let cache = KeyValues { keys: &mut keys, values: &mut values, capacity };
                device.cache_tokens(cache, &mut q, &mut k, &v, Some(&frequencies), shape, Start::At(start))
            }))
        }
        "row_l1" => {
            let (weight, mut out) = (weight(&device, case)?, device.zeros(case.size("rows")?)?);
            Ok(Box::new(move || device.row_l1(&mut out, &weight)))
        }
        _ => Err(case.wrong("has an operation that this program does not know")),
    }
}
