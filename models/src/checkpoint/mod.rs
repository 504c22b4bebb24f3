//! Checkpoints: folders with a `config.json` and safetensors files, as transformers writes them, and GGUF files.
//!
//! A dialect names tensors and lays them out in its own way ([`Dialect`]). [`import`] makes an artifact of a checkpoint and
//! [`export_safetensors`] writes one back, without loss where the number format stays. [`for_each_source_tensor`] gives any tensors that
//! have this crate's keys, gradients for one, the names and layouts of the source.

use crate::manifest::Manifest;
use crate::tensor::Part;

mod config;
mod conversation;
mod dialects;
mod export;
mod gguf;
mod import;
mod names;
mod open;
mod report;
mod safetensors;
mod streams;
mod tensors;

pub use export::export_safetensors;
pub use import::{import, import_until};
pub use report::{ImportReport, RoundingError};
pub use streams::{Absent, EachTensor, for_each_source_tensor};

/// A way to name and lay out the tensors of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// GPT-2: linear weights as `[in, out]`, q, k and v in one matrix.
    Gpt2,
    /// Llama: linear weights as `[out, in]`.
    Llama,
    /// Our own: the parts as an artifact has them, and the whole architecture and all shapes in `config.json`. Can say every model.
    Espalier,
}

impl Dialect {
    /// The dialect's name: `model_type` in its `config.json`, `dialect` in a manifest's origin.
    pub fn name(self) -> &'static str {
        match self {
            Dialect::Gpt2 => "gpt2",
            Dialect::Llama => "llama",
            Dialect::Espalier => "espalier",
        }
    }

    /// The dialect of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Dialect::Gpt2, Dialect::Llama, Dialect::Espalier].into_iter().find(|dialect| dialect.name() == name)
    }
}

/// The layer, in stored order, and the matrices that a module of the source is, such as `transformer.h.0.attn.c_attn` or
/// `model.layers.0.mlp.down_proj`: what an adapter on that module spans. The dialect is that of the manifest's origin; its prefix may be
/// left out. None where the module is no projection of a layer.
pub fn adapter_target(manifest: &Manifest, source_module_name: &str) -> Option<(usize, Vec<Part>)> {
    names::module_target(Dialect::parse(&manifest.origin.dialect)?, &manifest.shape(), source_module_name)
}
