//! How a stored tensor becomes a value of single precision in a graph.
//!
//! An f32 tensor is used as it lies in the artifact. A 16-bit one is converted by nodes that have only constants before them, which ONNX
//! Runtime computes once when it loads the graph and keeps as a copy: `Cast`, and for interleaved rows `[rows / 2, columns, 2]` `Transpose`
//! and `Reshape`, after which the zero row that pads an odd count is cut off. A quantised one is made of its planes ([`Quantised`]).

use std::collections::HashMap;

use super::graph::{Attribute, Element, Graph, Weight};
use super::quantised::Quantised;
use crate::artifact::Artifact;
use crate::error::{Error, Result};
use crate::manifest::StoredTensor;
use crate::tensor::{DType, Layout, Part, TensorKey};

/// The tensors of an artifact, as far as a graph uses them.
pub(super) struct Weights<'a> {
    artifact: &'a Artifact,
    /// Whether checksums are compared: a reader of the graph compares none.
    checked: bool,
    /// Names of stored tensors that are in the graph already.
    stored: HashMap<TensorKey, String>,
    /// Names of the planes of quantised tensors that are in the graph already.
    quantised: HashMap<TensorKey, Quantised>,
    /// Names of their values in single precision.
    single: HashMap<TensorKey, String>,
    pub copies: Copies,
}

/// Copies of weights in single precision that ONNX Runtime makes, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Copies {
    /// What it keeps.
    pub held: u64,
    /// What it holds at most while it loads the graph: it computes all values that depend on constants alone before it drops those in
    /// between.
    pub loading: u64,
}

impl<'a> Weights<'a> {
    pub(super) fn new(artifact: &'a Artifact, checked: bool) -> Self {
        Self { artifact, checked, stored: HashMap::new(), quantised: HashMap::new(), single: HashMap::new(), copies: Copies::default() }
    }

    /// A matrix `[rows, columns]` or vector `[columns]` in single precision.
    ///
    /// # Errors
    /// [`Error::NoTensor`] or [`Error::Damaged`].
    pub(super) fn single(&mut self, graph: &mut Graph, key: TensorKey) -> Result<String> {
        if let Some(name) = self.single.get(&key) {
            return Ok(name.clone());
        }
        let tensor = self.find(key)?.clone();
        let single = match (tensor.dtype, tensor.layout) {
            (DType::F32, _) => self.stored(graph, key)?,
            (DType::Q8 | DType::Q4, _) => self.quantised(graph, key)?.whole(graph),
            (DType::F16 | DType::Bf16, layout) => {
                let stored = self.stored(graph, key)?;
                match layout {
                    Layout::Rows => cast(graph, &stored),
                    Layout::Interleaved => deinterleaved(graph, &stored, tensor.rows as i64, tensor.columns as i64),
                }
            }
        };
        let copies = match tensor.dtype {
            DType::F32 => 0,
            // Cast, Transpose, Reshape.
            DType::F16 | DType::Bf16 => 3,
            DType::Q8 | DType::Q4 => self.quantised(graph, key)?.copies(),
        };
        if copies > 0 {
            // Lengths were checked when the artifact was opened: rows · columns / 2 is at most the file's.
            let bytes = tensor.rows * tensor.columns * 4;
            self.copies.held = self.copies.held.saturating_add(bytes);
            self.copies.loading = self.copies.loading.saturating_add(bytes.saturating_mul(copies));
        }
        self.single.insert(key, single.clone());
        Ok(single)
    }

    /// Rows of a table by index, in single precision: only they are converted.
    ///
    /// # Errors
    /// As [`single`](Self::single).
    pub(super) fn rows(&mut self, graph: &mut Graph, key: TensorKey, indices: &str) -> Result<String> {
        // A table that is needed as a whole as well has its copy already.
        if let Some(table) = self.single.get(&key) {
            return Ok(graph.node("Gather", &[table, indices]));
        }
        let dtype = self.find(key)?.dtype;
        if matches!(dtype, DType::Q8 | DType::Q4) {
            return Ok(self.quantised(graph, key)?.rows(graph, indices));
        }
        let stored = self.stored(graph, key)?;
        let rows = graph.node("Gather", &[&stored, indices]);
        Ok(if dtype == DType::F32 { rows } else { cast(graph, &rows) })
    }

    /// The planes of a quantised tensor.
    fn quantised(&mut self, graph: &mut Graph, key: TensorKey) -> Result<Quantised> {
        if let Some(planes) = self.quantised.get(&key) {
            return Ok(planes.clone());
        }
        let tensor = self.find(key)?;
        if self.checked {
            self.artifact.check(tensor)?;
        }
        let planes = Quantised::new(graph, self.artifact, tensor, &name(key))?;
        self.quantised.insert(key, planes.clone());
        Ok(planes)
    }

    /// A tensor of whole numbers as it lies in the artifact.
    fn stored(&mut self, graph: &mut Graph, key: TensorKey) -> Result<String> {
        if let Some(name) = self.stored.get(&key) {
            return Ok(name.clone());
        }
        let tensor = self.find(key)?;
        if self.checked {
            self.artifact.check(tensor)?;
        }
        let element = match tensor.dtype {
            DType::F32 => Element::Float,
            DType::F16 => Element::Float16,
            DType::Bf16 => Element::Bfloat16,
            DType::Q8 | DType::Q4 => return Err(Error::request(key, "it is quantised and has no one number format")),
        };
        let (rows, columns) = (tensor.rows as usize, tensor.columns as usize);
        let dims = match tensor.layout {
            _ if key.part.is_vector() => vec![columns],
            Layout::Rows => vec![rows, columns],
            Layout::Interleaved => vec![rows.div_ceil(2), columns, 2],
        };
        let name = graph.weight(Weight { name: name(key), element, dims, range: self.artifact.range(tensor) });
        self.stored.insert(key, name.clone());
        Ok(name)
    }

    fn find(&self, key: TensorKey) -> Result<&'a StoredTensor> {
        self.artifact.find(key).ok_or_else(|| Error::NoTensor { path: self.artifact.path().to_path_buf(), key })
    }
}

/// `token_table`, `layers.3.attention_output_bias`: the names of our own dialect.
fn name(key: TensorKey) -> String {
    let part = snake_case(key.part);
    key.layer.map_or_else(|| part.clone(), |layer| format!("layers.{layer}.{part}"))
}

fn snake_case(part: Part) -> String {
    let mut text = String::new();
    for character in format!("{part:?}").chars() {
        if character.is_ascii_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(character.to_ascii_lowercase());
    }
    text
}

pub(super) fn cast(graph: &mut Graph, value: &str) -> String {
    graph.node_with("Cast", &[value], &[("to", Attribute::Int(Element::Float as i64))])
}

/// `[rows / 2, columns, 2]` of 16-bit numbers as `[rows, columns]` in single precision.
fn deinterleaved(graph: &mut Graph, stored: &str, rows: i64, columns: i64) -> String {
    let pairs = cast(graph, stored);
    let pairs = graph.node_with("Transpose", &[&pairs], &[("perm", Attribute::Ints(vec![0, 2, 1]))]);
    let whole = graph.ints(&[-1, columns]);
    let padded = graph.node("Reshape", &[&pairs, &whole]);
    if rows % 2 == 0 {
        return padded;
    }
    let (start, end) = (graph.ints(&[0]), graph.ints(&[rows]));
    graph.node("Slice", &[&padded, &start, &end])
}
