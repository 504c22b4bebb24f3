//! Checkpoints: folders with a `config.json` and safetensors or PyTorch files, as transformers writes them, and GGUF files.
//!
//! A dialect names tensors and lays them out in its own way ([`Dialect`]). [`import`] makes an artifact of a checkpoint and
//! [`export_safetensors`] writes one back, without loss where the number format stays. [`for_each_source_tensor`] gives any tensors that
//! have this crate's keys, gradients for one, the names and layouts of the source.
//! [`export_onnx`] writes the network as a graph that reads its weights in the artifact.

use crate::manifest::Manifest;
use crate::tensor::Part;

mod config;
mod conversation;
mod dialects;
mod export;
mod gguf;
mod import;
mod names;
mod onnx;
mod open;
mod place;
mod pytorch;
mod report;
mod safetensors;
mod shards;
mod streams;
mod tensors;
mod vocabulary;

pub use export::export_safetensors;
pub use gguf::export_gguf;
pub use import::{import, import_until};
pub(crate) use onnx::protobuf;
pub use onnx::{Element, OnnxExport, OnnxGraph, OnnxOptions, OnnxOutput, OnnxPlan, Weight, export_onnx, onnx_graph, onnx_plan};
pub use report::{ImportReport, RoundingError};
pub use streams::{Absent, EachTensor, for_each_source_tensor};
pub use vocabulary::MAX_TOKENIZER_BYTES;

/// A way to name and lay out the tensors of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// GPT-2: linear weights as `[in, out]`, q, k and v in one matrix.
    Gpt2,
    /// OPT: linear weights as `[out, in]`, as in all that follow.
    Opt,
    /// GPT-NeoX: q, k and v in one matrix, head by head.
    GptNeox,
    /// Phi.
    Phi,
    /// Llama.
    Llama,
    /// Mistral: Llama's names.
    Mistral,
    /// Qwen2: Llama's names.
    Qwen2,
    /// Qwen3: Llama's names, and those of norms of query and key heads.
    Qwen3,
    /// Gemma 3's text model: norms are stored as what they add to 1.
    Gemma3,
    /// ChatGLM-2: q, k and v in one matrix, gate and up in another, rotary pairs side by side.
    ChatGlm,
    /// Our own: the parts as an artifact has them, and the whole architecture and all shapes in `config.json`. Can say every model.
    Espalier,
}

impl Dialect {
    /// All of them.
    pub const ALL: [Dialect; 11] = [
        Dialect::Gpt2,
        Dialect::Opt,
        Dialect::GptNeox,
        Dialect::Phi,
        Dialect::Llama,
        Dialect::Mistral,
        Dialect::Qwen2,
        Dialect::Qwen3,
        Dialect::Gemma3,
        Dialect::ChatGlm,
        Dialect::Espalier,
    ];

    /// The dialect's name: `model_type` in its `config.json`, `dialect` in a manifest's origin.
    pub fn name(self) -> &'static str {
        match self {
            Dialect::Gpt2 => "gpt2",
            Dialect::Opt => "opt",
            Dialect::GptNeox => "gpt_neox",
            Dialect::Phi => "phi",
            Dialect::Llama => "llama",
            Dialect::Mistral => "mistral",
            Dialect::Qwen2 => "qwen2",
            Dialect::Qwen3 => "qwen3",
            Dialect::Gemma3 => "gemma3_text",
            Dialect::ChatGlm => "chatglm",
            Dialect::Espalier => "espalier",
        }
    }

    /// The dialect of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dialect| dialect.name() == name)
    }
}

/// The layer, in stored order, and the matrices that a module of the source is, such as `transformer.h.0.attn.c_attn` or
/// `model.layers.0.mlp.down_proj`: what an adapter on that module spans. The dialect is that of the manifest's origin; its prefix may be
/// left out. None where the module is no projection of a layer.
pub fn adapter_target(manifest: &Manifest, source_module_name: &str) -> Option<(usize, Vec<Part>)> {
    names::module_target(Dialect::parse(&manifest.origin.dialect)?, &manifest.shape(), source_module_name)
}
