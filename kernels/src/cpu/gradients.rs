//! Every backward operation against finite differences of its forward operation, in f64.

use super::activation;
use super::attention::{self, Gradients, Head};
use super::elementwise;
use super::embedding;
use super::loss;
use super::matmul;
use super::norm;
use super::parallel::{Shared, Team};
use super::pooling;
use super::rotary;
use super::weight::Plain;
use crate::device::{Activation, NormKind, Product};

type Numbers = Vec<f64>;
type Forward = dyn Fn(&[Numbers]) -> Numbers;
type Backward = dyn Fn(&[Numbers], &[f64]) -> Vec<Numbers>;

/// Deterministic numbers from −1 to 1, none of them next to 0, where ReLU has no derivative.
fn numbers(len: usize, seed: u64) -> Numbers {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    };
    (0..len).map(|_| Some(next()).map(|x| if x.abs() < 0.02 { x + 0.05 } else { x }).unwrap_or_default()).collect()
}

/// A case: inputs, the operation, and its backward operation, which returns a gradient for every input.
struct Case {
    name: String,
    inputs: Vec<Numbers>,
    forward: Box<Forward>,
    backward: Box<Backward>,
}

fn case(
    name: impl Into<String>,
    sizes: &[usize],
    forward: impl Fn(&[Numbers]) -> Numbers + 'static,
    backward: impl Fn(&[Numbers], &[f64]) -> Vec<Numbers> + 'static,
) -> Case {
    let inputs = sizes.iter().enumerate().map(|(i, len)| numbers(*len, i as u64 + 1)).collect();
    Case { name: name.into(), inputs, forward: Box::new(forward), backward: Box::new(backward) }
}

/// The largest error relative to the largest gradient, for each input; a central difference of fourth order.
fn errors(case: &Case) -> Vec<f64> {
    let dy = numbers((case.forward)(&case.inputs).len(), 77);
    let value = |inputs: &[Numbers]| (case.forward)(inputs).iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>();
    let gradients = (case.backward)(&case.inputs, &dy);
    assert_eq!(gradients.len(), case.inputs.len(), "{}", case.name);
    let h = 1e-3;
    let mut errors = Vec::new();
    for (which, gradient) in gradients.iter().enumerate() {
        assert_eq!(gradient.len(), case.inputs[which].len(), "{}", case.name);
        let scale = gradient.iter().fold(1e-3_f64, |scale, g| scale.max(g.abs()));
        let mut worst = 0.0_f64;
        for (i, gradient) in gradient.iter().enumerate() {
            let at = |step: f64| {
                let mut inputs = case.inputs.clone();
                inputs[which][i] += step * h;
                value(&inputs)
            };
            let numeric = (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * h);
            worst = worst.max((numeric - gradient).abs() / scale);
        }
        errors.push(worst);
    }
    errors
}

fn check(cases: Vec<Case>) {
    let failures: String = cases
        .iter()
        .map(|case| (case, errors(case)))
        .filter(|(_, errors)| errors.iter().any(|error| error.is_nan() || *error > 1e-6))
        .map(|(case, errors)| format!("{}: relative errors {errors:?}\n", case.name))
        .collect();
    assert!(failures.is_empty(), "{failures}");
}

fn team() -> Team {
    Team::new(1).unwrap()
}

fn zeros(len: usize) -> Numbers {
    vec![0.0; len]
}

/// `dW = dyᵀ x`, as a training step computes it.
fn weight_gradient(dy: &[f64], x: &[f64], tokens: usize, rows: usize, columns: usize) -> Numbers {
    let mut dw = zeros(rows * columns);
    let product = Product { m: rows, n: columns, k: tokens, transpose_a: true, transpose_b: false, alpha: 1.0, accumulate: true };
    matmul::buffers(&team(), &mut dw, dy, x, product);
    dw
}

#[test]
fn matrix_products() {
    let mut cases = Vec::new();
    for m in [1, 3, 7, 33] {
        let (rows, columns) = (5, 9);
        let shape = (rows, columns);
        cases.push(case(
            format!("rows, {m} tokens"),
            &[m * columns, rows * columns],
            move |i| {
                let mut y = zeros(m * rows);
                matmul::rows_form(&team(), &mut y, &i[0], &Plain { data: &i[1], columns }, m, shape, 1.0, false);
                y
            },
            move |i, dy| {
                let mut dx = zeros(m * columns);
                matmul::units_form(&team(), &mut dx, dy, &Plain { data: &i[1], columns }, m, shape, false);
                vec![dx, weight_gradient(dy, &i[0], m, rows, columns)]
            },
        ));
        cases.push(case(
            format!("units, {m} tokens"),
            &[m * rows, rows * columns],
            move |i| {
                let mut y = zeros(m * columns);
                matmul::units_form(&team(), &mut y, &i[0], &Plain { data: &i[1], columns }, m, shape, false);
                y
            },
            move |i, dy| {
                let mut da = zeros(m * rows);
                matmul::rows_form(&team(), &mut da, dy, &Plain { data: &i[1], columns }, m, shape, 1.0, false);
                vec![da, weight_gradient(&i[0], dy, m, rows, columns)]
            },
        ));
    }
    check(cases);
}

