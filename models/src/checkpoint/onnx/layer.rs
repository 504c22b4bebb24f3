//! The nodes of one layer: attention and FFN, after one another or side by side, each read through a norm and added to the residual
//! stream `[batch · sequence, d_model]`, through a norm of its own where the model has post norms.

use super::functions::{activation, norm, rms_norm};
use super::graph::{Attribute, Graph};
use super::positions::Places;
use super::weights::Weights;
use crate::architecture::{Architecture, NormKind, Residual};
use crate::error::Result;
use crate::shape::Units;
use crate::tensor::{Part, TensorKey};

/// What the nodes of every layer need.
pub(super) struct Builder<'a, 'b> {
    pub graph: &'b mut Graph,
    pub weights: &'b mut Weights<'a>,
    pub places: &'b mut Places,
    pub architecture: &'a Architecture,
    /// Whether keys and values come in and go out.
    pub cache: bool,
}

/// Where a layer's keys and values come in.
pub(super) fn past_name(layer: usize, what: &str) -> String {
    format!("past_key_values.{layer}.{what}")
}

/// Where a layer's keys and values go out.
pub(super) fn present_name(layer: usize, what: &str) -> String {
    format!("present.{layer}.{what}")
}

impl Builder<'_, '_> {
    /// One layer on the residual stream `x`; returns the new one.
    pub(super) fn layer(&mut self, index: usize, units: &Units, x: &str) -> Result<String> {
        let parallel = self.architecture.residual != Residual::Sequential;
        let own_norm = self.architecture.has_ffn_norm();
        let (has_heads, has_channels) = (!units.heads.is_empty(), units.channels > 0);
        self.graph.enter(format!("layers.{index}.attention"));
        let mut normed = String::new();
        if has_heads || has_channels && !own_norm {
            normed = self.norm(Some(index), Part::AttentionNorm, Part::AttentionNormBias, x)?;
        }
        let attended = if has_heads { Some(self.attention(index, units, &normed)?) } else { None };
        let middle = self.add_block(index, [Part::AttentionOutput, Part::AttentionOutputBias, Part::AttentionPostNorm], x, attended)?;
        self.graph.enter(format!("layers.{index}.ffn"));
        if has_channels && own_norm {
            let from = if parallel { x } else { &middle };
            normed = self.norm(Some(index), Part::FfnNorm, Part::FfnNormBias, from)?;
        }
        let active = if has_channels { Some(self.ffn(index, &normed)?) } else { None };
        self.add_block(index, [Part::Down, Part::DownBias, Part::FfnPostNorm], &middle, active)
    }

    /// The model's norm of `x`.
    pub(super) fn norm(&mut self, layer: Option<usize>, weight: Part, bias: Part, x: &str) -> Result<String> {
        let key = |part| TensorKey { layer: layer.map(|layer| layer as u32), part };
        let weight = self.weights.single(self.graph, key(weight))?;
        let bias = match self.architecture.norm.kind {
            NormKind::LayerNorm => Some(self.weights.single(self.graph, key(bias))?),
            NormKind::RmsNorm => None,
        };
        Ok(norm(self.graph, self.architecture.norm, x, &weight, bias.as_deref()))
    }

    /// `x Wᵀ + bias` for a matrix whose rows make outputs, `x W + bias` for one whose rows are units.
    pub(super) fn product(&mut self, weight: TensorKey, bias: Option<TensorKey>, x: &str) -> Result<String> {
        let by_units = weight.part.is_unit_reduction();
        let weight = self.weights.single(self.graph, weight)?;
        let bias = bias.map(|bias| self.weights.single(self.graph, bias)).transpose()?;
        let inputs: Vec<&str> = [x, &weight].into_iter().chain(bias.as_deref()).collect();
        // Both forms read the matrix as it lies: a `Transpose` before a `MatMul` would be folded into a copy.
        Ok(self.graph.node_with("Gemm", &inputs, &[("transB", Attribute::Int(i64::from(!by_units)))]))
    }

    /// A projection of a layer.
    fn project(&mut self, layer: usize, weight: Part, bias: Part, biased: bool, x: &str) -> Result<String> {
        self.product(TensorKey::of_layer(layer, weight), biased.then(|| TensorKey::of_layer(layer, bias)), x)
    }

