//! Whether a manifest describes something that can be: every number that comes from outside is checked here, before any code relies on it.

use std::collections::HashMap;
use std::ops::Range;

use super::plan::alignment;
use crate::architecture::{Architecture, Input, NormKind, Output, Positions};
use crate::formats::{Format, stored_as};
use crate::manifest::{Level, Manifest, Span, StoredAdapter, StoredTensor, TextDiagnosis};
use crate::shape::{LayerShape, ModelShape, Units};
use crate::tensor::{DType, Layout, Part, TensorKey, TensorSpec, model_tensors};

/// A check's result: one sentence where something cannot be.
type Check = Result<(), String>;

/// The most layers: more than any published model has, and few enough that a list of them fits in memory.
pub(crate) const MAX_LAYERS: usize = 1 << 20;
/// The widest residual stream.
pub(crate) const MAX_D_MODEL: usize = 1 << 20;
/// The most dimensions of a head.
pub(crate) const MAX_HEAD_DIM: usize = 1 << 16;
/// The most heads, and KV groups, of a layer. With [`MAX_HEAD_DIM`] and [`MAX_D_MODEL`] a matrix stays far below 2^63 numbers.
pub(crate) const MAX_HEADS: usize = 1 << 16;
/// The most FFN channels of a layer.
pub(crate) const MAX_CHANNELS: usize = 1 << 24;
/// The largest vocabulary, position table, context and window.
pub(crate) const MAX_LENGTH: usize = 1 << 28;
/// The most kinds of attention in one model.
const MAX_SPANS: usize = 1 << 10;
/// The most classes.
const MAX_CLASSES: usize = 1 << 16;
/// The most levels of one artifact.
const MAX_LEVELS: usize = 1 << 12;
/// The highest rank of an adapter.
const MAX_RANK: u32 = 1 << 16;

/// Checks `value` against `1..=most`.
fn within(what: &str, value: usize, most: usize) -> Check {
    if (1..=most).contains(&value) { Ok(()) } else { Err(format!("{what} is {value}; expected 1 to {most}")) }
}

/// Checks a factor, where there is one.
fn factor(what: &str, value: Option<f32>) -> Check {
    match value {
        Some(value) if !(value.is_finite() && value > 0.0) => Err(format!("{what} is {value}; expected a finite number above 0")),
        _ => Ok(()),
    }
}

/// Checks what all layers share.
pub(crate) fn architecture(architecture: &Architecture) -> Check {
    within("the model's width", architecture.d_model, MAX_D_MODEL)?;
    within("the head size", architecture.attention.head_dim, MAX_HEAD_DIM)?;
    factor("the scale of attention scores", architecture.attention.scale)?;
    factor("the scale of embeddings", architecture.embedding_scale)?;
    if architecture.post_norms && architecture.norm.kind == NormKind::LayerNorm {
        return Err("the norms after attention and FFN are LayerNorms; expected RMSNorms".to_string());
    }
    let epsilon = architecture.norm.epsilon;
    if !(epsilon.is_finite() && epsilon >= 0.0) {
        return Err(format!("the norm's epsilon is {epsilon}; expected a finite number of at least 0"));
    }
    match architecture.input {
        Input::Tokens { vocabulary } => within("the vocabulary", vocabulary, MAX_LENGTH)?,
        Input::Patches { window, patch, stride, sample_rate_hz } => {
            within("the window", window, MAX_LENGTH)?;
            within("the patch", patch, window)?;
            within("the stride", stride, window)?;
            if !(sample_rate_hz.is_finite() && sample_rate_hz > 0.0) {
                return Err(format!("the sample rate is {sample_rate_hz} Hz; expected a finite number above 0"));
            }
        }
    }
    match &architecture.output {
        Output::NextToken { .. } if matches!(architecture.input, Input::Patches { .. }) => {
            return Err("a model of signal patches cannot say a next token".to_string());
        }
        Output::NextToken { .. } => {}
        Output::Classes { .. } if architecture.embedding_scale.is_some() && matches!(architecture.input, Input::Patches { .. }) => {
            return Err("embeddings are scaled, but a model of signal patches has no token table".to_string());
        }
        Output::Classes { names } => within("the number of classes", names.len(), MAX_CLASSES)?,
    }
    positions(architecture)?;
    spans(architecture)
}

