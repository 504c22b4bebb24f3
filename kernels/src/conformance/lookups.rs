//! Tables, positions, losses: what reads indices.

use super::products::{encode, host_bytes};
use super::{Suite, wide};
use crate::device::{Device, Format, NO_TARGET};
use crate::error::Result;

pub fn run<D: Device>(suite: &Suite<D>) -> Result<()> {
    for format in [Format::F32, Format::F16, Format::Bf16, Format::F16Pairs, Format::Bf16Pairs] {
        tables(suite, format, 7, 33)?;
    }
    gradients(suite)?;
    for (m, n) in [(1, 1), (1, 5), (9, 10), (33, 1000), (64, 17), (2, 5003), (3, 4096)] {
        losses(suite, m, n)?;
    }
    hidden_logits(suite)?;
    refusals(suite)
}

/// Logits of −∞ are those that a caller rules out: at the start of a row, in the middle, and all that a thread may have.
fn hidden_logits<D: Device>(suite: &Suite<D>) -> Result<()> {
    for n in [5, 8, 1500] {
        let hidden = |j: usize| j != n - 2 && (j < 4 || j.is_multiple_of(3));
        let logits: Vec<f32> =
            suite.random(n).into_iter().enumerate().map(|(j, x)| if hidden(j) { f32::NEG_INFINITY } else { x }).collect();
        let sum: f64 = wide(&logits).iter().map(|x| x.exp()).sum();
        let expected: Vec<f64> = wide(&logits).iter().map(|x| x.exp() / sum).collect();
        let mut buffer = suite.buffer(&logits)?;
        let loss = suite.device.cross_entropy(None, &buffer, &suite.device.indices(&[n as u32 - 2])?, 1, n)?;
        suite.check_scalar(&format!("cross_entropy of {n} logits, some −∞"), loss, -expected[n - 2].ln());
        suite.device.softmax(&mut buffer, 1, n)?;
        suite.check(&format!("softmax of {n} logits, some −∞"), &buffer, &expected)?;
    }
    Ok(())
}

pub(super) fn tables<D: Device>(suite: &Suite<D>, format: Format, rows: usize, columns: usize) -> Result<()> {
    let device = suite.device;
    let (bytes, read) = encode(&suite.random(rows * columns), format, columns);
    let table = device.map_weight(host_bytes(&bytes, 8), format, rows, columns)?;
    let row = |r: usize| read[r * columns..][..columns].iter().map(|x| f64::from(*x));

    let ids = [6, 0, 3, 3, 1];
    let mut out = suite.buffer(&vec![9.0; ids.len() * columns])?;
    device.embed(&mut out, &table, &device.indices(&ids)?, ids.len())?;
    suite.check(&format!("embed {format:?}"), &out, &ids.iter().flat_map(|id| row(*id as usize)).collect::<Vec<_>>())?;

    let (batch, sequence, start) = (2, 4, 3);
    let x = suite.random(batch * sequence * columns);
    let mut buffer = suite.buffer(&x)?;
    device.add_positions(&mut buffer, &table, batch, sequence, start)?;
    let added = (0..batch * sequence).flat_map(|token| row(start + token % sequence));
    suite.check(&format!("add_positions {format:?}"), &buffer, &added.zip(&x).map(|(p, x)| p + f64::from(*x)).collect::<Vec<_>>())?;

    let mut sums = suite.buffer(&vec![9.0; rows])?;
    device.row_l1(&mut sums, &table)?;
    suite.check(&format!("row_l1 {format:?}"), &sums, &(0..rows).map(|r| row(r).map(f64::abs).sum()).collect::<Vec<f64>>())
}

fn gradients<D: Device>(suite: &Suite<D>) -> Result<()> {
    table_gradient(suite, 6, 19, &[5, 2, 2, 0])?;
    // More tokens and columns than a thread block has threads, and ids that come back after as many.
    table_gradient(suite, 5, 300, &(0..700).map(|token| [0, 3, 4, 3][token % 7 % 4]).collect::<Vec<_>>())?;
    let (rows, columns) = (6, 19);
    let before = suite.random(rows * columns);
    let (batch, sequence, start) = (3, 4, 2);
    let dy = suite.random(batch * sequence * columns);
    let mut d_table = suite.exact(&before)?;
    suite.device.positions_backward(&mut d_table, &suite.buffer(&dy)?, batch, sequence, columns, start)?;
    let mut expected = wide(&before);
    for (i, dy) in dy.iter().enumerate() {
        expected[start * columns + i % (sequence * columns)] += f64::from(*dy);
    }
    suite.check("positions_backward", &d_table, &expected)
}

