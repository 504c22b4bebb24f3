//! Opens GGUF files of version 2 and 3 and reads their tensors.
//!
//! A file is the magic `GGUF`, a version, the numbers of tensors and of metadata keys, the keys with their values, the tensors' names,
//! shapes, formats and offsets, padding to the alignment, and the tensors' data. All is little-endian and parsed with checked arithmetic:
//! every tensor must lie inside the file, at a multiple of the alignment, and no two may overlap.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::blocks::{BlockType, Coding};
use super::cursor::Cursor;
use super::metadata::{Array, Value, Values, parse};
use crate::checkpoint::shards::map;
use crate::checkpoint::tensors::{Found, Numbers, Tensors, not_finite, outside};
use crate::error::{Error, Result, quoted};

/// The first bytes of a file.
pub(super) const MAGIC: [u8; 4] = *b"GGUF";
/// The most tensors.
const MAX_TENSORS: u64 = 1 << 16;
/// The longest name of a tensor: ggml itself allows 63 bytes.
const MAX_NAME_BYTES: usize = 255;
/// The most dimensions of a tensor, as ggml has it.
const MAX_DIMENSIONS: u32 = 4;
/// The alignment of tensors where the metadata names no other.
pub(super) const DEFAULT_ALIGNMENT: u64 = 32;
/// The largest alignment.
const MAX_ALIGNMENT: u64 = 1 << 20;

/// A GGUF file, mapped into memory.
pub(in crate::checkpoint) struct Gguf {
    path: PathBuf,
    map: Mmap,
    values: Values,
    entries: BTreeMap<String, Entry>,
}

/// One tensor.
#[derive(Debug)]
struct Entry {
    kind: &'static BlockType,
    /// Rows first.
    shape: Vec<usize>,
    /// Bytes in the file.
    range: Range<usize>,
}

impl Gguf {
    /// Whether the file at `path` starts as GGUF files do.
    pub fn is_at(path: &Path) -> bool {
        use std::io::Read;
        let mut start = [0; 4];
        File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == MAGIC
    }

    /// Maps the file and checks all of it but the tensors' data.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Checkpoint`] where it is no sound GGUF file, [`Error::Unsupported`] for other versions and split files.
    pub fn open(path: &Path) -> Result<Self> {
        let map = map(path)?;
        let damaged = |problem: String| Error::checkpoint(path, problem);
        let mut cursor = Cursor::new(&map);
        let (tensors, keys) = counts(&mut cursor, path)?;
        let values = parse(&mut cursor, keys).map_err(damaged)?;
        let entries = entries(&mut cursor, tensors, alignment(&values).map_err(damaged)?).map_err(damaged)?;
        let gguf = Self { path: path.to_path_buf(), map, values, entries };
        match gguf.count("split.count")? {
            Some(parts) if parts > 1 => {
                Err(gguf.unsupported(format!("a file that is one of {parts} parts"), "one file is; merge the parts"))
            }
            _ => Ok(gguf),
        }
    }

    /// The metadata's keys.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// The error that the value of `key` is not what it must be.
    pub fn wrong(&self, key: &str, expected: &str) -> Error {
        let found = match self.values.get(key) {
            None => "missing".to_string(),
            Some(Value::Text(range)) => quoted(std::str::from_utf8(&self.map[range.clone()]).unwrap_or_default()),
            Some(value) => value.to_string(),
        };
        Error::checkpoint(&self.path, format!("metadata {} is {found}; expected {expected}", quoted(key)))
    }

    /// The error that the file asks for what cannot be done exactly.
    pub fn unsupported(&self, feature: impl Into<String>, expected: impl Into<String>) -> Error {
        Error::Unsupported { path: self.path.clone(), feature: feature.into(), expected: expected.into() }
    }

