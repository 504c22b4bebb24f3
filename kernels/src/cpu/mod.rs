//! The CPU device.
//!
//! The maths is plain generic functions on slices, one file a family of operations: the tests differentiate in f64 what the device runs in
//! f32. [`CpuDevice`] checks shapes, splits work over threads, and calls them.
//!
//! A small operation runs on the caller's thread; a large one is split over the device's threads, fastest from inside
//! [`enter`](crate::Device::enter). Results do not depend on the timing of threads. Operations take temporary memory from scratch vectors
//! that every thread keeps, so that nothing is allocated once they have grown: at most 128 tokens of a matrix's columns, 32 queries times
//! the longest sequence, and 64 rows of a 16-bit or quantised matrix.

mod activation;
mod adamw;
mod attention;
mod buffer;
mod elementwise;
mod embedding;
mod gemv;
#[cfg(test)]
mod gradients;
mod half;
mod importance;
mod loss;
mod matmul;
mod norm;
mod operations;
mod parallel;
mod pooling;
mod quantised;
mod real;
mod rotary;
mod tile;
mod vector;
mod weight;

use std::sync::Arc;

use crate::error::{KernelError, Result};
use crate::memory::{Ledger, Purpose};
use parallel::Team;

pub use buffer::{Buffer, Indices, Storage, buffer_bytes};
pub use weight::Weight;

/// The CPU: threads, and a ledger that is asked for memory. Cheap to clone; clones share both.
#[derive(Clone)]
pub struct CpuDevice {
    team: Team,
    ledger: Arc<dyn Ledger>,
    purpose: Purpose,
}

impl CpuDevice {
    /// A device of `threads` threads, 1 to 1024, which books its memory in `ledger`; one thread means the caller's own. Memory is booked as
    /// activations until [`for_purpose`](crate::Device::for_purpose) says otherwise.
    pub fn new(threads: usize, ledger: Arc<dyn Ledger>) -> Result<Self> {
        Ok(Self { team: Team::new(threads)?, ledger, purpose: Purpose::Activations })
    }

    /// How many threads work.
    pub fn threads(&self) -> usize {
        self.team.threads()
    }
}

/// The product of `dimensions`.
fn elements(operation: &'static str, dimensions: &[usize]) -> Result<usize> {
    let product = dimensions.iter().try_fold(1_usize, |product, &d| product.checked_mul(d));
    product.ok_or_else(|| KernelError::Shape { operation, detail: format!("{dimensions:?} does not fit in memory") })
}

fn too_short(operation: &'static str, name: &str, have: usize, dimensions: &[usize]) -> KernelError {
    KernelError::Shape { operation, detail: format!("{name} holds {have} numbers, but {dimensions:?} were expected") }
}

/// The numbers of `name [dimensions]` at the start of a buffer.
fn input<'a, T: bytemuck::Pod>(operation: &'static str, name: &str, buffer: &'a Storage<T>, dimensions: &[usize]) -> Result<&'a [T]> {
    let len = elements(operation, dimensions)?;
    buffer.as_slice().get(..len).ok_or_else(|| too_short(operation, name, buffer.len(), dimensions))
}

/// As [`input`], to be written.
fn output<'a, T: bytemuck::Pod>(
    operation: &'static str,
    name: &str,
    buffer: &'a mut Storage<T>,
    dimensions: &[usize],
) -> Result<&'a mut [T]> {
    let (len, have) = (elements(operation, dimensions)?, buffer.len());
    buffer.as_mut_slice().get_mut(..len).ok_or_else(|| too_short(operation, name, have, dimensions))
}

/// Refuses with `detail` unless `condition`.
fn require(operation: &'static str, condition: bool, detail: impl FnOnce() -> String) -> Result<()> {
    if condition { Ok(()) } else { Err(KernelError::Shape { operation, detail: detail() }) }
}
