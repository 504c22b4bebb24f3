//! Opens a checkpoint, whatever kind it is: what describes the model, where its numbers are and what they are called.

use std::path::Path;

use super::Dialect;
use super::config::{Config, read_limited};
use super::gguf::{self, FileLayout, Gguf};
use super::names::{Names, SourceTensor, names, source_tensors};
use super::safetensors::Safetensors;
use super::tensors::Tensors;
use crate::architecture::Architecture;
use crate::error::{Error, Result};
use crate::shape::ModelShape;

/// The longest `tokenizer.json`.
const MAX_TOKENIZER_BYTES: u64 = 64 << 20;

/// A checkpoint that can be read.
pub(super) struct Checkpoint {
    /// The numbers.
    pub tensors: Box<dyn Tensors>,
    /// The `config.json`, or what the file has in its place.
    pub config: Config,
    /// The `tokenizer.json`, where there is one.
    pub tokenizer: Option<Vec<u8>>,
    /// How the tensors lie where that is not the dialect's way.
    layout: Option<FileLayout>,
}

impl Checkpoint {
    /// Opens the folder or GGUF file `src`.
    ///
    /// # Errors
    /// As [`import`](super::import).
    pub fn open(src: &Path) -> Result<Self> {
        if std::fs::metadata(src).map_err(Error::io("open", src))?.is_dir() {
            return Self::open_folder(src);
        }
        if !Gguf::is_at(src) {
            return Err(Error::checkpoint(
                src,
                "a checkpoint is a folder with config.json and model.safetensors, or a GGUF file; give one of these",
            ));
        }
        let gguf = Gguf::open(src)?;
        let (config, tokenizer, layout) = gguf::understand(&gguf)?;
        Ok(Self { tensors: Box::new(gguf), config, tokenizer, layout: Some(layout) })
    }

    fn open_folder(src: &Path) -> Result<Self> {
        let config = Config::read(src)?;
        let tensors = Box::new(Safetensors::open(src)?);
        let tokenizer = src.join("tokenizer.json");
        let tokenizer = tokenizer.exists().then(|| read_limited(&tokenizer, MAX_TOKENIZER_BYTES)).transpose()?;
        Ok(Self { tensors, config, tokenizer, layout: None })
    }

    /// The names that its tensors may have.
    pub fn names(&self, dialect: Dialect) -> &'static Names {
        self.layout.map_or_else(|| names(dialect), |layout| layout.names())
    }

    /// The prefix of the names: the first with which its layers' or its other names begin.
    pub fn prefix(&self, names: &Names) -> &'static str {
        let found = |prefix: &str| names.under_prefix.iter().any(|(name, ..)| self.tensors.find(&format!("{prefix}{name}")).is_some());
        names.prefixes.iter().copied().find(|prefix| found(prefix)).unwrap_or(names.prefixes[0])
    }

    /// The tensors that it must have for the model.
    pub fn sources(&self, dialect: Dialect, architecture: &Architecture, shape: &ModelShape) -> Vec<SourceTensor> {
        match self.layout {
            Some(layout) => layout.tensors(architecture, shape),
            None => {
                let names = names(dialect);
                source_tensors(names, self.prefix(names), architecture, shape)
            }
        }
    }
}
