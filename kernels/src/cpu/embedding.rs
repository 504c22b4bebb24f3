//! Rows of tables: token embeddings and learned positions.

use super::elementwise;
use super::real::Real;
use super::weight::Matrix;

/// `out [ids, columns]` = rows of `table` by id.
pub fn lookup<T: Real>(out: &mut [T], table: &impl Matrix<T>, ids: &[u32], columns: usize) {
    for (out, id) in out.chunks_exact_mut(columns).zip(ids) {
        table.row(*id as usize, |row| out.copy_from_slice(row));
    }
}

/// `d_table[id] += dy[token]`, in the order of the tokens.
pub fn lookup_backward<T: Real>(d_table: &mut [T], dy: &[T], ids: &[u32], columns: usize) {
    for (dy, id) in dy.chunks_exact(columns).zip(ids) {
        elementwise::add(&mut d_table[*id as usize * columns..][..columns], dy, T::ONE);
    }
}

/// `x [.., sequence, columns] += table[start + position]`.
pub fn add_positions<T: Real>(x: &mut [T], table: &impl Matrix<T>, sequence: usize, columns: usize, start: usize) {
    for (token, x) in x.chunks_exact_mut(columns).enumerate() {
        table.row(start + token % sequence, |row| elementwise::add(x, row, T::ONE));
    }
}

/// `d_table += Σ dy`, for the positions from `first` that `d_table` covers; `dy` sequences of `length` numbers.
pub fn positions_backward<T: Real>(d_table: &mut [T], dy: &[T], length: usize, columns: usize, first: usize) {
    for sequence in dy.chunks_exact(length) {
        elementwise::add(d_table, &sequence[first * columns..][..d_table.len()], T::ONE);
    }
}
