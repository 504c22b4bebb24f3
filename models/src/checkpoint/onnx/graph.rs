//! An ONNX graph in the making: nodes, constants, weights, inputs and outputs, and how they become a `ModelProto` (onnx.proto of ONNX 1.12).

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::protobuf::{Message, entry};

/// The version of ONNX's own operators: the first with `LayerNormalization`.
pub(super) const OPSET: i64 = 17;
/// The version of the file format that belongs to [`OPSET`].
const IR_VERSION: i64 = 8;

/// A number format of ONNX; the discriminant is its number in `TensorProto.DataType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Element {
    /// Single precision.
    Float = 1,
    /// Bytes without a sign.
    Uint8 = 2,
    /// Bytes with a sign.
    Int8 = 3,
    /// 64-bit integers.
    Int64 = 7,
    /// Half precision.
    Float16 = 10,
    /// The upper half of a single.
    Bfloat16 = 16,
}

/// A tensor of a graph whose numbers lie in the artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weight {
    /// Its name in the graph.
    pub name: String,
    /// Its number format.
    pub element: Element,
    /// Its dimensions.
    pub dims: Vec<usize>,
    /// Where its bytes lie in the artifact's file.
    pub range: Range<usize>,
}

/// One dimension of an input or output.
#[derive(Debug, Clone)]
pub(super) enum Dim {
    /// Known.
    Size(usize),
    /// Known when the graph runs, under this name.
    Named(&'static str),
}

/// An attribute of a node.
pub(super) enum Attribute {
    Int(i64),
    Float(f32),
    Ints(Vec<i64>),
}

/// Where the bytes of weights are.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place<'a> {
    /// In the file of this name, in the graph's folder.
    Beside(&'a str),
    /// In the graph.
    Inside,
}

/// A graph in the making. Values are named; a node's output is named after its scope and operator.
#[derive(Default)]
pub(super) struct Graph {
    scope: String,
    nodes: Vec<Message>,
    inputs: Vec<Message>,
    outputs: Vec<Message>,
    constants: Vec<Message>,
    known_constants: HashSet<String>,
    weights: Vec<Weight>,
    /// Nodes of the same scope and operator so far.
    used: HashMap<String, usize>,
}

impl Graph {
    /// Names what follows after a part of the network, such as `layers.3.attention`.
    pub(super) fn enter(&mut self, scope: impl Into<String>) {
        self.scope = scope.into();
    }

    /// Adds a node with one output and returns the output's name.
    pub(super) fn node(&mut self, operator: &str, inputs: &[&str]) -> String {
        self.node_with(operator, inputs, &[])
    }

    /// As [`node`](Self::node), with attributes.
    pub(super) fn node_with(&mut self, operator: &str, inputs: &[&str], attributes: &[(&str, Attribute)]) -> String {
        let name = self.fresh(operator);
        self.push(operator, inputs, &[&name], &name, attributes);
        name
    }

    /// As [`node_with`](Self::node_with), with an output whose name the graph promises.
    pub(super) fn named_node(&mut self, output: &str, operator: &str, inputs: &[&str], attributes: &[(&str, Attribute)]) {
        let name = self.fresh(operator);
        self.push(operator, inputs, &[output], &name, attributes);
    }

    /// Adds `Split` along `axis` into parts of these sizes and returns the parts' names.
    pub(super) fn split(&mut self, value: &str, sizes: &[usize], axis: i64) -> Vec<String> {
        let name = self.fresh("Split");
        let parts: Vec<String> = (0..sizes.len()).map(|part| format!("{name}.{part}")).collect();
        let outputs: Vec<&str> = parts.iter().map(String::as_str).collect();
        let lengths = self.ints(&sizes.iter().map(|&size| size as i64).collect::<Vec<_>>());
        self.push("Split", &[value, &lengths], &outputs, &name, &[("axis", Attribute::Int(axis))]);
        parts
    }

    /// A constant vector of integers.
    pub(super) fn ints(&mut self, values: &[i64]) -> String {
        let text: Vec<String> = values.iter().map(i64::to_string).collect();
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(format!("ints.{}", text.join(",")), Element::Int64, &[values.len()], bytes)
    }

    /// A constant integer without dimensions.
    pub(super) fn int(&mut self, value: i64) -> String {
        self.constant(format!("int.{value}"), Element::Int64, &[], value.to_le_bytes().to_vec())
    }

    /// A constant number without dimensions.
    pub(super) fn float(&mut self, value: f32) -> String {
        self.constant(format!("float.{value:e}"), Element::Float, &[], value.to_le_bytes().to_vec())
    }

    /// A constant vector of numbers, under `name`.
    pub(super) fn floats(&mut self, name: String, values: &[f32]) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(name, Element::Float, &[values.len()], bytes)
    }

