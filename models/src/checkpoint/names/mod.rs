//! What the checkpoint dialects call their tensors and how they lay them out, in terms of this crate's own parts.

mod chatglm;
mod espalier;
mod gemma;
mod gpt2;
mod llama;
mod neox;
mod opt;
mod rows;

use super::Dialect;
pub(super) use rows::RowOrder;

use crate::architecture::{Architecture, Positions};
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
    /// A vector `1 + w` whose source is `w`.
    Offset,
}

impl Form {
    /// Whether the source tensor is a vector.
    pub fn is_vector(self) -> bool {
        matches!(self, Form::Vector | Form::Offset)
    }

    /// What a stored number is more than that of the source.
    pub fn offset(self) -> f32 {
        if self == Form::Offset { 1.0 } else { 0.0 }
    }
}

/// One name of a dialect: the name without its layer, the form, the parts.
pub(super) type Name = (&'static str, Form, &'static [Part]);

/// The names of a dialect, and how it lays out what has them.
pub(super) struct Names {
    /// What stands before the names of layers and of [`under_prefix`](Self::under_prefix): first what transformers writes, then what is
    /// found too.
    pub prefixes: &'static [&'static str],
    /// What stands before a layer's index.
    pub layers: &'static str,
    /// Names in a layer.
    pub of_layer: &'static [Name],
    /// Names under the dialect's prefix.
    pub under_prefix: &'static [Name],
    /// Names that never have the prefix.
    pub bare: &'static [Name],
    /// Constants under the prefix that older versions of transformers saved, and that no model needs.
    pub constants: &'static [&'static str],
    /// The same in a layer.
    pub layer_constants: &'static [&'static str],
    /// Whether a tensor of several parts has all parts of the first head before those of the second; else part follows part.
    pub fused_by_head: bool,
    /// Whether the rows of query and key that rotary embedding turns against each other lie side by side; else in halves of a head.
    pub rotary_pairs: bool,
    /// Whether layers keep the numbers and heads the order that the artifact stores; else the layers that are there are counted, and heads
    /// are ordered by KV group.
    pub as_stored: bool,
}

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
    /// Where its rows (of a vector: its numbers) lie in the source tensor.
    pub order: RowOrder,
}

impl SourceTensor {
    /// Rows of all pieces together, for a vector its numbers.
    pub fn units(&self) -> usize {
        self.pieces.iter().map(|piece| self.piece_units(piece)).sum()
    }

    /// Rows of one piece, for a vector its numbers.
    pub fn piece_units(&self, piece: &Piece) -> usize {
        piece_units(self.form, &piece.spec)
    }
}

fn piece_units(form: Form, spec: &TensorSpec) -> usize {
    if form.is_vector() { spec.columns } else { spec.rows }
}

/// The prefix with which transformers writes the dialect.
pub(super) fn prefix(dialect: Dialect) -> &'static str {
    names(dialect).prefixes[0]
}

/// The dialect's names.
pub(super) fn names(dialect: Dialect) -> &'static Names {
    match dialect {
        Dialect::Gpt2 => &gpt2::GPT2,
        Dialect::Opt => &opt::OPT,
        Dialect::GptNeox => &neox::GPT_NEOX,
        Dialect::Phi => &neox::PHI,
        Dialect::Llama | Dialect::Mistral | Dialect::Qwen2 | Dialect::Qwen3 => &llama::LLAMA,
        Dialect::Gemma3 => &gemma::GEMMA3,
        Dialect::ChatGlm => &chatglm::CHATGLM,
        Dialect::Espalier => &espalier::ESPALIER,
    }
}

/// The index that the layer at `stored`, the `kept`-th that is there, has in the dialect's names. Only ours can leave a gap.
fn layer_number(names: &Names, stored: usize, kept: usize) -> usize {
    if names.as_stored { stored } else { kept }
}

/// The place of every stored head in ascending order of KV groups, none where that is the stored order.
fn places_by_group(units: &Units) -> Option<Vec<usize>> {
    if units.heads.is_sorted() {
        return None;
    }
    let mut order: Vec<usize> = (0..units.heads.len()).collect();
    order.sort_by_key(|&head| units.heads[head]);
    let mut places = vec![0; order.len()];
    order.into_iter().enumerate().for_each(|(place, head)| places[head] = place);
    Some(places)
}

/// What the rows of a layer's source tensors are laid out by.
struct LayerRows<'a> {
    names: &'a Names,
    head_dim: usize,
    /// Rotary dimensions of a head that the source keeps as pairs.
    turned: usize,
    /// The place of every query head in the source.
    places: Option<Vec<usize>>,
}

impl<'a> LayerRows<'a> {
    fn new(names: &'a Names, architecture: &Architecture, units: &Units) -> Self {
        let dims = match architecture.positions {
            Positions::Rotary { dims, .. } => dims,
            Positions::Learned { .. } => 0,
        };
        let turned = if names.rotary_pairs { dims } else { 0 };
        let places = if names.as_stored { None } else { places_by_group(units) };
        Self { names, head_dim: architecture.attention.head_dim, turned, places }
    }

