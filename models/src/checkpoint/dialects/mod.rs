//! What a checkpoint's `config.json` means, and what must be in one that is written.
//!
//! A file a group of families. Each has a function that reads its `config.json` and one that writes the sizes of a model that came from it
//! into that file again. Everything after this works from the [`Architecture`] alone.

mod chatglm;
mod espalier;
mod fields;
mod gemma;
mod gpt;
mod llama;
mod neox;
mod rope;

use serde_json::Value;

use super::Dialect;
use super::config::Config;
use super::tensors::Tensors;
use crate::architecture::Architecture;
use crate::artifact::validate;
use crate::error::{Error, Result};
use crate::manifest::{Manifest, Measured, Origin, StoredLayer, TextDiagnosis};
use crate::shape::{LayerShape, Units};
use crate::tensor::DType;

/// How much a checkpoint holds. What its `config.json` says must fit into that before anything is made of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    pub tensors: usize,
    /// The length of all its files of tensors.
    pub bytes: u64,
}

impl Held {
    /// What these tensors are.
    pub fn of(tensors: &dyn Tensors) -> Self {
        Self { tensors: tensors.names().count(), bytes: tensors.bytes() }
    }
}

/// What a `config.json` says: everything of a model but its numbers.
pub(super) struct Described {
    pub dialect: Dialect,
    pub architecture: Architecture,
    pub layers: Vec<StoredLayer>,
    /// For our own dialect, which brings them along.
    pub origin: Option<Origin>,
    pub name: Option<String>,
    pub measured: Option<Measured>,
    pub diagnosis: Option<TextDiagnosis>,
}

impl Described {
    /// Understands a `config.json` whose checkpoint holds that much.
    pub fn new(config: &Config, held: Held) -> Result<Self> {
        let described = match config.text("model_type")?.and_then(Dialect::parse) {
            Some(Dialect::Gpt2) => gpt::gpt2(config, held)?,
            Some(Dialect::Opt) => gpt::opt(config, held)?,
            Some(Dialect::GptNeox) => neox::gpt_neox(config, held)?,
            Some(Dialect::Phi) => neox::phi(config, held)?,
            Some(Dialect::Llama) => llama::llama(config, held)?,
            Some(Dialect::Mistral) => llama::mistral(config, held)?,
            Some(Dialect::Qwen2) => llama::qwen2(config, held)?,
            Some(Dialect::Qwen3) => llama::qwen3(config, held)?,
            Some(Dialect::Gemma3) => gemma::gemma3(config, held)?,
            Some(Dialect::ChatGlm) => chatglm::chatglm(config, held)?,
            Some(Dialect::Espalier) => espalier::read(config, held)?,
            None => {
                let known: Vec<String> = Dialect::ALL.iter().map(|dialect| format!("`{}`", dialect.name())).collect();
                return Err(config.wrong("model_type", &format!("one of {}", known.join(", "))));
            }
        };
        validate::architecture(&described.architecture).map_err(|problem| config.invalid(problem))?;
        Ok(described)
    }

    /// A model whose layers have equal units but for their attention span: `spans[layer]`.
    fn with_spans(dialect: Dialect, architecture: Architecture, spans: Vec<usize>, units: &Units) -> Self {
        let all = |count: usize| (0..count as u32).collect();
        let layer = |(index, span): (usize, usize)| StoredLayer {
            original: index as u32,
            shape: LayerShape::Kept(Units { span, ..units.clone() }),
            original_heads: all(units.heads.len()),
            original_groups: all(units.groups),
            original_channels: all(units.channels),
        };
        let layers = spans.into_iter().enumerate().map(layer).collect();
        Self { dialect, architecture, layers, origin: None, name: None, measured: None, diagnosis: None }
    }

    /// A model of `layers` equal layers.
    fn uniform(dialect: Dialect, architecture: Architecture, layers: usize, units: &Units) -> Self {
        Self::with_spans(dialect, architecture, vec![units.span; layers], units)
    }
}

/// The sizes of a model that is to be written: all layers that are there have these units.
struct Resized<'a> {
    architecture: &'a Architecture,
    units: Units,
    /// The attention span of every layer that is there.
    spans: Vec<usize>,
}