/// Checks the kinds of attention.
fn spans(architecture: &Architecture) -> Check {
    within("the number of attention spans", architecture.spans.len(), MAX_SPANS)?;
    let rotary = matches!(architecture.positions, Positions::Rotary { .. });
    for (index, span) in architecture.spans.iter().enumerate() {
        let check = match span.rotary {
            Some(found) if rotary => found.check(),
            None if !rotary => Ok(()),
            Some(_) => Err("it has rotary wavelengths, but positions are learned".to_string()),
            None => Err("it has no rotary wavelengths, but positions are rotary".to_string()),
        };
        check
            .and_then(|()| span.window.map_or(Ok(()), |window| within("the window", window, MAX_LENGTH)))
            .map_err(|problem| format!("attention span {index}: {problem}"))?;
    }
    Ok(())
}

/// Checks what a language model knows of the diagnosis that it makes.
fn text_diagnosis(diagnosis: &TextDiagnosis, architecture: &Architecture) -> Check {
    if !matches!((&architecture.input, &architecture.output), (Input::Tokens { .. }, Output::NextToken { .. })) {
        return Err("it makes its diagnosis by text, but it is no language model".to_string());
    }
    within("the number of classes", diagnosis.classes.len(), MAX_CLASSES)?;
    within("the window", diagnosis.window, MAX_LENGTH)?;
    let (labels, classes) = (diagnosis.labels.len(), diagnosis.classes.len());
    if labels != classes {
        return Err(format!("it has {labels} labels for {classes} classes; expected one for each"));
    }
    if let Some(index) = diagnosis.labels.iter().position(String::is_empty) {
        return Err(format!("the label of class {index} is empty; expected a text"));
    }
    if !(diagnosis.sample_rate_hz.is_finite() && diagnosis.sample_rate_hz > 0.0) {
        return Err(format!("the sample rate is {} Hz; expected a finite number above 0", diagnosis.sample_rate_hz));
    }
    Ok(())
}

/// Checks the positions against the head size and the window.
fn positions(architecture: &Architecture) -> Check {
    let reach = match architecture.positions {
        Positions::Learned { count, offset } => {
            within("the position table", count, MAX_LENGTH)?;
            within("the position table behind its offset", count.saturating_sub(offset), MAX_LENGTH)?;
            count - offset
        }
        Positions::Rotary { dims, context } => {
            let head_dim = architecture.attention.head_dim;
            if !dims.is_multiple_of(2) || dims > head_dim {
                return Err(format!(
                    "{dims} dimensions of a head are rotated; expected an even number of at most the head size {head_dim}"
                ));
            }
            within("the context", context, MAX_LENGTH)?;
            context
        }
    };
    if architecture.patches() > reach {
        return Err(format!("a window has {} patches, but there are positions for {reach}", architecture.patches()));
    }
    Ok(())
}

/// Checks one layer's units.
fn units(architecture: &Architecture, units: &Units) -> Check {
    let Units { heads, groups, channels, span } = units;
    if *span >= architecture.spans.len() {
        return Err(format!("it names attention span {span}, but there are {}", architecture.spans.len()));
    }
    if heads.len() > MAX_HEADS || *groups > MAX_HEADS || *channels > MAX_CHANNELS {
        return Err(format!(
            "{} heads, {groups} KV groups and {channels} channels; at most {MAX_HEADS}, {MAX_HEADS} and {MAX_CHANNELS} are allowed",
            heads.len()
        ));
    }
    match heads.iter().position(|&group| group as usize >= *groups) {
        Some(head) => Err(format!("head {head} names KV group {}, but there are {groups}", heads[head])),
        None => Ok(()),
    }
}

