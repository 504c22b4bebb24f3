//! What a checkpoint's `config.json` means, and what must be in one that is written.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Dialect;
use super::config::Config;
use crate::architecture::{Architecture, Attention, Ffn, Input, Norm, NormKind, Output, Positions, Residual};
use crate::artifact::validate;
use crate::error::{Error, Result};
use crate::manifest::{Manifest, Measured, Origin, StoredLayer};
use crate::shape::{LayerShape, Units};
use crate::tensor::DType;

/// What a `config.json` says: everything of a model but its numbers.
pub(super) struct Described {
    pub dialect: Dialect,
    pub architecture: Architecture,
    pub layers: Vec<StoredLayer>,
    /// For our own dialect, which brings them along.
    pub origin: Option<Origin>,
    pub name: Option<String>,
    pub measured: Option<Measured>,
}

/// The `config.json` of our own dialect.
#[derive(Serialize, Deserialize)]
struct EspalierConfig {
    model_type: String,
    name: String,
    architecture: Architecture,
    layers: Vec<StoredLayer>,
    origin: Origin,
    measured: Option<Measured>,
}

impl Described {
    /// Understands a `config.json` whose checkpoint has `tensors` tensors.
    pub fn new(config: &Config, tensors: usize) -> Result<Self> {
        let expected = "`gpt2`, `llama` or `espalier`";
        let described = match config.text("model_type")?.and_then(Dialect::parse) {
            Some(Dialect::Gpt2) => gpt2(config, tensors)?,
            Some(Dialect::Llama) => llama(config, tensors)?,
            Some(Dialect::Espalier) => espalier(config, tensors)?,
            None => return Err(config.wrong("model_type", expected)),
        };
        validate::architecture(&described.architecture).map_err(|problem| config.invalid(problem))?;
        Ok(described)
    }

    /// A model of `layers` equal layers.
    fn uniform(dialect: Dialect, architecture: Architecture, layers: usize, units: &Units) -> Self {
        let all = |count: usize| (0..count as u32).collect();
        let layer = |index: usize| StoredLayer {
            original: index as u32,
            shape: LayerShape::Kept(units.clone()),
            original_heads: all(units.heads.len()),
            original_groups: all(units.groups),
            original_channels: all(units.channels),
        };
        let layers = (0..layers).map(layer).collect();
        Self { dialect, architecture, layers, origin: None, name: None, measured: None }
    }
}

/// The number of layers, at most as many as the checkpoint has tensors: a list of layers must not outgrow the file.
fn layer_count(config: &Config, name: &str, tensors: usize) -> Result<usize> {
    let layers = config.size(name)?;
    if layers > tensors {
        return Err(config.wrong(name, &format!("fewer layers than the checkpoint's {tensors} tensors")));
    }
    Ok(layers)
}

/// The size `name`, at most `most`.
fn at_most(config: &Config, name: &str, size: usize, most: usize) -> Result<usize> {
    if size <= most { Ok(size) } else { Err(config.wrong(name, &format!("at most {most}"))) }
}

/// Refuses quantised checkpoints.
fn require_plain_weights(config: &Config) -> Result<()> {
    match config.object("quantization_config")? {
        Some(_) => Err(config.unsupported("a quantised checkpoint", "F32, F16 and BF16 weights are")),
        None => Ok(()),
    }
}

/// GPT-2 (Radford et al., 2019) as transformers describes it.
fn gpt2(config: &Config, tensors: usize) -> Result<Described> {
    require_plain_weights(config)?;
    config.require_flag("scale_attn_weights", true)?;
    config.require_flag("scale_attn_by_inverse_layer_idx", false)?;
    config.require_flag("add_cross_attention", false)?;
    let d_model = at_most(config, "n_embd", config.size("n_embd")?, validate::MAX_D_MODEL)?;
    let heads = at_most(config, "n_head", config.size("n_head")?, validate::MAX_HEADS)?;
    if !d_model.is_multiple_of(heads) {
        return Err(config.wrong("n_head", &format!("a divisor of `n_embd` = {d_model}")));
    }
    let channels = at_most(config, "n_inner", config.size_or("n_inner", 4 * d_model)?, validate::MAX_CHANNELS)?;
    let architecture = Architecture {
        input: Input::Tokens { vocabulary: config.size("vocab_size")? },
        output: Output::NextToken { tied: config.flag_or("tie_word_embeddings", true)? },
        d_model,
        norm: Norm { kind: NormKind::LayerNorm, epsilon: config.number_or("layer_norm_epsilon", 1e-5)? as f32 },
        positions: Positions::Learned { count: config.size("n_positions")?, offset: 0 },
        attention: Attention { head_dim: d_model / heads, qkv_bias: true, output_bias: true, fused_qkv: true },
        ffn: Ffn { gated: false, activation: config.activation("activation_function", "gelu_new")?, bias: true },
        residual: Residual::Sequential,
    };
    let layers = layer_count(config, "n_layer", tensors)?;
    Ok(Described::uniform(Dialect::Gpt2, architecture, layers, &Units::dense(heads, heads, channels)))
}

