//! Products with an epilogue, tokens into a cache, and attention and positions at a position that the device reads.

use super::products::{encode, host_bytes};
use super::{Suite, multiply, wide};
use crate::device::{Activation, AttentionShape, Device, Format};
use crate::error::Result;
use crate::fused::{Epilogue, KeyValues, LowRank, Projection, Start, TokenShape};

/// `(m, rows, columns, rank)`: one token, a few, a tile and more; sums that are long enough to be cut. Without an adapter one token's products
/// start together: with rows of one, two and four warps, and with columns that allow no loads of 16 bytes.
const SHAPES: [(usize, usize, usize, usize); 14] = [
    (1, 9, 16, 0),
    (1, 150, 64, 0),
    (1, 131, 520, 0),
    (1, 37, 521, 0),
    (1, 70, 1032, 0),
    (1, 131, 520, 3),
    (3, 33, 40, 4),
    (8, 40, 24, 1),
    (9, 70, 35, 2),
    (33, 41, 64, 5),
    (40, 96, 1040, 4),
    (70, 130, 32, 8),
    (140, 136, 48, 2),
    (5, 6, 0, 2),
];

const FORMATS: [Format; 9] =
    [Format::F32, Format::F16, Format::Bf16, Format::F16Pairs, Format::Bf16Pairs, Format::Q8, Format::Q4, Format::Q8Units, Format::Q4Units];

pub fn run<D: Device>(suite: &Suite<D>) -> Result<()> {
    for shape in SHAPES {
        for format in FORMATS {
            for has_bias in [false, true] {
                let case = Case::new(suite, shape, format, has_bias)?;
                case.rows(suite)?;
                case.units(suite)?;
                for (kind, gated) in [(Activation::Silu, true), (Activation::GeluTanh, false), (Activation::Relu, true)] {
                    case.activated(suite, kind, gated)?;
                }
            }
        }
    }
    for (capacity, sequence, heads, groups, head_dim, half, start) in
        [(8, 1, 2, 1, 4, 2, 7), (70, 1, 4, 2, 16, 6, 64), (20, 3, 3, 3, 10, 0, 5), (40, 9, 2, 1, 8, 4, 20), (5, 2, 0, 2, 6, 3, 0)]
    {
        tokens(suite, (capacity, TokenShape { sequence, heads, groups, head_dim }, half, start))?;
    }
    attention(suite)?;
    positions(suite)?;
    refusals(suite)
}

/// Weights, and what is added to their products.
struct Case<D: Device> {
    name: String,
    m: usize,
    columns: usize,
    rank: usize,
    has_bias: bool,
    /// Two of as many rows, and two of others.
    matrices: [Matrix<D>; 4],
}

/// A weight and its numbers.
struct Matrix<D: Device> {
    weight: D::Weight,
    rows: usize,
    /// `[rows, columns]`.
    values: Vec<f64>,
}

const SCALE: f32 = 0.75;

/// What is added to a product `[m, n]`, on the device and as numbers `[m, n]`.
struct Added<D: Device> {
    bias: D::Buffer,
    low: D::Buffer,
    side: D::Buffer,
    numbers: Vec<f64>,
}

impl<D: Device> Case<D> {
    fn new(suite: &Suite<D>, (m, rows, columns, rank): (usize, usize, usize, usize), format: Format, has_bias: bool) -> Result<Self> {
        let matrix = |rows: usize| -> Result<Matrix<D>> {
            let (bytes, read) = encode(&suite.random(rows * columns), format, columns);
            let weight = suite.device.map_weight(host_bytes(&bytes, 16), format, rows, columns)?;
            Ok(Matrix { weight, rows, values: wide(&read) })
        };
        let matrices = [matrix(rows)?, matrix(rows)?, matrix(rows / 2 + 1)?, matrix(rows + 5)?];
        let name = format!("{format:?} [{rows}, {columns}] with {m} tokens, rank {rank}, bias {has_bias}");
        Ok(Self { name, m, columns, rank, has_bias, matrices })
    }

