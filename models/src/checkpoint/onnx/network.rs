//! The nodes of a whole model: input, layers, output.

use super::OnnxOutput;
use super::graph::{Attribute, Dim, Element, Graph};
use super::layer::{Builder, past_name, present_name};
use super::positions::Places;
use super::weights::Weights;
use crate::architecture::{Architecture, Input, Output, Positions};
use crate::artifact::Artifact;
use crate::error::{Error, Result};
use crate::shape::ModelShape;
use crate::tensor::{Part, TensorKey};

/// Names of dimensions that are known when the graph runs.
const BATCH: Dim = Dim::Named("batch");
const SEQUENCE: Dim = Dim::Named("sequence");
const PATCHES: Dim = Dim::Named("patches");
const PAST: Dim = Dim::Named("past_sequence");
const TOTAL: Dim = Dim::Named("total_sequence");

/// The graph of the artifact's network, and the bytes of weights that ONNX Runtime copies. Checksums of the weights are compared where they
/// are to be `checked`.
pub(super) fn graph(artifact: &Artifact, cache: bool, output: OnnxOutput, checked: bool) -> Result<(Graph, u64)> {
    let (architecture, shape) = (&artifact.manifest().architecture, artifact.manifest().shape());
    let mut graph = Graph::default();
    let mut weights = Weights::new(artifact, checked);
    let past = if cache { Some(past(&mut graph, architecture, &shape)?) } else { None };
    let input = declare_input(&mut graph, architecture);
    let mut places = Places::new(&mut graph, input, past.as_deref());
    let mut builder = Builder { graph: &mut graph, weights: &mut weights, places: &mut places, architecture, cache };
    let mut x = builder.embedded(input)?;
    for (index, units) in shape.kept() {
        x = builder.layer(index, units, &x)?;
    }
    match output {
        OnnxOutput::Logits => builder.logits(&x)?,
        OnnxOutput::States => builder.states(&x)?,
    }
    let copied_bytes = weights.copied_bytes;
    declare_first_output(&mut graph, architecture, output);
    if cache {
        declare_present(&mut graph, architecture, &shape);
    }
    Ok((graph, copied_bytes))
}

/// Layers that attend: those that carry keys and values, with their KV groups.
fn attending(shape: &ModelShape) -> impl Iterator<Item = (usize, usize)> {
    shape.kept().filter(|(_, units)| !units.heads.is_empty()).map(|(index, units)| (index, units.groups))
}

/// Declares the keys and values that come in; returns the name of one of them, of which the number of past tokens is read.
fn past(graph: &mut Graph, architecture: &Architecture, shape: &ModelShape) -> Result<String> {
    let refuse = |reason: &str| Error::Inexpressible { dialect: "ONNX", reason: reason.to_string() };
    if !matches!((&architecture.input, &architecture.output), (Input::Tokens { .. }, Output::NextToken { .. })) {
        return Err(refuse("a cache of keys and values is for a language model, and this one says no next token; leave out --cache"));
    }
    for (layer, groups) in attending(shape) {
        for what in ["key", "value"] {
            let dims = [BATCH, Dim::Size(groups), PAST, Dim::Size(architecture.attention.head_dim)];
            graph.input(&past_name(layer, what), Element::Float, &dims);
        }
    }
    let first = attending(shape).next().map(|(layer, _)| past_name(layer, "key"));
    first.ok_or_else(|| refuse("no layer has heads left, so that there are no keys and values to carry; leave out --cache"))
}

/// Declares what the model reads; returns its name.
fn declare_input(graph: &mut Graph, architecture: &Architecture) -> &'static str {
    match architecture.input {
        Input::Tokens { .. } => {
            graph.input("input_ids", Element::Int64, &[BATCH, SEQUENCE]);
            "input_ids"
        }
        Input::Patches { patch, .. } => {
            graph.input("patches", Element::Float, &[BATCH, PATCHES, Dim::Size(patch)]);
            "patches"
        }
    }
}

