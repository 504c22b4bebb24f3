//! Host pages that an integrated device reads at their own addresses.

use std::ffi::c_void;
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

/// The pages on which `host` lies.
fn pages(host: &HostBytes) -> (usize, usize) {
    let (page, bytes) = (rustix::param::page_size(), host.bytes());
    let start = bytes.as_ptr() as usize / page * page;
    (start, (bytes.as_ptr() as usize + bytes.len()).next_multiple_of(page) - start)
}

impl Registration {
    /// Registers the pages of `host` for reading. None where the driver does not: it has them registered already, or cannot.
    pub fn of(core: &Arc<Core>, host: &HostBytes) -> Result<Option<Self>> {
        let (address, bytes) = pages(host);
        let booked = Reservation::new(core.ledger().clone(), Purpose::Weights, bytes as u64)?;
        let read_only = if core.attributes().registers_read_only { sys::CU_MEMHOSTREGISTER_READ_ONLY } else { 0 };
        let flags = sys::CU_MEMHOSTREGISTER_DEVICEMAP | read_only;
        // SAFETY: whole pages of which the first and the last byte belong to a live mapping that `_host` keeps.
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
