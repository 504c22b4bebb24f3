//! Finds out what kind of checkpoint a path is.

use std::path::Path;

use super::pytorch::{self, Pytorch};
use super::safetensors::Safetensors;
use super::tensors::Tensors;
use crate::error::{Error, Result};

/// The folder with the `config.json` of the checkpoint `src`, and its tensors: a folder with safetensors or, where there are none, PyTorch
/// files; or one PyTorch file, whose `config.json` is beside it.
pub(super) fn open(src: &Path) -> Result<(&Path, Box<dyn Tensors>)> {
    if std::fs::metadata(src).map_err(Error::io("open", src))?.is_dir() {
        return Ok((src, open_folder(src)?));
    }
    if Pytorch::recognises(src) {
        let folder = src.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        return Ok((folder, Box::new(Pytorch::open_file(src)?)));
    }
    let problem = "a checkpoint is a folder with config.json and model.safetensors or pytorch_model.bin, or a .bin, .pt or .pth file \
                   with config.json beside it; give one of these";
    Err(Error::checkpoint(src, problem))
}

/// The tensors of a folder.
fn open_folder(folder: &Path) -> Result<Box<dyn Tensors>> {
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
