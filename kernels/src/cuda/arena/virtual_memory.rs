//! Blocks in reserved address ranges with memory mapped behind them.

use std::collections::BTreeMap;
use std::ops::Range;

use super::super::sys::{self, CUresult};
use super::plain::too_large;
use super::{ALIGNMENT, Block, out_of_memory, wait_for_users};
use crate::cuda::device::Core;
use crate::cuda::gauge;
use crate::error::Result;
use crate::memory::Purpose;

/// Addresses that an extent reserves, unless the device has less memory or a block needs more. Addresses cost nothing, and one extent
/// packs better than several.
const EXTENT_BYTES: u64 = 16 << 30;

/// A gap below this is not closed where that would take more than [`MOST_PIECES`] copies: at 2 to 3 µs a copy it would cost more than the
/// bytes are worth.
const SMALL_GAP_BYTES: u64 = 4096;
const MOST_PIECES: u64 = 64;

/// A piece of mapped memory.
struct Granule {
    handle: sys::CUmemGenericAllocationHandle,
    /// Blocks that lie on it.
    blocks: u32,
}

/// A reserved range of addresses.
struct Extent {
    base: u64,
    bytes: u64,
    /// Offset and length, both multiples of [`ALIGNMENT`].
    blocks: BTreeMap<u64, u64>,
    /// By number.
    granules: BTreeMap<u64, Granule>,
}

/// The extents of an arena.
pub(super) struct Extents {
    granule: u64,
    extents: Vec<Extent>,
}

/// What the driver is asked for: memory of this device, for nobody else.
fn properties(device: sys::CUdevice) -> sys::CUmemAllocationProp {
    // SAFETY: the driver's struct of numbers and null pointers, for which zero means "nothing asked for".
    let mut properties: sys::CUmemAllocationProp = unsafe { std::mem::zeroed() };
    properties.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location = location(device);
    properties
}

fn location(device: sys::CUdevice) -> sys::CUmemLocation {
    sys::CUmemLocation { type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: device }
}

/// The granularity of the device's allocations; none where the driver does not tell.
pub(in crate::cuda) fn granularity(device: sys::CUdevice) -> Option<u64> {
    let mut bytes = 0;
    let option = sys::CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
    // SAFETY: both are places that live through the call.
    let code = unsafe { sys::cuMemGetAllocationGranularity(&mut bytes, &properties(device), option) };
    // A power of two, so that every block that starts in a granule is aligned.
    (code == CUresult::CUDA_SUCCESS && (bytes as u64).is_power_of_two() && bytes as u64 >= ALIGNMENT).then_some(bytes as u64)
}

impl Extents {
    pub fn new(granule: u64) -> Self {
        Self { granule, extents: Vec::new() }
    }

    pub fn count(&self) -> usize {
        self.extents.iter().map(|extent| extent.blocks.len()).sum()
    }

    pub fn mapped_bytes(&self) -> u64 {
        self.extents.iter().map(|extent| extent.granules.len() as u64 * self.granule).sum()
    }

    pub fn take(&mut self, core: &Core, purpose: Purpose, bytes: u64) -> Result<u64> {
        let refused = || too_large(purpose, bytes);
        let bytes = bytes.checked_next_multiple_of(ALIGNMENT).ok_or_else(refused)?;
        let place = self.extents.iter().enumerate().find_map(|(i, extent)| Some((i, extent.gap(bytes)?)));
        let (i, offset) = match place {
            Some(place) => place,
            None => {
                let extent =
                    Extent::reserve(core, purpose, bytes.checked_next_multiple_of(self.granule).ok_or_else(refused)?, self.granule)?;
                self.extents.push(extent);
                (self.extents.len() - 1, 0)
            }
        };
        let result = self.extents[i].take(core, purpose, offset, bytes, self.granule);
        if result.is_err() {
            self.forget_if_empty(i);
        }
        result
    }

    pub fn give_back(&mut self, core: &Core, purpose: Purpose, address: u64) {
        let Some(i) = self.extents.iter().position(|extent| extent.contains(address)) else { return };
        let extent = &mut self.extents[i];
        let offset = address - extent.base;
        if let Some(bytes) = extent.blocks.remove(&offset) {
            extent.leave(core, purpose, offset, bytes, self.granule);
            self.forget_if_empty(i);
        }
    }

    /// Gives the addresses of extent `i` back where no block lies in it.
    fn forget_if_empty(&mut self, i: usize) {
        if self.extents[i].blocks.is_empty() && self.extents[i].granules.is_empty() {
            let extent = self.extents.swap_remove(i);
            // SAFETY: the range was reserved as a whole, and nothing is mapped in it.
            unsafe { sys::cuMemAddressFree(extent.base, extent.bytes as usize) };
        }
    }