#[test]
fn biases_and_gates() {
    let (m, units, width) = (4, 3, 5);
    let n = units * width;
    let mut cases = vec![case(
        "bias",
        &[m * n, n],
        |i| {
            let mut y = i[0].clone();
            elementwise::add_bias(&mut y, &i[1]);
            y
        },
        move |_, dy| {
            let mut d_bias = zeros(n);
            elementwise::bias_backward(&mut d_bias, dy, n, 0);
            vec![dy.to_vec(), d_bias]
        },
    )];
    for width in [1, width] {
        let n = units * width;
        cases.push(case(
            format!("gates of {width} columns"),
            &[m * n, units],
            move |i| {
                let mut y = i[0].clone();
                elementwise::gate_columns(&mut y, &i[1], width);
                y
            },
            move |i, dy| {
                let (mut dx, mut d_gates) = (dy.to_vec(), zeros(units));
                elementwise::gate_columns(&mut dx, &i[1], width);
                elementwise::gate_backward(&mut d_gates, dy, &i[0], units, width, 0);
                vec![dx, d_gates]
            },
        ));
    }
    check(cases);
}

#[test]
fn activations() {
    let mut cases = Vec::new();
    let len = 40;
    // Inputs from −4 to 4, so that both tails are seen.
    let wide = |x: &Numbers| x.iter().map(|x| 4.0 * x).collect::<Numbers>();
    for kind in [Activation::GeluExact, Activation::GeluTanh, Activation::Silu, Activation::Relu] {
        cases.push(case(
            format!("{kind:?}"),
            &[len],
            move |i| {
                let mut y = zeros(len);
                activation::forward(kind, &mut y, &wide(&i[0]), None);
                y
            },
            move |i, dy| {
                let mut d_up = zeros(len);
                activation::backward(kind, &mut d_up, dy, &wide(&i[0]));
                vec![wide(&d_up)]
            },
        ));
        cases.push(case(
            format!("{kind:?}, gated"),
            &[len, len],
            move |i| {
                let mut y = zeros(len);
                activation::forward(kind, &mut y, &i[0], Some(&wide(&i[1])));
                y
            },
            move |i, dy| {
                let (mut d_up, mut d_gate) = (zeros(len), zeros(len));
                activation::gated_backward(kind, &mut d_up, &mut d_gate, dy, &i[0], &wide(&i[1]));
                vec![d_up, wide(&d_gate)]
            },
        ));
    }
    check(cases);
}

#[test]
fn norms() {
    let (m, d, epsilon) = (3, 21, 1e-3);
    let each = |kind: NormKind, with_bias: bool| {
        let sizes = if with_bias { vec![m * d, d, d] } else { vec![m * d, d] };
        case(
            format!("{kind:?}, bias {with_bias}"),
            &sizes,
            move |i| {
                let mut y = zeros(m * d);
                norm::forward(kind, &mut y, &i[0], &i[1], i.get(2).map(|b| b.as_slice()), epsilon);
                y
            },
            move |i, dy| {
                let (mut dx, mut stats, mut d_weight, mut d_bias) = (zeros(m * d), zeros(2 * m), zeros(d), zeros(d));
                norm::backward(kind, &mut dx, &mut stats, dy, &i[0], &i[1], epsilon);
                norm::backward_weight(&mut d_weight, dy, &i[0], &stats, d, 0);
                elementwise::bias_backward(&mut d_bias, dy, d, 0);
                [dx, d_weight, d_bias].into_iter().take(i.len()).collect()
            },
        )
    };
    check(vec![each(NormKind::LayerNorm, false), each(NormKind::LayerNorm, true), each(NormKind::RmsNorm, false)]);
}

#[test]
fn rotary_positions() {
    let (positions, heads, head_dim, frequencies) = (70, 1, 6, [0.9, 0.17]);
    let turn = move |x: &[f64], inverse| {
        let mut x = x.to_vec();
        rotary::rotate(&mut x, &frequencies, heads, head_dim, 3, inverse);
        x
    };
    check(vec![case("rotary", &[positions * heads * head_dim], move |i| turn(&i[0], false), move |_, dy| vec![turn(dy, true)])]);
}

