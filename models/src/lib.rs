//! A transformer as data: its architecture, the shape of every layer, the memory-mapped artifact and the checkpoints it is made from.
//!
//! * [`architecture`], [`shape`], [`tensor`]: what a model is, which tensors it has and how units are laid out.
//! * [`formats`]: how numbers become bytes.
//! * [`artifact`]: the `.esp` file, opened with one map, written front to back.
//! * [`checkpoint`]: safetensors folders, read into an artifact and written from one.
//! * [`foreign`]: ONNX graphs of other programs, and what they do not say about themselves.
//! * [`source`]: where a model's numbers come from, whatever holds them.
//!
//! This crate knows nothing of running a model.

#[cfg(not(all(unix, target_pointer_width = "64")))]
compile_error!("Espalier maps whole models into memory and needs a 64-bit Unix system");

pub mod architecture;
pub mod artifact;
pub mod checkpoint;
pub mod error;
pub mod foreign;
pub mod formats;
pub mod manifest;
mod rotary;
pub mod shape;
pub mod source;
pub mod tensor;

pub use architecture::Architecture;
pub use artifact::{Artifact, ArtifactWriter};
pub use checkpoint::Dialect;
pub use error::{Error, Result};
pub use formats::Format;
pub use manifest::Manifest;
pub use shape::{LayerShape, ModelShape, Units};
pub use source::TensorSource;
pub use tensor::{DType, Layout, Part, TensorKey, TensorSpec};
