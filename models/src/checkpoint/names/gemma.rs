//! Gemma's names.

use super::{Form, Names};
use crate::tensor::Part;

/// Gemma 3: every norm is stored as what it adds to 1.
pub(super) const GEMMA3: Names = Names {
    prefixes: &["model."],
    layers: "layers.",
    of_layer: &[
        ("input_layernorm.weight", Form::Offset, &[Part::AttentionNorm]),
        ("self_attn.q_proj.weight", Form::Rows, &[Part::Query]),
        ("self_attn.q_proj.bias", Form::Vector, &[Part::QueryBias]),
        ("self_attn.q_norm.weight", Form::Offset, &[Part::QueryNorm]),
        ("self_attn.k_proj.weight", Form::Rows, &[Part::Key]),
        ("self_attn.k_proj.bias", Form::Vector, &[Part::KeyBias]),
        ("self_attn.k_norm.weight", Form::Offset, &[Part::KeyNorm]),
        ("self_attn.v_proj.weight", Form::Rows, &[Part::Value]),
        ("self_attn.v_proj.bias", Form::Vector, &[Part::ValueBias]),
        ("self_attn.o_proj.weight", Form::Transposed, &[Part::AttentionOutput]),
        ("self_attn.o_proj.bias", Form::Vector, &[Part::AttentionOutputBias]),
        ("post_attention_layernorm.weight", Form::Offset, &[Part::AttentionPostNorm]),
        ("pre_feedforward_layernorm.weight", Form::Offset, &[Part::FfnNorm]),
        ("mlp.gate_proj.weight", Form::Rows, &[Part::Gate]),
        ("mlp.up_proj.weight", Form::Rows, &[Part::Up]),
        ("mlp.down_proj.weight", Form::Transposed, &[Part::Down]),
        ("post_feedforward_layernorm.weight", Form::Offset, &[Part::FfnPostNorm]),
    ],
    under_prefix: &[("embed_tokens.weight", Form::Rows, &[Part::TokenTable]), ("norm.weight", Form::Offset, &[Part::FinalNorm])],
    bare: &[("lm_head.weight", Form::Rows, &[Part::Head])],
    constants: &[],
    layer_constants: &[],
    fused_by_head: false,
    rotary_pairs: false,
    as_stored: false,
};
