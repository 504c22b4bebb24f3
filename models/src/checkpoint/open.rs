//! Opens a checkpoint, whatever kind it is: what describes the model, where its numbers are and what they are called.

use std::path::Path;

use super::Dialect;
use super::config::Config;
use super::gguf::{self, FileLayout, Gguf};
use super::names::{Names, SourceTensor, names, source_tensors};
use super::pytorch::{self, Pytorch};
use super::safetensors::Safetensors;
use super::tensors::Tensors;
use super::vocabulary;
use crate::architecture::Architecture;
use crate::error::{Error, Result};
use crate::shape::ModelShape;

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
    /// Opens `src`: a folder with safetensors or, where there are none, PyTorch files; one PyTorch file with its `config.json` beside it; or
    /// a GGUF file.
    ///
    /// # Errors
    /// As [`import`](super::import).
    pub fn open(src: &Path) -> Result<Self> {
        if std::fs::metadata(src).map_err(Error::io("open", src))?.is_dir() {
            return Self::described_in(src, || folder_tensors(src));
        }
        if Pytorch::recognises(src) {
            let folder = src.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            return Self::described_in(folder, || Ok(Box::new(Pytorch::open_file(src)?)));
        }
        if !Gguf::is_at(src) {
            let problem = "a checkpoint is a folder with config.json and model.safetensors or pytorch_model.bin, a .bin, .pt or .pth file \
                           with config.json beside it, or a GGUF file; give one of these";
            return Err(Error::checkpoint(src, problem));
        }
        let gguf = Gguf::open(src)?;
        let (config, tokenizer, layout) = gguf::understand(&gguf)?;
        Ok(Self { tensors: Box::new(gguf), config, tokenizer, layout: Some(layout) })
    }

    /// A checkpoint whose `config.json` and tokenizer are in `folder`.
    fn described_in(folder: &Path, open: impl FnOnce() -> Result<Box<dyn Tensors>>) -> Result<Self> {
        let config = Config::read(folder)?;
        let tensors = open()?;
        let tokenizer = vocabulary::tokenizer(folder, &config)?;
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

/// The tensors of a folder.
fn folder_tensors(folder: &Path) -> Result<Box<dyn Tensors>> {
    if Safetensors::is_in(folder) {
        return Ok(Box::new(Safetensors::open(folder)?));
    }
    let single = folder.join(pytorch::SINGLE);
    if single.exists() {
        return Ok(Box::new(Pytorch::open_file(&single)?));
    }
    if folder.join(pytorch::INDEX).exists() {
        return Ok(Box::new(Pytorch::open_indexed(folder)?));
    }
    let problem =
        "it has neither model.safetensors nor pytorch_model.bin, whole or in shards with an index; give the folder of a checkpoint";
    Err(Error::checkpoint(folder, problem))
}
