//! What a pruned network must fit into.

use espalier_models::artifact::expected_bytes;
use espalier_models::{Manifest, ModelShape};
use espalier_runtime::Plan;

use super::pack::matrix_dtype;
use super::selection::Selection;
use crate::error::{AgentError, Result};

/// What a pruned network must fit into.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// Dense parameters divided by kept parameters, at least.
    Ratio(f64),
    /// Bytes that serving the network may hold, everything counted (what `inspect` prints).
    Serving(u64),
}

impl Target {
    /// A target that makes sense: a ratio above 1.
    pub fn checked(self) -> Result<Self> {
        match self {
            Target::Ratio(ratio) if !(ratio.is_finite() && ratio > 1.0) => {
                Err(AgentError::Usage(format!("a compression ratio of {ratio} cuts nothing; give a ratio above 1, such as 8")))
            }
            target => Ok(target),
        }
    }

    /// The most that [`cost`](Target::cost) may be.
    pub fn bound(&self, source: &Manifest) -> u64 {
        match *self {
            Target::Ratio(ratio) => (source.origin.dense_parameters as f64 / ratio) as u64,
            Target::Serving(bytes) => bytes,
        }
    }

    /// What the selected network costs in the target's own measure: parameters or bytes.
    pub fn cost(&self, source: &Manifest, selection: &Selection) -> Result<u64> {
        let shape = selection.shape(&source.shape());
        match self {
            Target::Ratio(_) => Ok(shape.parameters(&source.architecture) as u64),
            Target::Serving(_) => serving_bytes(source, selection),
        }
    }

    /// Whether the selected network fits.
    pub fn fits(&self, source: &Manifest, selection: &Selection) -> Result<bool> {
        Ok(self.cost(source, selection)? <= self.bound(source))
    }

    /// The sentence for a target that even `smallest` misses.
    pub fn infeasible(&self, source: &Manifest, smallest: &Selection) -> AgentError {
        let shape = smallest.shape(&source.shape());
        let parameters = shape.parameters(&source.architecture);
        let described = describe(&shape);
        match self {
            Target::Ratio(ratio) => {
                let reachable = source.origin.dense_parameters as f64 / parameters.max(1) as f64;
                AgentError::Infeasible(format!(
                    "a ratio of {ratio} cannot be reached: the smallest network that this architecture allows ({described}) keeps \
                     {parameters} parameters, a ratio of {reachable:.2}; give a ratio of at most {:.2}",
                    (reachable * 100.0).floor() / 100.0
                ))
            }
            Target::Serving(bytes) => too_few_bytes(*bytes, [0, 0], source, smallest),
        }
    }
}

/// The sentence for `bytes`, of them so many for recordings as they are read and for the engine, in which even `smallest` cannot be served.
pub fn too_few_bytes(bytes: u64, [source_bytes, engine_bytes]: [u64; 2], source: &Manifest, smallest: &Selection) -> AgentError {
    let needed = match serving_bytes(source, smallest) {
        Ok(needed) => needed,
        Err(error) => return error,
    };
    let described = describe(&smallest.shape(&source.shape()));
    let named = |what: &str, bytes: u64| if bytes == 0 { String::new() } else { format!(", and {what} {bytes} bytes") };
    let beside = named("the longest recording", source_bytes) + &named("the GPU's driver and buffers", engine_bytes);
    let all = needed.saturating_add(source_bytes).saturating_add(engine_bytes);
    AgentError::Infeasible(format!(
        "{bytes} bytes are too few: serving the smallest network that this architecture allows ({described}) holds {needed} \
         bytes{beside}; give at least {all} bytes"
    ))
}

/// Bytes that serving the selected network holds.
fn serving_bytes(source: &Manifest, selection: &Selection) -> Result<u64> {
    let manifest = Manifest { layers: selection.stored_layers(source), tensors: Vec::new(), levels: Vec::new(), ..source.clone() };
    let file = expected_bytes(&manifest, matrix_dtype(source))?;
    Ok(Plan::serving(&manifest, file).total())
}

/// A shape in words: `2 layers, 2 heads, 96 channels`, with ranges where layers differ.
pub fn describe(shape: &ModelShape) -> String {
    let range = |of: fn(&espalier_models::Units) -> usize, word: &str| {
        let (low, high) = shape.kept().map(|(_, units)| of(units)).fold((usize::MAX, 0), |(low, high), n| (low.min(n), high.max(n)));
        let plural = if high == 1 { "" } else { "s" };
        if low < high { format!("{low}–{high} {word}{plural}") } else { format!("{high} {word}{plural}") }
    };
    let layers = shape.kept().count();
    let plural = if layers == 1 { "" } else { "s" };
    format!("{layers} layer{plural}, {}, {}", range(|units| units.heads.len(), "head"), range(|units| units.channels, "channel"))
}
