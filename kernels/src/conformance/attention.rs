//! Attention and rotary positions: grouped keys, caches with room to spare, one query to more than a block.

use super::{Suite, wide};
use crate::device::{AttentionShape, Device};
use crate::error::Result;

/// `(batch, queries, keys, key capacity, groups, head dimensions)` and the group of every head.
type Case = (usize, usize, usize, usize, usize, usize, &'static [u32]);

const CASES: [Case; 13] = [
    (1, 1, 1, 1, 1, 1, &[0]),
    (1, 1, 9, 9, 2, 8, &[0, 1, 1]),
    (2, 1, 40, 64, 1, 33, &[0, 0, 0]),
    (1, 2, 7, 11, 2, 16, &[1, 0]),
    (2, 5, 5, 5, 2, 4, &[0, 0, 1, 1]),
    (1, 16, 16, 16, 1, 12, &[0]),
    (3, 17, 17, 17, 3, 20, &[0, 1, 2, 0]),
    (1, 32, 32, 32, 6, 32, &[0, 1, 2, 3, 4, 5]),
    (2, 33, 33, 40, 2, 24, &[1, 1, 0]),
    (1, 70, 70, 70, 2, 64, &[0, 1]),
    (1, 35, 100, 128, 1, 16, &[0, 0]),
    (2, 6, 6, 6, 0, 8, &[]),
    (1, 4, 4, 4, 3, 8, &[2]),
];

/// Several tiles of queries and keys of 64, head sizes over one and two slices of 128 and no multiple of 4, and few queries over so many keys
/// that these are split; several groups of eight rows to a key.
const LARGE: [Case; 10] = [
    (1, 150, 150, 160, 2, 80, &[1, 0, 0]),
    (1, 70, 200, 256, 1, 128, &[0]),
    (2, 66, 66, 66, 1, 256, &[0]),
    (1, 130, 130, 130, 2, 33, &[0, 1]),
    (1, 65, 65, 65, 1, 130, &[0, 0]),
    (2, 1, 600, 640, 2, 64, &[0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]),
    (1, 3, 700, 700, 1, 288, &[0, 0, 0]),
    (1, 8, 300, 301, 1, 80, &[0, 0]),
    (1, 2, 130, 130, 1, 257, &[0]),
    (1, 9, 300, 300, 1, 64, &[0, 0]),
];

pub fn run<D: Device>(suite: &Suite<D>) -> Result<()> {
    for case in LARGE {
        for window in [None, Some(3), Some(70), Some(129)] {
            attention(suite, case, window)?;
        }
    }
    for case in CASES {
        attention(suite, case, None)?;
        let keys = case.2;
        for window in [1, 2, 8, 31, keys.saturating_sub(1).max(1), keys, keys + 1] {
            attention(suite, case, Some(window))?;
        }
    }
    for (batch, sequence, heads, head_dim, half, start) in [
        (1, 1, 1, 2, 1, 0),
        (2, 9, 3, 8, 4, 0),
        (1, 5, 2, 10, 3, 7),
        (2, 130, 2, 16, 8, 5),
        (1, 1, 4, 64, 32, 4000),
        (2, 3, 0, 8, 4, 0),
        (1, 3, 2, 128, 64, 200_000),
    ] {
        rotary(suite, batch, sequence, heads, head_dim, half, start)?;
    }
    let shape =
        AttentionShape { batch: 1, queries: 2, keys: 2, key_capacity: 2, heads: 1, groups: 1, head_dim: 4, scale: 0.5, window: None };
    let x = suite.exact(&[0.0; 8])?;
    let mut out = suite.exact(&[0.0; 8])?;
    let groups = suite.device.indices(&[0])?;
    let mut refused =
        |case: &str, shape, groups: &D::Indices| suite.refused(case, suite.device.attention(shape, &mut out, &x, &x, &x, groups));
    refused("attention, more queries than keys", AttentionShape { queries: 2, keys: 1, ..shape }, &groups);
    refused("attention, more keys than room", AttentionShape { keys: 3, ..shape }, &groups);
    refused("attention, buffers too short", AttentionShape { batch: 2, ..shape }, &groups);
    refused("attention, a group that is not there", shape, &suite.device.indices(&[1])?);
    refused("attention, more heads than groups of heads", AttentionShape { heads: 2, head_dim: 2, ..shape }, &groups);
    refused("attention, a window of no keys", AttentionShape { window: Some(0), ..shape }, &groups);
    let mut x = suite.exact(&[0.0; 8])?;
    suite.refused("rotate, more frequencies than dimensions", suite.device.rotate(&mut x, &suite.exact(&[1.0; 3])?, 1, 2, 1, 4, 0, false));
    Ok(())
}

fn attention<D: Device>(suite: &Suite<D>, case: Case, window: Option<usize>) -> Result<()> {
    let (batch, queries, keys, key_capacity, groups, head_dim, group_of) = case;
    let heads = group_of.len();
    // A scale that is not the root of the head size, where there is a window.
    let scale = if window.is_some() { 0.6 } else { (1.0 / (head_dim as f64).sqrt()) as f32 };
    let shape = AttentionShape { batch, queries, keys, key_capacity, heads, groups, head_dim, scale, window };
    let spread = |x: Vec<f32>| x.into_iter().map(|x| 3.0 * x).collect::<Vec<_>>();
    let q = spread(suite.random(batch * queries * heads * head_dim));
    let (k, v) = (suite.random(batch * key_capacity * groups * head_dim), suite.random(batch * key_capacity * groups * head_dim));
    let d_out = suite.random(q.len());
    let reference = Reference::new(shape, group_of, &q, &k, &v);
    let (bq, bk, bv) = (suite.buffer(&q)?, suite.buffer(&k)?, suite.buffer(&v)?);
    let indices = suite.device.indices(group_of)?;
    let mut out = suite.buffer(&vec![9.0; q.len()])?;
    suite.device.attention(shape, &mut out, &bq, &bk, &bv, &indices)?;
    suite.check(&format!("attention {shape:?}"), &out, &reference.out())?;
    if queries != keys {
        return Ok(());
    }
    let stale = |len| suite.buffer(&vec![9.0; len]);
    let (mut dq, mut dk, mut dv) = (stale(q.len())?, stale(k.len())?, stale(v.len())?);
    suite.device.attention_backward(shape, &mut dq, &mut dk, &mut dv, &suite.buffer(&d_out)?, &bq, &bk, &bv, &indices)?;
    let (dq64, dk64, dv64) = reference.backward(&wide(&d_out));
    suite.check(&format!("attention_backward {shape:?}, dq"), &dq, &dq64)?;
    for (name, buffer, expected) in [("dk", &dk, dk64), ("dv", &dv, dv64)] {
        // Positions beyond `keys` are nobody's gradient: whatever stands there is left out.
        let mut got = vec![0.0; expected.len()];
        suite.device.read(buffer, 0, &mut got)?;
        let used = |i: usize| i / (groups * head_dim) % key_capacity < keys;
        got.iter_mut().enumerate().filter(|(i, _)| !used(*i)).for_each(|(_, x)| *x = 0.0);
        suite.compare(&format!("attention_backward {shape:?}, {name}"), &got, &expected);
    }
    Ok(())
}

struct Reference<'a> {
    shape: AttentionShape,
    group_of: &'a [u32],
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
}

