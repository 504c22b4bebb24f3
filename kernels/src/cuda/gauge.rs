//! The device memory that this process has, which no gauge of the operating system shows.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::error::Result;
use crate::memory::{Ledger, Purpose};

static MAPPED: AtomicU64 = AtomicU64::new(0);

/// Bytes of device memory that all devices of this process have mapped; not what the driver keeps there for itself, nor host memory that a
/// device reads in place.
pub fn device_bytes() -> u64 {
    MAPPED.load(Relaxed)
}

/// Books device memory that is about to be mapped.
pub(super) fn reserve(ledger: &dyn Ledger, purpose: Purpose, bytes: u64) -> Result<()> {
    ledger.reserve(purpose, bytes)?;
    MAPPED.fetch_add(bytes, Relaxed);
    Ok(())
}

/// Gives back what was booked.
pub(super) fn release(ledger: &dyn Ledger, purpose: Purpose, bytes: u64) {
    MAPPED.fetch_sub(bytes, Relaxed);
    ledger.release(purpose, bytes);
}
