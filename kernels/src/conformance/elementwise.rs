//! Biases, gates, activations, norms, and sums over tokens.

use super::{Suite, norm_statistics, wide};
use crate::device::{Activation, Device, NormKind};
use crate::error::Result;

const ACTIVATIONS: [Activation; 4] = [Activation::GeluExact, Activation::GeluTanh, Activation::Silu, Activation::Relu];

/// The value of an activation; the error function by its series, whose terms do not cancel in this form.
pub(crate) fn activation(kind: Activation, x: f64) -> f64 {
    match kind {
        Activation::GeluExact => {
            let (mut term, mut sum, mut k) = (x, x, 1.0);
            while term.abs() > 1e-18 * sum.abs() {
                k += 2.0;
                term *= x * x / k;
                sum += term;
            }
            x * (0.5 + sum * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt())
        }
        Activation::GeluTanh => 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh()),
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Relu => x.max(0.0),
    }
}

/// The slope of an activation, by a central difference of fourth order.
fn slope(kind: Activation, x: f64) -> f64 {
    let (f, h) = (|x| activation(kind, x), 1e-3);
    if kind == Activation::Relu {
        return if x > 0.0 { 1.0 } else { 0.0 };
    }
    (8.0 * (f(x + h) - f(x - h)) - (f(x + 2.0 * h) - f(x - 2.0 * h))) / (12.0 * h)
}

pub fn run<D: Device>(suite: &Suite<D>) -> Result<()> {
    for (m, n) in [(1, 1), (1, 100), (7, 33), (32, 192), (300, 70), (0, 5), (4, 0), (3, 4100), (70, 1028)] {
        biases(suite, m, n)?;
        pair(suite, m * n)?;
        for kind in [NormKind::LayerNorm, NormKind::RmsNorm] {
            if n > 0 {
                norms(suite, kind, m, n)?;
            }
        }
    }
    for (m, units, width) in [(1, 3, 8), (5, 7, 1), (9, 4, 33), (2, 0, 8), (40, 96, 1), (33, 6, 32), (200, 5, 68)] {
        gates(suite, m, units, width)?;
    }
    for kind in ACTIVATIONS {
        for len in [1, 37, 32 * 768] {
            activations(suite, kind, len)?;
        }
    }
    let (mut y, x) = (suite.exact(&[0.0; 6])?, suite.exact(&[0.0; 7])?);
    suite.refused("add_bias, y too short", suite.device.add_bias(&mut y, &x, 1, 7));
    suite.refused("add, y too short", suite.device.add(&mut y, &x, 7, 1.0));
    suite.refused("norm, y too short", suite.device.norm(NormKind::RmsNorm, &mut y, &x, &x, None, 1e-5, 1));
    suite.refused("activate, out too short", suite.device.activate(Activation::Relu, &mut y, &x, None, 7));
    suite.refused(
        "activate_backward, gate without d_gate",
        suite.device.activate_backward(Activation::Relu, &mut y, None, &x, &x, Some(&x), 6),
    );
    Ok(())
}

fn biases<D: Device>(suite: &Suite<D>, m: usize, n: usize) -> Result<()> {
    let (y, bias) = (suite.random(m * n), suite.random(n));
    let mut buffer = suite.buffer(&y)?;
    suite.device.add_bias(&mut buffer, &suite.buffer(&bias)?, m, n)?;
    let expected: Vec<f64> = y.iter().enumerate().map(|(i, y)| f64::from(*y) + f64::from(bias[i % n])).collect();
    suite.check(&format!("add_bias [{m}, {n}]"), &buffer, &expected)?;

    let mut d_bias = suite.buffer(&bias)?;
    suite.device.bias_backward(&mut d_bias, &suite.buffer(&y)?, m, n)?;
    let expected: Vec<f64> = (0..n).map(|j| f64::from(bias[j]) + (0..m).map(|i| f64::from(y[i * n + j])).sum::<f64>()).collect();
    suite.check(&format!("bias_backward [{m}, {n}]"), &d_bias, &expected)
}

fn pair<D: Device>(suite: &Suite<D>, len: usize) -> Result<()> {
    let (y, x) = (suite.random(len), suite.random(len));
    let mut buffer = suite.buffer(&y)?;
    suite.device.add(&mut buffer, &suite.buffer(&x)?, len, -0.75)?;
    let sum: Vec<f64> = y.iter().zip(&x).map(|(y, x)| f64::from(*y) - 0.75 * f64::from(*x)).collect();
    suite.check(&format!("add [{len}]"), &buffer, &sum)?;
    suite.device.scale(&mut buffer, len, 3.0)?;
    suite.check(&format!("scale [{len}]"), &buffer, &sum.iter().map(|x| 3.0 * x).collect::<Vec<_>>())?;
    suite.device.fill(&mut buffer, len, 2.5)?;
    suite.check(&format!("fill [{len}]"), &buffer, &vec![2.5; len])
}

