//! ChatGLM's names.

use super::{Form, Names};
use crate::tensor::Part;

/// ChatGLM-2: all of q, then k, then v; gate, then up; the rows that rotate against each other side by side.
pub(super) const CHATGLM: Names = Names {
    prefixes: &["transformer."],
    layers: "encoder.layers.",
    of_layer: &[
        ("input_layernorm.weight", Form::Vector, &[Part::AttentionNorm]),
        ("input_layernorm.bias", Form::Vector, &[Part::AttentionNormBias]),
        ("self_attention.query_key_value.weight", Form::Rows, &[Part::Query, Part::Key, Part::Value]),
        ("self_attention.query_key_value.bias", Form::Vector, &[Part::QueryBias, Part::KeyBias, Part::ValueBias]),
        ("self_attention.dense.weight", Form::Transposed, &[Part::AttentionOutput]),
        ("self_attention.dense.bias", Form::Vector, &[Part::AttentionOutputBias]),
        ("post_attention_layernorm.weight", Form::Vector, &[Part::FfnNorm]),
        ("post_attention_layernorm.bias", Form::Vector, &[Part::FfnNormBias]),
        ("mlp.dense_h_to_4h.weight", Form::Rows, &[Part::Gate, Part::Up]),
        ("mlp.dense_h_to_4h.bias", Form::Vector, &[Part::GateBias, Part::UpBias]),
        ("mlp.dense_4h_to_h.weight", Form::Transposed, &[Part::Down]),
        ("mlp.dense_4h_to_h.bias", Form::Vector, &[Part::DownBias]),
    ],
    under_prefix: &[
        ("embedding.word_embeddings.weight", Form::Rows, &[Part::TokenTable]),
        ("encoder.final_layernorm.weight", Form::Vector, &[Part::FinalNorm]),
        ("encoder.final_layernorm.bias", Form::Vector, &[Part::FinalNormBias]),
        ("output_layer.weight", Form::Rows, &[Part::Head]),
    ],
    bare: &[],
    constants: &["rotary_pos_emb.inv_freq"],
    layer_constants: &[],
    fused_by_head: false,
    rotary_pairs: true,
    as_stored: false,
};