    /// Moves the kept bytes of the blocks, which are in the order of their addresses, to the lowest places of their extents.
    pub fn shrink(&mut self, core: &Core, purpose: Purpose, kept: &mut [(&mut Block, u64)]) -> Result<()> {
        let mut places = Vec::with_capacity(kept.len());
        for extent in &self.extents {
            let mut end = 0;
            for (block, bytes) in kept.iter().filter(|(block, _)| extent.contains(block.address)) {
                let (from, bytes) = (block.address - extent.base, bytes.next_multiple_of(ALIGNMENT));
                let lowest = extent.mapped_place(end, from, bytes, self.granule);
                let gap = from - lowest;
                let to = if gap < SMALL_GAP_BYTES && bytes > gap * MOST_PIECES { from } else { lowest };
                copy_down(core, extent.base + to, block.address, bytes)?;
                places.push((block.address, extent.base + to, bytes));
                end = to + bytes;
            }
        }
        for ((block, bytes), (from, to, reserved)) in kept.iter_mut().zip(sorted(places)) {
            debug_assert_eq!(block.address, from);
            block.moved(to, *bytes);
            if let Some(extent) = self.extents.iter_mut().find(|extent| extent.contains(to)) {
                extent.placed(from - extent.base, to - extent.base, reserved);
            }
        }
        for i in (0..self.extents.len()).rev() {
            let granule = self.granule;
            self.extents[i].recount(core, purpose, granule);
            self.forget_if_empty(i);
        }
        Ok(())
    }
}

fn sorted(mut places: Vec<(u64, u64, u64)>) -> Vec<(u64, u64, u64)> {
    places.sort_unstable();
    places
}

/// Copies `bytes` to a lower address, in ascending pieces no longer than the distance, so that no piece overlaps its own source.
pub(in crate::cuda) fn copy_down(core: &Core, to: u64, from: u64, bytes: u64) -> Result<()> {
    let piece = from - to;
    let mut done = 0;
    while piece > 0 && done < bytes {
        let len = piece.min(bytes - done);
        core.copy_on_device("shrink", to + done, from + done, len)?;
        done += len;
    }
    Ok(())
}

impl Extent {
    fn reserve(core: &Core, purpose: Purpose, bytes: u64, granule: u64) -> Result<Self> {
        let generous = EXTENT_BYTES.min(core.attributes().total_bytes).next_multiple_of(granule).max(bytes);
        let mut failure = CUresult::CUDA_SUCCESS;
        // A device with few address bits may refuse more than is needed.
        for len in [generous, bytes] {
            let Ok(size) = usize::try_from(len) else { continue };
            let mut base = 0;
            // SAFETY: `base` is a place for the address; the context is current, since the caller is inside `Core::enter`.
            match unsafe { sys::cuMemAddressReserve(&mut base, size, granule as usize, 0, 0) } {
                CUresult::CUDA_SUCCESS => {
                    return Ok(Self { base, bytes: len, blocks: BTreeMap::new(), granules: BTreeMap::new() });
                }
                code => failure = code,
            }
        }
        Err(out_of_memory(core, purpose, bytes, "cuMemAddressReserve", failure))
    }

    fn contains(&self, address: u64) -> bool {
        address >= self.base && address - self.base < self.bytes
    }

    /// The lowest offset with `bytes` free.
    fn gap(&self, bytes: u64) -> Option<u64> {
        let mut end = 0;
        for (offset, len) in &self.blocks {
            if offset - end >= bytes {
                return Some(end);
            }
            end = offset + len;
        }
        (self.bytes - end >= bytes).then_some(end)
    }

    /// The lowest offset from `start` on at which `bytes` lie on mapped granules; `from`, where they are, at the latest. Granules that a
    /// dropped block has left unmapped are passed over: they cost nothing.
    fn mapped_place(&self, start: u64, from: u64, bytes: u64, granule: u64) -> u64 {
        let mut to = start;
        while let Some(missing) = span(to, bytes, granule).rfind(|number| !self.granules.contains_key(number)) {
            to = (missing + 1) * granule;
            if to >= from {
                return from;
            }
        }
        to.min(from)
    }

