//! Who is asked before a device allocates.

use std::sync::Arc;

use crate::error::Result;

/// What memory is for; a plan and a refusal name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Purpose {
    /// Weights that are not mapped from an artifact.
    Weights,
    /// Buffers of a forward pass.
    Activations,
    /// Keys and values of a session.
    KvCache,
    /// Windows or texts of the calibration set.
    Calibration,
    /// LoRA adapters.
    Adapters,
    /// Gradients.
    Gradients,
    /// Optimizer moments.
    Optimizer,
    /// Rows on their way into an artifact.
    Pack,
    /// Vocabulary and merges of a language model.
    Tokenizer,
    /// What a device's driver takes of the host's memory.
    Driver,
}

impl Purpose {
    /// The words that a plan and a refusal use.
    pub fn name(self) -> &'static str {
        match self {
            Purpose::Weights => "weights",
            Purpose::Activations => "activations",
            Purpose::KvCache => "KV cache",
            Purpose::Calibration => "calibration data",
            Purpose::Adapters => "adapters",
            Purpose::Gradients => "gradients",
            Purpose::Optimizer => "optimizer moments",
            Purpose::Pack => "packing",
            Purpose::Tokenizer => "the tokenizer",
            Purpose::Driver => "the device's driver",
        }
    }
}

/// Asked before memory is taken and told when it is given back. Implemented by the runtime's budget.
pub trait Ledger: Send + Sync {
    /// Takes `bytes` for `purpose`, or refuses.
    fn reserve(&self, purpose: Purpose, bytes: u64) -> Result<()>;
    /// Gives `bytes` of `purpose` back.
    fn release(&self, purpose: Purpose, bytes: u64);
}

/// A ledger that refuses nothing, for tests and tools.
#[derive(Debug, Default)]
pub struct Unlimited;

impl Ledger for Unlimited {
    fn reserve(&self, _purpose: Purpose, _bytes: u64) -> Result<()> {
        Ok(())
    }
    fn release(&self, _purpose: Purpose, _bytes: u64) {}
}

/// Bytes taken from a ledger, given back on drop.
pub struct Reservation {
    ledger: Arc<dyn Ledger>,
    purpose: Purpose,
    bytes: u64,
}

impl Reservation {
    /// Takes `bytes` for `purpose`.
    pub fn new(ledger: Arc<dyn Ledger>, purpose: Purpose, bytes: u64) -> Result<Self> {
        ledger.reserve(purpose, bytes)?;
        Ok(Self { ledger, purpose, bytes })
    }

    /// What was taken.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.ledger.release(self.purpose, self.bytes);
    }
}
