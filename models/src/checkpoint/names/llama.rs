//! Llama's names, and those of the families that took them over.

use super::{Form, Names};
use crate::tensor::Part;

/// Llama, Mistral, Qwen2 and Qwen3.
pub(super) const LLAMA: Names = Names {
    prefixes: &["model."],
    layers: "layers.",
    of_layer: &[
        ("input_layernorm.weight", Form::Vector, &[Part::AttentionNorm]),
        ("self_attn.q_proj.weight", Form::Rows, &[Part::Query]),
        ("self_attn.q_proj.bias", Form::Vector, &[Part::QueryBias]),
        ("self_attn.q_norm.weight", Form::Vector, &[Part::QueryNorm]),
        ("self_attn.k_proj.weight", Form::Rows, &[Part::Key]),
        ("self_attn.k_proj.bias", Form::Vector, &[Part::KeyBias]),
        ("self_attn.k_norm.weight", Form::Vector, &[Part::KeyNorm]),
        ("self_attn.v_proj.weight", Form::Rows, &[Part::Value]),
        ("self_attn.v_proj.bias", Form::Vector, &[Part::ValueBias]),
        ("self_attn.o_proj.weight", Form::Transposed, &[Part::AttentionOutput]),
        ("self_attn.o_proj.bias", Form::Vector, &[Part::AttentionOutputBias]),
        ("post_attention_layernorm.weight", Form::Vector, &[Part::FfnNorm]),
        ("mlp.gate_proj.weight", Form::Rows, &[Part::Gate]),
        ("mlp.gate_proj.bias", Form::Vector, &[Part::GateBias]),
        ("mlp.up_proj.weight", Form::Rows, &[Part::Up]),
        ("mlp.up_proj.bias", Form::Vector, &[Part::UpBias]),
        ("mlp.down_proj.weight", Form::Transposed, &[Part::Down]),
        ("mlp.down_proj.bias", Form::Vector, &[Part::DownBias]),
    ],
    under_prefix: &[("embed_tokens.weight", Form::Rows, &[Part::TokenTable]), ("norm.weight", Form::Vector, &[Part::FinalNorm])],
    bare: &[("lm_head.weight", Form::Rows, &[Part::Head])],
    constants: &["rotary_emb.inv_freq"],
    layer_constants: &["self_attn.rotary_emb.inv_freq"],
    fused_by_head: false,
    rotary_pairs: false,
    as_stored: false,
};
