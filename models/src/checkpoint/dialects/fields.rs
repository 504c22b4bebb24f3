//! Sizes that many families name alike, each with its limit.

use super::Held;
use crate::artifact::validate;
use crate::checkpoint::config::Config;
use crate::error::Result;
use crate::shape::Units;

/// The number of layers `name`, each with these units. The lists that are made of them must not outgrow the checkpoint: it has a tensor
/// for every layer, and every head and every channel is two vectors of `d_model` numbers at least, of half a byte or more.
pub(super) fn layer_count(config: &Config, name: &str, held: Held, d_model: usize, units: &Units) -> Result<usize> {
    /// Heads and channels are kept in lists of four bytes each; a narrower model's numbers are not quantised.
    const LEAST_BYTES: u64 = 4;
    let layers = config.size(name)?;
    if layers > held.tensors {
        return Err(config.wrong(name, &format!("fewer layers than the checkpoint's {} tensors", held.tensors)));
    }
    let (heads, channels) = (units.heads.len(), units.channels);
    let needed = (layers as u64).saturating_mul((heads + channels) as u64).saturating_mul(LEAST_BYTES.max(d_model as u64));
    if needed > held.bytes {
        return Err(config.invalid(format!(
            "{layers} layers of {heads} heads and {channels} channels, {d_model} wide, need more than {needed} bytes, but the checkpoint's \
             files have {}; give the config of this checkpoint, whole",
            held.bytes
        )));
    }
    Ok(layers)
}

/// The size `name`, at most `most`.
pub(super) fn at_most(config: &Config, name: &str, size: usize, most: usize) -> Result<usize> {
    if size <= most { Ok(size) } else { Err(config.wrong(name, &format!("at most {most}"))) }
}

/// Refuses quantised checkpoints.
pub(super) fn require_plain_weights(config: &Config) -> Result<()> {
    match config.object("quantization_config")? {
        Some(_) => Err(config.unsupported("a quantised checkpoint", "F32, F16 and BF16 weights are")),
        None => Ok(()),
    }
}

/// The sizes of a layer.
pub(super) struct Sizes {
    pub d_model: usize,
    pub heads: usize,
    pub head_dim: usize,
}

impl Sizes {
    /// Reads the width, the heads (which divide it, unless `head_dim` is there or has a default) by their names.
    pub fn read(config: &Config, width: &str, heads: &str, head_dim: HeadDim) -> Result<Self> {
        let d_model = at_most(config, width, config.size(width)?, validate::MAX_D_MODEL)?;
        let head_count = at_most(config, heads, config.size(heads)?, validate::MAX_HEADS)?;
        let quotient = || match d_model.is_multiple_of(head_count) {
            true => Ok(d_model / head_count),
            false => Err(config.wrong(heads, &format!("a divisor of `{width}` = {d_model}"))),
        };
        let head_dim = match head_dim {
            HeadDim::Quotient => quotient()?,
            HeadDim::Field if config.lacks("head_dim") => quotient()?,
            HeadDim::Field => config.size("head_dim")?,
            HeadDim::Default(default) => config.size_or("head_dim", default)?,
        };
        let head_dim = at_most(config, "head_dim", head_dim, validate::MAX_HEAD_DIM)?;
        Ok(Self { d_model, heads: head_count, head_dim })
    }
}

/// Where a family's head size comes from.
#[derive(Debug, Clone, Copy)]
pub(super) enum HeadDim {
    /// The width divided by the heads.
    Quotient,
    /// The field `head_dim`, or that.
    Field,
    /// The field `head_dim`, or this.
    Default(usize),
}

/// The FFN channels `name`.
pub(super) fn channels(config: &Config, name: &str) -> Result<usize> {
    at_most(config, name, config.size(name)?, validate::MAX_CHANNELS)
}

/// The KV groups `name`, as many as there are heads where it is missing.
pub(super) fn groups(config: &Config, name: &str, heads: usize) -> Result<usize> {
    let groups = config.size_or(name, heads)?;
    if heads.is_multiple_of(groups) {
        return Ok(groups);
    }
    Err(config.wrong(name, &format!("a divisor of the {heads} heads")))
}
