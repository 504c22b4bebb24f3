//! Numbers on the device.

use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::arena::{Arena, Block};
use super::device::{Core, Held, lock};
use super::gate::Entered;
use super::sys;
use crate::error::{KernelError, Result};
use crate::memory::Purpose;

/// An address on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pointer(u64);

impl Pointer {
    /// For an argument that a kernel is told not to use, and for what is empty.
    pub const NULL: Pointer = Pointer(0);

    pub(super) fn new(address: u64) -> Self {
        Self(address)
    }
    /// The number.
    pub fn address(self) -> u64 {
        self.0
    }
    /// `bytes` further.
    pub fn plus_bytes(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

/// Numbers in the memory of a device, booked in its ledger until dropped.
pub struct Storage<T> {
    /// None where there are no numbers.
    block: Option<Block>,
    len: usize,
    /// What the host wrote, where the host has to check it: of indices.
    host: Vec<u32>,
    /// The generation of graphs that use these numbers, plus one; 0 for none.
    recorded: AtomicU64,
    /// No index above this may be written without a recorded graph being checked again.
    recorded_largest: AtomicU32,
    /// Goes back to the scratch cache on drop.
    scratch: bool,
    numbers: PhantomData<T>,
}

/// f32 numbers.
pub type Buffer = Storage<f32>;
/// u32 numbers.
pub type Indices = Storage<u32>;

// SAFETY: the numbers are on the device; the host reaches them through operations that a gate and a stream put in order.
unsafe impl<T: Send> Send for Storage<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Storage<T> {}

/// Bytes of `len` numbers.
pub(super) fn byte_len<T>(purpose: Purpose, len: usize) -> Result<u64> {
    len.checked_mul(size_of::<T>()).map(|bytes| bytes as u64).ok_or_else(|| KernelError::OutOfMemory {
        purpose: purpose.name(),
        needed: u64::MAX,
        reason: format!("{len} numbers are more than a device can address"),
    })
}

impl<T> Storage<T> {
    /// `len` numbers of whatever value. The caller is inside [`Core::enter`].
    pub(super) fn undefined(core: &Arc<Core>, arena: &Arc<Arena>, len: usize) -> Result<Self> {
        let bytes = byte_len::<T>(arena.purpose(), len)?;
        let block = if bytes == 0 { None } else { Some(take(core, arena, bytes)?) };
        let (recorded, recorded_largest) = (AtomicU64::new(0), AtomicU32::new(0));
        Ok(Self { block, len, host: Vec::new(), recorded, recorded_largest, scratch: false, numbers: PhantomData })
    }

    /// `len` zeros. The caller is inside [`Core::enter`].
    pub(super) fn zeros(core: &Arc<Core>, arena: &Arc<Arena>, len: usize) -> Result<Self> {
        const { assert!(size_of::<T>() == 4) };
        let storage = Self::undefined(core, arena, len)?;
        if let Some(block) = &storage.block {
            // SAFETY: the block has room for `len` numbers of 4 bytes; the stream keeps the order.
            let code = unsafe { sys::cuMemsetD32Async(block.pointer().address(), 0, len, core.compute().handle()) };
            core.check("zeros", code)?;
        }
        Ok(storage)
    }

    /// The block alone.
    fn into_block(mut self) -> Option<Block> {
        self.block.take()
    }

    /// How many numbers.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Where they are. Work that is being recorded is taken to use them: once they are dropped the graph is not run any more.
    pub(super) fn pointer(&self) -> Pointer {
        let Some(block) = &self.block else { return Pointer::NULL };
        if block.core().gate().is_capturing() {
            self.note_recording(block.core());
        }
        block.pointer()
    }

    fn note_recording(&self, core: &Core) {
        let generation = core.generation() + 1;
        if self.recorded.swap(generation, Ordering::Relaxed) != generation {
            self.recorded_largest.store(u32::MAX, Ordering::Relaxed);
        }
    }

    /// Whether a graph that may still be run uses the numbers.
    fn is_recorded(&self, core: &Core) -> bool {
        self.recorded.load(Ordering::Relaxed) == core.generation() + 1
    }
}

/// A block, for which the scratch buffers are given up where there is no room otherwise.
pub(super) fn take(core: &Arc<Core>, arena: &Arc<Arena>, bytes: u64) -> Result<Block> {
    match arena.take(core, bytes) {
        Err(KernelError::OutOfMemory { .. } | KernelError::OutOfBudget { .. }) if core.scratch().clear(core) > 0 => arena.take(core, bytes),
        result => result,
    }
}

impl Indices {
    /// Indices that the host wrote, and keeps. The caller is inside [`Core::enter`].
    pub(super) fn of(core: &Arc<Core>, arena: &Arc<Arena>, from: &[u32]) -> Result<Self> {
        let mut indices = Self::undefined(core, arena, from.len())?;
        indices.host.try_reserve_exact(from.len()).map_err(|error| KernelError::OutOfMemory {
            purpose: arena.purpose().name(),
            needed: size_of_val(from) as u64,
            reason: error.to_string(),
        })?;
        indices.host.resize(from.len(), 0);
        indices.write(core, from)?;
        Ok(indices)
    }

    /// Replaces the first indices, of which there are enough. The caller is inside [`Core::enter`].
    pub(super) fn write(&mut self, core: &Core, from: &[u32]) -> Result<()> {
        if from.is_empty() {
            return Ok(());
        }
        // A graph stands for smaller indices: with these it has to be recorded, and so checked, again.
        let largest = self.recorded_largest.load(Ordering::Relaxed);
        if self.is_recorded(core) && from.iter().any(|index| *index > largest) {
            core.forget_graphs();
        }
        let to = self.block.as_ref().map_or(Pointer::NULL, Block::pointer);
        core.with_staging(|staging| staging.write(core, to, bytemuck::cast_slice(from)))?;
        self.host[..from.len()].copy_from_slice(from);
        Ok(())
    }

    /// The first `count` indices as the host wrote them; fewer where there are fewer.
    pub(super) fn host(&self, count: usize) -> &[u32] {
        &self.host[..count.min(self.host.len())]
    }

    /// Says that indices below `limit` are fine for the work. Where it is being recorded, it stands for all of them.
    pub(super) fn note_limit(&self, limit: usize) {
        let Some(block) = self.block.as_ref().filter(|block| block.core().gate().is_capturing()) else { return };
        self.note_recording(block.core());
        let largest = u32::try_from(limit.saturating_sub(1)).unwrap_or(u32::MAX);
        self.recorded_largest.fetch_min(largest, Ordering::Relaxed);
    }

    /// The first index as the host wrote it.
    pub(super) fn first(&self) -> Result<usize> {
        self.host.first().map(|index| *index as usize).ok_or_else(|| KernelError::Shape {
            operation: "first_index",
            detail: "indices holds 0 numbers, but [1] were expected".to_string(),
        })
    }
}

impl<T> Drop for Storage<T> {
    fn drop(&mut self) {
        let Some(block) = self.block.take() else { return };
        let core = block.core().clone();
        if self.scratch {
            // A graph that used it goes on: it stays in the cache, and what it holds between launches is nobody's.
            return core.scratch().put_back(block);
        }
        // Not in the middle of another thread's recording, whose graph would be taken to have lost memory.
        let entered = core.gate().enter();
        if self.is_recorded(&core) {
            core.forget_graphs();
        }
        drop(block);
        drop(entered);
    }
}

/// Intermediate numbers of an operation. A recorded graph may use the same memory, so no other thread comes in between two launches of the
/// operation, and runs one.
pub(super) struct Scratch<'a> {
    pub buffer: Buffer,
    /// Left after the buffer has gone back.
    pub _entered: Entered<'a>,
}

impl Deref for Scratch<'_> {
    type Target = Buffer;
    fn deref(&self) -> &Buffer {
        &self.buffer
    }
}

