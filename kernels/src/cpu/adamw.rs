//! AdamW: Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101, Algorithm 2).

use super::real::Real;
use super::vector::vectorized;
use crate::device::AdamW;

/// The constants of one step as the numbers' type, bias corrections included.
#[derive(Clone, Copy)]
struct Constants<T> {
    beta1: T,
    rest1: T,
    beta2: T,
    rest2: T,
    keep: T,
    step_size: T,
    inverse_root: T,
    epsilon: T,
}

/// One step on slices of one length.
pub fn step<T: Real>(parameter: &mut [T], gradient: &[T], first: &mut [T], second: &mut [T], constants: AdamW) {
    let AdamW { learning_rate, beta1, beta2, epsilon, weight_decay, step } = constants;
    let [rate, beta1, beta2, decay] = [learning_rate, beta1, beta2, weight_decay].map(f64::from);
    // The corrections are powers close to 1, whose complements f32 would lose.
    let step = f64::from(step);
    let real = |x: f64| T::from_f64(x);
    let constants = Constants {
        beta1: real(beta1),
        rest1: real(1.0 - beta1),
        beta2: real(beta2),
        rest2: real(1.0 - beta2),
        keep: real(1.0 - rate * decay),
        step_size: real(rate / (1.0 - beta1.powf(step))),
        inverse_root: real(1.0 / (1.0 - beta2.powf(step)).sqrt()),
        epsilon: real(f64::from(epsilon)),
    };
    apply(parameter, gradient, first, second, constants);
}

vectorized! {
    fn apply<T: Real>(parameter: &mut [T], gradient: &[T], first: &mut [T], second: &mut [T], c: Constants<T>) {
        for (((p, &g), m), v) in parameter.iter_mut().zip(gradient).zip(first).zip(second) {
            *m = c.beta1 * *m + c.rest1 * g;
            *v = c.beta2 * *v + c.rest2 * g * g;
            *p = c.keep * *p - c.step_size * *m / ((*v).sqrt() * c.inverse_root + c.epsilon);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With constant gradients both corrected moments are the gradient and its square, so that every step moves by the learning rate
    /// against the gradient's sign, after the decay: 1 → 0.99 − 0.1 = 0.89 → 0.8811 − 0.1 = 0.7811, and −0.5 → −0.395 → −0.29105.
    #[test]
    fn steps_are_those_computed_by_hand() {
        let (mut p, mut m, mut v) = ([1.0_f64, -0.5], [0.0; 2], [0.0; 2]);
        let g = [0.25, -2.0];
        for (step, expected) in [(1, [0.89, -0.395]), (2, [0.7811, -0.29105])] {
            let constants = AdamW { learning_rate: 0.1, beta1: 0.9, beta2: 0.999, epsilon: 0.0, weight_decay: 0.1, step };
            super::step(&mut p, &g, &mut m, &mut v, constants);
            for (p, expected) in p.iter().zip(expected) {
                // The constants are f32 numbers: 0.1 is off by 1.5e-9.
                assert!((p - expected).abs() < 1e-8, "step {step}: {p} instead of {expected}");
            }
        }
        // After two steps: m = 0.1 g (0.9 + 1), v = 0.001 g² (0.999 + 1).
        // 1 − 0.999 in f32 is off by 1.3e-5 of it.
        assert!((m[0] - 0.19 * 0.25).abs() < 1e-7 && (v[1] - 0.001_999 * 4.0).abs() < 2e-5 * v[1], "{m:?} {v:?}");
    }

    /// Different gradients: m = 0.9 · 0.1 · 1 + 0.1 · 3 = 0.39, corrected by 0.19; v = 0.999 · 0.001 + 0.001 · 9 = 0.009999, by 0.001999.
    #[test]
    fn moments_are_corrected_by_their_step() {
        let (mut p, mut m, mut v) = ([0.0_f64], [0.0], [0.0]);
        let constants = |step| AdamW { learning_rate: 0.01, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0, step };
        super::step(&mut p, &[1.0], &mut m, &mut v, constants(1));
        super::step(&mut p, &[3.0], &mut m, &mut v, constants(2));
        let expected = -0.01 - 0.01 * (0.39 / 0.19) / (0.009_999_f64 / 0.001_999).sqrt();
        assert!((p[0] - expected).abs() < 1e-7, "{} instead of {expected}", p[0]);
    }
}