    /// The whole number at `key`, none where it is missing.
    pub fn count(&self, key: &str) -> Result<Option<u64>> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        value.as_u64().map(Some).ok_or_else(|| self.wrong(key, "a whole number"))
    }

    /// The finite number at `key`, none where it is missing.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| self.wrong(key, "a finite number"))
    }

    /// The flag at `key`, none where it is missing.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(&Value::Bool(value)) => Ok(Some(value)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    /// The text at `key`, none where it is missing.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Text(range)) => Ok(std::str::from_utf8(&self.map[range.clone()]).ok()),
            Some(_) => Err(self.wrong(key, "a text")),
        }
    }

    /// The array at `key`, none where it is missing.
    fn array(&self, key: &str) -> Result<Option<&Array>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) => Ok(Some(array)),
            Some(_) => Err(self.wrong(key, "an array")),
        }
    }

    /// The texts of the array at `key` and their number, none where it is missing.
    pub fn texts(&self, key: &str) -> Result<Option<(usize, impl Iterator<Item = &str> + Clone)>> {
        let Some(array) = self.array(key)? else { return Ok(None) };
        let texts = array.texts(&self.map).ok_or_else(|| self.wrong(key, "an array of texts"))?;
        Ok(Some((array.count, texts)))
    }

    /// The values of the array of numbers at `key`, none where it is missing.
    pub(super) fn scalars(&self, key: &str) -> Result<Option<impl Iterator<Item = Value>>> {
        let Some(array) = self.array(key)? else { return Ok(None) };
        Ok(Some(array.scalars(&self.map).ok_or_else(|| self.wrong(key, "an array of numbers"))?))
    }

    /// Whether the value at `key` is an array.
    pub fn is_array(&self, key: &str) -> bool {
        matches!(self.values.get(key), Some(Value::Array(_)))
    }
}

/// Checks magic and version; the numbers of tensors and of keys.
fn counts(cursor: &mut Cursor<'_>, path: &Path) -> Result<(u64, u64)> {
    let damaged = |problem: String| Error::checkpoint(path, problem);
    if cursor.take(4).map_err(damaged)? != MAGIC {
        return Err(damaged("it does not start with the bytes `GGUF`; give a GGUF file or a checkpoint folder".to_string()));
    }
    let version = cursor.u32().map_err(damaged)?;
    if !(2..=3).contains(&version) {
        let (feature, expected) = match version.swap_bytes() {
            2 | 3 => ("a big-endian GGUF file".to_string(), "little-endian ones are"),
            _ => (format!("GGUF version {version}"), "versions 2 and 3 are"),
        };
        return Err(Error::Unsupported { path: path.to_path_buf(), feature, expected: expected.to_string() });
    }
    Ok((cursor.u64().map_err(damaged)?, cursor.u64().map_err(damaged)?))
}

/// The alignment that the metadata names.
fn alignment(values: &Values) -> Result<u64, String> {
    let Some(value) = values.get("general.alignment") else { return Ok(DEFAULT_ALIGNMENT) };
    let alignment = value.as_u64().filter(|alignment| alignment.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(alignment));
    alignment.ok_or_else(|| format!("metadata `general.alignment` is {value}; expected a power of two from 8 to {MAX_ALIGNMENT}"))
}

/// Reads `count` descriptions of tensors and places them in the file.
fn entries(cursor: &mut Cursor<'_>, count: u64, alignment: u64) -> Result<BTreeMap<String, Entry>, String> {
    if count > MAX_TENSORS {
        return Err(format!("it says that it has {count} tensors; at most {MAX_TENSORS} are allowed"));
    }
    let mut described = Vec::new();
    for index in 0..count {
        described.push(describe(cursor, alignment).map_err(|problem| format!("tensor {index}: {problem}"))?);
    }
    let start = (cursor.at() as u64).next_multiple_of(alignment);
    let end = (cursor.at() + cursor.left()) as u64;
    let (mut entries, mut spans) = (BTreeMap::new(), Vec::with_capacity(described.len()));
    for Description { name, kind, shape, offset, bytes } in described {
        let last = start.checked_add(offset).and_then(|first| Some((first, first.checked_add(bytes)?))).filter(|&(_, last)| last <= end);
        let (first, last) = last.ok_or_else(|| {
            format!("tensor `{name}` has {bytes} bytes at {offset} of its data, but the file ends at byte {end}; the file is cut short")
        })?;
        spans.push((first, last));
        let entry = Entry { kind, shape, range: first as usize..last as usize };
        if entries.insert(name.clone(), entry).is_some() {
            return Err(format!("tensor `{name}` is there twice"));
        }
    }
    spans.sort_unstable();
    match spans.windows(2).find(|pair| pair[1].0 < pair[0].1) {
        Some(pair) => Err(format!("two tensors overlap at byte {}", pair[1].0)),
        None => Ok(entries),
    }
}

