//! Device memory, packed.
//!
//! An arena hands out blocks at the lowest free address of a reserved address range and maps memory behind them a granule at a time (the
//! driver's allocation granularity, 2 MiB on today's devices). Blocks share granules; a granule is unmapped once no block lies on it.
//! The ledger books what is mapped. [`shrink`](Arena::shrink) moves blocks down, so that the granules behind them can go.
//!
//! A device without virtual memory management gets a plain allocation for every block instead.

mod plain;
mod virtual_memory;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::device::{Core, Held};
use super::driver;
use super::memory::Pointer;
use super::sys::CUresult;
use crate::error::{KernelError, Result};
use crate::memory::Purpose;

use plain::Plain;
use virtual_memory::Extents;

pub(super) use virtual_memory::{copy_down, granularity};

/// Blocks start at multiples of this: what the widest load and a whole sector of the second-level cache ask for, and what the driver's
/// own allocator gives.
pub(super) const ALIGNMENT: u64 = 256;

enum Blocks {
    Virtual(Extents),
    Plain(Plain),
}

/// Memory for one purpose, or for the weights of one model.
pub(super) struct Arena {
    purpose: Purpose,
    blocks: Mutex<Blocks>,
}

impl Arena {
    /// An arena that has nothing mapped.
    pub fn new(core: &Core, purpose: Purpose) -> Arc<Self> {
        let blocks = match core.attributes().granularity {
            Some(granule) => Blocks::Virtual(Extents::new(granule)),
            None => Blocks::Plain(Plain::default()),
        };
        Arc::new(Self { purpose, blocks: Mutex::new(blocks) })
    }

    /// What the memory is booked under.
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }

    fn lock(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that are mapped.
    pub fn mapped_bytes(&self) -> u64 {
        match &*self.lock() {
            Blocks::Virtual(extents) => extents.mapped_bytes(),
            Blocks::Plain(plain) => plain.mapped_bytes(),
        }
    }

    /// A block of at least `bytes`, at least 1, whose content is undefined. The caller is inside [`Core::enter`].
    pub fn take(self: &Arc<Self>, core: &Arc<Core>, bytes: u64) -> Result<Block> {
        core.refuse_while_capturing("allocation")?;
        let address = match &mut *self.lock() {
            Blocks::Virtual(extents) => extents.take(core, self.purpose, bytes)?,
            Blocks::Plain(plain) => plain.take(core, self.purpose, bytes)?,
        };
        Ok(Block { core: core.clone(), arena: self.clone(), address, bytes })
    }

    /// Gives a block back. The caller is inside [`Core::enter`].
    pub fn give_back(&self, core: &Core, address: u64) {
        match &mut *self.lock() {
            Blocks::Virtual(extents) => extents.give_back(core, self.purpose, address),
            Blocks::Plain(plain) => plain.give_back(core, self.purpose, address),
        }
    }

    /// Checks that `blocks` are all blocks of this arena.
    pub fn check_all<'a>(&self, blocks: impl Iterator<Item = &'a Block>) -> Result<()> {
        let held = match &*self.lock() {
            Blocks::Virtual(extents) => extents.count(),
            Blocks::Plain(plain) => plain.count(),
        };
        let (mut own, mut others) = (0, 0);
        blocks.for_each(|block| if std::ptr::eq(&*block.arena, self) { own += 1 } else { others += 1 });
        if (own, others) != (held, 0) {
            let detail =
                format!("{own} matrices of a model that has {held} were given, and {others} of others; all of the model belong there");
            return Err(KernelError::Shape { operation: "shrink", detail });
        }
        Ok(())
    }

    /// Keeps the first bytes of every block (`kept`, each `(block, bytes)`, at least 1) and moves what is kept to lower addresses: device
    /// to device, in ascending order, on the compute stream. Then unmaps what is left over. `kept` are all blocks of this arena: who else
    /// holds one would read moved memory.
    ///
    /// After an error no memory has been unmapped, but what the blocks hold is undefined.
    pub fn shrink(&self, core: &Core, kept: &mut [(&mut Block, u64)]) -> Result<()> {
        core.refuse_while_capturing("shrink")?;
        self.check_all(kept.iter().map(|(block, _)| &**block))?;
        let mut blocks = self.lock();
        if let Some((block, bytes)) = kept.iter().find(|(block, bytes)| *bytes == 0 || *bytes > block.bytes) {
            let detail = format!("{bytes} bytes were to be kept of a block of {}", block.bytes);
            return Err(KernelError::Shape { operation: "shrink", detail });
        }
        kept.sort_by_key(|(block, _)| block.address);
        core.forget_graphs();
        match &mut *blocks {
            Blocks::Virtual(extents) => extents.shrink(core, self.purpose, kept),
            Blocks::Plain(plain) => plain.shrink(core, self.purpose, kept),
        }
    }
}

/// Part of an arena, given back on drop.
///
/// A block may be handed out again while work that uses it is still on the compute stream: whatever the next owner does is on that stream
/// too, behind it (uploads by the copy stream wait for it by an event). Only unmapping has to wait for the stream itself.
pub(super) struct Block {
    core: Arc<Core>,
    arena: Arc<Arena>,
    /// 0 once it was given away: no block is there.
    address: u64,
    bytes: u64,
}

impl Block {
    /// Its address.
    pub fn pointer(&self) -> Pointer {
        Pointer::new(self.address)
    }
    /// The device it belongs to.
    pub fn core(&self) -> &Arc<Core> {
        &self.core
    }
    /// Its parts without the device, for who keeps it on the device's own account.
    pub fn split(mut self) -> (Arc<Arena>, u64, u64) {
        (self.arena.clone(), std::mem::take(&mut self.address), self.bytes)
    }
    /// The reverse of [`split`](Block::split).
    pub fn join(core: Arc<Core>, arena: Arc<Arena>, address: u64, bytes: u64) -> Self {
        Self { core, arena, address, bytes }
    }
    fn moved(&mut self, address: u64, bytes: u64) {
        (self.address, self.bytes) = (address, bytes);
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.address != 0 {
            self.core.give_back(Held::Block(self.arena.clone(), self.address));
        }
    }
}

fn out_of_memory(core: &Core, purpose: Purpose, needed: u64, operation: &'static str, code: CUresult) -> KernelError {
    match driver::check(operation, code) {
        Err(error) if error.is_lost() => core.note(error),
        _ => KernelError::OutOfMemory { purpose: purpose.name(), needed, reason: driver::describe(code) },
    }
}

/// Waits until nothing on the device uses memory that is about to go.
fn wait_for_users(core: &Core) {
    // An error here is that of a lost device, which uses no memory any more.
    let _ = core.compute().synchronize("free");
    let _ = core.copies().synchronize("free");
}
