//! Writes a model as a GGUF file that llama.cpp loads.
//!
//! The head is written first and read back: what it says must be the model itself, else the file cannot express it and nothing is left.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use serde_json::Value;

use super::blocks::BlockType;
use super::config::Family;
use super::header::Header;
use super::reader::{DEFAULT_ALIGNMENT, Gguf};
use super::vocabulary::add_tokenizer;
use super::{names, rotary, understand};
use crate::architecture::{Architecture, AttentionSpan, Positions, Residual, RotaryScaling};
use crate::checkpoint::dialects::{Described, Held, uniform_units};
use crate::checkpoint::place::place_file;
use crate::checkpoint::streams::{Planned, gather, plan};
use crate::checkpoint::tensors::Tensors;
use crate::error::{Error, Result};
use crate::formats::encode_values;
use crate::manifest::Manifest;
use crate::shape::Units;
use crate::source::TensorSource;
use crate::tensor::{DType, Part};

/// The error that a GGUF file cannot say what the model is.
pub(super) fn refuse(reason: impl Into<String>) -> Error {
    Error::Inexpressible { dialect: "GGUF", reason: reason.into() }
}

/// Writes the model as the GGUF file `out`: matrices in their stored format where that is f32, f16 or bf16, else f32; vectors and learned
/// positions in f32, as llama.cpp wants them. The file has another name beside `out` until it is complete. Memory: the largest tensor,
/// the tokenizer and 1 MiB.
///
/// # Errors
/// [`Error::Inexpressible`] where llama.cpp has no such model or a pruned model's shape cannot be said, [`Error::Io`], and what `source`
/// returns.
pub fn export_gguf(source: &dyn TensorSource, manifest: &Manifest, out: &Path) -> Result<()> {
    if out.file_name().is_none() || out.is_dir() {
        return Err(Error::Write { path: out.to_path_buf(), problem: "it is no name of a file; give one, such as model.gguf".to_string() });
    }
    let model_type = &manifest.origin.dialect;
    let family = Family::of_model_type(model_type).ok_or_else(|| refuse(format!("llama.cpp has no family like `{model_type}`")))?;
    let (layers, units) = uniform_units(manifest).map_err(refuse)?;
    let heads = units.heads.len() * manifest.architecture.attention.head_dim;
    if family.full_heads && heads != manifest.architecture.d_model {
        let d_model = manifest.architecture.d_model;
        return Err(refuse(format!("its heads have {heads} dimensions together, and llama.cpp wants the width {d_model} in this family")));
    }
    let mut header = Header::default();
    let planned = planned(manifest, family, source)?;
    header.text("general.architecture", family.architecture);
    header.text("general.type", "model");
    header.text("general.name", &manifest.name);
    header.count("general.file_type", file_type(&planned));
    describe(&mut header, family, &manifest.architecture, layers, &units)?;
    add_tokenizer(&mut header, manifest, source.tokenizer()?)?;
    let factors = rotary_factors(&manifest.architecture);
    let too_large = || Error::Write { path: out.to_path_buf(), problem: "it would be larger than a file can be".to_string() };
    if !factors.is_empty() {
        header.tensor(rotary::TENSOR, &[factors.len()], 0, factors.len() as u64 * 4).ok_or_else(too_large)?;
    }
    for Planned { tensor, dtype, bytes } in &planned {
        header.tensor(&tensor.name, &tensor.shape, BlockType::of_dtype(*dtype).id, *bytes).ok_or_else(too_large)?;
    }
    write(source, manifest, header, &factors, &planned, out)
}

/// Every tensor of the file: matrices as they are stored, vectors and learned positions in f32.
fn planned(manifest: &Manifest, family: &Family, source: &dyn TensorSource) -> Result<Vec<Planned>> {
    let fused = manifest.architecture.attention.fused_qkv;
    let tensors = names::file_tensors(names::names(family.rotary_pairs), &manifest.architecture, &manifest.shape(), fused);
    plan(manifest, tensors, &|tensor, stored| {
        let key = tensor.pieces[0].spec.key;
        if !source.contains(key) {
            return Err(Error::request(key, "the model does not have it"));
        }
        Ok(if key.part == Part::PositionTable { DType::F32 } else { stored })
    })
}

/// ggml's number for the file: that of the first number format that is not f32, of f32 where there is none.
fn file_type(planned: &[Planned]) -> u32 {
    match planned.iter().map(|planned| planned.dtype).find(|dtype| *dtype != DType::F32) {
        Some(DType::F16) => 1,
        Some(DType::Bf16) => 32,
        _ => 0,
    }
}