impl<'a> Reference<'a> {
    fn new(shape: AttentionShape, group_of: &'a [u32], q: &[f32], k: &[f32], v: &[f32]) -> Self {
        Self { shape, group_of, q: wide(q), k: wide(k), v: wide(v) }
    }
    fn query_at(&self, b: usize, i: usize, h: usize) -> usize {
        ((b * self.shape.queries + i) * self.shape.heads + h) * self.shape.head_dim
    }
    fn key_at(&self, b: usize, j: usize, h: usize) -> usize {
        ((b * self.shape.key_capacity + j) * self.shape.groups + self.group_of[h] as usize) * self.shape.head_dim
    }
    fn dot(&self, a: &[f64], a_at: usize, b: &[f64], b_at: usize) -> f64 {
        (0..self.shape.head_dim).map(|p| a[a_at + p] * b[b_at + p]).sum()
    }
    fn scale(&self) -> f64 {
        f64::from(self.shape.scale)
    }
    fn score(&self, b: usize, i: usize, h: usize, j: usize) -> f64 {
        self.scale() * self.dot(&self.q, self.query_at(b, i, h), &self.k, self.key_at(b, j, h))
    }
    /// Of every key at the query's position and before; 0 for those behind the window.
    fn probabilities(&self, b: usize, i: usize, h: usize) -> Vec<f64> {
        let seen = self.shape.keys - self.shape.queries + i + 1;
        let hidden = |j: usize| self.shape.window.is_some_and(|window| j + window < seen);
        let score = |j: usize| if hidden(j) { f64::NEG_INFINITY } else { self.score(b, i, h, j) };
        let scores: Vec<f64> = (0..seen).map(score).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
        scores.iter().map(|s| (s - largest).exp() / sum).collect()
    }
    fn each(&self, mut work: impl FnMut(usize, usize, usize)) {
        for b in 0..self.shape.batch {
            for i in 0..self.shape.queries {
                for h in 0..self.shape.heads {
                    work(b, i, h);
                }
            }
        }
    }
    fn out(&self) -> Vec<f64> {
        let mut out = vec![0.0; self.q.len()];
        self.each(|b, i, h| {
            for (j, p) in self.probabilities(b, i, h).into_iter().enumerate() {
                for d in 0..self.shape.head_dim {
                    out[self.query_at(b, i, h) + d] += p * self.v[self.key_at(b, j, h) + d];
                }
            }
        });
        out
    }
    fn backward(&self, d_out: &[f64]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let (mut dq, mut dk, mut dv) = (vec![0.0; self.q.len()], vec![0.0; self.k.len()], vec![0.0; self.v.len()]);
        self.each(|b, i, h| {
            let (p, at) = (self.probabilities(b, i, h), self.query_at(b, i, h));
            let dp: Vec<f64> = (0..p.len()).map(|j| self.dot(d_out, at, &self.v, self.key_at(b, j, h))).collect();
            let mean: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
            for j in 0..p.len() {
                let (ds, key) = (self.scale() * p[j] * (dp[j] - mean), self.key_at(b, j, h));
                for d in 0..self.shape.head_dim {
                    dq[at + d] += ds * self.k[key + d];
                    dk[key + d] += ds * self.q[at + d];
                    dv[key + d] += p[j] * d_out[at + d];
                }
            }
        });
        (dq, dk, dv)
    }
}