    /// An epilogue for `n` outputs; `by_output`: the adapter's side has them as rows.
    fn added(&self, suite: &Suite<D>, n: usize, by_output: bool) -> Result<Added<D>> {
        let Self { m, rank, .. } = *self;
        let (bias, low, side) = (suite.random(n), suite.random(m * rank), suite.random(n * rank));
        let strides = if by_output { (1, rank) } else { (n, 1) };
        let mut numbers = multiply(m, n, rank, &wide(&low), (rank, 1), &wide(&side), strides);
        for (i, number) in numbers.iter_mut().enumerate() {
            *number = *number * f64::from(SCALE) + if self.has_bias { f64::from(bias[i % n]) } else { 0.0 };
        }
        Ok(Added { bias: suite.buffer(&bias)?, low: suite.buffer(&low)?, side: suite.buffer(&side)?, numbers })
    }

    fn epilogue<'a>(&self, added: &'a Added<D>) -> Epilogue<'a, D::Buffer> {
        let low_rank = LowRank { low: &added.low, side: &added.side, rank: self.rank, scale: SCALE };
        Epilogue { bias: self.has_bias.then_some(&added.bias), low_rank: (self.rank > 0).then_some(low_rank) }
    }

    /// `x [m, columns] · Wᵀ`, and what is added.
    fn expected_rows(&self, x: &[f32], matrix: &Matrix<D>, added: &Added<D>) -> Vec<f64> {
        let product = multiply(self.m, matrix.rows, self.columns, &wide(x), (self.columns, 1), &matrix.values, (1, self.columns));
        product.iter().zip(&added.numbers).map(|(product, added)| product + added).collect()
    }

    /// One, two and three products of the same input, as queries, keys and values are.
    fn rows(&self, suite: &Suite<D>) -> Result<()> {
        let Self { m, columns, .. } = *self;
        let matrices = &self.matrices[1..];
        let x = suite.random(m * columns);
        let bx = suite.buffer(&x)?;
        let added = matrices.iter().map(|matrix| self.added(suite, matrix.rows, true)).collect::<Result<Vec<_>>>()?;
        for count in 1..=3 {
            let noise = matrices[..count].iter().map(|matrix| suite.buffer(&suite.random(m * matrix.rows)));
            let mut ys = noise.collect::<Result<Vec<_>>>()?;
            let mut projections: Vec<_> = ys
                .iter_mut()
                .zip(matrices.iter().zip(&added))
                .map(|(y, (matrix, added))| Projection { y, weight: &matrix.weight, epilogue: self.epilogue(added) })
                .collect();
            suite.device.project_rows(&mut projections, &bx, m)?;
            drop(projections);
            for (i, (y, (matrix, added))) in ys.iter().zip(matrices.iter().zip(&added)).enumerate() {
                suite.check(&format!("project_rows, {} of {count}, {}", i + 1, self.name), y, &self.expected_rows(&x, matrix, added))?;
            }
        }
        Ok(())
    }

    fn units(&self, suite: &Suite<D>) -> Result<()> {
        let Self { m, columns, .. } = *self;
        let Matrix { weight, rows, values } = &self.matrices[0];
        let rows = *rows;
        let added = self.added(suite, columns, false)?;
        for accumulate in [false, true] {
            let (a, before) = (suite.random(m * rows), suite.random(m * columns));
            let mut y = suite.buffer(&before)?;
            suite.device.project_units(&mut y, &suite.buffer(&a)?, weight, m, accumulate, self.epilogue(&added))?;
            let product = multiply(m, columns, rows, &wide(&a), (rows, 1), values, (columns, 1));
            let kept = |before: &f32| if accumulate { f64::from(*before) } else { 0.0 };
            let expected: Vec<f64> =
                product.iter().zip(&added.numbers).zip(&before).map(|((product, added), before)| product + added + kept(before)).collect();
            suite.check(&format!("project_units, accumulate {accumulate}, {}", self.name), &y, &expected)?;
        }
        Ok(())
    }

    fn activated(&self, suite: &Suite<D>, kind: Activation, gated: bool) -> Result<()> {
        let Self { m, columns, .. } = *self;
        let [of_up, of_gate, ..] = &self.matrices;
        let rows = of_up.rows;
        let x = suite.random(m * columns);
        let (up, gate) = (self.added(suite, rows, true)?, self.added(suite, rows, true)?);
        let noise = suite.random(m * rows);
        let (mut out, mut raw_up, mut raw_gate) = (suite.buffer(&noise)?, suite.buffer(&noise)?, suite.buffer(&noise)?);
        let first = Projection { y: &mut raw_up, weight: &of_up.weight, epilogue: self.epilogue(&up) };
        let second = Projection { y: &mut raw_gate, weight: &of_gate.weight, epilogue: self.epilogue(&gate) };
        suite.device.project_activated(kind, &mut out, &suite.buffer(&x)?, m, first, gated.then_some(second))?;
        let (up, gate) = (self.expected_rows(&x, of_up, &up), self.expected_rows(&x, of_gate, &gate));
        let f = |x: f64| super::elementwise::activation(kind, x);
        let expected: Vec<f64> = up.iter().zip(&gate).map(|(up, gate)| if gated { f(*gate) * up } else { f(*up) }).collect();
        suite.check(&format!("project_activated, {kind:?}, gate {gated}, {}", self.name), &out, &expected)
    }
}