    fn take(&mut self, core: &Core, purpose: Purpose, offset: u64, bytes: u64, granule: u64) -> Result<u64> {
        let span = span(offset, bytes, granule);
        let missing: Vec<u64> = span.clone().filter(|number| !self.granules.contains_key(number)).collect();
        let needed = missing.len() as u64 * granule;
        gauge::reserve(core.ledger().as_ref(), purpose, needed)?;
        let mut failure = None;
        for number in &missing {
            match self.map(core, *number, granule) {
                Ok(handle) => drop(self.granules.insert(*number, Granule { handle, blocks: 0 })),
                Err((operation, code)) => {
                    failure = Some(out_of_memory(core, purpose, needed, operation, code));
                    break;
                }
            }
        }
        if failure.is_none() {
            failure = self.allow(core, purpose, &missing, granule).err();
        }
        if let Some(failure) = failure {
            for number in missing {
                if let Some(mapped) = self.granules.remove(&number) {
                    self.unmap(number, mapped, granule);
                }
            }
            gauge::release(core.ledger().as_ref(), purpose, needed);
            return Err(failure);
        }
        span.for_each(|number| self.granules.get_mut(&number).into_iter().for_each(|granule| granule.blocks += 1));
        self.blocks.insert(offset, bytes);
        Ok(self.base + offset)
    }

    fn map(
        &self,
        core: &Core,
        number: u64,
        granule: u64,
    ) -> std::result::Result<sys::CUmemGenericAllocationHandle, (&'static str, CUresult)> {
        let mut handle = 0;
        // SAFETY: both are places that live through the call.
        match unsafe { sys::cuMemCreate(&mut handle, granule as usize, &properties(core.handle()), 0) } {
            CUresult::CUDA_SUCCESS => {}
            code => return Err(("cuMemCreate", code)),
        }
        // SAFETY: the granule lies in the reserved range and nothing is mapped there.
        match unsafe { sys::cuMemMap(self.base + number * granule, granule as usize, 0, handle, 0) } {
            CUresult::CUDA_SUCCESS => Ok(handle),
            code => {
                // SAFETY: the handle was just created and is mapped nowhere.
                unsafe { sys::cuMemRelease(handle) };
                Err(("cuMemMap", code))
            }
        }
    }

    /// Lets the device read and write granules, by one call for every run of neighbours.
    fn allow(&self, core: &Core, purpose: Purpose, numbers: &[u64], granule: u64) -> Result<()> {
        let flags = sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
        let access = sys::CUmemAccessDesc { location: location(core.handle()), flags };
        for run in numbers.chunk_by(|a, b| a + 1 == *b) {
            let bytes = run.len() as u64 * granule;
            // SAFETY: the granules of the run are mapped, and `access` lives through the call.
            match unsafe { sys::cuMemSetAccess(self.base + run[0] * granule, bytes as usize, &access, 1) } {
                CUresult::CUDA_SUCCESS => {}
                code => return Err(out_of_memory(core, purpose, bytes, "cuMemSetAccess", code)),
            }
        }
        Ok(())
    }

    fn unmap(&self, number: u64, Granule { handle, .. }: Granule, granule: u64) {
        // SAFETY: the granule was mapped as a whole and nothing uses it any more; its handle is released once.
        unsafe {
            sys::cuMemUnmap(self.base + number * granule, granule as usize);
            sys::cuMemRelease(handle);
        }
    }

    /// Takes a block off its granules and unmaps those that are empty then.
    fn leave(&mut self, core: &Core, purpose: Purpose, offset: u64, bytes: u64, granule: u64) {
        for number in span(offset, bytes, granule) {
            self.granules.get_mut(&number).into_iter().for_each(|granule| granule.blocks -= 1);
        }
        self.unmap_empty(core, purpose, granule);
    }

    fn placed(&mut self, from: u64, to: u64, bytes: u64) {
        self.blocks.remove(&from);
        self.blocks.insert(to, bytes);
    }

    /// Counts the blocks on every granule anew and unmaps those that are empty.
    fn recount(&mut self, core: &Core, purpose: Purpose, granule: u64) {
        self.granules.values_mut().for_each(|granule| granule.blocks = 0);
        for (offset, bytes) in &self.blocks {
            for number in span(*offset, *bytes, granule) {
                self.granules.get_mut(&number).into_iter().for_each(|granule| granule.blocks += 1);
            }
        }
        self.unmap_empty(core, purpose, granule);
    }

    fn unmap_empty(&mut self, core: &Core, purpose: Purpose, granule: u64) {
        let empty: Vec<u64> = self.granules.iter().filter(|(_, granule)| granule.blocks == 0).map(|(number, _)| *number).collect();
        if empty.is_empty() {
            return;
        }
        wait_for_users(core);
        for number in &empty {
            if let Some(mapped) = self.granules.remove(number) {
                self.unmap(*number, mapped, granule);
            }
        }
        gauge::release(core.ledger().as_ref(), purpose, empty.len() as u64 * granule);
    }
}

/// The granules on which `bytes` from `offset` on lie.
fn span(offset: u64, bytes: u64, granule: u64) -> Range<u64> {
    offset / granule..(offset + bytes).div_ceil(granule)
}
