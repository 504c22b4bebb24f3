//! Rotary positions and attention windows as transformers describes them, before and since its version 5.

use crate::architecture::{AttentionSpan, Rotary, RotaryScaling};
use crate::checkpoint::config::Config;
use crate::error::Result;

/// The wavelengths and the share of a head that is rotated.
pub(super) struct Rope {
    pub rotary: Rotary,
    pub partial: f64,
}

impl Rope {
    /// `rope_parameters`, or the older `rope_theta`, `partial_rotary_factor` and `rope_scaling`; `base` and `partial` where neither says.
    pub fn read(config: &Config, base: f64, partial: f64) -> Result<Self> {
        let mut rope = Self { rotary: Rotary::of_base(config.number_or("rope_theta", base)?), partial };
        rope.partial = config.number_or("partial_rotary_factor", partial)?;
        for name in ["rope_scaling", "rope_parameters"] {
            if let Some(object) = config.object(name)? {
                rope.update(config, name, &object)?;
            }
        }
        Ok(rope)
    }

    /// Reads the object `name` of `config`: base, share and scaling.
    pub fn update(&mut self, config: &Config, name: &str, object: &Config) -> Result<()> {
        self.rotary.base = object.number_or("rope_theta", self.rotary.base)?;
        self.partial = object.number_or("partial_rotary_factor", self.partial)?;
        let kind = match object.text("rope_type")? {
            Some(kind) => kind,
            None => object.text("type")?.unwrap_or("default"),
        };
        let number = |field: &str| match object.lacks(field) {
            true => Err(object.wrong(field, &format!("a number, for rotary scaling of type `{kind}`"))),
            false => object.number_or(field, 0.0),
        };
        self.rotary.scaling = match kind {
            "default" => RotaryScaling::None,
            "linear" => RotaryScaling::Linear { factor: number("factor")? },
            "llama3" => RotaryScaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor: number("low_freq_factor")?,
                high_freq_factor: number("high_freq_factor")?,
                original_context: match object.lacks("original_max_position_embeddings") {
                    true => config.size("original_max_position_embeddings")?,
                    false => object.size("original_max_position_embeddings")?,
                },
            },
            other => {
                let expected = "`default`, `linear` and `llama3` are";
                return Err(config.unsupported(format!("rotary scaling of type `{other}` in `{name}`"), expected));
            }
        };
        Ok(())
    }

    /// The rotated dimensions of a head: the whole part of its share, as transformers computes it.
    pub fn dims(&self, config: &Config, head_dim: usize) -> Result<usize> {
        let dims = head_dim as f64 * self.partial;
        if !(0.0..=1.0).contains(&self.partial) || !(dims as usize).is_multiple_of(2) {
            return Err(config.unsupported(format!("rotating {dims} of {head_dim} dimensions of a head"), "an even whole number is"));
        }
        Ok(dims as usize)
    }

    /// Attention that reaches as far as `window`.
    pub fn span(&self, window: Option<usize>) -> AttentionSpan {
        AttentionSpan { window, rotary: Some(self.rotary) }
    }
}

/// `layer_types` as indices of `[full, sliding]`, or what `sliding` says of each layer where it is missing.
pub(super) fn layer_spans(config: &Config, layers: usize, sliding: impl Fn(usize) -> bool) -> Result<Vec<usize>> {
    let Some(types) = config.texts("layer_types")? else { return Ok((0..layers).map(|layer| usize::from(sliding(layer))).collect()) };
    if types.len() != layers {
        return Err(config.wrong("layer_types", &format!("{layers} entries, one a layer")));
    }
    let span = |kind: &str| match kind {
        "full_attention" => Ok(0),
        "sliding_attention" => Ok(1),
        other => Err(config.unsupported(format!("`{other}` in `layer_types`"), "full_attention and sliding_attention are")),
    };
    types.into_iter().map(span).collect()
}

/// The name of a span in `layer_types`.
pub(super) fn layer_type(span: &AttentionSpan) -> &'static str {
    if span.window.is_some() { "sliding_attention" } else { "full_attention" }
}
