//! Host pages that an integrated device reads at their own addresses.

use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;

use super::device::{Core, Held};
use super::driver;
use super::sys::{self, CUresult};
use crate::device::HostBytes;
use crate::error::Result;
use crate::memory::{Purpose, Reservation};

/// Pages that are registered, and so cannot be evicted, until dropped.
pub(super) struct Registration {
    core: Arc<Core>,
    /// None once given back.
    pages: Option<RegisteredPages>,
}

/// The pages of a registration. Dropped, they are registered no more: when no work on the device reads them.
pub(super) struct RegisteredPages {
    address: usize,
    /// Keeps the pages mapped.
    _host: HostBytes,
    _booked: Reservation,
}

/// The pages on which `parts` of some bytes at `start` lie, in order; those that meet are one piece, since a page is registered once.
fn pages(start: usize, parts: &[Range<usize>]) -> Vec<Range<usize>> {
    let page = rustix::param::page_size();
    let used = parts.iter().filter(|part| !part.is_empty());
    let mut pieces: Vec<_> = used.map(|part| (start + part.start) / page * page..(start + part.end).next_multiple_of(page)).collect();
    pieces.sort_unstable_by_key(|piece| piece.start);
    pieces.dedup_by(|next, piece| {
        let meet = next.start <= piece.end;
        if meet {
            piece.end = piece.end.max(next.end);
        }
        meet
    });
    pieces
}

impl Registration {
    /// Registers the pages on which `parts` of `host` lie, for reading. None where the driver does not: it has them registered already, or
    /// cannot.
    pub fn of(core: &Arc<Core>, host: &HostBytes, parts: &[Range<usize>]) -> Result<Option<Vec<Self>>> {
        let pieces = pages(host.bytes().as_ptr() as usize, parts);
        pieces.into_iter().map(|piece| Self::of_pages(core, host, piece)).collect()
    }

    fn of_pages(core: &Arc<Core>, host: &HostBytes, pages: Range<usize>) -> Result<Option<Self>> {
        let (address, bytes) = (pages.start, pages.len());
        let booked = Reservation::new(core.ledger().clone(), Purpose::Weights, bytes as u64)?;
        let read_only = if core.attributes().registers_read_only { sys::CU_MEMHOSTREGISTER_READ_ONLY } else { 0 };
        let flags = sys::CU_MEMHOSTREGISTER_DEVICEMAP | read_only;
        // SAFETY: whole pages, on the first and the last of which are bytes of a live mapping that `_host` keeps.
        match unsafe { sys::cuMemHostRegister_v2(address as *mut c_void, bytes, flags) } {
            CUresult::CUDA_SUCCESS => {}
            code if driver::is_sticky(code) => core.check("cuMemHostRegister", code)?,
            _ => return Ok(None),
        }
        let pages = RegisteredPages { address, _host: host.clone(), _booked: booked };
        let registration = Self { core: core.clone(), pages: Some(pages) };
        let mut device = 0;
        // SAFETY: `device` is a place for the address; the range is registered.
        let code = unsafe { sys::cuMemHostGetDevicePointer_v2(&mut device, address as *mut c_void, 0) };
        // Elsewhere than at the host's own address it would be of no use: weights are read where they are.
        let in_place = code == CUresult::CUDA_SUCCESS && device == address as u64;
        Ok(in_place.then_some(registration))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(pages) = self.pages.take() {
            self.core.give_back(Held::Registered(pages));
        }
    }
}

impl Drop for RegisteredPages {
    fn drop(&mut self) {
        // SAFETY: registered once, unregistered once, and nothing reads it any more. An error would be that of a lost device.
        unsafe { sys::cuMemHostUnregister(self.address as *mut c_void) };
    }
}
