//! Makes an artifact of a checkpoint, block of rows by block of rows.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::path::Path;

use super::dialects::{Described, Held};
use super::names::{Form, Names, SourceTensor, is_harmless, places};
use super::open::Checkpoint;
use super::report::{ImportReport, RoundingError, may_lose};
use super::streams::BLOCK_NUMBERS;
use super::tensors::{Numbers, Tensors, require};
use crate::architecture::{Architecture, Output};
use crate::artifact::{ArtifactWriter, validate};
use crate::error::{Error, Result};
use crate::formats::Format;
use crate::formats::blocks::BLOCK;
use crate::manifest::{Manifest, Origin, Span, StoredTensor};
use crate::tensor::{DType, Layout};

/// Makes the artifact `out` of the checkpoint `src`, a folder, a GGUF file, or a PyTorch file with its `config.json` beside it, in `dtype`
/// or, where that is none, in the number format of the checkpoint's matrices: bf16 where any is quantised, f32 where they differ. Calls
/// `progress(done_bytes, total_bytes)` after every block. Memory: at most a few times 16 MiB beside the tokenizer; the checkpoint is mapped.
///
/// # Errors
/// [`Error::Checkpoint`] where a file of the checkpoint cannot be understood, [`Error::Unsupported`] where it asks for what cannot be done
/// exactly, [`Error::MissingTensor`], [`Error::UnknownTensors`], [`Error::NotFinite`], and those of [`ArtifactWriter`].
pub fn import(src: &Path, out: &Path, dtype: Option<DType>, progress: &mut dyn FnMut(u64, u64)) -> Result<ImportReport> {
    import_until(src, out, dtype, &mut |done, total| {
        progress(done, total);
        ControlFlow::Continue(())
    })
}

/// As [`import`], until `progress` breaks: then nothing is left behind.
///
/// # Errors
/// Those of [`import`], and [`Error::Stopped`].
pub fn import_until(
    src: &Path,
    out: &Path,
    dtype: Option<DType>,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<ImportReport> {
    let checkpoint = Checkpoint::open(src)?;
    let tensors = &*checkpoint.tensors;
    let described = Described::new(&checkpoint.config, Held::of(tensors))?;
    let (mut manifest, tokenizer) = draft(&described, &checkpoint, src)?;
    validate::model(&manifest).map_err(|problem| checkpoint.config.invalid(problem))?;
    let names = checkpoint.names(described.dialect);
    let sources = checkpoint.sources(described.dialect, &manifest.architecture, &manifest.shape());
    let stored = check_tensors(tensors, &sources, names, checkpoint.prefix(names), &manifest.architecture)?;
    if manifest.origin.dense_parameters == 0 {
        // Every tensor is in the checkpoint, so the sum is bounded by its size.
        manifest.origin.dense_parameters = manifest.parameters() as u64;
    }
    let mut writer = ArtifactWriter::create(out, manifest, dtype.unwrap_or(stored))?;
    if let Some(tokenizer) = &tokenizer {
        writer.write_tokenizer(tokenizer)?;
    }
    let (places, total) = (places(&sources), writer.file_bytes());
    let mut report = ImportReport::default();
    for tensor in writer.manifest().tensors.clone() {
        let &(source, piece) = places.get(&tensor.key).ok_or_else(|| Error::request(tensor.key, "no tensor of the checkpoint has it"))?;
        let mut copying = Copying { tensors, source: &sources[source], piece, report: &mut report };
        copying.copy(&tensor, &mut writer, &mut |writer| match progress(writer.written_bytes(), total) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Stopped { path: out.to_path_buf() }),
        })?;
    }
    writer.finish()?;
    // The file is there: it is too late to stop.
    let _ = progress(total, total);
    Ok(report)
}

/// The manifest without tensors and parameter count, and the tokenizer that goes with it.
fn draft<'a>(described: &Described, checkpoint: &'a Checkpoint, src: &Path) -> Result<(Manifest, Option<Cow<'a, [u8]>>)> {
    let named = || src.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    let name = named().unwrap_or_else(|| "model".to_string());
    let dialect = described.dialect.name();
    let config = checkpoint.config_text()?;
    let origin = described.origin.clone().unwrap_or_else(|| Origin {
        dialect: dialect.to_string(),
        config,
        dense_parameters: 0,
        history: vec![format!("Imported from the {dialect} checkpoint `{name}`.")],
    });
    let name = name.strip_suffix(".gguf").unwrap_or(&name).to_string();
    let tokenizer = checkpoint.tokenizer(&described.architecture.input)?;
    let manifest = Manifest {
        name: described.name.clone().unwrap_or(name),
        architecture: described.architecture.clone(),
        layers: described.layers.clone(),
        tensors: Vec::new(),
        levels: Vec::new(),
        origin,
        tokenizer: tokenizer.as_ref().map(|tokenizer| Span { offset: 0, bytes: tokenizer.len() as u64 }),
        measured: described.measured,
        diagnosis: described.diagnosis.clone(),
    };
    Ok((manifest, tokenizer))
}

