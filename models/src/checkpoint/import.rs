//! Makes an artifact of a checkpoint, block of rows by block of rows.

use std::path::Path;

use super::config::Config;
use super::dialects::Described;
use super::names::{Form, Names, SourceTensor, is_harmless, names, places, source_tensors};
use super::open::open;
use super::streams::BLOCK_NUMBERS;
use super::tensors::{Numbers, Tensors, require};
use super::vocabulary;
use crate::architecture::{Architecture, Input, Output};
use crate::artifact::{ArtifactWriter, validate};
use crate::error::{Error, Result};
use crate::manifest::{Manifest, Origin, Span, StoredTensor};
use crate::tensor::DType;

/// Makes the artifact `out` of the checkpoint `src`, a folder or a PyTorch file with its `config.json` beside it, in `dtype` or, where that
/// is none, in the number format of the checkpoint's matrices (f32 where they differ). Calls `progress(done_bytes, total_bytes)` after every block. Memory: about 2 MiB beside the
/// tokenizer; the checkpoint is mapped.
///
/// # Errors
/// [`Error::Checkpoint`] where a file of the checkpoint cannot be understood, [`Error::Unsupported`] where it asks for what cannot be done
/// exactly, [`Error::MissingTensor`], [`Error::UnknownTensors`], [`Error::NotFinite`], and those of [`ArtifactWriter`].
pub fn import(src: &Path, out: &Path, dtype: Option<DType>, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
    let (folder, tensors) = open(src)?;
    let (config, tensors) = (Config::read(folder)?, &*tensors);
    let described = Described::new(&config, tensors.names().count())?;
    let (mut manifest, tokenizer) = draft(&described, &config, folder)?;
    validate::model(&manifest).map_err(|problem| Error::checkpoint(&folder.join("config.json"), problem))?;
    let names = names(described.dialect);
    let prefix = prefix_in(tensors, names);
    let sources = source_tensors(names, prefix, &manifest.architecture, &manifest.shape());
    let stored = check_tensors(tensors, &sources, names, prefix, &manifest.architecture)?;
    if manifest.origin.dense_parameters == 0 {
        // Every tensor is in the checkpoint, so the sum is bounded by its size.
        manifest.origin.dense_parameters = manifest.parameters() as u64;
    }
    let mut writer = ArtifactWriter::create(out, manifest, dtype.unwrap_or(stored))?;
    if let Some(tokenizer) = &tokenizer {
        writer.write_tokenizer(tokenizer)?;
    }
    let (places, total) = (places(&sources), writer.file_bytes());
    for tensor in writer.manifest().tensors.clone() {
        let &(source, piece) = places.get(&tensor.key).ok_or_else(|| Error::request(tensor.key, "no tensor of the checkpoint has it"))?;
        copy(tensors, &sources[source], piece, &tensor, &mut writer, progress)?;
    }
    writer.finish()?;
    progress(total, total);
    Ok(())
}

/// The manifest without tensors and parameter count, and the tokenizer that goes with it.
fn draft(described: &Described, config: &Config, src: &Path) -> Result<(Manifest, Option<Vec<u8>>)> {
    let named = || src.canonicalize().ok().and_then(|folder| Some(folder.file_name()?.to_string_lossy().into_owned()));
    let folder = named().unwrap_or_else(|| "model".to_string());
    let dialect = described.dialect.name();
    let config_text = super::conversation::with_conversation(config, src)?;
    let origin = described.origin.clone().unwrap_or_else(|| Origin {
        dialect: dialect.to_string(),
        config: config_text,
        dense_parameters: 0,
        history: vec![format!("Imported from the {dialect} checkpoint `{folder}`.")],
    });
    let tokenizer = match described.architecture.input {
        Input::Tokens { vocabulary } => vocabulary::tokenizer(src, vocabulary)?,
        Input::Patches { .. } => None,
    };
    let manifest = Manifest {
        name: described.name.clone().unwrap_or(folder),
        architecture: described.architecture.clone(),
        layers: described.layers.clone(),
        tensors: Vec::new(),
        levels: Vec::new(),
        origin,
        tokenizer: tokenizer.as_ref().map(|tokenizer| Span { offset: 0, bytes: tokenizer.len() as u64 }),
        measured: described.measured,
        diagnosis: None,
    };
    Ok((manifest, tokenizer))
}

