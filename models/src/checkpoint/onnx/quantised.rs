//! How the planes of a quantised tensor become a value of single precision, exactly, in operators that every reader of opset 17 has.
//!
//! ONNX has quantisation in blocks from opset 21 on only, and for symmetric blocks only; here a block is its quants times its scale, plus
//! its minimum. Four-bit quants are pulled apart in single precision, which holds them exactly: the upper half of a byte is the floor of a
//! sixteenth of it.

use super::graph::{Attribute, Element, Graph, Weight};
use super::weights::cast;
use crate::artifact::Artifact;
use crate::error::{Error, Result};
use crate::formats::Format;
use crate::formats::blocks::{BLOCK, Planes};
use crate::manifest::StoredTensor;
use crate::tensor::{DType, Layout};

/// The names of a quantised tensor's planes in a graph.
#[derive(Clone)]
pub(super) struct Quantised {
    quants: String,
    scales: String,
    minima: Option<String>,
    dtype: DType,
    layout: Layout,
    rows: usize,
    columns: usize,
}

impl Quantised {
    /// Puts the planes of `tensor` into the graph as weights whose names begin with `name`.
    ///
    /// # Errors
    /// [`Error::Request`] where it has no planes.
    pub(super) fn new(graph: &mut Graph, artifact: &Artifact, tensor: &StoredTensor, name: &str) -> Result<Self> {
        let (rows, columns) = (tensor.rows as usize, tensor.columns as usize);
        let format = Format { dtype: tensor.dtype, layout: tensor.layout, rows, columns };
        let planes = Planes::of(&format).ok_or_else(|| Error::request(tensor.key, format!("{:?} has no planes", tensor.dtype)))?;
        let start = artifact.range(tensor).start;
        let mut weight = |what: &str, element, dims, plane: std::ops::Range<usize>| {
            graph.weight(Weight { name: format!("{name}.{what}"), element, dims, range: start + plane.start..start + plane.end })
        };
        let (blocks, units) = (columns.div_ceil(BLOCK), rows.next_multiple_of(BLOCK));
        let (element, quants) = match (tensor.dtype, tensor.layout) {
            (DType::Q4, Layout::Rows) => (Element::Uint8, vec![rows, blocks, BLOCK / 2]),
            (DType::Q4, Layout::Interleaved) => (Element::Uint8, vec![units / 8, columns, 4]),
            (_, Layout::Rows) => (Element::Int8, vec![rows, blocks, BLOCK]),
            (_, Layout::Interleaved) => (Element::Int8, vec![units / 4, columns, 4]),
        };
        let ranges = match tensor.layout {
            Layout::Rows => vec![rows, blocks, 1],
            Layout::Interleaved => vec![units / BLOCK, 1, columns],
        };
        Ok(Self {
            quants: weight("quants", element, quants, planes.quants),
            scales: weight("scales", Element::Float16, ranges.clone(), planes.scales),
            minima: (tensor.dtype == DType::Q4).then(|| weight("minima", Element::Float16, ranges, planes.minima)),
            dtype: tensor.dtype,
            layout: tensor.layout,
            rows,
            columns,
        })
    }

    /// Copies of the numbers in single precision that computing the whole tensor makes, one a node, rounded up.
    pub(super) fn copies(&self) -> u64 {
        // Cast, Mul, Reshape, Slice; of four bits the halves, half the numbers five times, and Concat, Reshape and Add.
        if self.dtype == DType::Q4 { 9 } else { 4 }
    }

    /// The whole tensor, `[rows, columns]`.
    pub(super) fn whole(&self, graph: &mut Graph) -> String {
        match self.layout {
            Layout::Rows => {
                let blocks = self.along_rows(graph, &self.quants, &self.scales, self.minima.as_deref());
                let width = self.columns.next_multiple_of(BLOCK);
                let shape = graph.ints(&[-1, width as i64]);
                let rows = graph.node("Reshape", &[&blocks, &shape]);
                self.without_padding(graph, rows, -1, width, self.columns)
            }
            Layout::Interleaved => self.along_units(graph),
        }
    }