/// The parts of sums that the blocks of one launch cut, and their counters (`is_last_block` in `prelude.cuh`).
pub(super) struct ScratchParts<'a> {
    sums: Scratch<'a>,
    counters: Pointer,
}

impl ScratchParts<'_> {
    /// Where the numbers are, and where the counters.
    pub fn pointers(&self) -> (Pointer, Pointer) {
        (self.sums.pointer(), self.counters)
    }
}

impl<'a> ScratchParts<'a> {
    /// `len` numbers of whatever value, and `counters` counters, which launches find 0 and leave 0.
    pub fn take(core: &'a Arc<Core>, len: usize, counters: usize) -> Result<Self> {
        let entered = core.enter()?;
        let buffer = core.scratch().take(core, len)?;
        // Behind the numbers, for which the counters might be given up.
        let counters = core.scratch().counters(core, counters)?;
        Ok(Self { sums: Scratch { buffer, _entered: entered }, counters })
    }
}

/// A block that nobody uses at the moment. It does not hold the device, which holds it.
struct Kept {
    arena: Arc<Arena>,
    address: u64,
    bytes: u64,
}

/// Blocks for the intermediate numbers of operations, kept between them so that nothing is allocated once there are enough.
#[derive(Default)]
pub(super) struct ScratchCache {
    blocks: Mutex<Vec<Kept>>,
    counters: Mutex<Option<Kept>>,
}

