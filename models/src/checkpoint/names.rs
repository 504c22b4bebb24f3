//! What the checkpoint dialects call their tensors and how they lay them out, in terms of this crate's own parts.

use super::Dialect;
use crate::architecture::Architecture;
use crate::shape::{ModelShape, Units};
use crate::tensor::{Part, TensorKey, TensorSpec, layer_tensors, model_tensors};

/// How a source tensor is made of parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// The parts' rows one after the other: `[rows, columns]`.
    Rows,
    /// The transpose of that: `[columns, rows]`.
    Transposed,
    /// Vectors one after the other: `[numbers]`.
    Vector,
}

/// One name of a dialect: the name without its layer, the form, the parts.
type Name = (&'static str, Form, &'static [Part]);

/// The names of a dialect.
struct Names {
    /// What stands before a layer's index.
    layers: &'static str,
    /// Names in a layer.
    of_layer: &'static [Name],
    /// Names under the dialect's prefix.
    under_prefix: &'static [Name],
    /// Names that never have the prefix.
    bare: &'static [Name],
}

const GPT2: Names = Names {
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
};

const LLAMA: Names = Names {
    layers: "layers.",
    of_layer: &[
        ("input_layernorm.weight", Form::Vector, &[Part::AttentionNorm]),
        ("self_attn.q_proj.weight", Form::Rows, &[Part::Query]),
        ("self_attn.q_proj.bias", Form::Vector, &[Part::QueryBias]),
        ("self_attn.k_proj.weight", Form::Rows, &[Part::Key]),
        ("self_attn.k_proj.bias", Form::Vector, &[Part::KeyBias]),
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
};

const ESPALIER: Names = Names {
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
        ("attention_output", Form::Rows, &[Part::AttentionOutput]),
        ("attention_output_bias", Form::Vector, &[Part::AttentionOutputBias]),
        ("ffn_norm", Form::Vector, &[Part::FfnNorm]),
        ("ffn_norm_bias", Form::Vector, &[Part::FfnNormBias]),
        ("gate", Form::Rows, &[Part::Gate]),
        ("gate_bias", Form::Vector, &[Part::GateBias]),
        ("up", Form::Rows, &[Part::Up]),
        ("up_bias", Form::Vector, &[Part::UpBias]),
        ("down", Form::Rows, &[Part::Down]),
        ("down_bias", Form::Vector, &[Part::DownBias]),
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
};

/// A tensor of a checkpoint.
#[derive(Debug, Clone)]
pub(super) struct SourceTensor {
    /// Its name there.
    pub name: String,
    /// Its shape there.
    pub shape: Vec<usize>,
    /// How it is made of parts.
    pub form: Form,
    /// The parts, in order.
    pub pieces: Vec<Piece>,
}

/// A part of a source tensor.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    /// The tensor in this crate's own layout.
    pub spec: TensorSpec,
    /// For parts with one block of `head_dim` units a query head whose dialect wants heads ordered by KV group: the stored head at each
    /// place. None where the stored order is already that.
    pub heads: Option<Vec<usize>>,
}

impl SourceTensor {
    /// Rows of all pieces together, for a vector its numbers.
    pub fn units(&self) -> usize {
        self.pieces.iter().map(|piece| self.piece_units(piece)).sum()
    }

    /// Rows of one piece, for a vector its numbers.
    pub fn piece_units(&self, piece: &Piece) -> usize {
        if self.form == Form::Vector { piece.spec.columns } else { piece.spec.rows }
    }
}

/// The prefix with which transformers writes the dialect.
pub(super) fn prefix(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Gpt2 => "transformer.",
        Dialect::Llama => "model.",
        Dialect::Espalier => "",
    }
}

/// The dialect's names.
fn names(dialect: Dialect) -> &'static Names {
    match dialect {
        Dialect::Gpt2 => &GPT2,
        Dialect::Llama => &LLAMA,
        Dialect::Espalier => &ESPALIER,
    }
}

/// The index that the layer at `stored`, the `kept`-th that is there, has in the dialect's names. Only ours can leave a gap.
fn layer_number(dialect: Dialect, stored: usize, kept: usize) -> usize {
    if dialect == Dialect::Espalier { stored } else { kept }
}

/// The stored heads in ascending order of their KV group, none where that is the stored order.
fn heads_by_group(units: &Units) -> Option<Vec<usize>> {
    if units.heads.is_sorted() {
        return None;
    }
    let mut order: Vec<usize> = (0..units.heads.len()).collect();
    order.sort_by_key(|&head| units.heads[head]);
    Some(order)
}