fn table_gradient<D: Device>(suite: &Suite<D>, rows: usize, columns: usize, ids: &[u32]) -> Result<()> {
    let (before, dy) = (suite.random(rows * columns), suite.random(ids.len() * columns));
    let mut d_table = suite.exact(&before)?;
    suite.device.embed_backward(&mut d_table, &suite.buffer(&dy)?, &suite.device.indices(ids)?, ids.len(), columns)?;
    let mut expected = wide(&before);
    for (token, id) in ids.iter().enumerate() {
        for c in 0..columns {
            expected[*id as usize * columns + c] += f64::from(dy[token * columns + c]);
        }
    }
    suite.check(&format!("embed_backward [{rows}, {columns}] of {} tokens", ids.len()), &d_table, &expected)
}

fn losses<D: Device>(suite: &Suite<D>, m: usize, n: usize) -> Result<()> {
    // Large logits: only a stable softmax survives them.
    let logits: Vec<f32> = suite.random(m * n).into_iter().map(|x| 100.0 + 60.0 * x).collect();
    let targets: Vec<u32> =
        (0..m).map(|i| if i > 0 && suite.next().is_multiple_of(3) { NO_TARGET } else { (suite.next() % n as u64) as u32 }).collect();
    let count = targets.iter().filter(|t| **t != NO_TARGET).count() as f64;
    let (mut loss, mut softmax, mut d_logits) = (0.0, Vec::new(), Vec::new());
    for (row, target) in wide(&logits).chunks(n).zip(&targets) {
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|x| (x - largest).exp()).sum();
        let p: Vec<f64> = row.iter().map(|x| (x - largest).exp() / sum).collect();
        if *target != NO_TARGET {
            loss += (sum.ln() + largest - row[*target as usize]) / count;
        }
        let hot = |j: usize| if j == *target as usize { 1.0 } else { 0.0 };
        d_logits.extend((0..n).map(|j| if *target == NO_TARGET { 0.0 } else { (p[j] - hot(j)) / count }));
        softmax.extend(p);
    }
    let case = format!("[{m}, {n}]");
    let (mut buffer, indices) = (suite.buffer(&logits)?, suite.device.indices(&targets)?);
    let got = suite.device.cross_entropy(None, &buffer, &indices, m, n)?;
    suite.check_scalar(&format!("cross_entropy {case}"), got + 1.0, loss + 1.0);
    let mut d = suite.buffer(&vec![9.0; m * n])?;
    let got = suite.device.cross_entropy(Some(&mut d), &buffer, &indices, m, n)?;
    suite.check_scalar(&format!("cross_entropy with gradient {case}"), got + 1.0, loss + 1.0);
    // A probability close to 1 less 1, over the number of targets.
    suite.check_of_size(&format!("cross_entropy {case}, d_logits"), &d, &d_logits, 1.0 / count)?;
    suite.device.softmax(&mut buffer, m, n)?;
    suite.check(&format!("softmax {case}"), &buffer, &softmax)
}

fn refusals<D: Device>(suite: &Suite<D>) -> Result<()> {
    let device = suite.device;
    let table = device.own_weight(suite.exact(&[0.0; 12])?, 3, 4)?;
    let (mut x, logits) = (suite.exact(&[0.0; 8])?, suite.exact(&[0.0; 8])?);
    let ids = |ids: &[u32]| device.indices(ids);
    suite.refused("embed, an id beyond the table", device.embed(&mut x, &table, &ids(&[0, 3])?, 2));
    suite.refused("embed, more than there are ids", device.embed(&mut x, &table, &ids(&[0])?, 2));
    suite.refused("embed_backward, an id beyond the table", device.embed_backward(&mut x, &logits, &ids(&[2])?, 1, 4));
    suite.refused("add_positions, beyond the table", device.add_positions(&mut x, &table, 1, 2, 2));
    suite.refused("positions_backward, beyond the table", device.positions_backward(&mut x, &logits, 1, 1, 4, 2));
    suite.refused("cross_entropy, a target beyond the classes", device.cross_entropy(None, &logits, &ids(&[0, 4])?, 2, 4));
    suite.refused("cross_entropy, no target at all", device.cross_entropy(None, &logits, &ids(&[NO_TARGET; 2])?, 2, 4));
    suite.refused("write_indices, too many", device.write_indices(&mut ids(&[0])?, &[1, 2]));
    Ok(())
}