/// `(capacity, shape, frequencies, start)`.
type Tokens = (usize, TokenShape, usize, usize);

/// Tokens into a cache at a position that the host knows, and at one that the device reads.
fn tokens<D: Device>(suite: &Suite<D>, (capacity, shape, half, start): Tokens) -> Result<()> {
    let TokenShape { sequence, heads, groups, head_dim } = shape;
    let width = groups * head_dim;
    let (q, k, v) = (suite.random(sequence * heads * head_dim), suite.random(sequence * width), suite.random(sequence * width));
    let before = suite.random(capacity * width);
    let frequencies: Vec<f32> = (0..half).map(|i| 10_000_f32.powf(-(i as f32) / half as f32)).collect();
    let on_device = suite.exact(&frequencies)?;
    let position = suite.device.indices(&[start as u32])?;
    let turned = |x: &[f32], heads: usize| {
        let mut x = wide(x);
        for (row, x) in x.chunks_mut((heads * head_dim).max(1)).enumerate() {
            super::attention::turn(x, &frequencies, head_dim, start + row);
        }
        x
    };
    let placed = |new: &[f64]| {
        let mut cache = wide(&before);
        cache[start * width..][..new.len()].copy_from_slice(new);
        cache
    };
    for (name, at) in [("known", Start::At(start)), ("stored", Start::Stored(&position))] {
        let case = format!("cache_tokens at a {name} position {start}, {shape:?}, {half} frequencies");
        let (mut keys, mut values) = (suite.buffer(&before)?, suite.buffer(&before)?);
        let (mut bq, mut bk) = (suite.buffer(&q)?, suite.buffer(&k)?);
        let cache = KeyValues { keys: &mut keys, values: &mut values, capacity };
        suite.device.cache_tokens(cache, &mut bq, &mut bk, &suite.buffer(&v)?, (half > 0).then_some(&on_device), shape, at)?;
        suite.check(&format!("{case}, queries"), &bq, &turned(&q, heads))?;
        suite.check(&format!("{case}, keys"), &keys, &placed(&turned(&k, groups)))?;
        suite.check(&format!("{case}, values"), &values, &placed(&wide(&v)))?;
    }
    Ok(())
}

/// Attention at a position that the device reads equals attention with as many keys as there then are.
fn attention<D: Device>(suite: &Suite<D>) -> Result<()> {
    let (heads, groups, head_dim, capacity) = (4, 2, 20, 700);
    let of_heads = suite.device.indices(&[0, 0, 1, 1])?;
    let (k, v) = (suite.buffer(&suite.random(capacity * groups * head_dim))?, suite.buffer(&suite.random(capacity * groups * head_dim))?);
    for queries in [1, 3, 9] {
        let q = suite.buffer(&suite.random(queries * heads * head_dim))?;
        for (position, most) in [(0, 64), (60, 700), (63, 100), (64, 600), (255, 300), (520, 700)] {
            for window in [None, Some(1), Some(70), Some(4000)] {
                let scale = 0.2;
                let keys = position + queries;
                let shape = AttentionShape { batch: 1, queries, keys, key_capacity: capacity, heads, groups, head_dim, scale, window };
                let (mut plain, mut at) =
                    (suite.device.zeros(queries * heads * head_dim)?, suite.device.zeros(queries * heads * head_dim)?);
                suite.device.attention(shape, &mut plain, &q, &k, &v, &of_heads)?;
                let stored = suite.device.indices(&[position as u32])?;
                let most = AttentionShape { keys: most, ..shape };
                suite.device.attention_at(most, &mut at, &q, &k, &v, &of_heads, &stored)?;
                let mut expected = vec![0.0; queries * heads * head_dim];
                suite.device.read(&plain, 0, &mut expected)?;
                let case = format!("attention_at {position} with {queries} queries, at most {} keys, window {window:?}", most.keys);
                suite.check(&case, &at, &wide(&expected))?;
            }
        }
    }
    Ok(())
}