    fn constant(&mut self, name: String, element: Element, dims: &[usize], bytes: Vec<u8>) -> String {
        if self.known_constants.insert(name.clone()) {
            let mut tensor = tensor(&name, element, dims);
            tensor.bytes(9, &bytes);
            self.constants.push(tensor);
        }
        name
    }

    /// A tensor whose numbers lie in the artifact.
    pub(super) fn weight(&mut self, weight: Weight) -> String {
        let name = weight.name.clone();
        self.weights.push(weight);
        name
    }

    /// An input of the graph.
    pub(super) fn input(&mut self, name: &str, element: Element, dims: &[Dim]) {
        self.inputs.push(value_info(name, element, dims));
    }

    /// An output of the graph, made by a [`named_node`](Self::named_node).
    pub(super) fn output(&mut self, name: &str, dims: &[Dim]) {
        self.outputs.push(value_info(name, Element::Float, dims));
    }

    /// Nodes so far.
    pub(super) fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Weights so far.
    pub(super) fn weights(&self) -> &[Weight] {
        &self.weights
    }

    /// The `ModelProto`, with `properties` as its metadata.
    pub(super) fn finish(self, place: Place<'_>, properties: &[(&str, String)]) -> Message {
        let mut graph = Message::default();
        self.nodes.into_iter().for_each(|node| graph.message(1, node));
        graph.text(2, "espalier");
        for weight in &self.weights {
            graph.message(5, initializer(weight, place));
        }
        self.constants.into_iter().for_each(|tensor| graph.message(5, tensor));
        self.inputs.into_iter().for_each(|input| graph.message(11, input));
        self.outputs.into_iter().for_each(|output| graph.message(12, output));
        let mut model = Message::default();
        model.int(1, IR_VERSION);
        model.text(2, "espalier");
        model.text(3, env!("CARGO_PKG_VERSION"));
        model.message(7, graph);
        let mut opset = Message::default();
        opset.text(1, "");
        opset.int(2, OPSET);
        model.message(8, opset);
        for (key, value) in properties {
            model.message(14, entry(key, value));
        }
        model
    }

    fn fresh(&mut self, operator: &str) -> String {
        let name = format!("{}.{operator}", self.scope);
        let count = self.used.entry(name.clone()).or_default();
        *count += 1;
        if *count == 1 { name } else { format!("{name}.{count}") }
    }

    fn push(&mut self, operator: &str, inputs: &[&str], outputs: &[&str], name: &str, attributes: &[(&str, Attribute)]) {
        let mut node = Message::default();
        inputs.iter().for_each(|input| node.text(1, input));
        outputs.iter().for_each(|output| node.text(2, output));
        node.text(3, name);
        node.text(4, operator);
        for (name, value) in attributes {
            node.message(5, attribute(name, value));
        }
        self.nodes.push(node);
    }
}

fn attribute(name: &str, value: &Attribute) -> Message {
    let mut attribute = Message::default();
    attribute.text(1, name);
    match value {
        Attribute::Float(value) => {
            attribute.float(2, *value);
            attribute.int(20, 1);
        }
        Attribute::Int(value) => {
            attribute.int(3, *value);
            attribute.int(20, 2);
        }
        Attribute::Ints(values) => {
            values.iter().for_each(|value| attribute.int(8, *value));
            attribute.int(20, 7);
        }
    }
    attribute
}

/// A `TensorProto` without its numbers.
fn tensor(name: &str, element: Element, dims: &[usize]) -> Message {
    let mut tensor = Message::default();
    dims.iter().for_each(|dim| tensor.size(1, *dim));
    tensor.int(2, element as i64);
    tensor.text(8, name);
    tensor
}

fn initializer(weight: &Weight, place: Place<'_>) -> Message {
    let mut tensor = tensor(&weight.name, weight.element, &weight.dims);
    match place {
        Place::Inside => tensor.file_bytes(9, weight.range.clone()),
        Place::Beside(file) => {
            let entries =
                [("location", file.to_string()), ("offset", weight.range.start.to_string()), ("length", weight.range.len().to_string())];
            entries.iter().for_each(|(key, value)| tensor.message(13, entry(key, value)));
            // TensorProto.EXTERNAL.
            tensor.int(14, 1);
        }
    }
    tensor
}

fn value_info(name: &str, element: Element, dims: &[Dim]) -> Message {
    let mut shape = Message::default();
    for dim in dims {
        let mut message = Message::default();
        match dim {
            Dim::Size(size) => message.size(1, *size),
            Dim::Named(name) => message.text(2, name),
        }
        shape.message(1, message);
    }
    let mut tensor = Message::default();
    tensor.int(1, element as i64);
    tensor.message(2, shape);
    let mut kind = Message::default();
    kind.message(1, tensor);
    let mut info = Message::default();
    info.text(1, name);
    info.message(2, kind);
    info
}