    /// What the heads make of `normed`, `[batch · sequence, heads · head_dim]`.
    fn attention(&mut self, layer: usize, units: &Units, normed: &str) -> Result<String> {
        let biased = self.architecture.attention.qkv_bias;
        let query = self.project(layer, Part::Query, Part::QueryBias, biased, normed)?;
        let key = self.project(layer, Part::Key, Part::KeyBias, biased, normed)?;
        let value = self.project(layer, Part::Value, Part::ValueBias, biased, normed)?;
        let query = self.heads(layer, units.heads.len(), Some(Part::QueryNorm), units.span, &query)?;
        let key = self.heads(layer, units.groups, Some(Part::KeyNorm), units.span, &key)?;
        let value = self.heads(layer, units.groups, None, units.span, &value)?;
        let (key, value) = (self.with_past(layer, "key", key), self.with_past(layer, "value", value));
        let (key, value) = (self.by_query_head(units, key), self.by_query_head(units, value));
        let graph = &mut *self.graph;
        let turned = graph.node_with("Transpose", &[&key], &[("perm", Attribute::Ints(vec![0, 1, 3, 2]))]);
        let scores = graph.node("MatMul", &[&query, &turned]);
        let scale = graph.float(self.architecture.attention.score_scale());
        let scores = graph.node("Mul", &[&scores, &scale]);
        let mask = self.places.mask(graph, self.architecture, units.span);
        let scores = graph.node("Add", &[&scores, &mask]);
        let shares = graph.node_with("Softmax", &[&scores], &[("axis", Attribute::Int(-1))]);
        let attended = graph.node("MatMul", &[&shares, &value]);
        let attended = graph.node_with("Transpose", &[&attended], &[("perm", Attribute::Ints(vec![0, 2, 1, 3]))]);
        let flat = graph.ints(&[-1, (units.heads.len() * self.architecture.attention.head_dim) as i64]);
        Ok(graph.node("Reshape", &[&attended, &flat]))
    }

    /// `value [batch · sequence, heads · head_dim]` as `[batch, heads, sequence, head_dim]`; queries and keys, which name their norm, are
    /// normalised and turned.
    fn heads(&mut self, layer: usize, heads: usize, norm: Option<Part>, span: usize, value: &str) -> Result<String> {
        let mut value = self.places.by_head(self.graph, value, heads, self.architecture.attention.head_dim);
        if let Some(part) = norm.filter(|_| self.architecture.attention.qk_norm) {
            let weight = self.weights.single(self.graph, TensorKey::of_layer(layer, part))?;
            value = rms_norm(self.graph, self.architecture.norm.epsilon, &value, &weight);
        }
        let value = self.graph.node_with("Transpose", &[&value], &[("perm", Attribute::Ints(vec![0, 2, 1, 3]))]);
        Ok(match norm {
            Some(_) => self.places.rotated(self.graph, self.architecture, span, &value),
            None => value,
        })
    }

    /// Keys or values behind those of the past.
    fn with_past(&mut self, layer: usize, what: &str, value: String) -> String {
        if !self.cache {
            return value;
        }
        let (past, present) = (past_name(layer, what), present_name(layer, what));
        self.graph.named_node(&present, "Concat", &[&past, &value], &[("axis", Attribute::Int(2))]);
        present
    }

    /// Keys or values of the groups as the query heads read them.
    fn by_query_head(&mut self, units: &Units, value: String) -> String {
        if units.heads.len() == units.groups && units.heads.iter().enumerate().all(|(head, &group)| head == group as usize) {
            return value;
        }
        let groups = self.graph.ints(&units.heads.iter().map(|&group| i64::from(group)).collect::<Vec<_>>());
        self.graph.node_with("Gather", &[&value, &groups], &[("axis", Attribute::Int(1))])
    }

    /// What the channels make of `normed`, `[batch · sequence, channels]`.
    fn ffn(&mut self, layer: usize, normed: &str) -> Result<String> {
        let ffn = self.architecture.ffn;
        let up = self.project(layer, Part::Up, Part::UpBias, ffn.bias, normed)?;
        if !ffn.gated {
            return Ok(activation(self.graph, ffn.activation, &up));
        }
        let gate = self.project(layer, Part::Gate, Part::GateBias, ffn.bias, normed)?;
        let gate = activation(self.graph, ffn.activation, &gate);
        Ok(self.graph.node("Mul", &[&gate, &up]))
    }

    /// The residual stream `x` with what a block adds to it: the product of its units and its bias, which stays when all units are gone.
    fn add_block(&mut self, layer: usize, [weight, bias, post_norm]: [Part; 3], x: &str, units: Option<String>) -> Result<String> {
        let biased = match weight {
            Part::AttentionOutput => self.architecture.attention.output_bias,
            _ => self.architecture.ffn.bias,
        };
        let post_norms = self.architecture.post_norms;
        let mut added = match units {
            Some(units) => self.project(layer, weight, bias, biased, &units)?,
            None if biased => self.weights.single(self.graph, TensorKey::of_layer(layer, bias))?,
            // An RMSNorm of zeros is zero, so that nothing is added with a post norm either.
            None => return Ok(x.to_string()),
        };
        if post_norms {
            let norm_weight = self.weights.single(self.graph, TensorKey::of_layer(layer, post_norm))?;
            added = norm(self.graph, self.architecture.norm, &added, &norm_weight, None);
        }
        Ok(self.graph.node("Add", &[x, &added]))
    }
}
