//! Llama and the families that took its layers over: RMSNorm, rotary positions, gated FFN.

use serde_json::Value;

use super::fields::{HeadDim, Sizes, channels, groups, layer_count, require_plain_weights};
use super::rope::{Rope, layer_spans, layer_type};
use super::{Described, Held, Resized};
use crate::architecture::{Architecture, Attention, Ffn, Input, Norm, NormKind, Output, Positions, Residual};
use crate::checkpoint::Dialect;
use crate::checkpoint::config::Config;
use crate::error::Result;
use crate::shape::Units;

/// The window of a Mistral or Qwen whose config does not mention it, as in transformers.
const DEFAULT_WINDOW: usize = 4096;

/// What the families do differently.
struct Variant {
    dialect: Dialect,
    head_dim: HeadDim,
    qkv_bias: bool,
    output_bias: bool,
    ffn_bias: bool,
    qk_norm: bool,
}

/// A model with full attention in all layers, and its rotary positions.
fn common(config: &Config, variant: &Variant) -> Result<(Architecture, Units, Rope)> {
    require_plain_weights(config)?;
    let channels = channels(config, "intermediate_size")?;
    let Sizes { d_model, heads, head_dim } = Sizes::read(config, "hidden_size", "num_attention_heads", variant.head_dim)?;
    let groups = groups(config, "num_key_value_heads", heads)?;
    let rope = Rope::read(config, 10_000.0, 1.0)?;
    let Variant { qkv_bias, output_bias, ffn_bias, qk_norm, .. } = *variant;
    let architecture = Architecture {
        input: Input::Tokens { vocabulary: config.size("vocab_size")? },
        embedding_scale: None,
        output: Output::NextToken { tied: config.flag_or("tie_word_embeddings", false)?, bias: false },
        d_model,
        norm: Norm { kind: NormKind::RmsNorm, epsilon: config.number_or("rms_norm_eps", 1e-6)? as f32 },
        post_norms: false,
        positions: Positions::Rotary { dims: rope.dims(config, head_dim)?, context: config.size("max_position_embeddings")? },
        spans: vec![rope.span(None)],
        attention: Attention { head_dim, scale: None, qk_norm, qkv_bias, output_bias, fused_qkv: false },
        ffn: Ffn { gated: true, activation: config.activation("hidden_act", "silu")?, bias: ffn_bias },
        residual: Residual::Sequential,
    };
    Ok((architecture, Units::dense(heads, groups, channels), rope))
}

/// Llama (Touvron et al., 2023).
pub(super) fn llama(config: &Config, held: Held) -> Result<Described> {
    let bias = config.flag_or("attention_bias", false)?;
    let variant = Variant {
        dialect: Dialect::Llama,
        head_dim: HeadDim::Field,
        qkv_bias: bias,
        output_bias: bias,
        ffn_bias: config.flag_or("mlp_bias", false)?,
        qk_norm: false,
    };
    let (architecture, units, _) = common(config, &variant)?;
    let layers = layer_count(config, "num_hidden_layers", held, architecture.d_model, &units)?;
    Ok(Described::uniform(variant.dialect, architecture, layers, &units))
}

/// Mistral (Jiang et al., arXiv 2310.06825): one window for all layers.
pub(super) fn mistral(config: &Config, held: Held) -> Result<Described> {
    let variant = Variant {
        dialect: Dialect::Mistral,
        head_dim: HeadDim::Field,
        qkv_bias: false,
        output_bias: false,
        ffn_bias: false,
        qk_norm: false,
    };
    let (mut architecture, units, rope) = common(config, &variant)?;
    architecture.spans = vec![rope.span(window(config)?)];
    let layers = layer_count(config, "num_hidden_layers", held, architecture.d_model, &units)?;
    Ok(Described::uniform(variant.dialect, architecture, layers, &units))
}

/// Qwen2 (Yang et al., arXiv 2407.10671): biases of q, k and v; from some layer on a window, where it is asked for.
pub(super) fn qwen2(config: &Config, held: Held) -> Result<Described> {
    let variant =
        Variant { dialect: Dialect::Qwen2, head_dim: HeadDim::Field, qkv_bias: true, output_bias: false, ffn_bias: false, qk_norm: false };
    qwen(config, held, &variant)
}

/// Qwen3 (Yang et al., arXiv 2505.09388): norms of query and key heads.
pub(super) fn qwen3(config: &Config, held: Held) -> Result<Described> {
    let bias = config.flag_or("attention_bias", false)?;
    let variant = Variant {
        dialect: Dialect::Qwen3,
        head_dim: HeadDim::Default(128),
        qkv_bias: bias,
        output_bias: bias,
        ffn_bias: false,
        qk_norm: true,
    };
    qwen(config, held, &variant)
}

fn qwen(config: &Config, held: Held, variant: &Variant) -> Result<Described> {
    let (mut architecture, units, rope) = common(config, variant)?;
    let layers = layer_count(config, "num_hidden_layers", held, architecture.d_model, &units)?;
    let window = if config.flag_or("use_sliding_window", false)? { window(config)? } else { None };
    let full_layers = config.number_or("max_window_layers", 28.0)?;
    let spans = layer_spans(config, layers, |layer| window.is_some() && layer as f64 >= full_layers)?;
    match window {
        Some(window) => architecture.spans = vec![rope.span(None), rope.span(Some(window))],
        None if spans.contains(&1) => {
            return Err(config.wrong("layer_types", "full_attention only, as `use_sliding_window` and `sliding_window` give no window"));
        }
        None => {}
    }
    Ok(Described::with_spans(variant.dialect, architecture, spans, &units))
}

/// `sliding_window`: null says that there is none.
pub(super) fn window(config: &Config) -> Result<Option<usize>> {
    if config.has("sliding_window") && config.lacks("sliding_window") {
        return Ok(None);
    }
    config.size_or("sliding_window", DEFAULT_WINDOW).map(Some)
}

/// Writes the sizes of any of them, and which layers have a window where the config says that layer by layer.
pub(super) fn resize(config: &mut Config, to: &Resized<'_>) {
    to.set(
        config,
        &[
            ("num_hidden_layers", to.spans.len()),
            ("num_attention_heads", to.units.heads.len()),
            ("num_key_value_heads", to.units.groups),
            ("head_dim", to.architecture.attention.head_dim),
            ("intermediate_size", to.units.channels),
        ],
    );
    if to.architecture.spans.len() > 1 || !config.lacks("layer_types") {
        let kinds: Vec<Value> = to.spans.iter().map(|span| layer_type(&to.architecture.spans[*span]).into()).collect();
        config.fields.insert("layer_types".to_string(), Value::Array(kinds));
    }
}
