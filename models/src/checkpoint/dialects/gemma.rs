//! Gemma 3: norms before and after every block and of query and key heads, windows in most layers.

use super::fields::{HeadDim, Sizes, channels, groups, layer_count, require_plain_weights};
use super::llama::window;
use super::rope::{Rope, layer_spans};
use super::{Described, Held};
use crate::architecture::{Architecture, Attention, Ffn, Input, Norm, NormKind, Output, Positions, Residual, Rotary};
use crate::checkpoint::Dialect;
use crate::checkpoint::config::Config;
use crate::error::Result;
use crate::shape::Units;

/// The head size, and the number whose root divides scores, of a config that does not mention them.
const DEFAULT_HEAD_DIM: usize = 256;

/// Gemma 3 (Gemma Team, arXiv 2503.19786), its text model.
pub(super) fn gemma3(config: &Config, held: Held) -> Result<Described> {
    require_plain_weights(config)?;
    config.require_none("attn_logit_softcapping")?;
    config.require_none("final_logit_softcapping")?;
    config.require_flag("use_bidirectional_attention", false)?;
    let channels = channels(config, "intermediate_size")?;
    let by = HeadDim::Default(DEFAULT_HEAD_DIM);
    let Sizes { d_model, heads, head_dim } = Sizes::read(config, "hidden_size", "num_attention_heads", by)?;
    let groups = groups(config, "num_key_value_heads", heads)?;
    let divisor = config.number_or("query_pre_attn_scalar", DEFAULT_HEAD_DIM as f64)?;
    let bias = config.flag_or("attention_bias", false)?;
    let [full, sliding] = ropes(config)?;
    let window = window(config)?.ok_or_else(|| config.wrong("sliding_window", "a whole number from 1 to 268435456"))?;
    let architecture = Architecture {
        input: Input::Tokens { vocabulary: config.size("vocab_size")? },
        embedding_scale: Some((d_model as f64).sqrt() as f32),
        output: Output::NextToken { tied: config.flag_or("tie_word_embeddings", true)?, bias: false },
        d_model,
        norm: Norm { kind: NormKind::RmsNorm, epsilon: config.number_or("rms_norm_eps", 1e-6)? as f32 },
        post_norms: true,
        positions: Positions::Rotary { dims: full.dims(config, head_dim)?, context: config.size("max_position_embeddings")? },
        spans: vec![full.span(None), sliding.span(Some(window))],
        attention: Attention {
            head_dim,
            scale: (divisor != head_dim as f64).then(|| divisor.sqrt().recip() as f32),
            qk_norm: true,
            qkv_bias: bias,
            output_bias: bias,
            fused_qkv: false,
        },
        ffn: Ffn { gated: true, activation: config.activation("hidden_activation", "gelu_pytorch_tanh")?, bias: false },
        residual: Residual::Sequential,
    };
    let units = Units::dense(heads, groups, channels);
    let layers = layer_count(config, "num_hidden_layers", held, d_model, &units)?;
    let pattern = match config.lacks("sliding_window_pattern") {
        true => config.size_or("_sliding_window_pattern", 6)?,
        false => config.size("sliding_window_pattern")?,
    };
    let spans = layer_spans(config, layers, |layer| (layer + 1) % pattern != 0)?;
    Ok(Described::with_spans(Dialect::Gemma3, architecture, spans, &units))
}

/// The rotary positions of layers with full attention and of those with a window: `rope_parameters` by the kind of layer, or the older
/// `rope_theta` and `rope_scaling` for the one and `rope_local_base_freq` for the other.
fn ropes(config: &Config) -> Result<[Rope; 2]> {
    let kinds = ["full_attention", "sliding_attention"];
    let by_kind = config.object("rope_parameters")?.filter(|object| kinds.iter().any(|kind| object.has(kind)));
    let local = Rotary::of_base(config.number_or("rope_local_base_freq", 10_000.0)?);
    let [full, sliding] = match by_kind {
        None => [Rope::read(config, 1_000_000.0, 1.0)?, Rope { rotary: local, partial: 1.0 }],
        Some(object) => {
            let mut ropes = [Rotary::of_base(1_000_000.0), local].map(|rotary| Rope { rotary, partial: 1.0 });
            for (rope, kind) in ropes.iter_mut().zip(kinds) {
                let parameters = object.object(kind)?;
                let parameters = parameters.ok_or_else(|| object.wrong(kind, "an object, the rotary parameters of such layers"))?;
                rope.update(config, kind, &parameters)?;
            }
            ropes
        }
    };
    if full.partial != sliding.partial {
        let feature = format!("rotating {} of a head in some layers and {} in others", full.partial, sliding.partial);
        return Err(config.unsupported(feature, "the same share in all layers is"));
    }
    Ok([full, sliding])
}
