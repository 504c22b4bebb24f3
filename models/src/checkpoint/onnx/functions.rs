//! Norms and activations as nodes, in the forms that ONNX Runtime recognises and fuses.

use super::graph::{Attribute, Graph};
use crate::architecture::{Activation, Norm, NormKind};

/// `value` normalised over its last dimension.
pub(super) fn norm(graph: &mut Graph, norm: Norm, value: &str, weight: &str, bias: Option<&str>) -> String {
    match norm.kind {
        NormKind::LayerNorm => {
            let inputs: Vec<&str> = [value, weight].into_iter().chain(bias).collect();
            graph.node_with("LayerNormalization", &inputs, &[("axis", Attribute::Int(-1)), ("epsilon", Attribute::Float(norm.epsilon))])
        }
        NormKind::RmsNorm => rms_norm(graph, norm.epsilon, value, weight),
    }
}

/// `value / √(mean(value²) + ε) · weight` over the last dimension.
pub(super) fn rms_norm(graph: &mut Graph, epsilon: f32, value: &str, weight: &str) -> String {
    let (two, epsilon) = (graph.float(2.0), graph.float(epsilon));
    let squares = graph.node("Pow", &[value, &two]);
    let mean = graph.node_with("ReduceMean", &[&squares], &[("axes", Attribute::Ints(vec![-1])), ("keepdims", Attribute::Int(1))]);
    let shifted = graph.node("Add", &[&mean, &epsilon]);
    let root = graph.node("Sqrt", &[&shifted]);
    let normalised = graph.node("Div", &[value, &root]);
    graph.node("Mul", &[&normalised, weight])
}

/// The activation of every number.
pub(super) fn activation(graph: &mut Graph, activation: Activation, value: &str) -> String {
    match activation {
        Activation::GeluExact => {
            let (root, one, half) = (graph.float(std::f32::consts::SQRT_2), graph.float(1.0), graph.float(0.5));
            let scaled = graph.node("Div", &[value, &root]);
            let error = graph.node("Erf", &[&scaled]);
            let shifted = graph.node("Add", &[&error, &one]);
            let product = graph.node("Mul", &[value, &shifted]);
            graph.node("Mul", &[&product, &half])
        }
        Activation::GeluTanh => gelu_tanh(graph, value),
        Activation::Silu => {
            let gate = graph.node("Sigmoid", &[value]);
            graph.node("Mul", &[value, &gate])
        }
        Activation::Relu => graph.node("Relu", &[value]),
    }
}

/// `x / 2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
fn gelu_tanh(graph: &mut Graph, value: &str) -> String {
    let (three, cubic, root) = (graph.float(3.0), graph.float(0.044_715), graph.float(0.797_884_6));
    let (one, half) = (graph.float(1.0), graph.float(0.5));
    let cube = graph.node("Pow", &[value, &three]);
    let cube = graph.node("Mul", &[&cube, &cubic]);
    let inner = graph.node("Add", &[value, &cube]);
    let inner = graph.node("Mul", &[&inner, &root]);
    let tanh = graph.node("Tanh", &[&inner]);
    let shifted = graph.node("Add", &[&tanh, &one]);
    let halved = graph.node("Mul", &[value, &half]);
    graph.node("Mul", &[&halved, &shifted])
}
