//! What all layers know of positions: how many tokens there are and were before, which keys a query sees, and rotary angles.

use std::collections::HashMap;

use super::graph::{Attribute, Element, Graph};
use crate::architecture::{Architecture, Positions};

/// Values that layers share, each made on first use.
pub(super) struct Places {
    /// `[2]`: batch and sequence.
    batch_and_sequence: String,
    /// Positions of the queries `[sequence]`, counted from the first token that was ever read.
    positions: String,
    /// Positions of the keys `[keys]`.
    keys: String,
    /// By attention span: what is added to scores, `[sequence, keys]`.
    masks: HashMap<usize, String>,
    /// By attention span: cosines and sines, `[sequence, dims / 2]` each.
    angles: HashMap<usize, [String; 2]>,
    /// By heads or groups: `[batch, sequence, heads, head size]`.
    head_shapes: HashMap<usize, String>,
}

impl Places {
    /// Of `input [batch, sequence, ..]`, and of the keys `past [batch, groups, past, head_dim]` that were there before.
    pub(super) fn new(graph: &mut Graph, input: &str, past: Option<&str>) -> Self {
        graph.enter("positions");
        let batch_and_sequence = graph.node_with("Shape", &[input], &[("end", Attribute::Int(2))]);
        let (zero, one) = (graph.int(0), graph.int(1));
        let sequence = graph.node("Gather", &[&batch_and_sequence, &one]);
        let (start, end) = match past {
            None => (zero.clone(), sequence),
            Some(past) => {
                let shape = graph.node("Shape", &[past]);
                let two = graph.int(2);
                let before = graph.node("Gather", &[&shape, &two]);
                let end = graph.node("Add", &[&before, &sequence]);
                (before, end)
            }
        };
        let positions = graph.node("Range", &[&start, &end, &one]);
        let keys = if past.is_some() { graph.node("Range", &[&zero, &end, &one]) } else { positions.clone() };
        Self { batch_and_sequence, positions, keys, masks: HashMap::new(), angles: HashMap::new(), head_shapes: HashMap::new() }
    }

    /// Positions of the queries with `offset` added, `[sequence]`.
    pub(super) fn rows(&self, graph: &mut Graph, offset: usize) -> String {
        if offset == 0 {
            return self.positions.clone();
        }
        let offset = graph.int(offset as i64);
        graph.node("Add", &[&self.positions, &offset])
    }

    /// `value [batch · sequence, width]` as `[batch, sequence, width]`.
    pub(super) fn by_sequence(&self, graph: &mut Graph, value: &str, width: usize) -> String {
        let shape = self.with_sizes(graph, &[width]);
        graph.node("Reshape", &[value, &shape])
    }

    /// `value [batch · sequence, heads · head_dim]` as `[batch, sequence, heads, head_dim]`.
    pub(super) fn by_head(&mut self, graph: &mut Graph, value: &str, heads: usize, head_dim: usize) -> String {
        let shape = match self.head_shapes.get(&heads) {
            Some(shape) => shape.clone(),
            None => {
                let shape = self.with_sizes(graph, &[heads, head_dim]);
                self.head_shapes.insert(heads, shape.clone());
                shape
            }
        };
        graph.node("Reshape", &[value, &shape])
    }

    /// `[batch, sequence, ..sizes]`, the target of a `Reshape`.
    pub(super) fn with_sizes(&self, graph: &mut Graph, sizes: &[usize]) -> String {
        let sizes = graph.ints(&sizes.iter().map(|&size| size as i64).collect::<Vec<_>>());
        graph.node_with("Concat", &[&self.batch_and_sequence, &sizes], &[("axis", Attribute::Int(0))])
    }

    /// What is added to the scores of a layer with the attention span `span`, `[sequence, keys]`: 0 for keys that a query sees, else
    /// the lowest number.
    pub(super) fn mask(&mut self, graph: &mut Graph, architecture: &Architecture, span: usize) -> String {
        if let Some(mask) = self.masks.get(&span) {
            return mask.clone();
        }
        let (first, last) = (graph.ints(&[0]), graph.ints(&[-1]));
        let queries = graph.node("Unsqueeze", &[&self.positions, &last]);
        let keys = graph.node("Unsqueeze", &[&self.keys, &first]);
        let distance = graph.node("Sub", &[&queries, &keys]);
        let zero = graph.int(0);
        let mut seen = graph.node("GreaterOrEqual", &[&distance, &zero]);
        if let Some(window) = architecture.spans.get(span).and_then(|span| span.window) {
            let window = graph.int(window as i64);
            let near = graph.node("Less", &[&distance, &window]);
            seen = graph.node("And", &[&seen, &near]);
        }
        let (shown, hidden) = (graph.float(0.0), graph.float(f32::MIN));
        let mask = graph.node("Where", &[&seen, &shown, &hidden]);
        self.masks.insert(span, mask.clone());
        mask
    }

    /// `value [batch, heads, sequence, head_dim]` turned by its positions, where the model has rotary ones.
    pub(super) fn rotated(&mut self, graph: &mut Graph, architecture: &Architecture, span: usize, value: &str) -> String {
        let Positions::Rotary { dims, .. } = architecture.positions else { return value.to_string() };
        if dims == 0 {
            return value.to_string();
        }
        let [cosines, sines] = self.angles(graph, architecture, span, dims);
        let rest = architecture.attention.head_dim - dims;
        let sizes = if rest == 0 { vec![dims / 2, dims / 2] } else { vec![dims / 2, dims / 2, rest] };
        let parts = graph.split(value, &sizes, -1);
        let (low, high) = (&parts[0], &parts[1]);
        let products = [(low, &cosines), (high, &sines), (high, &cosines), (low, &sines)];
        let [low_cos, high_sin, high_cos, low_sin] = products.map(|(part, factors)| graph.node("Mul", &[part, factors]));
        let low = graph.node("Sub", &[&low_cos, &high_sin]);
        let high = graph.node("Add", &[&high_cos, &low_sin]);
        let turned: Vec<&str> = [low.as_str(), &high].into_iter().chain(parts.get(2).map(String::as_str)).collect();
        graph.node_with("Concat", &turned, &[("axis", Attribute::Int(-1))])
    }

    /// Cosines and sines of a span's angles.
    fn angles(&mut self, graph: &mut Graph, architecture: &Architecture, span: usize, dims: usize) -> [String; 2] {
        if let Some(angles) = self.angles.get(&span) {
            return angles.clone();
        }
        let rotary = architecture.spans.get(span).and_then(|span| span.rotary);
        let frequencies = rotary.map(|rotary| rotary.frequencies(dims)).unwrap_or_default();
        let frequencies: Vec<f32> = frequencies.into_iter().map(|frequency| frequency as f32).collect();
        let frequencies = graph.floats(format!("spans.{span}.frequencies"), &frequencies);
        let positions = graph.node_with("Cast", &[&self.positions], &[("to", Attribute::Int(Element::Float as i64))]);
        let last = graph.ints(&[-1]);
        let positions = graph.node("Unsqueeze", &[&positions, &last]);
        let angles = graph.node("Mul", &[&positions, &frequencies]);
        let angles = [graph.node("Cos", &[&angles]), graph.node("Sin", &[&angles])];
        self.angles.insert(span, angles.clone());
        angles
    }
}