/// The prefix of the names in this checkpoint: the first with which its layers' or its other names begin.
fn prefix_in(tensors: &dyn Tensors, names: &Names) -> &'static str {
    let found = |prefix: &str| names.under_prefix.iter().any(|(name, ..)| tensors.find(&format!("{prefix}{name}")).is_some());
    names.prefixes.iter().copied().find(|prefix| found(prefix)).unwrap_or(names.prefixes[0])
}

/// Checks that every tensor is there with the right shape and a known format, and that no other changes what the model computes. Returns
/// the number format of the matrices, f32 where they differ.
fn check_tensors(
    tensors: &dyn Tensors,
    sources: &[SourceTensor],
    names: &Names,
    prefix: &str,
    architecture: &Architecture,
) -> Result<DType> {
    let mut common = None;
    for source in sources {
        let found = require(tensors, &source.name, &source.shape)?;
        if !source.form.is_vector() {
            let dtype = match found.numbers {
                Numbers::Float(dtype) => dtype,
                Numbers::Quantised(_) | Numbers::Other(_) => DType::Bf16,
            };
            common = match common {
                Some(common) if common != dtype => Some(DType::F32),
                _ => Some(dtype),
            };
        }
    }
    let known: std::collections::HashSet<&str> = sources.iter().map(|source| source.name.as_str()).collect();
    let tied = matches!(architecture.output, Output::NextToken { tied: true, .. });
    let unknown = tensors.names().filter(|name| !known.contains(name) && !is_harmless(names, prefix, tied, name));
    let unknown: Vec<String> = unknown.map(str::to_string).collect();
    if !unknown.is_empty() {
        return Err(Error::UnknownTensors { path: tensors.path().to_path_buf(), tensors: unknown });
    }
    Ok(common.unwrap_or(DType::F32))
}

/// Copies one tensor, the piece at `piece` of `source`, into the artifact.
fn copy(
    tensors: &dyn Tensors,
    source: &SourceTensor,
    piece: usize,
    tensor: &StoredTensor,
    writer: &mut ArtifactWriter,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    let order = &source.pieces[piece].order;
    let (rows, columns) = (tensor.rows as usize, tensor.columns as usize);
    if columns == 0 {
        return Ok(());
    }
    let step = (BLOCK_NUMBERS / columns).max(1);
    let (mut block, mut strip) = (Vec::new(), Vec::new());
    for start in (0..rows).step_by(step) {
        let count = step.min(rows - start);
        block.resize(count * columns, 0.0);
        if source.form.is_vector() {
            for run in order.runs(0..columns) {
                tensors.read(&source.name, run.source, &mut block[run.stored..][..run.count])?;
            }
            let offset = source.form.offset();
            if offset != 0.0 {
                block.iter_mut().for_each(|number| *number += offset);
            }
        } else {
            for run in order.runs(start..start + count) {
                let block = &mut block[(run.stored - start) * columns..][..run.count * columns];
                if source.form == Form::Rows {
                    tensors.read(&source.name, run.source * columns, block)?;
                } else {
                    strip.resize(run.count, 0.0);
                    read_transposed(tensors, source, run.source, &mut strip, block)?;
                }
            }
        }
        writer.write_rows(tensor.key, &block)?;
        progress(writer.written_bytes(), writer.file_bytes());
    }
    Ok(())
}

/// Reads the columns from `first` on of `source [columns, units]` as the rows of `block [strip, columns]`.
fn read_transposed(tensors: &dyn Tensors, source: &SourceTensor, first: usize, strip: &mut [f32], block: &mut [f32]) -> Result<()> {
    let (columns, units) = (source.shape[0], source.shape[1]);
    for column in 0..columns {
        tensors.read(&source.name, column * units + first, strip)?;
        for (row, &value) in strip.iter().enumerate() {
            block[row * columns + column] = value;
        }
    }
    Ok(())
}
