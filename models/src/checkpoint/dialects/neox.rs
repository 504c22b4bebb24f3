//! GPT-NeoX and Phi: LayerNorm, partly rotary positions, attention and FFN side by side.

use super::fields::{HeadDim, Sizes, channels, groups, layer_count, require_plain_weights};
use super::rope::Rope;
use super::{Described, Held, Resized};
use crate::architecture::{Architecture, Attention, Ffn, Input, Norm, NormKind, Output, Positions, Residual};
use crate::checkpoint::Dialect;
use crate::checkpoint::config::Config;
use crate::error::Result;
use crate::shape::Units;

/// GPT-NeoX (Black et al., arXiv 2204.06745) as transformers describes it.
pub(super) fn gpt_neox(config: &Config, held: Held) -> Result<Described> {
    require_plain_weights(config)?;
    let channels = channels(config, "intermediate_size")?;
    let Sizes { d_model, heads, head_dim } = Sizes::read(config, "hidden_size", "num_attention_heads", HeadDim::Quotient)?;
    let rope = Rope::read(config, config.number_or("rotary_emb_base", 10_000.0)?, config.number_or("rotary_pct", 0.25)?)?;
    let bias = config.flag_or("attention_bias", true)?;
    let parallel = config.flag_or("use_parallel_residual", true)?;
    let architecture = Architecture {
        input: Input::Tokens { vocabulary: config.size("vocab_size")? },
        embedding_scale: None,
        output: Output::NextToken { tied: config.flag_or("tie_word_embeddings", false)?, bias: false },
        d_model,
        norm: Norm { kind: NormKind::LayerNorm, epsilon: config.number_or("layer_norm_eps", 1e-5)? as f32 },
        post_norms: false,
        positions: Positions::Rotary { dims: rope.dims(config, head_dim)?, context: config.size("max_position_embeddings")? },
        spans: vec![rope.span(None)],
        attention: Attention { head_dim, scale: None, qk_norm: false, qkv_bias: bias, output_bias: bias, fused_qkv: true },
        ffn: Ffn { gated: false, activation: config.activation("hidden_act", "gelu")?, bias: true },
        residual: if parallel { Residual::Parallel { shared_norm: false } } else { Residual::Sequential },
    };
    let units = Units::dense(heads, heads, channels);
    let layers = layer_count(config, "num_hidden_layers", held, d_model, &units)?;
    Ok(Described::uniform(Dialect::GptNeox, architecture, layers, &units))
}

/// Phi (Li et al., arXiv 2309.05463) as transformers describes it.
pub(super) fn phi(config: &Config, held: Held) -> Result<Described> {
    require_plain_weights(config)?;
    config.require_flag("qk_layernorm", false)?;
    let channels = channels(config, "intermediate_size")?;
    let Sizes { d_model, heads, head_dim } = Sizes::read(config, "hidden_size", "num_attention_heads", HeadDim::Quotient)?;
    let groups = groups(config, "num_key_value_heads", heads)?;
    let rope = Rope::read(config, 10_000.0, 0.5)?;
    let architecture = Architecture {
        input: Input::Tokens { vocabulary: config.size("vocab_size")? },
        embedding_scale: None,
        output: Output::NextToken { tied: config.flag_or("tie_word_embeddings", false)?, bias: true },
        d_model,
        norm: Norm { kind: NormKind::LayerNorm, epsilon: config.number_or("layer_norm_eps", 1e-5)? as f32 },
        post_norms: false,
        positions: Positions::Rotary { dims: rope.dims(config, head_dim)?, context: config.size("max_position_embeddings")? },
        spans: vec![rope.span(None)],
        attention: Attention { head_dim, scale: None, qk_norm: false, qkv_bias: true, output_bias: true, fused_qkv: false },
        ffn: Ffn { gated: false, activation: config.activation("hidden_act", "gelu_new")?, bias: true },
        residual: Residual::Parallel { shared_norm: true },
    };
    let units = Units::dense(heads, groups, channels);
    let layers = layer_count(config, "num_hidden_layers", held, d_model, &units)?;
    Ok(Described::uniform(Dialect::Phi, architecture, layers, &units))
}

/// Writes the sizes of either.
pub(super) fn resize(config: &mut Config, to: &Resized<'_>) -> Result<(), String> {
    to.require_full_heads("hidden_size")?;
    let (heads, channels) = (to.units.heads.len(), to.units.channels);
    to.set(config, &[("num_hidden_layers", to.spans.len()), ("num_attention_heads", heads), ("intermediate_size", channels)]);
    if config.has("num_key_value_heads") {
        to.set(config, &[("num_key_value_heads", to.units.groups)]);
        return Ok(());
    }
    to.require_own_groups()
}