fn declare_first_output(graph: &mut Graph, architecture: &Architecture, output: OnnxOutput) {
    let width = Dim::Size(architecture.output_width());
    match (output, &architecture.output) {
        (OnnxOutput::States, _) => graph.output("states", &[BATCH, SEQUENCE, Dim::Size(architecture.d_model)]),
        (OnnxOutput::Logits, Output::NextToken { .. }) => graph.output("logits", &[BATCH, SEQUENCE, width]),
        (OnnxOutput::Logits, Output::Classes { .. }) => graph.output("logits", &[BATCH, width]),
    }
}

fn declare_present(graph: &mut Graph, architecture: &Architecture, shape: &ModelShape) {
    for (layer, groups) in attending(shape) {
        for what in ["key", "value"] {
            let dims = [BATCH, Dim::Size(groups), TOTAL, Dim::Size(architecture.attention.head_dim)];
            graph.output(&present_name(layer, what), &dims);
        }
    }
}

impl Builder<'_, '_> {
    /// The residual stream of the input `[batch · sequence, d_model]`.
    fn embedded(&mut self, input: &str) -> Result<String> {
        self.graph.enter("embedding");
        let d_model = self.architecture.d_model;
        let flat = self.graph.ints(&[-1, d_model as i64]);
        let mut x = match self.architecture.input {
            Input::Tokens { .. } => self.weights.rows(self.graph, TensorKey::global(Part::TokenTable), input)?,
            Input::Patches { patch, .. } => {
                let rows = self.graph.ints(&[-1, patch as i64]);
                let rows = self.graph.node("Reshape", &[input, &rows]);
                let bias = TensorKey::global(Part::PatchBias);
                let embedded = self.product(TensorKey::global(Part::Patch), Some(bias), &rows)?;
                self.places.by_sequence(self.graph, &embedded, d_model)
            }
        };
        if let Some(scale) = self.architecture.embedding_scale {
            let scale = self.graph.float(scale);
            x = self.graph.node("Mul", &[&x, &scale]);
        }
        if let Positions::Learned { offset, .. } = self.architecture.positions {
            let rows = self.places.rows(self.graph, offset);
            let table = self.weights.rows(self.graph, TensorKey::global(Part::PositionTable), &rows)?;
            x = self.graph.node("Add", &[&x, &table]);
        }
        Ok(self.graph.node("Reshape", &[&x, &flat]))
    }

    /// The output `states` of the last layer's residual stream.
    fn states(&mut self, x: &str) -> Result<()> {
        self.graph.enter("output");
        let states = self.norm(None, Part::FinalNorm, Part::FinalNormBias, x)?;
        let shape = self.places.with_sizes(self.graph, &[self.architecture.d_model]);
        self.graph.named_node("states", "Reshape", &[&states, &shape], &[]);
        Ok(())
    }

    /// The output `logits` of the last layer's residual stream.
    fn logits(&mut self, x: &str) -> Result<()> {
        self.graph.enter("output");
        let states = self.norm(None, Part::FinalNorm, Part::FinalNormBias, x)?;
        let (head, bias) = (TensorKey::global(Part::Head), TensorKey::global(Part::HeadBias));
        match self.architecture.output {
            Output::Classes { .. } => {
                let states = self.places.by_sequence(self.graph, &states, self.architecture.d_model);
                let attributes = [("axes", Attribute::Ints(vec![1])), ("keepdims", Attribute::Int(0))];
                let mean = self.graph.node_with("ReduceMean", &[&states], &attributes);
                let (head, bias) = (self.weights.single(self.graph, head)?, self.weights.single(self.graph, bias)?);
                self.graph.named_node("logits", "Gemm", &[&mean, &head, &bias], &[("transB", Attribute::Int(1))]);
            }
            Output::NextToken { tied, bias: biased } => {
                let matrix = if tied { TensorKey::global(Part::TokenTable) } else { head };
                let logits = self.product(matrix, biased.then_some(bias), &states)?;
                let shape = self.places.with_sizes(self.graph, &[self.architecture.output_width()]);
                self.graph.named_node("logits", "Reshape", &[&logits, &shape], &[]);
            }
        }
        Ok(())
    }
}
