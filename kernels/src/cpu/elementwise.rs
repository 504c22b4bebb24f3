//! Element by element, and sums over tokens. `n` or `width` is the length of a row; a function takes whole rows.

use super::real::Real;
use super::vector::{self, vectorized};

vectorized! {
    /// `y += bias`, in every row.
    pub fn add_bias<T: Real>(y: &mut [T], bias: &[T]) {
        for row in y.chunks_exact_mut(bias.len()) {
            for (y, &b) in row.iter_mut().zip(bias) {
                *y += b;
            }
        }
    }
}

vectorized! {
    /// `d_bias += Σ_m dy[m, first..]`, `dy` rows of `n`: for the columns from `first` that `d_bias` covers.
    pub fn bias_backward<T: Real>(d_bias: &mut [T], dy: &[T], n: usize, first: usize) {
        for row in dy.chunks_exact(n) {
            for (d, &dy) in d_bias.iter_mut().zip(&row[first..]) {
                *d += dy;
            }
        }
    }
}

vectorized! {
    /// `y += alpha · x`.
    pub fn add<T: Real>(y: &mut [T], x: &[T], alpha: T) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y += alpha * x;
        }
    }
}

vectorized! {
    /// `x *= alpha`.
    pub fn scale<T: Real>(x: &mut [T], alpha: T) {
        for x in x {
            *x *= alpha;
        }
    }
}

vectorized! {
    /// Every unit's `width` columns times its gate, in every row.
    pub fn gate_columns<T: Real>(x: &mut [T], gates: &[T], width: usize) {
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
}

vectorized! {
    /// `d_gates[u] += Σ_m Σ_width dy · x` for the units from `first` that `d_gates` covers; rows of `units · width`.
    pub fn gate_backward<T: Real>(d_gates: &mut [T], dy: &[T], x: &[T], units: usize, width: usize, first: usize) {
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
}
