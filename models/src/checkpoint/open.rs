//! Opens a checkpoint, whatever kind it is: what describes the model, where its numbers are and what they are called.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::config::Config;
use super::gguf::{self, FileLayout, Gguf};
use super::names::{Names, SourceTensor, names, source_tensors};
use super::pytorch::{self, Pytorch};
use super::safetensors;
use super::shards::Shards;
use super::tensors::Tensors;
use super::{Dialect, conversation, vocabulary};
use crate::architecture::{Architecture, Input};
use crate::error::{Error, Result};
use crate::shape::ModelShape;

/// A checkpoint that can be read.
pub(super) struct Checkpoint {
    /// The numbers.
    pub tensors: Box<dyn Tensors>,
    /// The `config.json`, or what the file has in its place.
    pub config: Config,
    description: Description,
}

/// Where what is no tensor comes from.
enum Description {
    /// The folder of the `config.json`, which may have a tokenizer.
    Folder(PathBuf),
    /// A GGUF file, which says it beside its tensors.
    Gguf {
        layout: FileLayout,
        /// The `tokenizer.json` of the same model, where the file has a vocabulary.
        tokenizer: Option<Vec<u8>>,
    },
}

impl Checkpoint {
    /// Opens a folder with safetensors or, where there are none, PyTorch files; or one PyTorch file, whose `config.json` is beside it; or a
    /// GGUF file.
    ///
    /// # Errors
    /// As [`import`](super::import).
    pub fn open(src: &Path) -> Result<Self> {
        if std::fs::metadata(src).map_err(Error::io("open", src))?.is_dir() {
            return Self::described_in(src, || tensors_in(src));
        }
        if Gguf::is_at(src) {
            let gguf = Gguf::open(src)?;
            let (config, tokenizer, layout) = gguf::understand(&gguf)?;
            return Ok(Self { tensors: Box::new(gguf), config, description: Description::Gguf { layout, tokenizer } });
        }
        if pytorch::recognises(src) {
            let folder = src.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            return Self::described_in(folder, || Ok(Box::new(Shards::<Pytorch>::open(src, src)?)));
        }
        let problem = "a checkpoint is a folder with config.json and model.safetensors or pytorch_model.bin, a .bin, .pt or .pth file with \
                       config.json beside it, or a GGUF file; give one of these";
        Err(Error::checkpoint(src, problem))
    }

    /// A checkpoint whose `config.json` and tokenizer are in `folder`.
    fn described_in(folder: &Path, open: impl FnOnce() -> Result<Box<dyn Tensors>>) -> Result<Self> {
        let config = Config::read(folder)?;
        Ok(Self { tensors: open()?, config, description: Description::Folder(folder.to_path_buf()) })
    }

    /// The `config.json` with what a conversation needs (chat template, names of special tokens).
    pub fn config_text(&self) -> Result<String> {
        match &self.description {
            Description::Folder(folder) => conversation::with_conversation(&self.config, folder),
            Description::Gguf { .. } => Ok(self.config.text.clone()),
        }
    }

    /// The `tokenizer.json` of a model that reads `input`, where there is one.
    pub fn tokenizer(&self, input: &Input) -> Result<Option<Cow<'_, [u8]>>> {
        if !matches!(input, Input::Tokens { .. }) {
            return Ok(None);
        }
        match &self.description {
            Description::Folder(folder) => Ok(vocabulary::tokenizer(folder, &self.config)?.map(Cow::Owned)),
            Description::Gguf { tokenizer, .. } => Ok(tokenizer.as_deref().map(Cow::Borrowed)),
        }
    }

    fn layout(&self) -> Option<FileLayout> {
        match self.description {
            Description::Folder(_) => None,
            Description::Gguf { layout, .. } => Some(layout),
        }
    }

    /// The names that its tensors may have.
    pub fn names(&self, dialect: Dialect) -> &'static Names {
        self.layout().map_or_else(|| names(dialect), |layout| layout.names())
    }

    /// The prefix of the names: the first with which it has a tensor that is in no layer; the usual one where there is none.
    pub fn prefix(&self, names: &Names) -> &'static str {
        let found = |prefix: &str| names.under_prefix.iter().any(|(name, ..)| self.tensors.find(&format!("{prefix}{name}")).is_some());
        names.prefixes.iter().copied().find(|prefix| found(prefix)).unwrap_or(names.prefixes[0])
    }

    /// The tensors that it must have for the model.
    pub fn sources(&self, dialect: Dialect, architecture: &Architecture, shape: &ModelShape) -> Vec<SourceTensor> {
        match self.layout() {
            Some(layout) => layout.tensors(architecture, shape),
            None => {
                let names = names(dialect);
                source_tensors(names, self.prefix(names), architecture, shape)
            }
        }
    }
}

/// The tensors of a folder.
fn tensors_in(folder: &Path) -> Result<Box<dyn Tensors>> {
    if safetensors::is_in(folder) {
        return Ok(Box::new(safetensors::open(folder)?));
    }
    let single = folder.join(pytorch::SINGLE);
    if single.exists() {
        return Ok(Box::new(Shards::<Pytorch>::open(folder, &single)?));
    }
    let index = folder.join(pytorch::INDEX);
    if index.exists() {
        return Ok(Box::new(Shards::<Pytorch>::open_indexed(folder, &index)?));
    }
    let problem =
        "it has neither model.safetensors nor pytorch_model.bin, whole or in shards with an index; give the folder of a checkpoint";
    Err(Error::checkpoint(folder, problem))
}