    /// Rows by index, `[.., columns]`, of a tensor that is stored by rows.
    pub(super) fn rows(&self, graph: &mut Graph, indices: &str) -> String {
        let quants = graph.node("Gather", &[&self.quants, indices]);
        let scales = graph.node("Gather", &[&self.scales, indices]);
        let minima = self.minima.as_ref().map(|minima| graph.node("Gather", &[minima, indices]));
        let blocks = self.along_rows(graph, &quants, &scales, minima.as_deref());
        let width = self.columns.next_multiple_of(BLOCK);
        let (before, last) = (graph.node("Shape", &[indices]), graph.ints(&[width as i64]));
        let shape = graph.node_with("Concat", &[&before, &last], &[("axis", Attribute::Int(0))]);
        let rows = graph.node("Reshape", &[&blocks, &shape]);
        self.without_padding(graph, rows, -1, width, self.columns)
    }

    /// `[.., blocks, 32]` of blocks along rows.
    fn along_rows(&self, graph: &mut Graph, quants: &str, scales: &str, minima: Option<&str>) -> String {
        let quants = if self.dtype == DType::Q4 {
            let [low, high] = halves(graph, quants);
            graph.node_with("Concat", &[&low, &high], &[("axis", Attribute::Int(-1))])
        } else {
            cast(graph, quants)
        };
        scaled(graph, &quants, scales, minima)
    }

    /// `[rows, columns]` of blocks of 32 rows, whose rows are interleaved: groups are turned into rows while they are bytes still.
    fn along_units(&self, graph: &mut Graph) -> String {
        let (columns, units) = (self.columns as i64, self.rows.next_multiple_of(BLOCK));
        let turned = graph.node_with("Transpose", &[&self.quants], &[("perm", Attribute::Ints(vec![0, 2, 1]))]);
        let blocks = graph.ints(&[-1, BLOCK as i64, columns]);
        let quants = if self.dtype == DType::Q4 {
            // A byte holds two neighbouring rows.
            let shape = graph.ints(&[-1, 1, columns]);
            let bytes = graph.node("Reshape", &[&turned, &shape]);
            let [low, high] = halves(graph, &bytes);
            let pairs = graph.node_with("Concat", &[&low, &high], &[("axis", Attribute::Int(1))]);
            graph.node("Reshape", &[&pairs, &blocks])
        } else {
            let quants = graph.node("Reshape", &[&turned, &blocks]);
            cast(graph, &quants)
        };
        let numbers = scaled(graph, &quants, &self.scales, self.minima.as_deref());
        let shape = graph.ints(&[-1, columns]);
        let rows = graph.node("Reshape", &[&numbers, &shape]);
        self.without_padding(graph, rows, 0, units, self.rows)
    }

    /// The first `kept` of `width` entries of an axis.
    fn without_padding(&self, graph: &mut Graph, value: String, axis: i64, width: usize, kept: usize) -> String {
        if width == kept {
            return value;
        }
        let (start, end, axis) = (graph.ints(&[0]), graph.ints(&[kept as i64]), graph.ints(&[axis]));
        graph.node("Slice", &[&value, &start, &end, &axis])
    }
}

/// The lower and the upper four bits of bytes, in single precision.
fn halves(graph: &mut Graph, bytes: &str) -> [String; 2] {
    let bytes = cast(graph, bytes);
    let (sixteenth, sixteen) = (graph.float(0.0625), graph.float(16.0));
    let high = graph.node("Mul", &[&bytes, &sixteenth]);
    let high = graph.node("Floor", &[&high]);
    let above = graph.node("Mul", &[&high, &sixteen]);
    [graph.node("Sub", &[&bytes, &above]), high]
}

/// `quants · scales + minima`.
fn scaled(graph: &mut Graph, quants: &str, scales: &str, minima: Option<&str>) -> String {
    let scales = cast(graph, scales);
    let numbers = graph.node("Mul", &[quants, &scales]);
    match minima {
        None => numbers,
        Some(minima) => {
            let minima = cast(graph, minima);
            graph.node("Add", &[&numbers, &minima])
        }
    }
}
