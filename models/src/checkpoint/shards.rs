//! The files of a checkpoint: the list that shards come with, and mapping one of them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;

use memmap2::Mmap;
use serde::Deserialize;

use super::config::read_limited;
use crate::error::{Error, Result};

/// The longest list of shards.
const MAX_INDEX_BYTES: u64 = 100_000_000;
/// The most shards.
const MAX_SHARDS: usize = 4096;

/// A list of shards: the file of every tensor.
#[derive(Deserialize)]
pub(super) struct Index {
    pub weight_map: BTreeMap<String, String>,
}

impl Index {
    /// Reads the list `path`.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = read_limited(path, MAX_INDEX_BYTES)?;
        serde_json::from_slice(&bytes).map_err(|error| Error::checkpoint(path, error.to_string()))
    }

    /// The files of the list at `path`, each once.
    pub fn files(&self, path: &Path) -> Result<Vec<&String>> {
        let mut files: Vec<&String> = self.weight_map.values().collect();
        files.sort();
        files.dedup();
        if files.len() > MAX_SHARDS {
            return Err(Error::checkpoint(path, format!("it lists {} files; at most {MAX_SHARDS} are allowed", files.len())));
        }
        // Only plain names: an index must not reach files outside its own folder.
        match files.iter().find(|file| Path::new(file).file_name() != Some(OsStr::new(file))) {
            Some(file) => Err(Error::checkpoint(path, format!("`{file}` is not the name of a file in the checkpoint's folder"))),
            None => Ok(files),
        }
    }

    /// Checks that every tensor is in the file that the list at `path` says; `holder` gives the file that holds a tensor.
    pub fn check<'a>(&self, path: &Path, holder: impl Fn(&str) -> Option<&'a Path>) -> Result<()> {
        for (name, file) in &self.weight_map {
            if holder(name).and_then(Path::file_name) != Some(OsStr::new(file)) {
                return Err(Error::checkpoint(path, format!("it says that `{name}` is in {file}, but it is not")));
            }
        }
        Ok(())
    }
}

/// Maps the file `path`, which must not be empty.
pub(super) fn map(path: &Path) -> Result<Mmap> {
    if !std::fs::metadata(path).map_err(Error::io("open", path))?.is_file() {
        return Err(Error::checkpoint(path, "it is not a file"));
    }
    let file = File::open(path).map_err(Error::io("open", path))?;
    if file.metadata().map_err(Error::io("read", path))?.len() == 0 {
        return Err(Error::checkpoint(path, "it is empty; copy the file again"));
    }
    // SAFETY: the map lives only while the checkpoint is imported, and the file is not written by this program meanwhile.
    unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))
}
