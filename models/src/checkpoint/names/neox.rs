//! The names of GPT-NeoX and Phi.

use super::{Form, Names};
use crate::tensor::Part;

/// GPT-NeoX: q, k and v in one matrix, head by head.
pub(super) const GPT_NEOX: Names = Names {
    prefixes: &["gpt_neox."],
    layers: "layers.",
    of_layer: &[
        ("input_layernorm.weight", Form::Vector, &[Part::AttentionNorm]),
        ("input_layernorm.bias", Form::Vector, &[Part::AttentionNormBias]),
        ("attention.query_key_value.weight", Form::Rows, &[Part::Query, Part::Key, Part::Value]),
        ("attention.query_key_value.bias", Form::Vector, &[Part::QueryBias, Part::KeyBias, Part::ValueBias]),
        ("attention.dense.weight", Form::Transposed, &[Part::AttentionOutput]),
        ("attention.dense.bias", Form::Vector, &[Part::AttentionOutputBias]),
        ("post_attention_layernorm.weight", Form::Vector, &[Part::FfnNorm]),
        ("post_attention_layernorm.bias", Form::Vector, &[Part::FfnNormBias]),
        ("mlp.dense_h_to_4h.weight", Form::Rows, &[Part::Up]),
        ("mlp.dense_h_to_4h.bias", Form::Vector, &[Part::UpBias]),
        ("mlp.dense_4h_to_h.weight", Form::Transposed, &[Part::Down]),
        ("mlp.dense_4h_to_h.bias", Form::Vector, &[Part::DownBias]),
    ],
    under_prefix: &[
        ("embed_in.weight", Form::Rows, &[Part::TokenTable]),
        ("final_layer_norm.weight", Form::Vector, &[Part::FinalNorm]),
        ("final_layer_norm.bias", Form::Vector, &[Part::FinalNormBias]),
    ],
    bare: &[("embed_out.weight", Form::Rows, &[Part::Head])],
    constants: &[],
    layer_constants: &["attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"],
    fused_by_head: true,
    rotary_pairs: false,
    as_stored: false,
};

/// Phi.
pub(super) const PHI: Names = Names {
    prefixes: &["model."],
    layers: "layers.",
    of_layer: &[
        ("input_layernorm.weight", Form::Vector, &[Part::AttentionNorm]),
        ("input_layernorm.bias", Form::Vector, &[Part::AttentionNormBias]),
        ("self_attn.q_proj.weight", Form::Rows, &[Part::Query]),
        ("self_attn.q_proj.bias", Form::Vector, &[Part::QueryBias]),
        ("self_attn.k_proj.weight", Form::Rows, &[Part::Key]),
        ("self_attn.k_proj.bias", Form::Vector, &[Part::KeyBias]),
        ("self_attn.v_proj.weight", Form::Rows, &[Part::Value]),
        ("self_attn.v_proj.bias", Form::Vector, &[Part::ValueBias]),
        ("self_attn.dense.weight", Form::Transposed, &[Part::AttentionOutput]),
        ("self_attn.dense.bias", Form::Vector, &[Part::AttentionOutputBias]),
        ("mlp.fc1.weight", Form::Rows, &[Part::Up]),
        ("mlp.fc1.bias", Form::Vector, &[Part::UpBias]),
        ("mlp.fc2.weight", Form::Transposed, &[Part::Down]),
        ("mlp.fc2.bias", Form::Vector, &[Part::DownBias]),
    ],
    under_prefix: &[
        ("embed_tokens.weight", Form::Rows, &[Part::TokenTable]),
        ("final_layernorm.weight", Form::Vector, &[Part::FinalNorm]),
        ("final_layernorm.bias", Form::Vector, &[Part::FinalNormBias]),
    ],
    bare: &[("lm_head.weight", Form::Rows, &[Part::Head]), ("lm_head.bias", Form::Vector, &[Part::HeadBias])],
    constants: &[],
    layer_constants: &["self_attn.rotary_emb.inv_freq"],
    fused_by_head: false,
    rotary_pairs: false,
    as_stored: false,
};
