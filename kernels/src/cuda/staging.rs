//! Host data on their way to and from the device: through page-locked buffers, which the device reads while the host goes on.

use std::sync::Arc;

use super::device::Core;
use super::driver::{Event, Pinned, Stream, describe};
use super::memory::Pointer;
use super::sys::{self, CUresult};
use crate::error::{KernelError, Result};
use crate::memory::{Ledger, Purpose, Reservation};

/// A part for windows, indices and results: a copy of this length takes about as long as starting it (128 KiB at 25 GB/s: 5 µs), and eight
/// of them are as many windows on their way as anyone has.
const SMALL_BYTES: usize = 128 << 10;
const SMALL_PARTS: usize = 8;

/// A part for weights: long enough for the full speed of the bus; while one is copied by the device the other is filled.
const LARGE_BYTES: usize = 2 << 20;
const LARGE_PARTS: usize = 2;

/// Page-locked parts that are used in turn.
struct Ring {
    memory: Pinned,
    part_bytes: usize,
    /// Reached when the device has read the part.
    read: Vec<Event>,
    next: usize,
}

impl Ring {
    fn new(part_bytes: usize, parts: usize) -> Result<Self> {
        let memory = Pinned::new(part_bytes * parts).map_err(|code| match code {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                KernelError::OutOfMemory { purpose: "page-locked staging", needed: (part_bytes * parts) as u64, reason: describe(code) }
            }
            code => KernelError::Device { operation: "page-locked staging", reason: describe(code), lost: super::driver::is_sticky(code) },
        })?;
        let read = (0..parts).map(|_| Event::new(false)).collect::<Result<_>>()?;
        Ok(Self { memory, part_bytes, read, next: 0 })
    }

    fn upload(&mut self, core: &Core, stream: &Stream, to: Pointer, from: &[u8]) -> Result<()> {
        for (piece, from) in from.chunks(self.part_bytes).enumerate() {
            let part = self.next;
            self.next = (part + 1) % self.read.len();
            // The part may still be read by the copy that used it last.
            self.read[part].synchronize().map_err(|error| core.note(error))?;
            let staged = self.memory.part(part * self.part_bytes, from.len());
            staged.copy_from_slice(from);
            let to = to.plus_bytes((piece * self.part_bytes) as u64).address();
            // SAFETY: the target is the caller's block; the source is page-locked and not written before its event is reached.
            let code = unsafe { sys::cuMemcpyHtoDAsync_v2(to, staged.as_ptr().cast(), staged.len(), stream.handle()) };
            core.check("upload", code)?;
            self.read[part].record(stream).map_err(|error| core.note(error))?;
        }
        Ok(())
    }
}

/// The page-locked buffers of a device, which count as activations.
pub(super) struct Staging {
    small: Ring,
    large: Ring,
    _booked: Reservation,
}

impl Staging {
    /// Takes the buffers, booked in `ledger`. The context is current.
    pub fn new(ledger: Arc<dyn Ledger>) -> Result<Self> {
        let bytes = SMALL_BYTES * SMALL_PARTS + LARGE_BYTES * LARGE_PARTS;
        let _booked = Reservation::new(ledger, Purpose::Activations, bytes as u64)?;
        Ok(Self { small: Ring::new(SMALL_BYTES, SMALL_PARTS)?, large: Ring::new(LARGE_BYTES, LARGE_PARTS)?, _booked })
    }

    /// Copies `from` to `to` in the order of the compute stream, and returns once `from` has been read.
    pub fn write(&mut self, core: &Core, to: Pointer, from: &[u8]) -> Result<()> {
        core.refuse_while_capturing("write")?;
        self.small.upload(core, core.compute(), to, from)
    }

    /// Copies `from` to fresh memory beside the work on the compute stream; what comes later on that stream waits for it.
    pub fn upload(&mut self, core: &Core, to: Pointer, from: &[u8]) -> Result<()> {
        core.refuse_while_capturing("upload")?;
        // The memory may have been another buffer's, which work on the compute stream still reads.
        core.order(core.compute(), core.copies())?;
        let uploaded = self.large.upload(core, core.copies(), to, from);
        // Of a failed upload too: its first parts may still be on their way to memory that the caller gives back.
        core.order(core.copies(), core.compute())?;
        uploaded
    }

    /// Copies `from` to `to` and waits for it, and so for everything before it.
    pub fn read(&mut self, core: &Core, from: Pointer, to: &mut [u8]) -> Result<()> {
        core.refuse_while_capturing("read")?;
        if to.is_empty() {
            return core.wait("read");
        }
        for (piece, to) in to.chunks_mut(SMALL_BYTES).enumerate() {
            let part = self.small.next;
            self.small.read[part].synchronize().map_err(|error| core.note(error))?;
            let staged = self.small.memory.part(part * SMALL_BYTES, to.len());
            let from = from.plus_bytes((piece * SMALL_BYTES) as u64).address();
            // SAFETY: the source is the caller's block; the target is page-locked and not read before the stream has been waited for.
            let code = unsafe { sys::cuMemcpyDtoHAsync_v2(staged.as_mut_ptr().cast(), from, staged.len(), core.compute().handle()) };
            core.check("read", code)?;
            core.wait("read")?;
            to.copy_from_slice(staged);
        }
        Ok(())
    }
}
