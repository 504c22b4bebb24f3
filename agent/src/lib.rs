//! The agent: signals, training and recovery, criteria and pruning, the memory watch, and the diagnosis loop.

pub mod check;
pub mod cli;
pub mod control;
pub mod criteria;
pub mod data;
pub mod diagnosis;
pub mod diagnosis_text;
pub mod engine;
pub mod error;
pub mod evaluate;
pub mod files;
pub mod language;
pub mod lost_pages;
pub mod metrics;
pub mod node;
pub mod picture;
pub mod prune;
pub mod sampler;
pub mod sessions;
pub mod signal_model;
pub mod signals;
pub mod store;
pub mod table;
pub mod text;
pub mod train;

pub use error::{AgentError, Result};
