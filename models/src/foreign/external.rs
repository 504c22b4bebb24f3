//! Files beside a graph that hold its weights: only such in its own folder, and only ranges inside them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use memmap2::Mmap;

use super::wire::Parsed;
use crate::error::{Error, Result, quoted};

/// Most files beside a graph: some exporters write one a tensor.
const MAX_FILES: usize = 10_000;

/// The part of a name by which ONNX Runtime tells an address in memory, `*/_ORT_MEM_ADDR_/*`, from a file: it would read there.
const MEMORY_MARK: &str = "_ORT_MEM_ADDR_";

/// A file beside a graph.
pub struct ExternalFile {
    /// Its name in the graph, from the graph's folder.
    pub location: String,
    /// Where it is.
    pub path: PathBuf,
    map: Mmap,
}

impl ExternalFile {
    /// Its bytes, mapped.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}

/// The files that a graph refers to.
pub(super) struct Files {
    folder: PathBuf,
    pub found: Vec<ExternalFile>,
    /// Which of them has a name.
    index: BTreeMap<String, usize>,
}

impl Files {
    /// None yet; `folder` is the graph's.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_path_buf(), found: Vec::new(), index: BTreeMap::new() }
    }

    /// Where `bytes` of a tensor lie by its `external_data` entries: the file's index, and the range in it.
    pub fn place(&mut self, entries: &[(&str, &str)], bytes: u64) -> Parsed<(usize, Range<usize>)> {
        let value = |key: &str| entries.iter().find(|(found, _)| *found == key).map(|(_, value)| *value);
        let number = |key: &str| -> Parsed<Option<u64>> {
            let parse = |value: &str| {
                value.parse().map_err(|_| format!("has the {key} {} in another file, which is no number of bytes", quoted(value)))
            };
            value(key).map(parse).transpose()
        };
        let location = value("location").ok_or("lies in another file, which it does not name")?;
        let (start, length) = (number("offset")?.unwrap_or(0), number("length")?);
        if length.is_some_and(|length| length != bytes) {
            return Err(format!("has {} bytes in the file {}; expected {bytes}", length.unwrap_or_default(), quoted(location)));
        }
        let file = self.open(location)?;
        let whole = self.found[file].map.len() as u64;
        match start.checked_add(bytes).filter(|end| *end <= whole) {
            Some(end) => Ok((file, start as usize..end as usize)),
            None => Err(format!("has {bytes} bytes at byte {start} of the file {}, which has {whole}", quoted(location))),
        }
    }

    /// Maps the file of that name in the graph's folder, once.
    fn open(&mut self, location: &str) -> Parsed<usize> {
        if let Some(index) = self.index.get(location) {
            return Ok(*index);
        }
        let refuse = |why: &str| format!("lies in the file {}, {why}", quoted(location));
        if self.found.len() >= MAX_FILES {
            return Err(refuse(&format!("one more than the {MAX_FILES} that are read beside a graph")));
        }
        let path = beside(&self.folder, location).map_err(|why| refuse(&why))?;
        let map = map(&path).map_err(|error| refuse(&format!("which cannot be used: {error}")))?;
        self.index.insert(location.to_string(), self.found.len());
        self.found.push(ExternalFile { location: location.to_string(), path, map });
        Ok(self.found.len() - 1)
    }
}

/// The file `name` in the graph's folder, or why it is none that is read.
pub(super) fn beside(folder: &Path, name: &str) -> Parsed<PathBuf> {
    if name.split(['/', '\\', '*']).any(|part| part == MEMORY_MARK) {
        return Err("which is ONNX Runtime's mark of an address in memory; only files are read".into());
    }
    let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if name.is_empty() || name.contains('\0') || !inside {
        return Err("which is not in the graph's folder; only files in there are read".into());
    }
    let path = folder.join(name);
    let real = |path: &Path| path.canonicalize().map_err(|error| format!("which cannot be opened: {error}"));
    if !real(&path)?.starts_with(real(folder)?) {
        return Err("which is a link out of the graph's folder; put the file itself there".into());
    }
    Ok(path)
}

/// Maps a file, which must not be empty.
pub(super) fn map(path: &Path) -> Result<Mmap> {
    // A named pipe would block when it is opened.
    if !std::fs::metadata(path).map_err(Error::io("open", path))?.is_file() {
        return Err(Error::checkpoint(path, "it is not a file"));
    }
    let file = std::fs::File::open(path).map_err(Error::io("open", path))?;
    if file.metadata().map_err(Error::io("read", path))?.len() == 0 {
        return Err(Error::checkpoint(path, "it is empty; copy the file again"));
    }
    // SAFETY: the file is not written by this program; like an artifact it is replaced by renaming while it serves.
    unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))
}
