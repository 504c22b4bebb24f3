//! Element by element, and sums over tokens. `n` or `width` is the length of a row; a function takes whole rows.

use super::real::Real;
use super::vector;

/// `y += bias`, in every row.
pub fn add_bias<T: Real>(y: &mut [T], bias: &[T]) {
    vector::run(add_bias_body, (y, bias));
}

#[inline(always)]
fn add_bias_body<T: Real>((y, bias): (&mut [T], &[T])) {
    for row in y.chunks_exact_mut(bias.len()) {
        for (y, &b) in row.iter_mut().zip(bias) {
            *y += b;
        }
    }
}

/// `d_bias += Σ_m dy[m, first..]`, `dy` rows of `n`: for the columns from `first` that `d_bias` covers.
pub fn bias_backward<T: Real>(d_bias: &mut [T], dy: &[T], n: usize, first: usize) {
    vector::run(bias_backward_body, (d_bias, dy, n, first));
}

#[inline(always)]
fn bias_backward_body<T: Real>((d_bias, dy, n, first): (&mut [T], &[T], usize, usize)) {
    for row in dy.chunks_exact(n) {
        for (d, &dy) in d_bias.iter_mut().zip(&row[first..]) {
            *d += dy;
        }
    }
}

/// `y += alpha · x`.
pub fn add<T: Real>(y: &mut [T], x: &[T], alpha: T) {
    vector::run(add_body, (y, x, alpha));
}

#[inline(always)]
fn add_body<T: Real>((y, x, alpha): (&mut [T], &[T], T)) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y += alpha * x;
    }
}

/// `x *= alpha`.
pub fn scale<T: Real>(x: &mut [T], alpha: T) {
    vector::run(scale_body, (x, alpha));
}

#[inline(always)]
fn scale_body<T: Real>((x, alpha): (&mut [T], T)) {
    for x in x {
        *x *= alpha;
    }
}

/// Every unit's `width` columns times its gate, in every row.
pub fn gate_columns<T: Real>(x: &mut [T], gates: &[T], width: usize) {
    vector::run(gate_columns_body, (x, gates, width));
}

#[inline(always)]
fn gate_columns_body<T: Real>((x, gates, width): (&mut [T], &[T], usize)) {
    for row in x.chunks_exact_mut(gates.len() * width) {
        if width == 1 {
            for (x, &gate) in row.iter_mut().zip(gates) {
                *x *= gate;
            }
        } else {
            for (unit, &gate) in row.chunks_exact_mut(width).zip(gates) {
                for x in unit {
                    *x *= gate;
                }
            }
        }
    }
}

/// `d_gates[u] += Σ_m Σ_width dy · x` for the units from `first` that `d_gates` covers; rows of `units · width`.
pub fn gate_backward<T: Real>(d_gates: &mut [T], dy: &[T], x: &[T], units: usize, width: usize, first: usize) {
    vector::run(gate_backward_body, (d_gates, dy, x, units, width, first));
}

#[inline(always)]
fn gate_backward_body<T: Real>((d_gates, dy, x, units, width, first): (&mut [T], &[T], &[T], usize, usize, usize)) {
    let columns = first * width..(first + d_gates.len()) * width;
    for (dy, x) in dy.chunks_exact(units * width).zip(x.chunks_exact(units * width)) {
        let (dy, x) = (&dy[columns.clone()], &x[columns.clone()]);
        if width == 1 {
            for ((d, &dy), &x) in d_gates.iter_mut().zip(dy).zip(x) {
                *d += dy * x;
            }
        } else {
            for ((d, dy), x) in d_gates.iter_mut().zip(dy.chunks_exact(width)).zip(x.chunks_exact(width)) {
                *d += vector::sum2(dy, x, |dy, x| dy * x);
            }
        }
    }
}