/// Checks everything of a manifest but where its tensors lie.
pub(crate) fn model(manifest: &Manifest) -> Check {
    architecture(&manifest.architecture)?;
    if manifest.layers.len() > MAX_LAYERS {
        return Err(format!("{} layers; at most {MAX_LAYERS} are allowed", manifest.layers.len()));
    }
    for (index, layer) in manifest.layers.iter().enumerate() {
        let expected = match &layer.shape {
            LayerShape::Removed => (0, 0, 0),
            LayerShape::Kept(kept) => {
                units(&manifest.architecture, kept).map_err(|problem| format!("layer {index}: {problem}"))?;
                (kept.heads.len(), kept.groups, kept.channels)
            }
        };
        let found = (layer.original_heads.len(), layer.original_groups.len(), layer.original_channels.len());
        if found != expected {
            return Err(format!("layer {index} has (heads, KV groups, channels) {expected:?}, but original indices for {found:?} of them"));
        }
    }
    if let Some(diagnosis) = &manifest.diagnosis {
        text_diagnosis(diagnosis, &manifest.architecture)?;
    }
    if manifest.levels.len() > MAX_LEVELS {
        return Err(format!("{} levels; at most {MAX_LEVELS} are allowed", manifest.levels.len()));
    }
    for (index, level) in manifest.levels.iter().enumerate() {
        level_shapes(manifest, level).map_err(|problem| format!("level {index}: {problem}"))?;
    }
    Ok(())
}

/// Checks that every layer of a level is a prefix of the stored layer.
fn level_shapes(manifest: &Manifest, level: &Level) -> Check {
    if level.layers.len() != manifest.layers.len() {
        return Err(format!("it describes {} layers of {}", level.layers.len(), manifest.layers.len()));
    }
    for (index, (inner, stored)) in level.layers.iter().zip(&manifest.layers).enumerate() {
        let prefix = match (inner, &stored.shape) {
            (LayerShape::Removed, _) => true,
            (LayerShape::Kept(_), LayerShape::Removed) => false,
            (LayerShape::Kept(inner), LayerShape::Kept(stored)) => {
                units(&manifest.architecture, inner).map_err(|problem| format!("layer {index}: {problem}"))?;
                stored.heads.starts_with(&inner.heads)
                    && inner.groups <= stored.groups
                    && inner.channels <= stored.channels
                    && inner.span == stored.span
            }
        };
        if !prefix {
            return Err(format!("layer {index} is not a prefix of the stored layer"));
        }
    }
    Ok(())
}

/// Checks where the tensors lie: they are the model's own, in ascending order, aligned, inside `data`, not overlapping, of exact lengths.
pub(super) fn tensors(manifest: &Manifest, data: &Range<u64>) -> Check {
    // Before the list of expected tensors is made: it must not outgrow the manifest.
    let kept = manifest.shape().kept().count();
    if kept > manifest.tensors.len() {
        return Err(format!("it lists {} tensors, but the model has {kept} layers", manifest.tensors.len()));
    }
    let specs = model_tensors(&manifest.architecture, &manifest.shape());
    if specs.len() != manifest.tensors.len() {
        return Err(format!("it lists {} tensors, but the model has {}", manifest.tensors.len(), specs.len()));
    }
    let mut end = match manifest.tokenizer {
        Some(span) if span.offset != data.start => return Err(format!("its tokenizer starts at byte {}, not at the data's", span.offset)),
        Some(span) => span_end(span, data).map_err(|problem| format!("its tokenizer {problem}"))?,
        None => data.start,
    };
    for (spec, tensor) in specs.iter().zip(&manifest.tensors) {
        let key = spec.key;
        if tensor.key != key {
            return Err(format!("it lists `{}` where `{key}` belongs", tensor.key));
        }
        if (tensor.rows, tensor.columns) != (spec.rows as u64, spec.columns as u64) {
            return Err(format!("`{key}` is [{}, {}]; expected [{}, {}]", tensor.rows, tensor.columns, spec.rows, spec.columns));
        }
        if (tensor.dtype, tensor.layout) != stored_as(key.part, tensor.dtype) {
            return Err(format!("`{key}` is stored as {:?} {:?}, which no artifact does", tensor.dtype, tensor.layout));
        }
        let bytes = Format { dtype: tensor.dtype, layout: tensor.layout, rows: spec.rows, columns: spec.columns }.bytes();
        if bytes.map(|bytes| bytes as u64) != Some(tensor.bytes) {
            return Err(format!("`{key}` has {} bytes; expected {bytes:?}", tensor.bytes));
        }
        if tensor.offset < end || !tensor.offset.is_multiple_of(alignment(tensor.bytes)) {
            return Err(format!("`{key}` starts at byte {}; expected an aligned offset at or after {end}", tensor.offset));
        }
        end = span_end(Span { offset: tensor.offset, bytes: tensor.bytes }, data).map_err(|problem| format!("`{key}` {problem}"))?;
    }
    for (index, level) in manifest.levels.iter().enumerate() {
        level_data(manifest, level, data, end).map_err(|problem| format!("level {index}: {problem}"))?;
    }
    Ok(())
}

