//! GPT-2's names.

use super::{Form, Names};
use crate::tensor::Part;

/// GPT-2: linear weights as `[in, out]`.
pub(super) const GPT2: Names = Names {
    prefixes: &["transformer.", ""],
    layers: "h.",
    of_layer: &[
        ("ln_1.weight", Form::Vector, &[Part::AttentionNorm]),
        ("ln_1.bias", Form::Vector, &[Part::AttentionNormBias]),
        ("attn.c_attn.weight", Form::Transposed, &[Part::Query, Part::Key, Part::Value]),
        ("attn.c_attn.bias", Form::Vector, &[Part::QueryBias, Part::KeyBias, Part::ValueBias]),
        ("attn.c_proj.weight", Form::Rows, &[Part::AttentionOutput]),
        ("attn.c_proj.bias", Form::Vector, &[Part::AttentionOutputBias]),
        ("ln_2.weight", Form::Vector, &[Part::FfnNorm]),
        ("ln_2.bias", Form::Vector, &[Part::FfnNormBias]),
        ("mlp.c_fc.weight", Form::Transposed, &[Part::Up]),
        ("mlp.c_fc.bias", Form::Vector, &[Part::UpBias]),
        ("mlp.c_proj.weight", Form::Rows, &[Part::Down]),
        ("mlp.c_proj.bias", Form::Vector, &[Part::DownBias]),
    ],
    under_prefix: &[
        ("wte.weight", Form::Rows, &[Part::TokenTable]),
        ("wpe.weight", Form::Rows, &[Part::PositionTable]),
        ("ln_f.weight", Form::Vector, &[Part::FinalNorm]),
        ("ln_f.bias", Form::Vector, &[Part::FinalNormBias]),
    ],
    bare: &[("lm_head.weight", Form::Rows, &[Part::Head])],
    constants: &[],
    layer_constants: &["attn.bias", "attn.masked_bias"],
    fused_by_head: false,
    rotary_pairs: false,
    as_stored: false,
};