impl ScratchCache {
    /// `len` numbers of whatever value, which go back on drop. The caller is inside [`Core::enter`].
    pub fn take(&self, core: &Arc<Core>, len: usize) -> Result<Buffer> {
        let bytes = byte_len::<f32>(Purpose::Activations, len)?;
        let kept = {
            let mut blocks = lock(&self.blocks);
            let fits = blocks.iter().enumerate().filter(|(_, kept)| kept.bytes >= bytes).min_by_key(|(_, kept)| kept.bytes);
            fits.map(|(i, _)| i).map(|i| blocks.swap_remove(i))
        };
        let block = match kept {
            _ if bytes == 0 => None,
            Some(kept) => Some(Block::join(core.clone(), kept.arena, kept.address, kept.bytes)),
            // Powers of two, so that lengths that grow a little at a time settle soon.
            None => Some(take(core, &core.arena(Purpose::Activations), bytes.checked_next_power_of_two().unwrap_or(bytes))?),
        };
        let (recorded, recorded_largest) = (AtomicU64::new(0), AtomicU32::new(0));
        Ok(Buffer { block, len, host: Vec::new(), recorded, recorded_largest, scratch: true, numbers: PhantomData })
    }

    fn put_back(&self, block: Block) {
        let (arena, address, bytes) = block.split();
        lock(&self.blocks).push(Kept { arena, address, bytes });
    }

    /// At least `len` counters, all 0 between launches, until [`clear`](ScratchCache::clear). The caller is inside [`Core::enter`].
    fn counters(&self, core: &Arc<Core>, len: usize) -> Result<Pointer> {
        const LEAST: usize = 1024;
        let there = lock(&self.counters).as_ref().filter(|kept| kept.bytes >= 4 * len as u64).map(|kept| kept.address);
        if let Some(address) = there {
            return Ok(Pointer::new(address));
        }
        let len = len.checked_next_power_of_two().unwrap_or(len).max(LEAST);
        let counters = Indices::zeros(core, &core.arena(Purpose::Activations), len)?;
        let Some(block) = counters.into_block() else { return Ok(Pointer::NULL) };
        let (pointer, (arena, address, bytes)) = (block.pointer(), block.split());
        if let Some(old) = lock(&self.counters).replace(Kept { arena, address, bytes }) {
            core.forget_graphs();
            core.give_back(Held::Block(old.arena, old.address));
        }
        Ok(pointer)
    }

    /// Gives the blocks that are not in use back and says how many bytes they had.
    pub fn clear(&self, core: &Core) -> u64 {
        let _entered = core.gate().enter();
        let mut blocks = std::mem::take(&mut *lock(&self.blocks));
        blocks.extend(lock(&self.counters).take());
        if !blocks.is_empty() {
            // Graphs use them, and work that is about to be recorded counts on them.
            core.forget_graphs();
        }
        blocks.iter().for_each(|kept| core.give_back(Held::Block(kept.arena.clone(), kept.address)));
        blocks.iter().map(|kept| kept.bytes).sum()
    }
}
