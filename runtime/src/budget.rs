//! The bytes the program may hold.
//!
//! A [`Budget`] has a *limit* that is never exceeded (every large buffer is reserved from it by purpose, and a refusal is an error
//! value) and a *goal* that the agent must get under: lowering it never fails, it shows as [overdraft](Budget::overdraft).

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use espalier_kernels::{KernelError, Ledger, Purpose};

/// Limit, goal, and what is reserved for which purpose.
#[derive(Debug)]
pub struct Budget {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limit: u64,
    goal: u64,
    process: u64,
    reserved: BTreeMap<Purpose, u64>,
    total: u64,
    high_water: u64,
}

impl Budget {
    /// A budget of `limit` bytes, of which `process` bytes (code's data, stacks, allocator) are taken from the start. The goal is the limit.
    pub fn new(limit: u64, process: u64) -> Self {
        let state = State { limit, goal: limit, process, reserved: BTreeMap::new(), total: 0, high_water: process };
        Self { state: Mutex::new(state) }
    }

    /// A budget without a limit.
    pub fn unlimited() -> Self {
        Self::new(u64::MAX, 0)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is complete before the lock is given back, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes the program may never exceed.
    pub fn limit(&self) -> u64 {
        self.state().limit
    }

    /// Bytes the agent must get under.
    pub fn goal(&self) -> u64 {
        self.state().goal
    }

    /// Changes the goal; it never fails.
    pub fn set_goal(&self, goal: u64) {
        self.state().goal = goal;
    }

    /// Lowers or raises the limit. What is reserved stays reserved; nothing more is granted until it fits.
    pub fn set_limit(&self, limit: u64) {
        self.state().limit = limit;
    }

    /// Bytes reserved for all purposes, and the process itself.
    pub fn used(&self) -> u64 {
        let state = self.state();
        state.process.saturating_add(state.total)
    }

    /// The most that was ever [used](Budget::used).
    pub fn high_water(&self) -> u64 {
        self.state().high_water
    }

    /// Bytes used beyond the goal.
    pub fn overdraft(&self) -> u64 {
        let state = self.state();
        state.process.saturating_add(state.total).saturating_sub(state.goal)
    }

    /// Bytes that may still be reserved.
    pub fn available(&self) -> u64 {
        let state = self.state();
        state.limit.saturating_sub(state.process.saturating_add(state.total))
    }

    /// What is reserved, by purpose, largest purpose name order; the process itself is not among it.
    pub fn by_purpose(&self) -> Vec<(Purpose, u64)> {
        self.state().reserved.iter().filter(|(_, bytes)| **bytes > 0).map(|(purpose, bytes)| (*purpose, *bytes)).collect()
    }
}

impl Ledger for Budget {
    fn reserve(&self, purpose: Purpose, bytes: u64) -> espalier_kernels::Result<()> {
        let mut state = self.state();
        let used = state.process.saturating_add(state.total);
        let available = state.limit.saturating_sub(used);
        if bytes > available {
            return Err(KernelError::OutOfBudget { purpose: purpose.name(), needed: bytes, available, limit: state.limit });
        }
        state.total += bytes;
        *state.reserved.entry(purpose).or_default() += bytes;
        state.high_water = state.high_water.max(used.saturating_add(bytes));
        Ok(())
    }

    fn release(&self, purpose: Purpose, bytes: u64) {
        let mut state = self.state();
        state.total = state.total.saturating_sub(bytes);
        if let Some(reserved) = state.reserved.get_mut(&purpose) {
            *reserved = reserved.saturating_sub(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_refuses_and_the_goal_shows_as_overdraft() {
        let budget = Budget::new(1000, 100);
        assert!(budget.reserve(Purpose::Activations, 600).is_ok());
        let refused = budget.reserve(Purpose::Adapters, 301);
        assert_eq!(refused, Err(KernelError::OutOfBudget { purpose: "adapters", needed: 301, available: 300, limit: 1000 }));
        budget.set_goal(500);
        assert_eq!((budget.used(), budget.overdraft()), (700, 200));
        budget.release(Purpose::Activations, 600);
        assert_eq!((budget.used(), budget.overdraft(), budget.high_water()), (100, 0, 700));
    }

    #[test]
    fn a_lowered_limit_keeps_what_is_reserved_and_grants_nothing_more() {
        let budget = Budget::new(1000, 0);
        assert!(budget.reserve(Purpose::Weights, 800).is_ok());
        budget.set_limit(500);
        assert_eq!((budget.used(), budget.available()), (800, 0));
        assert!(budget.reserve(Purpose::Weights, 1).is_err());
    }
}