/// Llama (Touvron et al., 2023) as transformers describes it, before and since its version 5.
fn llama(config: &Config, tensors: usize) -> Result<Described> {
    require_plain_weights(config)?;
    let d_model = at_most(config, "hidden_size", config.size("hidden_size")?, validate::MAX_D_MODEL)?;
    let heads = at_most(config, "num_attention_heads", config.size("num_attention_heads")?, validate::MAX_HEADS)?;
    let groups = config.size_or("num_key_value_heads", heads)?;
    if !heads.is_multiple_of(groups) {
        return Err(config.wrong("num_key_value_heads", &format!("a divisor of `num_attention_heads` = {heads}")));
    }
    let head_dim = config.size_or("head_dim", d_model / heads)?;
    if head_dim == 0 || config.lacks("head_dim") && !d_model.is_multiple_of(heads) {
        return Err(config.wrong("num_attention_heads", &format!("a divisor of `hidden_size` = {d_model}, or `head_dim` beside it")));
    }
    let head_dim = at_most(config, "head_dim", head_dim, validate::MAX_HEAD_DIM)?;
    let channels = at_most(config, "intermediate_size", config.size("intermediate_size")?, validate::MAX_CHANNELS)?;
    let attention_bias = config.flag_or("attention_bias", false)?;
    let (base, partial) = rotary(config)?;
    let dims = head_dim as f64 * partial;
    if dims.fract() != 0.0 || !(0.0..=1.0).contains(&partial) {
        return Err(config.unsupported(format!("rotating {dims} of {head_dim} dimensions of a head"), "an even whole number is"));
    }
    let architecture = Architecture {
        input: Input::Tokens { vocabulary: config.size("vocab_size")? },
        output: Output::NextToken { tied: config.flag_or("tie_word_embeddings", false)? },
        d_model,
        norm: Norm { kind: NormKind::RmsNorm, epsilon: config.number_or("rms_norm_eps", 1e-6)? as f32 },
        positions: Positions::Rotary { base, dims: dims as usize, context: config.size("max_position_embeddings")? },
        attention: Attention { head_dim, qkv_bias: attention_bias, output_bias: attention_bias, fused_qkv: false },
        ffn: Ffn { gated: true, activation: config.activation("hidden_act", "silu")?, bias: config.flag_or("mlp_bias", false)? },
        residual: Residual::Sequential,
    };
    let layers = layer_count(config, "num_hidden_layers", tensors)?;
    Ok(Described::uniform(Dialect::Llama, architecture, layers, &Units::dense(heads, groups, channels)))
}

/// The rotary base and the rotated share of a head, from `rope_parameters` or the older `rope_theta` and `rope_scaling`.
fn rotary(config: &Config) -> Result<(f64, f64)> {
    let mut base = config.number_or("rope_theta", 10_000.0)?;
    let mut partial = config.number_or("partial_rotary_factor", 1.0)?;
    for name in ["rope_scaling", "rope_parameters"] {
        let Some(rope) = config.object(name)? else { continue };
        let kind = match rope.text("rope_type")? {
            Some(kind) => kind,
            None => rope.text("type")?.unwrap_or("default"),
        };
        if kind != "default" {
            return Err(config.unsupported(format!("rotary scaling of type `{kind}` in `{name}`"), "only `default`, no scaling, is"));
        }
        base = rope.number_or("rope_theta", base)?;
        partial = rope.number_or("partial_rotary_factor", partial)?;
    }
    Ok((base, partial))
}

/// Our own dialect, which can say whatever an artifact can.
fn espalier(config: &Config, tensors: usize) -> Result<Described> {
    let parsed: EspalierConfig = config.parse_as()?;
    let EspalierConfig { architecture, layers, origin, name, measured, .. } = parsed;
    let kept = layers.iter().filter(|layer| layer.shape.units().is_some()).count();
    if kept > tensors {
        return Err(config.invalid(format!("it lists {kept} layers, but the checkpoint has {tensors} tensors")));
    }
    Ok(Described { dialect: Dialect::Espalier, architecture, layers, origin: Some(origin), name: Some(name), measured })
}