#[test]
fn grouped_attention() {
    let mut cases = Vec::new();
    // Positions, the group of every head, groups, dimensions, window.
    let shapes = [
        (2, &[0_usize][..], 1, 3, 2),
        (5, &[0, 1, 1], 2, 4, 5),
        (18, &[1, 0], 2, 3, 18),
        (35, &[0, 0], 1, 2, 35),
        (5, &[0, 0], 1, 3, 1),
        (18, &[1, 0], 2, 3, 7),
        (37, &[0], 1, 2, 3),
        (40, &[0], 1, 2, 33),
    ];
    for (t, group_of, groups, dim, window) in shapes {
        let heads = group_of.len();
        let (query_stride, key_stride) = (heads * dim, groups * dim);
        let head = move |h: usize| [h * dim, group_of[h] * dim];
        fn of(i: &[Numbers], [at, key_at]: [usize; 2], strides: [usize; 2], sizes: [usize; 3]) -> Head<'_, f64> {
            let (q, k, v) = (&i[0][at..], &i[1][key_at..], &i[2][key_at..]);
            let [t, head_dim, window] = sizes;
            Head { q, k, v, query_stride: strides[0], key_stride: strides[1], queries: t, keys: t, head_dim, scale: 0.7, window }
        }
        let sizes = [t, dim, window];
        let strides = [query_stride, key_stride];
        cases.push(case(
            format!("{t} positions, heads of groups {group_of:?}, {dim} dimensions, window {window}"),
            &[t * query_stride, t * key_stride, t * key_stride],
            move |i| {
                let mut out = zeros(t * query_stride);
                let shared = Shared::new(&mut out);
                for h in 0..heads {
                    let [at, key_at] = head(h);
                    for start in (0..t).step_by(attention::BLOCK) {
                        let block = start..t.min(start + attention::BLOCK);
                        // SAFETY: nothing else uses `out` meanwhile.
                        unsafe { attention::forward(&shared, at, of(i, [at, key_at], strides, sizes), block) };
                    }
                }
                out
            },
            move |i, dy| {
                let (mut dq, mut dk, mut dv) = (zeros(t * query_stride), zeros(t * key_stride), zeros(t * key_stride));
                let (q, k, v) = (Shared::new(&mut dq), Shared::new(&mut dk), Shared::new(&mut dv));
                for h in 0..heads {
                    let [at, key_at] = head(h);
                    let to = Gradients { dq: &q, dk: &k, dv: &v, query_offset: at, key_offset: key_at };
                    // SAFETY: nothing else uses the gradients meanwhile.
                    unsafe { attention::backward(&to, of(i, [at, key_at], strides, sizes), &dy[at..]) };
                }
                vec![dq, dk, dv]
            },
        ));
    }
    check(cases);
}

#[test]
fn tables_and_positions() {
    let (rows, columns, ids) = (5, 7, [4_u32, 1, 1, 0]);
    let (batch, sequence, start) = (2, 3, 1);
    check(vec![
        case(
            "embedding",
            &[rows * columns],
            move |i| {
                let mut out = zeros(ids.len() * columns);
                embedding::lookup(&mut out, &Plain { data: &i[0], columns }, &ids, columns);
                out
            },
            move |_, dy| {
                let mut d_table = zeros(rows * columns);
                embedding::lookup_backward(&mut d_table, dy, &ids, columns);
                vec![d_table]
            },
        ),
        case(
            "positions",
            &[batch * sequence * columns, rows * columns],
            move |i| {
                let mut x = i[0].clone();
                embedding::add_positions(&mut x, &Plain { data: &i[1], columns }, sequence, columns, start);
                x
            },
            move |_, dy| {
                let mut d_table = zeros(rows * columns);
                let part = &mut d_table[start * columns..(start + sequence) * columns];
                embedding::positions_backward(part, dy, sequence * columns, columns, 0);
                vec![dy.to_vec(), d_table]
            },
        ),
    ]);
}

#[test]
fn patches_through_a_linear_layer() {
    let (window, patch, stride, d) = (20, 6, 4, 3);
    let count = (window - patch) / stride + 1;
    let cut = move |signal: &[f64]| {
        let mut out = zeros(count * patch);
        pooling::patches(&mut out, signal, patch, stride);
        out
    };
    let signal = numbers(window, 9);
    let signal_again = signal.clone();
    check(vec![case(
        "patch embedding",
        &[d * patch],
        move |i| {
            let mut y = zeros(count * d);
            matmul::rows_form(&team(), &mut y, &cut(&signal), &Plain { data: &i[0], columns: patch }, count, (d, patch), 1.0, false);
            y
        },
        move |_, dy| vec![weight_gradient(dy, &cut(&signal_again), count, d, patch)],
    )]);
}

#[test]
fn mean_pooling() {
    let (sequence, d) = (6, 19);
    check(vec![case(
        "mean pool",
        &[sequence * d],
        move |i| {
            let mut out = zeros(d);
            pooling::mean(&mut out, &i[0], sequence);
            out
        },
        move |_, dy| {
            let mut dx = zeros(sequence * d);
            pooling::mean_backward(&mut dx, dy, sequence);
            vec![dx]
        },
    )]);
}

#[test]
fn cross_entropy() {
    let (n, target, weight) = (11, 4, 0.5);
    check(vec![case(
        "cross entropy",
        &[n],
        move |i| vec![weight * loss::cross_entropy(&mut zeros(n), &i[0], target, weight)],
        move |i, dy| {
            let mut d = zeros(n);
            loss::cross_entropy(&mut d, &i[0], target, weight);
            vec![d.iter().map(|d| d * dy[0]).collect()]
        },
    )]);
}