/// Checks that every tensor is there with the right shape and a known format, and that no other changes what the model computes. Returns
/// the number format of the matrices: bf16 where any is quantised, f32 where they differ.
fn check_tensors(
    tensors: &dyn Tensors,
    sources: &[SourceTensor],
    names: &Names,
    prefix: &str,
    architecture: &Architecture,
) -> Result<DType> {
    let (mut common, mut quantised) = (None, false);
    for source in sources {
        let found = require(tensors, &source.name, &source.shape)?;
        if !source.form.is_vector() {
            match found.numbers {
                Numbers::Quantised(_) => quantised = true,
                Numbers::Float(dtype) if common.is_none_or(|common| common == dtype) => common = Some(dtype),
                Numbers::Float(_) | Numbers::Other(_) => common = Some(DType::F32),
            }
        }
    }
    let known: std::collections::HashSet<&str> = sources.iter().map(|source| source.name.as_str()).collect();
    let tied = matches!(architecture.output, Output::NextToken { tied: true, .. });
    let unknown = tensors.names().filter(|name| !known.contains(name) && !is_harmless(names, prefix, tied, name));
    let unknown: Vec<String> = unknown.map(str::to_string).collect();
    if !unknown.is_empty() {
        return Err(Error::UnknownTensors { path: tensors.path().to_path_buf(), tensors: unknown });
    }
    Ok(if quantised { DType::Bf16 } else { common.unwrap_or(DType::F32) })
}

/// A piece of a source tensor on its way into an artifact.
struct Copying<'a> {
    tensors: &'a dyn Tensors,
    source: &'a SourceTensor,
    piece: usize,
    report: &'a mut ImportReport,
}

impl Copying<'_> {
    /// Copies the piece to `tensor` of the artifact, calling `each` after every block.
    fn copy(
        &mut self,
        tensor: &StoredTensor,
        writer: &mut ArtifactWriter,
        each: &mut dyn FnMut(&ArtifactWriter) -> Result<()>,
    ) -> Result<()> {
        let (rows, columns) = (tensor.rows as usize, tensor.columns as usize);
        let numbers = self.tensors.find(&self.source.name).map(|found| found.numbers);
        let is_matrix = !self.source.form.is_vector();
        let quantised = matches!(numbers, Some(Numbers::Quantised(_)));
        let loses = is_matrix && numbers.is_some_and(|numbers| may_lose(numbers, tensor.dtype));
        self.report.tensors += 1;
        self.report.numbers += tensor.rows * tensor.columns;
        self.report.quantised += usize::from(is_matrix && quantised);
        if columns == 0 {
            return Ok(());
        }
        let step = rows_at_once(quantised && self.source.form == Form::Transposed, columns);
        // A block of an interleaved tensor is made of rows that are there together, so that its error can be counted.
        let interleaved = tensor.layout == Layout::Interleaved && matches!(tensor.dtype, DType::Q8 | DType::Q4);
        let step = if interleaved { step.next_multiple_of(BLOCK) } else { step };
        let (mut block, mut strip) = (Vec::new(), Vec::new());
        for start in (0..rows).step_by(step) {
            let count = step.min(rows - start);
            block.resize(count * columns, 0.0);
            self.read(start, count, columns, &mut block, &mut strip)?;
            if loses {
                let format = Format { dtype: tensor.dtype, layout: tensor.layout, rows: count, columns };
                let counted = self.report.rounding.get_or_insert_with(RoundingError::default).count(format, &block);
                counted.map_err(|problem| Error::request(tensor.key, problem))?;
            }
            writer.write_rows(tensor.key, &block)?;
            each(writer)?;
        }
        Ok(())
    }

    /// Reads `count` rows from `start` on to `block [count, columns]`.
    fn read(&self, start: usize, count: usize, columns: usize, block: &mut [f32], strip: &mut Vec<f32>) -> Result<()> {
        let (source, order) = (self.source, &self.source.pieces[self.piece].order);
        if source.form.is_vector() {
            for run in order.runs(0..columns) {
                self.tensors.read(&source.name, run.source, &mut block[run.stored..][..run.count])?;
            }
            let offset = source.form.offset();
            if offset != 0.0 {
                block.iter_mut().for_each(|number| *number += offset);
            }
            return Ok(());
        }
        for run in order.runs(start..start + count) {
            let block = &mut block[(run.stored - start) * columns..][..run.count * columns];
            if source.form == Form::Rows {
                self.tensors.read(&source.name, run.source * columns, block)?;
            } else {
                strip.resize(run.count, 0.0);
                read_transposed(self.tensors, source, run.source, strip, block)?;
            }
        }
        Ok(())
    }
}

/// Numbers of a block: of the K formats, and of all others.
const BLOCKS: [usize; 2] = [256, 32];
/// The most numbers that are read at once so that blocks are whole: 16 MiB.
const MOST_NUMBERS: usize = 4 << 20;

/// Rows that are copied at once. Where the rows are columns of quantised blocks, they are as many as make whole blocks, so that no block is
/// decoded twice; but not more than [`MOST_NUMBERS`] allow, beyond which a block is decoded once for each part of it that is read.
fn rows_at_once(across_blocks: bool, columns: usize) -> usize {
    let step = (BLOCK_NUMBERS / columns).max(1);
    match BLOCKS.into_iter().find(|block| columns <= MOST_NUMBERS / block) {
        Some(block) if across_blocks => (step - step % block).max(block),
        _ => step,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_quantised_blocks_are_read_as_whole_blocks() {
        let cases =
            [(64, 4096), (768, 256), (1024, 256), (1025, 256), (5376, 256), (16_384, 256), (16_385, 32), (131_072, 32), (131_073, 1)];
        let wrong: Vec<_> = cases.iter().map(|&(columns, rows)| (columns, rows_at_once(true, columns), rows)).collect();
        let wrong: Vec<_> = wrong.into_iter().filter(|(_, found, rows)| found != rows).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        assert_eq!((rows_at_once(false, 1025), rows_at_once(false, 1 << 20)), (255, 1));
    }
}
