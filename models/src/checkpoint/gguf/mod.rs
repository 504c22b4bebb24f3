//! GGUF files: one file with the tensors, the metadata and the tokenizer, as llama.cpp reads and writes them.
//!
//! A file is understood by way of the `config.json` and the `tokenizer.json` that transformers would have for the same model ([`config`],
//! [`tokenizer`]); everything after that is as for a checkpoint folder.

mod blocks;
mod config;
mod cursor;
mod header;
mod metadata;
mod names;
mod reader;
mod rotary;
mod spaces;
mod special_tokens;
mod tokenizer;
mod vocabulary;
mod writer;

use super::config::Config;
use super::names::{Names, SourceTensor};
use super::tensors::Tensors;
use crate::architecture::Architecture;
use crate::error::{Error, Result};
use crate::shape::ModelShape;
pub(super) use reader::Gguf;
pub use writer::export_gguf;

/// How a GGUF file names and lays out the tensors of its model.
#[derive(Clone, Copy)]
pub(super) struct FileLayout {
    names: &'static Names,
    /// Whether q, k and v are one matrix.
    fused: bool,
}

/// Understands an open file: the `config.json` and, where it has a tokenizer, the `tokenizer.json` of the same model, and how its tensors
/// lie.
///
/// # Errors
/// [`Error::Checkpoint`] and [`Error::Unsupported`], as [`import`](super::import).
pub(super) fn understand(gguf: &Gguf) -> Result<(Config, Option<Vec<u8>>, FileLayout)> {
    let family = config::Family::of(gguf)?;
    let text = serde_json::to_string_pretty(&family.config(gguf)?);
    let text = text.map_err(|error| Error::checkpoint(gguf.path(), error.to_string()))?;
    let config = Config::parse(gguf.path().to_path_buf(), text)?;
    let layout = FileLayout { names: names::names(family.rotary_pairs), fused: gguf.find("blk.0.attn_qkv.weight").is_some() };
    Ok((config, tokenizer::tokenizer_json(gguf)?, layout))
}

impl FileLayout {
    /// The names that the file may have.
    pub fn names(&self) -> &'static Names {
        self.names
    }

    /// The tensors that the file must have for the model.
    pub fn tensors(&self, architecture: &Architecture, shape: &ModelShape) -> Vec<SourceTensor> {
        names::file_tensors(self.names, architecture, shape, self.fused)
    }
}