/// All tensors that a checkpoint of the model has in `dialect`; those of layers first, in order.
pub(super) fn source_tensors(dialect: Dialect, prefix: &str, architecture: &Architecture, shape: &ModelShape) -> Vec<SourceTensor> {
    let names = names(dialect);
    let mut all = Vec::new();
    for (kept, (stored, units)) in shape.kept().enumerate() {
        let specs = layer_tensors(architecture, stored, units);
        let order = if dialect == Dialect::Espalier { None } else { heads_by_group(units) };
        let start = format!("{prefix}{}{}.", names.layers, layer_number(dialect, stored, kept));
        all.extend(names.of_layer.iter().filter_map(|name| source_tensor(&start, name, &specs, order.as_ref())));
    }
    let globals = model_tensors(architecture, &ModelShape { layers: Vec::new() });
    all.extend(names.under_prefix.iter().filter_map(|name| source_tensor(prefix, name, &globals, None)));
    all.extend(names.bare.iter().filter_map(|name| source_tensor("", name, &globals, None)));
    all
}

/// The source tensor of one name, none where the model does not have its parts.
fn source_tensor(start: &str, name: &Name, specs: &[TensorSpec], order: Option<&Vec<usize>>) -> Option<SourceTensor> {
    let &(end, form, parts) = name;
    let by_head = |part| matches!(part, Part::Query | Part::QueryBias | Part::AttentionOutput);
    let pieces: Option<Vec<Piece>> = parts
        .iter()
        .map(|&part| {
            let spec = *specs.iter().find(|spec| spec.key.part == part)?;
            Some(Piece { spec, heads: order.filter(|_| by_head(part)).cloned() })
        })
        .collect();
    let mut tensor = SourceTensor { name: format!("{start}{end}"), shape: Vec::new(), form, pieces: pieces? };
    let (units, columns) = (tensor.units(), tensor.pieces[0].spec.columns);
    tensor.shape = match form {
        Form::Rows => vec![units, columns],
        Form::Transposed => vec![columns, units],
        Form::Vector => vec![units],
    };
    Some(tensor)
}

/// The layer and the matrices that the source's module `module` is, none where it is no projection of a layer.
pub(super) fn module_target(dialect: Dialect, shape: &ModelShape, module: &str) -> Option<(usize, Vec<Part>)> {
    let names = names(dialect);
    let module = module.strip_prefix(prefix(dialect)).unwrap_or(module);
    let (number, rest) = module.strip_prefix(names.layers)?.split_once('.')?;
    let number: usize = number.parse().ok()?;
    let mut kept = shape.kept().enumerate().map(|(kept, (stored, _))| (stored, layer_number(dialect, stored, kept)));
    let (stored, _) = kept.find(|&(_, found)| found == number)?;
    let (_, _, parts) =
        names.of_layer.iter().find(|(name, form, _)| *form != Form::Vector && name.strip_suffix(".weight").unwrap_or(name) == rest)?;
    Some((stored, parts.to_vec()))
}

/// Whether a tensor that the model does not need may be in a checkpoint nonetheless: constants that older versions of transformers saved,
/// and the second name of a tied matrix.
pub(super) fn is_harmless(dialect: Dialect, prefix: &str, tied: bool, name: &str) -> bool {
    let of_layer = |ends: &[&str]| {
        let rest = name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix(names(dialect).layers));
        let end = rest.and_then(|rest| rest.split_once('.')).filter(|(number, _)| number.bytes().all(|byte| byte.is_ascii_digit()));
        end.is_some_and(|(_, end)| ends.contains(&end))
    };
    match dialect {
        Dialect::Gpt2 => (tied && name == "lm_head.weight") || of_layer(&["attn.bias", "attn.masked_bias"]),
        Dialect::Llama => {
            (tied && name == "lm_head.weight")
                || of_layer(&["self_attn.rotary_emb.inv_freq"])
                || name.strip_prefix(prefix) == Some("rotary_emb.inv_freq")
        }
        Dialect::Espalier => false,
    }
}

/// The keys of all pieces with their place: index of the source tensor, and units of the pieces before.
pub(super) fn places(sources: &[SourceTensor]) -> std::collections::HashMap<TensorKey, (usize, usize)> {
    let mut places = std::collections::HashMap::new();
    for (index, source) in sources.iter().enumerate() {
        let mut before = 0;
        for piece in &source.pieces {
            places.insert(piece.spec.key, (index, before));
            before += source.piece_units(piece);
        }
    }
    places
}