/// The end of a span that lies inside `data`.
fn span_end(span: Span, data: &Range<u64>) -> Result<u64, String> {
    let end = span.offset.checked_add(span.bytes).filter(|&end| span.offset >= data.start && end <= data.end);
    end.ok_or_else(|| format!("has {} bytes at byte {}, outside the data at {data:?}", span.bytes, span.offset))
}

/// Checks a level's adapters and overrides, which lie behind the base tensors, at `base_end` and after.
fn level_data(manifest: &Manifest, level: &Level, data: &Range<u64>, base_end: u64) -> Check {
    let behind = base_end..data.end;
    for (index, adapter) in level.adapters.iter().enumerate() {
        adapter_data(manifest, level, adapter, &behind).map_err(|problem| format!("adapter {index}: {problem}"))?;
    }
    let shape = ModelShape { layers: level.layers.clone() };
    let specs = model_tensors(&manifest.architecture, &shape).into_iter().filter(TensorSpec::is_vector);
    let vectors: HashMap<TensorKey, usize> = specs.map(|spec| (spec.key, spec.columns)).collect();
    for tensor in &level.overrides {
        override_data(&vectors, tensor, &behind).map_err(|problem| format!("`{}`: {problem}", tensor.key))?;
    }
    Ok(())
}

/// Checks a norm or bias that replaces the base's.
fn override_data(vectors: &HashMap<TensorKey, usize>, tensor: &StoredTensor, data: &Range<u64>) -> Check {
    let columns = vectors.get(&tensor.key).ok_or("only norms and biases of the level's own layers can be replaced")?;
    let expected = (1, *columns as u64, DType::F32, Layout::Rows, *columns as u64 * 4);
    let found = (tensor.rows, tensor.columns, tensor.dtype, tensor.layout, tensor.bytes);
    if found != expected || !tensor.offset.is_multiple_of(4) {
        return Err(format!("it is stored as {found:?} at byte {}; expected {expected:?}", tensor.offset));
    }
    span_end(Span { offset: tensor.offset, bytes: tensor.bytes }, data).map(drop)
}

/// Checks an adapter: its matrices are there at this level, and its sides have the lengths that rank and units give.
fn adapter_data(manifest: &Manifest, level: &Level, adapter: &StoredAdapter, data: &Range<u64>) -> Check {
    let units = level.layers.get(adapter.layer as usize).and_then(LayerShape::units);
    let units = units.ok_or_else(|| format!("layer {} is not there at this level", adapter.layer))?;
    if adapter.rank == 0 || adapter.rank > MAX_RANK || !adapter.scale.is_finite() {
        return Err(format!("rank {} and scale {} cannot be", adapter.rank, adapter.scale));
    }
    if adapter.parts.is_empty() || adapter.parts.len() != adapter.unit_sides.len() {
        return Err(format!("{} matrices, but {} unit sides", adapter.parts.len(), adapter.unit_sides.len()));
    }
    let rank = u64::from(adapter.rank);
    let side = |span: Span, rows: usize| {
        let expected = rank * rows as u64 * 4;
        if span.bytes != expected || !span.offset.is_multiple_of(4) {
            return Err(format!("{} bytes at byte {}; expected {expected} at a multiple of 4", span.bytes, span.offset));
        }
        span_end(span, data).map(drop)
    };
    side(adapter.model_side, manifest.architecture.d_model)?;
    let head_dim = manifest.architecture.attention.head_dim;
    for (&part, &span) in adapter.parts.iter().zip(&adapter.unit_sides) {
        let rows = match part {
            Part::Query | Part::AttentionOutput => units.heads.len() * head_dim,
            Part::Key | Part::Value => units.groups * head_dim,
            Part::Gate if !manifest.architecture.ffn.gated => return Err("the FFN has no gate".to_string()),
            Part::Gate | Part::Up | Part::Down => units.channels,
            _ => return Err(format!("{part:?} cannot have an adapter")),
        };
        side(span, rows).map_err(|problem| format!("{part:?}: {problem}"))?;
    }
    Ok(())
}
