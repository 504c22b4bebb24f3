//! A transformer as data: its architecture, the shape of every layer, the memory-mapped artifact and the checkpoints it is made from.
//!
//! This crate knows nothing of running a model.

pub mod architecture;
pub mod manifest;
pub mod shape;
pub mod tensor;

pub use architecture::Architecture;
pub use manifest::Manifest;
pub use shape::{LayerShape, ModelShape, Units};
pub use tensor::{DType, Layout, Part, TensorKey, TensorSpec};
