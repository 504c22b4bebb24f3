//! Memory of the CPU device.

use std::sync::Arc;

use bytemuck::Pod;
use memmap2::MmapMut;

use crate::error::{KernelError, Result};
use crate::memory::{Ledger, Purpose, Reservation};

/// From this size on a buffer is an anonymous mapping of its own, so that dropping it returns its pages to the system at once.
pub const MAPPED_FROM_BYTES: usize = 64 * 1024;

enum Memory<T> {
    Heap(Vec<T>),
    /// Page-aligned, zero until written, and resident only where written.
    Mapped(MmapMut),
}

/// Numbers in memory, booked in a ledger until dropped.
pub struct Storage<T> {
    memory: Memory<T>,
    len: usize,
    _reservation: Reservation,
}

/// f32 numbers.
pub type Buffer = Storage<f32>;
/// u32 numbers.
pub type Indices = Storage<u32>;

/// Bytes that a buffer of `numbers` f32 or u32 numbers books: whole pages where it is a mapping of its own.
pub fn buffer_bytes(numbers: usize) -> u64 {
    booked_bytes(numbers.saturating_mul(4)) as u64
}

fn booked_bytes(bytes: usize) -> usize {
    // A length within a page of the largest number is refused before it is rounded.
    if bytes >= MAPPED_FROM_BYTES { bytes.checked_next_multiple_of(rustix::param::page_size()).unwrap_or(bytes) } else { bytes }
}

impl<T: Pod> Storage<T> {
    /// `len` zeros. Fails where the ledger or the system refuses.
    pub fn zeros(ledger: Arc<dyn Ledger>, purpose: Purpose, len: usize) -> Result<Self> {
        let refused = |needed: usize, reason: String| KernelError::OutOfMemory { purpose: purpose.name(), needed: needed as u64, reason };
        let page = rustix::param::page_size();
        let bytes = len
            .checked_mul(size_of::<T>())
            .filter(|bytes| *bytes <= isize::MAX as usize - page)
            .ok_or_else(|| refused(usize::MAX, format!("{len} numbers are more than this machine can address")))?;
        let (mapped, booked) = (bytes >= MAPPED_FROM_BYTES, booked_bytes(bytes));
        let reservation = Reservation::new(ledger, purpose, booked as u64)?;
        let memory = if mapped {
            Memory::Mapped(MmapMut::map_anon(booked).map_err(|e| refused(booked, e.to_string()))?)
        } else {
            let mut heap = Vec::new();
            heap.try_reserve_exact(len).map_err(|e| refused(bytes, e.to_string()))?;
            heap.resize(len, T::zeroed());
            Memory::Heap(heap)
        };
        Ok(Self { memory, len, _reservation: reservation })
    }

    /// How many numbers.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The numbers.
    pub fn as_slice(&self) -> &[T] {
        match &self.memory {
            Memory::Heap(heap) => heap,
            Memory::Mapped(map) => bytemuck::cast_slice(&map[..self.len * size_of::<T>()]),
        }
    }

    /// The numbers, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        match &mut self.memory {
            Memory::Heap(heap) => heap,
            Memory::Mapped(map) => bytemuck::cast_slice_mut(&mut map[..self.len * size_of::<T>()]),
        }
    }
}
