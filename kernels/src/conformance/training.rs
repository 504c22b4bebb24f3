//! The optimizer, and the sums that rank units.

use super::{Suite, wide};
use crate::device::{AdamW, Device};
use crate::error::Result;

pub fn run<D: Device>(suite: &Suite<D>) -> Result<()> {
    adamw(suite, 1)?;
    adamw(suite, 1003)?;
    for len in [0, 1, 1000, 100_003] {
        let x = suite.random(len);
        let expected = wide(&x).iter().map(|x| x * x).sum::<f64>();
        suite.check_scalar(&format!("sum_of_squares [{len}]"), suite.device.sum_of_squares(&suite.buffer(&x)?, len)? + 1.0, expected + 1.0);
    }
    for (m, d) in [(1, 3), (9, 65), (200, 192), (2, 3000)] {
        residual_change(suite, m, d)?;
    }
    let (mut x, short) = (suite.exact(&[0.0; 4])?, suite.exact(&[0.0; 3])?);
    suite.refused("sum_of_squares, too short", suite.device.sum_of_squares(&short, 4));
    suite.refused("residual_change, too short", suite.device.residual_change(&x, &short, 2, 2));
    let (mut m, mut v) = (suite.exact(&[0.0; 4])?, suite.exact(&[0.0; 4])?);
    suite.refused("adamw, gradient too short", suite.device.adamw(&mut x, &short, &mut m, &mut v, 4, constants(1)));
    suite.refused("adamw, step 0", suite.device.adamw(&mut x, &short, &mut m, &mut v, 3, constants(0)));
    Ok(())
}

fn constants(step: u32) -> AdamW {
    AdamW { learning_rate: 1e-2, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1, step }
}

fn adamw<D: Device>(suite: &Suite<D>, len: usize) -> Result<()> {
    let before = suite.random(len);
    let (mut parameter, mut first, mut second) = (suite.buffer(&before)?, suite.buffer(&vec![0.0; len])?, suite.buffer(&vec![0.0; len])?);
    let (mut p, mut m, mut v) = (wide(&before), vec![0.0; len], vec![0.0; len]);
    for step in 1..=5 {
        let gradient = suite.random(len);
        suite.device.adamw(&mut parameter, &suite.buffer(&gradient)?, &mut first, &mut second, len, constants(step))?;
        let c = constants(step);
        let [rate, b1, b2, epsilon, decay] = [c.learning_rate, c.beta1, c.beta2, c.epsilon, c.weight_decay].map(f64::from);
        for (i, g) in wide(&gradient).into_iter().enumerate() {
            m[i] = b1 * m[i] + (1.0 - b1) * g;
            v[i] = b2 * v[i] + (1.0 - b2) * g * g;
            let (m, v) = (m[i] / (1.0 - b1.powf(f64::from(step))), v[i] / (1.0 - b2.powf(f64::from(step))));
            p[i] -= rate * decay * p[i] + rate * m / (v.sqrt() + epsilon);
        }
    }
    suite.check(&format!("adamw [{len}], parameter"), &parameter, &p)?;
    suite.check(&format!("adamw [{len}], first moment"), &first, &m)?;
    suite.check(&format!("adamw [{len}], second moment"), &second, &v)
}

fn residual_change<D: Device>(suite: &Suite<D>, m: usize, d: usize) -> Result<()> {
    let before = suite.random(m * d);
    // A layer changes the stream by little: the cosine's distance from 1 is then small, and still has to be right.
    let after: Vec<f32> = before.iter().zip(suite.random(m * d)).map(|(x, change)| x + 0.02 * change).collect();
    let (mut change, mut turn) = (0.0, 0.0);
    for (b, a) in wide(&before).chunks(d).zip(wide(&after).chunks(d)) {
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let difference: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
        change += (dot(&difference, &difference) / dot(b, b)).sqrt();
        turn += 1.0 - dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    }
    let got = suite.device.residual_change(&suite.buffer(&before)?, &suite.buffer(&after)?, m, d)?;
    suite.check_scalar(&format!("residual_change [{m}, {d}], relative norm"), got.0, change);
    suite.check_scalar(&format!("residual_change [{m}, {d}], cosine"), got.1, turn);
    Ok(())
}
