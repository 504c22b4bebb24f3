//! Tensors in one or more mapped files, whatever the files' format: the list that shards come with, and which file holds what.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use serde::Deserialize;

use super::config::read_limited;
use super::tensors::{Found, Numbers, Tensors, not_finite, outside};
use crate::error::{Error, Result};

/// The longest list of shards.
const MAX_INDEX_BYTES: u64 = 100_000_000;
/// The most shards.
const MAX_SHARDS: usize = 4096;

/// What a format says of one tensor, and how it reads its numbers.
pub(super) trait Entry: Sized {
    /// All tensors of the file `path`, whose bytes are `file`.
    ///
    /// # Errors
    /// A sentence that goes on after the file's name.
    fn parse(file: &[u8], path: &Path) -> Result<BTreeMap<String, Self>, String>;

    /// Rows first.
    fn shape(&self) -> &[usize];

    /// How the numbers are stored.
    fn numbers(&self) -> Numbers<'_>;

    /// Reads `out.len()` numbers from number `first` on of the tensor, which `file` holds: where the first that is not finite is. None where
    /// the tensor does not have these numbers or they are no weights.
    fn read(&self, file: &[u8], first: usize, out: &mut [f32]) -> Option<Option<usize>>;
}

/// All tensors of a checkpoint in files of one format.
pub(super) struct Shards<E> {
    path: PathBuf,
    files: Vec<(PathBuf, Mmap)>,
    /// Each with the index of its file.
    entries: BTreeMap<String, (usize, E)>,
}

/// A list of shards: the file of every tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl<E: Entry> Shards<E> {
    /// Opens one file of the checkpoint `path`.
    pub fn open(path: &Path, file: &Path) -> Result<Self> {
        let mut shards = Self { path: path.to_path_buf(), files: Vec::new(), entries: BTreeMap::new() };
        shards.add(file)?;
        Ok(shards)
    }

    /// Opens every file that the list `index` of the checkpoint `folder` names, and checks that each tensor is where the list says.
    pub fn open_indexed(folder: &Path, index: &Path) -> Result<Self> {
        let mut shards = Self { path: folder.to_path_buf(), files: Vec::new(), entries: BTreeMap::new() };
        let list = Index::read(index)?;
        for file in list.files(index)? {
            shards.add(&folder.join(file))?;
        }
        for (name, file) in &list.weight_map {
            let holder = shards.entries.get(name).and_then(|(held, _)| shards.files[*held].0.file_name());
            if holder != Some(OsStr::new(file)) {
                return Err(Error::checkpoint(index, format!("it says that `{name}` is in {file}, but it is not")));
            }
        }
        Ok(shards)
    }

    /// Maps one file and adds its tensors.
    fn add(&mut self, path: &Path) -> Result<()> {
        let map = map(path)?;
        for (name, entry) in E::parse(&map, path).map_err(|problem| Error::checkpoint(path, problem))? {
            if self.entries.contains_key(&name) {
                return Err(Error::checkpoint(path, format!("tensor `{name}` is in another file of the checkpoint too")));
            }
            self.entries.insert(name, (self.files.len(), entry));
        }
        self.files.push((path.to_path_buf(), map));
        Ok(())
    }
}

impl<E: Entry> Tensors for Shards<E> {
    fn path(&self) -> &Path {
        &self.path
    }

    fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, map)| map.len() as u64).sum()
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.entries.keys().map(String::as_str))
    }

    fn find(&self, name: &str) -> Option<Found<'_>> {
        let (file, entry) = self.entries.get(name)?;
        Some(Found { file: &self.files[*file].0, shape: entry.shape(), numbers: entry.numbers() })
    }

    fn read(&self, name: &str, first: usize, out: &mut [f32]) -> Result<()> {
        let missing = || Error::MissingTensor { path: self.path.clone(), tensor: name.to_string() };
        let (file, entry) = self.entries.get(name).ok_or_else(missing)?;
        let (path, map) = &self.files[*file];
        match entry.read(map, first, out) {
            Some(None) => Ok(()),
            Some(Some(at)) => Err(not_finite(path, name, first + at, out[at])),
            None => Err(outside(path, name, first, out.len())),
        }
    }
}

impl Index {
    /// Reads the list `path`.
    fn read(path: &Path) -> Result<Self> {
        let bytes = read_limited(path, MAX_INDEX_BYTES)?;
        serde_json::from_slice(&bytes).map_err(|error| Error::checkpoint(path, error.to_string()))
    }

    /// The files of the list at `path`, each once.
    fn files(&self, path: &Path) -> Result<Vec<&String>> {
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
