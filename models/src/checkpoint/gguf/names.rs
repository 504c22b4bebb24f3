//! What GGUF calls its tensors: the same names in every family.

use crate::architecture::Architecture;
use crate::checkpoint::names::{Form, Names, SourceTensor, source_tensors};
use crate::shape::ModelShape;
use crate::tensor::Part;

/// All names; a model has those whose parts it has. Linear weights are `[out, in]`, q, k and v of a fused matrix follow each other.
const GGUF: Names = Names {
    prefixes: &[""],
    layers: "blk.",
    of_layer: &[
        ("attn_norm.weight", Form::Vector, &[Part::AttentionNorm]),
        ("attn_norm.bias", Form::Vector, &[Part::AttentionNormBias]),
        ("attn_qkv.weight", Form::Rows, &[Part::Query, Part::Key, Part::Value]),
        ("attn_qkv.bias", Form::Vector, &[Part::QueryBias, Part::KeyBias, Part::ValueBias]),
        ("attn_q.weight", Form::Rows, &[Part::Query]),
        ("attn_q.bias", Form::Vector, &[Part::QueryBias]),
        ("attn_k.weight", Form::Rows, &[Part::Key]),
        ("attn_k.bias", Form::Vector, &[Part::KeyBias]),
        ("attn_v.weight", Form::Rows, &[Part::Value]),
        ("attn_v.bias", Form::Vector, &[Part::ValueBias]),
        ("attn_q_norm.weight", Form::Vector, &[Part::QueryNorm]),
        ("attn_k_norm.weight", Form::Vector, &[Part::KeyNorm]),
        ("attn_output.weight", Form::Transposed, &[Part::AttentionOutput]),
        ("attn_output.bias", Form::Vector, &[Part::AttentionOutputBias]),
        ("post_attention_norm.weight", Form::Vector, &[Part::AttentionPostNorm]),
        ("ffn_norm.weight", Form::Vector, &[Part::FfnNorm]),
        ("ffn_norm.bias", Form::Vector, &[Part::FfnNormBias]),
        ("ffn_gate.weight", Form::Rows, &[Part::Gate]),
        ("ffn_gate.bias", Form::Vector, &[Part::GateBias]),
        ("ffn_up.weight", Form::Rows, &[Part::Up]),
        ("ffn_up.bias", Form::Vector, &[Part::UpBias]),
        ("ffn_down.weight", Form::Transposed, &[Part::Down]),
        ("ffn_down.bias", Form::Vector, &[Part::DownBias]),
        ("post_ffw_norm.weight", Form::Vector, &[Part::FfnPostNorm]),
    ],
    under_prefix: &[
        ("token_embd.weight", Form::Rows, &[Part::TokenTable]),
        ("position_embd.weight", Form::Rows, &[Part::PositionTable]),
        ("output_norm.weight", Form::Vector, &[Part::FinalNorm]),
        ("output_norm.bias", Form::Vector, &[Part::FinalNormBias]),
    ],
    bare: &[("output.weight", Form::Rows, &[Part::Head]), ("output.bias", Form::Vector, &[Part::HeadBias])],
    constants: &[super::rotary::TENSOR],
    layer_constants: &["attn_rot_embd", "attn.rotary_emb.inv_freq"],
    fused_by_head: false,
    rotary_pairs: false,
    as_stored: false,
};

/// The same with rotary pairs side by side.
const PAIRED: Names = Names { rotary_pairs: true, ..GGUF };

/// The names of files whose rows of query and key are paired or not.
pub(super) fn names(rotary_pairs: bool) -> &'static Names {
    const NAMES: [&Names; 2] = [&GGUF, &PAIRED];
    NAMES[usize::from(rotary_pairs)]
}

/// All tensors that a file has of the model, those of layers first; q, k and v as one matrix or as three.
pub(super) fn file_tensors(names: &Names, architecture: &Architecture, shape: &ModelShape, fused: bool) -> Vec<SourceTensor> {
    let mut tensors = source_tensors(names, "", architecture, shape);
    let separate = ["attn_q.", "attn_k.", "attn_v."];
    tensors.retain(|tensor| {
        let of_layer = tensor.name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        of_layer.is_none_or(|(_, end)| match fused {
            true => !separate.iter().any(|start| end.starts_with(start)),
            false => !end.starts_with("attn_qkv."),
        })
    });
    tensors
}
