//! A machine that exists in a test: its clock and gauges say what they are told.

use std::time::Duration;

use super::hardware::{GaugeError, Hardware, Held, Pressure, Wake};

/// Gauges and a clock that are set by hand. Waiting advances the clock and takes no time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Simulated {
    /// The clock.
    pub now: Duration,
    /// What the program holds.
    pub held: Held,
    /// What the host can give, less the reserve.
    pub available_bytes: Option<u64>,
    /// What the kernel would say about pressure; [`Hardware::wait`] returns at once where some task waits.
    pub pressure: Option<Pressure>,
}

impl Hardware for Simulated {
    fn now(&self) -> Duration {
        self.now
    }

    fn held(&mut self) -> Held {
        self.held
    }

    fn available_bytes(&mut self) -> Result<Option<u64>, GaugeError> {
        Ok(self.available_bytes)
    }

    fn pressure(&mut self) -> Option<Pressure> {
        self.pressure
    }

    fn wait(&mut self, timeout: Duration) -> Wake {
        if self.pressure.is_some_and(|pressure| pressure.some_avg10_percent > 0.0) {
            return Wake::Pressure;
        }
        self.now = self.now.saturating_add(timeout);
        Wake::Timeout
    }
}