/// Writes what the metadata says of the model.
fn describe(header: &mut Header, family: &Family, architecture: &Architecture, layers: usize, units: &Units) -> Result<()> {
    let key = |name: &str| format!("{}.{name}", family.architecture);
    let vocabulary = architecture.output_width();
    let sizes = [
        ("vocab_size", vocabulary),
        ("context_length", architecture.context()),
        ("embedding_length", architecture.d_model),
        ("block_count", layers),
        ("feed_forward_length", units.channels),
        ("attention.head_count", units.heads.len()),
        ("attention.head_count_kv", units.groups),
        ("attention.key_length", architecture.attention.head_dim),
        ("attention.value_length", architecture.attention.head_dim),
    ];
    for (name, size) in sizes {
        header.count(&key(name), u32::try_from(size).map_err(|_| refuse(format!("its `{name}` is {size}")))?);
    }
    header.number(&key(family.epsilon), architecture.norm.epsilon);
    if let Positions::Rotary { dims, .. } = architecture.positions {
        header.count(&key("rope.dimension_count"), dims as u32);
    }
    if family.architecture == "gptneox" {
        header.flag(&key("use_parallel_residual"), architecture.residual != Residual::Sequential);
    }
    // The first span is that of layers that see everything; another has a window.
    for span in &architecture.spans {
        if let Some(window) = span.window.filter(|_| !family.has_window()) {
            return Err(refuse(format!("its attention sees a window of {window} tokens, which llama.cpp does not have in this family")));
        }
        describe_span(header, &key, span);
    }
    Ok(())
}

/// Writes the rotary positions and the window of one kind of layers.
fn describe_span(header: &mut Header, key: &dyn Fn(&str) -> String, span: &AttentionSpan) {
    if let Some(window) = span.window {
        header.count(&key("attention.sliding_window"), window as u32);
        return;
    }
    let Some(rotary) = span.rotary else { return };
    header.number(&key("rope.freq_base"), rotary.base as f32);
    if let RotaryScaling::Linear { factor } = rotary.scaling {
        header.text(&key("rope.scaling.type"), "linear");
        header.number(&key("rope.scaling.factor"), factor as f32);
    }
}

/// The rotary frequency factors of Llama 3 scaling, empty where there is none.
fn rotary_factors(architecture: &Architecture) -> Vec<f32> {
    let Positions::Rotary { dims, .. } = architecture.positions else { return Vec::new() };
    let Some(rotary) = architecture.spans.first().and_then(|span| span.rotary) else { return Vec::new() };
    match rotary.scaling {
        RotaryScaling::Llama3 { .. } => rotary::of(rotary, dims).into_iter().map(|factor| factor as f32).collect(),
        RotaryScaling::None | RotaryScaling::Linear { .. } => Vec::new(),
    }
}

/// Writes the file beside `out`, checks what its head says, and puts it in its place.
fn write(source: &dyn TensorSource, manifest: &Manifest, header: Header, factors: &[f32], planned: &[Planned], out: &Path) -> Result<()> {
    let (head, bytes) = header.finish();
    place_file(out, |temporary| {
        let start = |file: &mut File| file.write_all(&head).and_then(|()| file.set_len(bytes));
        start(temporary.as_file_mut()).map_err(Error::io("write", out))?;
        check_head(manifest, temporary.path())?;
        let mut file = BufWriter::with_capacity(1 << 18, temporary.as_file_mut());
        file.seek(SeekFrom::Start(head.len() as u64)).map_err(Error::io("write", out))?;
        if !factors.is_empty() {
            write_tensor(&mut file, DType::F32, factors).map_err(Error::io("write", out))?;
        }
        for planned in planned {
            let numbers = gather(&planned.tensor, source)?;
            write_tensor(&mut file, planned.dtype, &numbers).map_err(Error::io("write", out))?;
        }
        file.flush().map_err(Error::io("write", out))
    })
}

/// Writes the numbers of a tensor and the padding after them.
fn write_tensor(file: &mut impl Write, dtype: DType, numbers: &[f32]) -> std::io::Result<()> {
    let (mut bytes, mut written) = (Vec::new(), 0u64);
    for numbers in numbers.chunks(1 << 16) {
        encode_values(dtype, numbers, &mut bytes);
        file.write_all(&bytes)?;
        written += bytes.len() as u64;
        bytes.clear();
    }
    let padding = written.next_multiple_of(DEFAULT_ALIGNMENT) - written;
    file.write_all(&[0; DEFAULT_ALIGNMENT as usize][..padding as usize])
}

/// Reads the head of the file at `path` and refuses where it says another model than the manifest.
fn check_head(manifest: &Manifest, path: &Path) -> Result<()> {
    let gguf = Gguf::open(path)?;
    let (config, ..) = understand(&gguf).map_err(|error| match error {
        Error::Unsupported { feature, expected, .. } => refuse(format!("{feature} is not supported there; {expected}")),
        error => error,
    })?;
    // It is our own, and its numbers are still to come.
    let read = Described::new(&config, Held { tensors: gguf.names().count(), bytes: u64::MAX })?;
    let units = |layer: &crate::manifest::StoredLayer| {
        layer.shape.units().map(|units| (units.heads.len(), units.groups, units.channels, units.span))
    };
    let (kept, read_layers): (Vec<_>, Vec<_>) =
        (manifest.layers.iter().filter_map(units).collect(), read.layers.iter().filter_map(units).collect());
    if read.architecture == manifest.architecture && kept == read_layers {
        return Ok(());
    }
    let fields = |architecture: &Architecture| match serde_json::to_value(architecture) {
        Ok(Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (ours, theirs) = (fields(&manifest.architecture), fields(&read.architecture));
    let different: Vec<String> = ours
        .iter()
        .filter(|(name, value)| theirs.get(*name) != Some(value))
        .map(|(name, value)| format!("`{name}` is {value}, and a file can only say {}", theirs.get(name).unwrap_or(&Value::Null)))
        .collect();
    let layers = "which layers have a window is not what llama.cpp takes from their number".to_string();
    Err(refuse(different.into_iter().next().unwrap_or(layers)))
}