impl Resized<'_> {
    /// Writes whole numbers into the fields of `config`.
    fn set(&self, config: &mut Config, fields: &[(&str, usize)]) {
        for (name, value) in fields {
            config.fields.insert(name.to_string(), Value::from(*value));
        }
    }

    /// Refuses a model whose heads do not make up the width, which the family's config cannot say. `width` is its name there.
    fn require_full_heads(&self, width: &str) -> Result<(), String> {
        let (heads, head_dim, d_model) = (self.units.heads.len(), self.architecture.attention.head_dim, self.architecture.d_model);
        if heads * head_dim == d_model {
            return Ok(());
        }
        Err(format!(
            "it has {heads} heads of {head_dim} dimensions, and the format makes a head as wide as `{width}` = {d_model} divided by their number"
        ))
    }

    /// Refuses a model whose heads share KV groups, which the family's config cannot say.
    fn require_own_groups(&self) -> Result<(), String> {
        let (heads, groups) = (self.units.heads.len(), self.units.groups);
        if heads == groups {
            Ok(())
        } else {
            Err(format!("its {heads} heads share {groups} KV groups, and the format gives every head its own"))
        }
    }
}

/// Writes the sizes of a model into the config of its origin.
fn resize(dialect: Dialect, config: &mut Config, to: &Resized<'_>) -> Result<(), String> {
    match dialect {
        Dialect::Gpt2 => gpt::resize_gpt2(config, to),
        Dialect::Opt => gpt::resize_opt(config, to),
        Dialect::GptNeox | Dialect::Phi => neox::resize(config, to),
        Dialect::Llama | Dialect::Mistral | Dialect::Qwen2 | Dialect::Qwen3 | Dialect::Gemma3 => {
            llama::resize(config, to);
            Ok(())
        }
        Dialect::ChatGlm => chatglm::resize(config, to),
        Dialect::Espalier => Ok(()),
    }
}

/// The `config.json` that describes the model in `dialect`, with weights of `dtype`.
///
/// # Errors
/// [`Error::Inexpressible`] where the dialect cannot say what the model has become.
pub(super) fn describe(manifest: &Manifest, dialect: Dialect, dtype: DType) -> Result<String> {
    let refuse = |reason: String| Error::Inexpressible { dialect: dialect.name(), reason };
    if dialect == Dialect::Espalier {
        return espalier::write(manifest).map_err(|error| refuse(error.to_string()));
    }
    if manifest.origin.dialect != dialect.name() {
        return Err(refuse(format!("it came from the {} format", manifest.origin.dialect)));
    }
    let (layers, units) = uniform_units(manifest).map_err(refuse)?;
    let mut config = Config::parse("the config.json of the model's origin".into(), manifest.origin.config.clone())?;
    let spans: Vec<usize> = manifest.shape().kept().map(|(_, units)| units.span).collect();
    let to = Resized { architecture: &manifest.architecture, units, spans };
    resize(dialect, &mut config, &to).map_err(refuse)?;
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
    let read = Described::new(&config, Held { tensors: layers, bytes: u64::MAX })?;
    let same =
        |(read, span): (&StoredLayer, &usize)| read.shape.units().is_some_and(|read| same_sizes(read, &to.units) && read.span == *span);
    let same_layers = read.layers.len() == to.spans.len() && read.layers.iter().zip(&to.spans).all(same);
    if read.architecture != manifest.architecture || !same_layers {
        return Err(refuse("its config.json cannot say what it has in common with its origin".to_string()));
    }
    serde_json::to_string_pretty(&config.fields).map_err(|error| refuse(error.to_string()))
}

/// Whether two layers have as many heads, KV groups and channels.
fn same_sizes(one: &Units, other: &Units) -> bool {
    (one.heads.len(), one.groups, one.channels) == (other.heads.len(), other.groups, other.channels)
}

/// The number of layers that are there and the units that all of them have.
pub(super) fn uniform_units(manifest: &Manifest) -> Result<(usize, Units), String> {
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
