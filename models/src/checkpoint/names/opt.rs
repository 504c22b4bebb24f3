//! OPT's names.

use super::{Form, Names};
use crate::tensor::Part;

/// OPT.
pub(super) const OPT: Names = Names {
    prefixes: &["model.decoder.", "decoder."],
    layers: "layers.",
    of_layer: &[
        ("self_attn_layer_norm.weight", Form::Vector, &[Part::AttentionNorm]),
        ("self_attn_layer_norm.bias", Form::Vector, &[Part::AttentionNormBias]),
        ("self_attn.q_proj.weight", Form::Rows, &[Part::Query]),
        ("self_attn.q_proj.bias", Form::Vector, &[Part::QueryBias]),
        ("self_attn.k_proj.weight", Form::Rows, &[Part::Key]),
        ("self_attn.k_proj.bias", Form::Vector, &[Part::KeyBias]),
        ("self_attn.v_proj.weight", Form::Rows, &[Part::Value]),
        ("self_attn.v_proj.bias", Form::Vector, &[Part::ValueBias]),
        ("self_attn.out_proj.weight", Form::Transposed, &[Part::AttentionOutput]),
        ("self_attn.out_proj.bias", Form::Vector, &[Part::AttentionOutputBias]),
        ("final_layer_norm.weight", Form::Vector, &[Part::FfnNorm]),
        ("final_layer_norm.bias", Form::Vector, &[Part::FfnNormBias]),
        ("fc1.weight", Form::Rows, &[Part::Up]),
        ("fc1.bias", Form::Vector, &[Part::UpBias]),
        ("fc2.weight", Form::Transposed, &[Part::Down]),
        ("fc2.bias", Form::Vector, &[Part::DownBias]),
    ],
    under_prefix: &[
        ("embed_tokens.weight", Form::Rows, &[Part::TokenTable]),
        ("embed_positions.weight", Form::Rows, &[Part::PositionTable]),
        ("final_layer_norm.weight", Form::Vector, &[Part::FinalNorm]),
        ("final_layer_norm.bias", Form::Vector, &[Part::FinalNormBias]),
    ],
    bare: &[("lm_head.weight", Form::Rows, &[Part::Head])],
    constants: &[],
    layer_constants: &[],
    fused_by_head: false,
    rotary_pairs: false,
    as_stored: false,
};
