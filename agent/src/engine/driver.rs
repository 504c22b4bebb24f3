//! What the driver of a GPU takes of the host's memory.

use std::sync::PoisonError;
use std::time::Duration;

use espalier_kernels::Reservation;
use espalier_runtime::gauges::{self, OutsideBytes};
use espalier_runtime::{Result, release_free_memory};

use super::Left;

/// Books what a driver takes of the host's memory. Dropped otherwise than by [`take`](DriverMemory::take), all of it counts as kept by the
/// driver.
pub(super) struct DriverMemory {
    reservation: Option<Reservation>,
    left: Left,
    _outside: OutsideBytes,
}

impl DriverMemory {
    /// What was booked for `taken`.
    pub fn new(reservation: Reservation, taken: DriverGauge, left: Left) -> Self {
        Self { reservation: Some(reservation), left, _outside: OutsideBytes::new(taken.outside) }
    }

    /// What was booked, for one who finds out what the driver keeps.
    pub fn take(mut self) -> Option<Reservation> {
        self.reservation.take()
    }
}

impl Drop for DriverMemory {
    fn drop(&mut self) {
        if let Some(reservation) = self.reservation.take() {
            self.left.lock().unwrap_or_else(PoisonError::into_inner).push(reservation);
        }
    }
}

/// What shows of a driver in the host's memory.
#[derive(Clone, Copy)]
pub(super) struct DriverGauge {
    /// Bytes that this process has.
    pub process: u64,
    /// Bytes that no process has; 0 where the kernel does not say.
    pub outside: u64,
}

impl DriverGauge {
    /// What there is now.
    pub fn read() -> Result<Self> {
        let outside = gauges::unaccounted_bytes().unwrap_or_else(|error| {
            log::debug!("what a driver takes outside this process is not counted: {error}");
            0
        });
        Ok(Self { process: gauges::anonymous_bytes()?, outside })
    }

    /// What there is once free memory is given back: the least of a few readings, since pages that a process somewhere is giving back just
    /// now are for a moment nobody's.
    pub fn settled() -> Result<Self> {
        const READINGS: usize = 4;
        const APART: Duration = Duration::from_millis(3);
        release_free_memory();
        let mut least = Self::read()?;
        for _ in 1..READINGS {
            std::thread::sleep(APART);
            let now = Self::read()?;
            least = Self { process: now.process, outside: now.outside.min(least.outside) };
        }
        Ok(least)
    }

    /// What is more than `before`, each place for itself.
    pub fn since(self, before: Self) -> Self {
        Self { process: self.process.saturating_sub(before.process), outside: self.outside.saturating_sub(before.outside) }
    }

    /// Both places.
    pub fn bytes(self) -> u64 {
        self.process.saturating_add(self.outside)
    }
}
