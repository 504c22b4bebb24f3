//! The names of our own dialect.

use super::{Form, Names};
use crate::tensor::Part;

/// Our own: the parts as an artifact has them.
pub(super) const ESPALIER: Names = Names {
    prefixes: &[""],
    layers: "layers.",
    of_layer: &[
        ("attention_norm", Form::Vector, &[Part::AttentionNorm]),
        ("attention_norm_bias", Form::Vector, &[Part::AttentionNormBias]),
        ("query", Form::Rows, &[Part::Query]),
        ("query_bias", Form::Vector, &[Part::QueryBias]),
        ("key", Form::Rows, &[Part::Key]),
        ("key_bias", Form::Vector, &[Part::KeyBias]),
        ("value", Form::Rows, &[Part::Value]),
        ("value_bias", Form::Vector, &[Part::ValueBias]),
        ("query_norm", Form::Vector, &[Part::QueryNorm]),
        ("key_norm", Form::Vector, &[Part::KeyNorm]),
        ("attention_output", Form::Rows, &[Part::AttentionOutput]),
        ("attention_output_bias", Form::Vector, &[Part::AttentionOutputBias]),
        ("attention_post_norm", Form::Vector, &[Part::AttentionPostNorm]),
        ("ffn_norm", Form::Vector, &[Part::FfnNorm]),
        ("ffn_norm_bias", Form::Vector, &[Part::FfnNormBias]),
        ("gate", Form::Rows, &[Part::Gate]),
        ("gate_bias", Form::Vector, &[Part::GateBias]),
        ("up", Form::Rows, &[Part::Up]),
        ("up_bias", Form::Vector, &[Part::UpBias]),
        ("down", Form::Rows, &[Part::Down]),
        ("down_bias", Form::Vector, &[Part::DownBias]),
        ("ffn_post_norm", Form::Vector, &[Part::FfnPostNorm]),
    ],
    under_prefix: &[
        ("token_table", Form::Rows, &[Part::TokenTable]),
        ("patch", Form::Rows, &[Part::Patch]),
        ("patch_bias", Form::Vector, &[Part::PatchBias]),
        ("position_table", Form::Rows, &[Part::PositionTable]),
        ("final_norm", Form::Vector, &[Part::FinalNorm]),
        ("final_norm_bias", Form::Vector, &[Part::FinalNormBias]),
        ("head", Form::Rows, &[Part::Head]),
        ("head_bias", Form::Vector, &[Part::HeadBias]),
    ],
    bare: &[],
    constants: &[],
    layer_constants: &[],
    fused_by_head: false,
    rotary_pairs: false,
    as_stored: true,
};