/// Turns the heads of `x` by their position.
pub(crate) fn turn(x: &mut [f64], frequencies: &[f32], head_dim: usize, position: usize) {
    let half = frequencies.len();
    for head in x.chunks_mut(head_dim.max(1)) {
        for i in 0..half {
            let (sin, cos) = (position as f64 * f64::from(frequencies[i])).sin_cos();
            (head[i], head[half + i]) = (head[i] * cos - head[half + i] * sin, head[half + i] * cos + head[i] * sin);
        }
    }
}

fn rotary<D: Device>(
    suite: &Suite<D>,
    batch: usize,
    sequence: usize,
    heads: usize,
    head_dim: usize,
    half: usize,
    start: usize,
) -> Result<()> {
    let x = suite.random(batch * sequence * heads * head_dim);
    let frequencies: Vec<f32> = (0..half).map(|i| 10_000_f32.powf(-(i as f32) / half as f32)).collect();
    let mut buffer = suite.buffer(&x)?;
    let f = suite.exact(&frequencies)?;
    suite.device.rotate(&mut buffer, &f, batch, sequence, heads, head_dim, start, false)?;
    let mut expected = wide(&x);
    for (row, x) in expected.chunks_mut((heads * head_dim).max(1)).enumerate() {
        turn(x, &frequencies, head_dim, start + row % sequence);
    }
    let case = format!("rotate [{batch}, {sequence}, {heads} of {head_dim}], {half} frequencies from {start}");
    suite.check(&case, &buffer, &expected)?;
    suite.device.rotate(&mut buffer, &f, batch, sequence, heads, head_dim, start, true)?;
    suite.check(&format!("{case}, and back"), &buffer, &wide(&x))
}
