//! AdamW: Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101, Algorithm 2).

use super::real::Real;
use super::vector;
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
    vector::run(step_body, (parameter, gradient, first, second, constants));
}

#[inline(always)]
#[allow(clippy::type_complexity)]
fn step_body<T: Real>((parameter, gradient, first, second, c): (&mut [T], &[T], &mut [T], &mut [T], Constants<T>)) {
    for (((p, &g), m), v) in parameter.iter_mut().zip(gradient).zip(first).zip(second) {
        *m = c.beta1 * *m + c.rest1 * g;
        *v = c.beta2 * *v + c.rest2 * g * g;
        *p = c.keep * *p - c.step_size * *m / ((*v).sqrt() * c.inverse_root + c.epsilon);
    }
}
