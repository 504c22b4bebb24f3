//! Blocks of a device without virtual memory management: a plain allocation each.

use std::collections::BTreeMap;

use super::super::sys::{self, CUresult};
use super::{ALIGNMENT, Block, out_of_memory, wait_for_users};
use crate::cuda::device::Core;
use crate::cuda::gauge;
use crate::error::{KernelError, Result};
use crate::memory::Purpose;

/// The allocations, by address, and their bytes.
#[derive(Default)]
pub(super) struct Plain(BTreeMap<u64, u64>);

fn booked(purpose: Purpose, bytes: u64) -> Result<u64> {
    bytes.checked_next_multiple_of(ALIGNMENT).ok_or_else(|| too_large(purpose, bytes))
}

/// The refusal of a length that no device has.
pub(super) fn too_large(purpose: Purpose, bytes: u64) -> KernelError {
    let reason = format!("{bytes} bytes are more than a device can address");
    KernelError::OutOfMemory { purpose: purpose.name(), needed: bytes, reason }
}

impl Plain {
    pub fn count(&self) -> usize {
        self.0.len()
    }

    pub fn mapped_bytes(&self) -> u64 {
        self.0.values().sum()
    }

    pub fn take(&mut self, core: &Core, purpose: Purpose, bytes: u64) -> Result<u64> {
        let bytes = booked(purpose, bytes)?;
        gauge::reserve(core.ledger().as_ref(), purpose, bytes)?;
        let mut address = 0;
        // SAFETY: `address` is a place for the address; the context is current, since the caller is inside `Core::enter`.
        match unsafe { sys::cuMemAlloc_v2(&mut address, bytes as usize) } {
            CUresult::CUDA_SUCCESS => {
                self.0.insert(address, bytes);
                Ok(address)
            }
            code => {
                gauge::release(core.ledger().as_ref(), purpose, bytes);
                Err(out_of_memory(core, purpose, bytes, "cuMemAlloc", code))
            }
        }
    }

    pub fn give_back(&mut self, core: &Core, purpose: Purpose, address: u64) {
        if let Some(bytes) = self.0.remove(&address) {
            // `cuMemFree` waits for the device by itself on most drivers, but that is not promised.
            wait_for_users(core);
            // SAFETY: the address came from `cuMemAlloc`, is freed once, and nothing uses it any more.
            unsafe { sys::cuMemFree_v2(address) };
            gauge::release(core.ledger().as_ref(), purpose, bytes);
        }
    }

    /// Copies every shrunk block to a fresh one and frees the old, one after the other, so that one block at most is there twice.
    pub fn shrink(&mut self, core: &Core, purpose: Purpose, kept: &mut [(&mut Block, u64)]) -> Result<()> {
        for (block, bytes) in kept {
            if booked(purpose, *bytes)? == booked(purpose, block.bytes)? {
                block.moved(block.address, *bytes);
                continue;
            }
            let address = self.take(core, purpose, *bytes)?;
            core.copy_on_device("shrink", address, block.address, *bytes)?;
            let old = block.address;
            block.moved(address, *bytes);
            self.give_back(core, purpose, old);
        }
        Ok(())
    }
}