fn norms<D: Device>(suite: &Suite<D>, kind: NormKind, m: usize, d: usize) -> Result<()> {
    let (x, weight, bias, dy, before) = (suite.random(m * d), suite.random(d), suite.random(d), suite.random(m * d), suite.random(m * d));
    let (x64, w64, b64, dy64) = (wide(&x), wide(&weight), wide(&bias), wide(&dy));
    let epsilon = 1e-3;
    let (x, weight, bias, dy) = (suite.buffer(&x)?, suite.exact(&weight)?, suite.buffer(&bias)?, suite.buffer(&dy)?);
    let (mut y, mut dx) = (suite.buffer(&before)?, suite.buffer(&before)?);
    let (mut d_weight, mut d_bias) = (suite.buffer(&vec![1.0; d])?, suite.buffer(&vec![2.0; d])?);
    for with_bias in [false, true] {
        suite.device.norm(kind, &mut y, &x, &weight, with_bias.then_some(&bias), epsilon as f32, m)?;
        let mut expected = Vec::new();
        for row in x64.chunks(d) {
            let (mean, rstd) = norm_statistics(kind, row, f64::from(epsilon as f32));
            expected.extend((0..d).map(|j| (row[j] - mean) * rstd * w64[j] + if with_bias { b64[j] } else { 0.0 }));
        }
        suite.check(&format!("norm {kind:?} [{m}, {d}], bias {with_bias}"), &y, &expected)?;
    }
    suite.device.norm_backward(kind, &mut dx, Some(&mut d_weight), Some(&mut d_bias), &dy, &x, &weight, epsilon as f32, m)?;
    let (mut dx64, mut dw64, mut db64) = (wide(&before), vec![1.0; d], vec![2.0; d]);
    for (i, row) in x64.chunks(d).enumerate() {
        let (mean, rstd) = norm_statistics(kind, row, f64::from(epsilon as f32));
        let hat: Vec<f64> = row.iter().map(|x| (x - mean) * rstd).collect();
        let g: Vec<f64> = (0..d).map(|j| dy64[i * d + j] * w64[j]).collect();
        let mean_g = if kind == NormKind::LayerNorm { g.iter().sum::<f64>() / d as f64 } else { 0.0 };
        let mean_gx = g.iter().zip(&hat).map(|(g, x)| g * x).sum::<f64>() / d as f64;
        for j in 0..d {
            dx64[i * d + j] += rstd * (g[j] - mean_g - hat[j] * mean_gx);
            dw64[j] += dy64[i * d + j] * hat[j];
            db64[j] += dy64[i * d + j];
        }
    }
    let case = format!("norm_backward {kind:?} [{m}, {d}]");
    suite.check(&format!("{case}, dx"), &dx, &dx64)?;
    suite.check(&format!("{case}, d_weight"), &d_weight, &dw64)?;
    suite.check(&format!("{case}, d_bias"), &d_bias, &db64)
}

fn gates<D: Device>(suite: &Suite<D>, m: usize, units: usize, width: usize) -> Result<()> {
    let (x, dy, gates) = (suite.random(m * units * width), suite.random(m * units * width), suite.random(units));
    let mut buffer = suite.buffer(&x)?;
    suite.device.gate_columns(&mut buffer, &suite.exact(&gates)?, m, width)?;
    let unit = |i: usize| i / width % units;
    let expected: Vec<f64> = x.iter().enumerate().map(|(i, x)| f64::from(*x) * f64::from(gates[unit(i)])).collect();
    suite.check(&format!("gate_columns [{m}, {units} of {width}]"), &buffer, &expected)?;

    let mut d_gates = suite.exact(&gates)?;
    suite.device.gate_backward(&mut d_gates, &suite.buffer(&dy)?, &suite.buffer(&x)?, m, width)?;
    let mut expected = wide(&gates);
    for (i, (x, dy)) in x.iter().zip(&dy).enumerate() {
        expected[unit(i)] += f64::from(*x) * f64::from(*dy);
    }
    suite.check(&format!("gate_backward [{m}, {units} of {width}]"), &d_gates, &expected)
}

fn activations<D: Device>(suite: &Suite<D>, kind: Activation, len: usize) -> Result<()> {
    let spread = |x: Vec<f32>| x.into_iter().map(|x| 6.0 * x).collect::<Vec<_>>();
    let (up, gate, dy) = (spread(suite.random(len)), spread(suite.random(len)), suite.random(len));
    let (up64, gate64, dy64) = (wide(&up), wide(&gate), wide(&dy));
    let (up, gate, dy) = (suite.buffer(&up)?, suite.buffer(&gate)?, suite.buffer(&dy)?);
    let (mut out, mut d_up, mut d_gate) = (suite.buffer(&vec![0.0; len])?, suite.buffer(&vec![9.0; len])?, suite.buffer(&vec![9.0; len])?);
    let case = |what: &str| format!("{what} {kind:?} [{len}]");
    let each = |f: &dyn Fn(usize) -> f64| (0..len).map(f).collect::<Vec<f64>>();

    suite.device.activate(kind, &mut out, &up, None, len)?;
    suite.check(&case("activate"), &out, &each(&|i| activation(kind, up64[i])))?;
    suite.device.activate(kind, &mut out, &up, Some(&gate), len)?;
    suite.check(&case("activate, gated"), &out, &each(&|i| activation(kind, gate64[i]) * up64[i]))?;

    suite.device.activate_backward(kind, &mut d_up, None, &dy, &up, None, len)?;
    suite.check(&case("activate_backward"), &d_up, &each(&|i| dy64[i] * slope(kind, up64[i])))?;
    suite.device.activate_backward(kind, &mut d_up, Some(&mut d_gate), &dy, &up, Some(&gate), len)?;
    suite.check(&case("activate_backward, gated, d_up"), &d_up, &each(&|i| dy64[i] * activation(kind, gate64[i])))?;
    suite.check(&case("activate_backward, gated, d_gate"), &d_gate, &each(&|i| dy64[i] * up64[i] * slope(kind, gate64[i])))
}
