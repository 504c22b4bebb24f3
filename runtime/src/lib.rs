//! Runs a model: what it may hold in memory, the forward and backward pass, and the sessions that serve.
//!
//! This crate knows nothing of pruning: [`Gates`], [`Adapter`]s and [`Gradients`] are what a criterion or a recovery is built from.

mod adapter;
mod backward;
mod budget;
mod classify;
mod decoding;
mod error;
mod forward;
mod gates;
pub mod gauges;
mod generate;
mod gradients;
mod kv_cache;
mod layer_backward;
mod layer_forward;
mod load;
mod mapped;
mod network;
#[cfg(feature = "ort")]
mod ort;
mod page_allocator;
mod pages;
mod plan;
mod sampling;
mod score;
mod workspace;

pub use adapter::{Adapter, AdapterLike, AdapterOptions};
pub use budget::Budget;
pub use classify::Classifier;
pub use error::{Result, RuntimeError};
pub use forward::{Input, Pass};
pub use gates::{GateGradients, Gates, LayerGateGradients};
pub use generate::{Continues, GenerationSpeed, Generator};
pub use gradients::Gradients;
pub use kv_cache::KvCache;
pub use load::{DeviceTensors, kernel_format};
pub use network::Network;
#[cfg(feature = "ort")]
pub use ort::{OrtGenerator, OrtLibrary, OrtModel, OrtOptions};
pub use page_allocator::{PageAllocator, release_free_memory, tune_system_allocator};
pub use pages::Residency;
pub use plan::{MAX_PROMPT_TOKENS, PROCESS_BYTES, Plan, PlanLine, tokenizer_bytes};
pub use sampling::{Sampler, Sampling};
pub use score::Scorer;
pub use workspace::{Keep, LogitRows, Workspace, WorkspaceSize, workspace_bytes};
