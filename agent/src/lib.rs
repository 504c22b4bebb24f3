//! The agent: signals, training and recovery, criteria and pruning, the memory watch, and the diagnosis loop.

pub mod criteria;
pub mod error;
pub mod prune;
pub mod signals;
pub mod train;

pub use error::{AgentError, Result};
