//! GPT-2 and OPT: LayerNorm, learned positions, biases.

use super::fields::{HeadDim, Sizes, at_most, channels, layer_count, require_plain_weights};
use super::{Described, Held, Resized};
use crate::architecture::{Architecture, Attention, AttentionSpan, Ffn, Input, Norm, NormKind, Output, Positions, Residual};
use crate::artifact::validate;
use crate::checkpoint::Dialect;
use crate::checkpoint::config::Config;
use crate::error::Result;
use crate::shape::Units;

/// Rows of OPT's position table before the one for position 0.
const OPT_OFFSET: usize = 2;

/// GPT-2 (Radford et al., 2019) as transformers describes it.
pub(super) fn gpt2(config: &Config, held: Held) -> Result<Described> {
    require_plain_weights(config)?;
    config.require_flag("scale_attn_weights", true)?;
    config.require_flag("scale_attn_by_inverse_layer_idx", false)?;
    config.require_flag("add_cross_attention", false)?;
    let inner = config.size_or("n_inner", config.size("n_embd")?.saturating_mul(4))?;
    let channels = at_most(config, "n_inner", inner, validate::MAX_CHANNELS)?;
    let Sizes { d_model, heads, head_dim } = Sizes::read(config, "n_embd", "n_head", HeadDim::Quotient)?;
    let architecture = Architecture {
        input: Input::Tokens { vocabulary: config.size("vocab_size")? },
        embedding_scale: None,
        output: Output::NextToken { tied: config.flag_or("tie_word_embeddings", true)?, bias: false },
        d_model,
        norm: Norm { kind: NormKind::LayerNorm, epsilon: config.number_or("layer_norm_epsilon", 1e-5)? as f32 },
        post_norms: false,
        positions: Positions::Learned { count: config.size("n_positions")?, offset: 0 },
        spans: vec![AttentionSpan::FULL],
        attention: Attention { head_dim, scale: None, qk_norm: false, qkv_bias: true, output_bias: true, fused_qkv: true },
        ffn: Ffn { gated: false, activation: config.activation("activation_function", "gelu_new")?, bias: true },
        residual: Residual::Sequential,
    };
    let units = Units::dense(heads, heads, channels);
    let layers = layer_count(config, "n_layer", held, d_model, &units)?;
    Ok(Described::uniform(Dialect::Gpt2, architecture, layers, &units))
}

/// OPT (Zhang et al., arXiv 2205.01068) as transformers describes it.
pub(super) fn opt(config: &Config, held: Held) -> Result<Described> {
    require_plain_weights(config)?;
    config.require_flag("do_layer_norm_before", true)?;
    config.require_flag("layer_norm_elementwise_affine", true)?;
    config.require_flag("_remove_final_layer_norm", false)?;
    let channels = channels(config, "ffn_dim")?;
    let Sizes { d_model, heads, head_dim } = Sizes::read(config, "hidden_size", "num_attention_heads", HeadDim::Quotient)?;
    let projected = config.size_or("word_embed_proj_dim", d_model)?;
    if projected != d_model {
        return Err(config.unsupported(format!("`word_embed_proj_dim` = {projected}"), format!("only `hidden_size` = {d_model} is")));
    }
    let bias = config.flag_or("enable_bias", true)?;
    let count = config.size("max_position_embeddings")?.saturating_add(OPT_OFFSET);
    let architecture = Architecture {
        input: Input::Tokens { vocabulary: config.size("vocab_size")? },
        embedding_scale: None,
        output: Output::NextToken { tied: config.flag_or("tie_word_embeddings", true)?, bias: false },
        d_model,
        norm: Norm { kind: NormKind::LayerNorm, epsilon: 1e-5 },
        post_norms: false,
        positions: Positions::Learned { count, offset: OPT_OFFSET },
        spans: vec![AttentionSpan::FULL],
        attention: Attention { head_dim, scale: None, qk_norm: false, qkv_bias: bias, output_bias: bias, fused_qkv: false },
        ffn: Ffn { gated: false, activation: config.activation("activation_function", "relu")?, bias },
        residual: Residual::Sequential,
    };
    let units = Units::dense(heads, heads, channels);
    let layers = layer_count(config, "num_hidden_layers", held, d_model, &units)?;
    Ok(Described::uniform(Dialect::Opt, architecture, layers, &units))
}

/// Writes the sizes of a GPT-2.
pub(super) fn resize_gpt2(config: &mut Config, to: &Resized<'_>) -> Result<(), String> {
    to.require_full_heads("n_embd")?;
    to.require_own_groups()?;
    to.set(config, &[("n_layer", to.spans.len()), ("n_head", to.units.heads.len())]);
    if to.units.channels != 4 * to.architecture.d_model || !config.lacks("n_inner") {
        to.set(config, &[("n_inner", to.units.channels)]);
    }
    Ok(())
}

/// Writes the sizes of an OPT.
pub(super) fn resize_opt(config: &mut Config, to: &Resized<'_>) -> Result<(), String> {
    to.require_full_heads("hidden_size")?;
    to.require_own_groups()?;
    let heads = to.units.heads.len();
    to.set(config, &[("num_hidden_layers", to.spans.len()), ("num_attention_heads", heads), ("ffn_dim", to.units.channels)]);
    Ok(())
}