fn positions<D: Device>(suite: &Suite<D>) -> Result<()> {
    let (rows, d, sequence) = (9, 6, 2);
    let (table, x) = (suite.random(rows * d), suite.random(sequence * d));
    let weight = suite.device.own_weight(suite.buffer(&table)?, rows, d)?;
    for (offset, position) in [(0, 0), (2, 5), (0, 7)] {
        let (mut y, stored) = (suite.buffer(&x)?, suite.device.indices(&[position as u32])?);
        suite.device.add_positions_at(&mut y, &weight, sequence, offset, &stored)?;
        let expected: Vec<f64> = x.iter().zip(&table[(offset + position) * d..]).map(|(x, t)| f64::from(*x) + f64::from(*t)).collect();
        suite.check(&format!("add_positions_at {offset} + {position}"), &y, &expected)?;
    }
    Ok(())
}

fn refusals<D: Device>(suite: &Suite<D>) -> Result<()> {
    let device = suite.device;
    let weight = device.own_weight(suite.exact(&[1.0; 12])?, 3, 4)?;
    let (mut y, x, short) = (suite.exact(&[0.0; 8])?, suite.exact(&[0.0; 8])?, suite.exact(&[0.0; 2])?);
    let with_bias = Epilogue { bias: Some(&short), low_rank: None };
    let mut projection = [Projection { y: &mut y, weight: &weight, epilogue: with_bias }];
    suite.refused("project_rows, bias too short", device.project_rows(&mut projection, &x, 2));
    let low_rank = LowRank { low: &short, side: &x, rank: 2, scale: 1.0 };
    let adapted = Epilogue { bias: None, low_rank: Some(low_rank) };
    suite.refused("project_units, low too short", device.project_units(&mut y, &x, &weight, 2, false, adapted));
    let low_rank = LowRank { low: &x, side: &short, rank: 2, scale: 1.0 };
    let adapted = Epilogue { bias: None, low_rank: Some(low_rank) };
    suite.refused("project_units, side too short", device.project_units(&mut y, &x, &weight, 2, false, adapted));
    let (mut keys, mut values, mut q, mut k) =
        (suite.exact(&[0.0; 8])?, suite.exact(&[0.0; 8])?, suite.exact(&[0.0; 2])?, suite.exact(&[0.0; 2])?);
    let shape = TokenShape { sequence: 1, heads: 1, groups: 1, head_dim: 2 };
    let (last, none) = (device.indices(&[4])?, device.indices(&[])?);
    for (name, start) in [
        ("a full cache", Start::At(4)),
        ("a stored position beyond it", Start::Stored(&last)),
        ("no stored position", Start::Stored(&none)),
        ("an overflow", Start::At(usize::MAX)),
    ] {
        let cache = KeyValues { keys: &mut keys, values: &mut values, capacity: 4 };
        suite.refused(&format!("cache_tokens, {name}"), device.cache_tokens(cache, &mut q, &mut k, &short, None, shape, start));
    }
    let groups = device.indices(&[0])?;
    let shape =
        AttentionShape { batch: 1, queries: 1, keys: 4, key_capacity: 4, heads: 1, groups: 1, head_dim: 2, scale: 1.0, window: None };
    suite.refused("attention_at, beyond its keys", device.attention_at(shape, &mut q, &k, &keys, &values, &groups, &last));
    suite.refused("add_positions_at, beyond the table", device.add_positions_at(&mut y, &weight, 1, 0, &last));
    Ok(())
}