/// The `config.json` that describes the model in `dialect`, with weights of `dtype`.
///
/// # Errors
/// [`Error::Inexpressible`] where the dialect cannot say what the model has become.
pub(super) fn describe(manifest: &Manifest, dialect: Dialect, dtype: DType) -> Result<String> {
    let refuse = |reason: String| Error::Inexpressible { dialect: dialect.name(), reason };
    if dialect == Dialect::Espalier {
        let config = EspalierConfig {
            model_type: dialect.name().to_string(),
            name: manifest.name.clone(),
            architecture: manifest.architecture.clone(),
            layers: manifest.layers.clone(),
            origin: manifest.origin.clone(),
            measured: manifest.measured,
        };
        return serde_json::to_string_pretty(&config).map_err(|error| refuse(error.to_string()));
    }
    if manifest.origin.dialect != dialect.name() {
        return Err(refuse(format!("it came from the {} format", manifest.origin.dialect)));
    }
    let (layers, units) = uniform_units(manifest).map_err(refuse)?;
    let mut config = Config::parse("the config.json of the model's origin".into(), manifest.origin.config.clone())?;
    let (heads, d_model) = (units.heads.len(), manifest.architecture.d_model);
    let mut set = |name: &str, value: usize| config.fields.insert(name.to_string(), Value::from(value));
    if dialect == Dialect::Gpt2 {
        if heads != units.groups || heads * manifest.architecture.attention.head_dim != d_model {
            return Err(refuse(format!(
                "it has {heads} heads of {} dimensions, and the format makes a head as wide as `n_embd` = {d_model} divided by their number",
                manifest.architecture.attention.head_dim
            )));
        }
        set("n_layer", layers);
        set("n_head", heads);
        if units.channels != 4 * d_model || config.fields.get("n_inner").is_some_and(|inner| !inner.is_null()) {
            config.fields.insert("n_inner".to_string(), Value::from(units.channels));
        }
    } else {
        set("num_hidden_layers", layers);
        set("num_attention_heads", heads);
        set("num_key_value_heads", units.groups);
        set("head_dim", manifest.architecture.attention.head_dim);
        set("intermediate_size", units.channels);
    }
    let dtype = match dtype {
        DType::F16 => "float16",
        DType::Bf16 => "bfloat16",
        _ => "float32",
    };
    for name in ["dtype", "torch_dtype"] {
        if let Some(value) = config.fields.get_mut(name) {
            *value = Value::from(dtype);
        }
    }
    // What was written must mean the same model when it is read.
    let read = Described::new(&config, layers)?;
    let same_units = read.layers.iter().all(|layer| layer.shape.units().is_some_and(|read| same_sizes(read, &units)));
    if read.architecture != manifest.architecture || !same_units {
        return Err(refuse("its config.json cannot say what it has in common with its origin".to_string()));
    }
    serde_json::to_string_pretty(&config.fields).map_err(|error| refuse(error.to_string()))
}

/// Whether two layers have as many heads, KV groups and channels.
fn same_sizes(one: &Units, other: &Units) -> bool {
    (one.heads.len(), one.groups, one.channels) == (other.heads.len(), other.groups, other.channels)
}

/// The number of layers that are there and the units that all of them have.
fn uniform_units(manifest: &Manifest) -> Result<(usize, Units), String> {
    let shape = manifest.shape();
    let Some((_, first)) = shape.kept().next() else { return Err("no layer is left".to_string()) };
    for (index, units) in shape.kept() {
        let sizes = |units: &Units| format!("{} heads, {} KV groups and {} channels", units.heads.len(), units.groups, units.channels);
        if !same_sizes(units, first) {
            return Err(format!("layer {index} has {}, another layer {}", sizes(units), sizes(first)));
        }
        let mut shares = vec![0; units.groups];
        units.heads.iter().for_each(|&group| shares[group as usize] += 1);
        if units.heads.is_empty() || units.channels == 0 || shares.iter().any(|share| share * units.groups != units.heads.len()) {
            return Err(format!("layer {index} has {}, and {shares:?} heads share each KV group", sizes(units)));
        }
    }
    Ok((shape.kept().count(), first.clone()))
}
