//! ChatGLM-2: RMSNorm, half of every head rotated, a few KV groups, gated FFN.

use super::fields::{HeadDim, Sizes, at_most, channels, groups, layer_count, require_plain_weights};
use super::{Described, Held, Resized};
use crate::architecture::{
    Activation, Architecture, Attention, AttentionSpan, Ffn, Input, Norm, NormKind, Output, Positions, Residual, Rotary,
};
use crate::artifact::validate;
use crate::checkpoint::Dialect;
use crate::checkpoint::config::Config;
use crate::error::Result;
use crate::shape::Units;

/// ChatGLM-2 (GLM Team, arXiv 2406.12793) as its own `config.json` describes it.
pub(super) fn chatglm(config: &Config, held: Held) -> Result<Described> {
    require_plain_weights(config)?;
    config.require_flag("apply_residual_connection_post_layernorm", false)?;
    config.require_flag("post_layer_norm", true)?;
    config.require_flag("original_rope", true)?;
    config.require_none("pre_seq_len")?;
    match config.number_or("rope_ratio", 1.0)? {
        1.0 => {}
        ratio => return Err(config.unsupported(format!("`rope_ratio` = {ratio}"), "only 1 is")),
    }
    let channels = channels(config, "ffn_hidden_size")?;
    let Sizes { d_model, heads, .. } = Sizes::read(config, "hidden_size", "num_attention_heads", HeadDim::Quotient)?;
    let head_dim = at_most(config, "kv_channels", config.size_or("kv_channels", d_model / heads)?, validate::MAX_HEAD_DIM)?;
    if !head_dim.is_multiple_of(4) {
        return Err(config.wrong("kv_channels", "a multiple of 4, as pairs of half of a head are rotated"));
    }
    let shared = config.flag_or("multi_query_attention", false)?;
    let groups = if shared { groups(config, "multi_query_group_num", heads)? } else { heads };
    let kind = if config.flag_or("rmsnorm", true)? { NormKind::RmsNorm } else { NormKind::LayerNorm };
    let bias = config.flag_or("add_bias_linear", false)?;
    let qkv_bias = bias || config.flag_or("add_qkv_bias", false)?;
    let architecture = Architecture {
        input: Input::Tokens { vocabulary: config.size(if config.has("padded_vocab_size") { "padded_vocab_size" } else { "vocab_size" })? },
        embedding_scale: None,
        output: Output::NextToken { tied: config.flag_or("tie_word_embeddings", false)?, bias: false },
        d_model,
        norm: Norm { kind, epsilon: config.number_or("layernorm_epsilon", 1e-5)? as f32 },
        post_norms: false,
        positions: Positions::Rotary { dims: head_dim / 2, context: config.size("seq_length")? },
        spans: vec![AttentionSpan { window: None, rotary: Some(Rotary::of_base(10_000.0)) }],
        attention: Attention { head_dim, scale: None, qk_norm: false, qkv_bias, output_bias: bias, fused_qkv: true },
        ffn: Ffn { gated: true, activation: Activation::Silu, bias },
        residual: Residual::Sequential,
    };
    let units = Units::dense(heads, groups, channels);
    let layers = layer_count(config, "num_layers", held, d_model, &units)?;
    Ok(Described::uniform(Dialect::ChatGlm, architecture, layers, &units))
}

/// Writes the sizes of a ChatGLM-2. Its width is a multiple of its heads, whatever `kv_channels` is.
pub(super) fn resize(config: &mut Config, to: &Resized<'_>) -> Result<(), String> {
    let (heads, groups) = (to.units.heads.len(), to.units.groups);
    if !to.architecture.d_model.is_multiple_of(heads) {
        return Err(format!("it has {heads} heads, and the format wants a divisor of `hidden_size` = {}", to.architecture.d_model));
    }
    to.set(
        config,
        &[
            ("num_layers", to.spans.len()),
            ("num_attention_heads", heads),
            ("kv_channels", to.architecture.attention.head_dim),
            ("ffn_hidden_size", to.units.channels),
        ],
    );
    if heads != groups || !config.lacks("multi_query_attention") {
        config.fields.insert("multi_query_attention".to_string(), (heads != groups).into());
        to.set(config, &[("multi_query_group_num", groups)]);
    }
    Ok(())
}