    /// Where the `rows` rows of `part`, the piece at `index` of `pieces`, lie in a source tensor in which `before` rows precede it where
    /// part follows part.
    fn order(&self, part: Part, rows: usize, before: usize, index: usize, pieces: usize) -> RowOrder {
        use Part::*;
        let places = self.places.as_ref().filter(|_| matches!(part, Query | QueryBias | AttentionOutput));
        let turned = if matches!(part, Query | QueryBias | Key | KeyBias) { self.turned } else { 0 };
        let head = self.head_dim;
        if self.names.fused_by_head && pieces > 1 {
            RowOrder { first: index * head, block: head, stride: pieces * head, places: places.cloned(), turned }
        } else if places.is_some() || turned > 0 {
            RowOrder { first: before, block: head, stride: head, places: places.cloned(), turned }
        } else {
            RowOrder::contiguous(before, rows)
        }
    }
}

/// All tensors that a checkpoint of the model has in a dialect with these names; those of layers first, in order.
pub(super) fn source_tensors(names: &Names, prefix: &str, architecture: &Architecture, shape: &ModelShape) -> Vec<SourceTensor> {
    let mut all = Vec::new();
    for (kept, (stored, units)) in shape.kept().enumerate() {
        let specs = layer_tensors(architecture, stored, units);
        let layer = LayerRows::new(names, architecture, units);
        let start = format!("{prefix}{}{}.", names.layers, layer_number(names, stored, kept));
        all.extend(names.of_layer.iter().filter_map(|name| source_tensor(&start, name, &specs, Some(&layer))));
    }
    let globals = model_tensors(architecture, &ModelShape { layers: Vec::new() });
    all.extend(names.under_prefix.iter().filter_map(|name| source_tensor(prefix, name, &globals, None)));
    all.extend(names.bare.iter().filter_map(|name| source_tensor("", name, &globals, None)));
    all
}

/// The source tensor of one name, none where the model does not have its parts.
fn source_tensor(start: &str, name: &Name, specs: &[TensorSpec], layer: Option<&LayerRows<'_>>) -> Option<SourceTensor> {
    let &(end, form, parts) = name;
    let (mut pieces, mut units) = (Vec::with_capacity(parts.len()), 0);
    for (index, &part) in parts.iter().enumerate() {
        let spec = *specs.iter().find(|spec| spec.key.part == part)?;
        let rows = piece_units(form, &spec);
        let order = match layer {
            Some(layer) => layer.order(part, rows, units, index, parts.len()),
            None => RowOrder::contiguous(units, rows),
        };
        pieces.push(Piece { spec, order });
        units += rows;
    }
    let columns = pieces[0].spec.columns;
    let shape = match form {
        Form::Rows => vec![units, columns],
        Form::Transposed => vec![columns, units],
        Form::Vector | Form::Offset => vec![units],
    };
    Some(SourceTensor { name: format!("{start}{end}"), shape, form, pieces })
}

/// The layer and the matrices that the source's module `module` is, none where it is no projection of a layer.
pub(super) fn module_target(dialect: Dialect, shape: &ModelShape, module: &str) -> Option<(usize, Vec<Part>)> {
    let names = names(dialect);
    let module = module.strip_prefix(prefix(dialect)).unwrap_or(module);
    let (number, rest) = module.strip_prefix(names.layers)?.split_once('.')?;
    let number: usize = number.parse().ok()?;
    let mut kept = shape.kept().enumerate().map(|(kept, (stored, _))| (stored, layer_number(names, stored, kept)));
    let (stored, _) = kept.find(|&(_, found)| found == number)?;
    let (_, _, parts) =
        names.of_layer.iter().find(|(name, form, _)| !form.is_vector() && name.strip_suffix(".weight").unwrap_or(name) == rest)?;
    Some((stored, parts.to_vec()))
}

/// Whether a tensor that the model does not need may be in a checkpoint nonetheless: constants that older versions of transformers saved,
/// and the second name of a tied matrix.
pub(super) fn is_harmless(names: &Names, prefix: &str, tied: bool, name: &str) -> bool {
    let second = |name: &str| names.bare.iter().any(|(bare, _, parts)| *bare == name && parts.contains(&Part::Head));
    if tied && second(name) {
        return true;
    }
    let Some(rest) = name.strip_prefix(prefix) else { return false };
    let in_layer = rest.strip_prefix(names.layers).and_then(|rest| rest.split_once('.'));
    let in_layer = in_layer.filter(|(number, _)| number.bytes().all(|byte| byte.is_ascii_digit()));
    names.constants.contains(&rest) || in_layer.is_some_and(|(_, end)| names.layer_constants.contains(&end))
}

/// The keys of all pieces with their place: index of the source tensor, and of the piece in it.
pub(super) fn places(sources: &[SourceTensor]) -> std::collections::HashMap<TensorKey, (usize, usize)> {
    let pieces = |(index, source): (usize, &SourceTensor)| {
        source.pieces.iter().enumerate().map(move |(piece, found)| (found.spec.key, (index, piece))).collect::<Vec<_>>()
    };
    sources.iter().enumerate().flat_map(pieces).collect()
}