/// What the file says of one tensor.
struct Description {
    name: String,
    kind: &'static BlockType,
    shape: Vec<usize>,
    offset: u64,
    bytes: u64,
}

/// Reads the description of one tensor.
fn describe(cursor: &mut Cursor<'_>, alignment: u64) -> Result<Description, String> {
    let name = cursor.text(MAX_NAME_BYTES)?.to_string();
    let dimensions = cursor.u32()?;
    if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
        return Err(format!("`{name}` has {dimensions} dimensions; expected 1 to {MAX_DIMENSIONS}"));
    }
    let sizes: Vec<u64> = (0..dimensions).map(|_| cursor.u64()).collect::<Result<_, _>>()?;
    let (kind, offset) = (cursor.u32()?, cursor.u64()?);
    let kind = BlockType::of(kind).ok_or_else(|| format!("`{name}` has numbers of type {kind}, which is not known"))?;
    let impossible = || format!("`{name}` has the shape {sizes:?}, which no tensor of type {} can have", kind.name);
    let shape: Option<Vec<usize>> = sizes.iter().rev().map(|&size| usize::try_from(size).ok().filter(|&size| size > 0)).collect();
    let numbers = sizes.iter().try_fold(1u64, |numbers, &size| numbers.checked_mul(size));
    let whole = sizes[0].is_multiple_of(kind.numbers as u64);
    let bytes = numbers.filter(|_| whole).and_then(|numbers| (numbers / kind.numbers as u64).checked_mul(kind.bytes as u64));
    let (Some(shape), Some(bytes)) = (shape, bytes) else { return Err(impossible()) };
    if !offset.is_multiple_of(alignment) {
        return Err(format!("`{name}` lies at byte {offset} of the data, which is no multiple of the alignment {alignment}"));
    }
    Ok(Description { name, kind, shape, offset, bytes })
}

impl Tensors for Gguf {
    fn path(&self) -> &Path {
        &self.path
    }

    fn bytes(&self) -> u64 {
        self.map.len() as u64
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.entries.keys().map(String::as_str))
    }

    fn find(&self, name: &str) -> Option<Found<'_>> {
        let entry = self.entries.get(name)?;
        let numbers = match entry.kind.coding {
            Coding::Float(dtype) => Numbers::Float(dtype),
            Coding::Blocks(_) => Numbers::Quantised(entry.kind.name),
            Coding::Unread => Numbers::Other(entry.kind.name),
        };
        Some(Found { file: &self.path, shape: &entry.shape, numbers })
    }

    fn read(&self, name: &str, first: usize, out: &mut [f32]) -> Result<()> {
        let missing = || Error::MissingTensor { path: self.path.clone(), tensor: name.to_string() };
        let entry = self.entries.get(name).ok_or_else(missing)?;
        let numbers: usize = entry.shape.iter().product();
        let is_there = first.checked_add(out.len()).is_some_and(|end| end <= numbers);
        match is_there.then(|| entry.kind.decode_range(&self.map[entry.range.clone()], first, out)).flatten() {
            Some(None) => Ok(()),
            Some(Some(at)) => Err(not_finite(&self.path, name, first + at, out[at])),
            None => Err(outside(&self.path, name, first, out.len())),
        }
    }
}
