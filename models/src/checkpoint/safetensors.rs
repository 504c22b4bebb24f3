//! Reads tensors from one or more safetensors files, each mapped into memory.
//!
//! A file is a u64 length, a JSON header of that length, `{name: {dtype, shape, data_offsets: [start, end]}}` with offsets from the end of
//! the header, and the data. The header is parsed here with checked arithmetic; tensors must cover the data without gaps or overlaps.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, de};

use super::shards::{Entry, Shards};
use super::tensors::{Numbers, decode};
use crate::error::Result;
use crate::tensor::DType;

/// The file of a checkpoint in one file.
const SINGLE: &str = "model.safetensors";
/// The list of shards of a checkpoint in several.
const INDEX: &str = "model.safetensors.index.json";
/// The longest header, as the format's own specification has it.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Where one tensor of a safetensors file lies.
#[derive(Debug, Clone)]
pub(super) struct Safetensors {
    /// The number format's name, as the file has it.
    dtype: String,
    /// Rows first.
    shape: Vec<usize>,
    /// Bytes in the file.
    range: Range<usize>,
}

/// A header: entries by name, `__metadata__` left out, a name twice refused.
struct Header(BTreeMap<String, HeaderEntry>);

/// One entry of a header.
#[derive(Deserialize)]
struct HeaderEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<de::IgnoredAny>()?;
                    } else if entries.insert(name.clone(), map.next_value()?).is_some() {
                        return Err(de::Error::custom(format!("tensor `{name}` is there twice")));
                    }
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Whether the checkpoint `folder` has safetensors files.
pub(super) fn is_in(folder: &Path) -> bool {
    folder.join(SINGLE).exists() || folder.join(INDEX).exists()
}

/// Opens `model.safetensors` of the checkpoint `folder`, or the shards that `model.safetensors.index.json` lists.
pub(super) fn open(folder: &Path) -> Result<Shards<Safetensors>> {
    let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
    if single.exists() { Shards::open(folder, &single) } else { Shards::open_indexed(folder, &index) }
}

impl Safetensors {
    /// The number format, where it is one that can be read.
    fn float(&self) -> Option<DType> {
        match self.dtype.as_str() {
            "F32" => Some(DType::F32),
            "F16" => Some(DType::F16),
            "BF16" => Some(DType::Bf16),
            _ => None,
        }
    }
}

impl Entry for Safetensors {
    fn parse(file: &[u8], _path: &Path) -> Result<BTreeMap<String, Self>, String> {
        parse(file)
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn numbers(&self) -> Numbers<'_> {
        self.float().map_or(Numbers::Other(&self.dtype), Numbers::Float)
    }

    fn read(&self, file: &[u8], first: usize, out: &mut [f32]) -> Option<Option<usize>> {
        let dtype = self.float()?;
        let width = if dtype == DType::F32 { 4 } else { 2 };
        let start = first.checked_mul(width)?.checked_add(self.range.start)?;
        let end = out.len().checked_mul(width)?.checked_add(start).filter(|&end| end <= self.range.end)?;
        Some(decode(dtype, &file[start..end], out))
    }
}

/// Bits of one number of a safetensors number format; none for formats that have no whole bytes or are not known.
fn bits(dtype: &str) -> Option<u64> {
    match dtype {
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => Some(8),
        "U16" | "I16" | "F16" | "BF16" => Some(16),
        "U32" | "I32" | "F32" => Some(32),
        "U64" | "I64" | "F64" | "C64" => Some(64),
        _ => None,
    }
}

/// Parses the header of `file`.
fn parse(file: &[u8]) -> Result<BTreeMap<String, Safetensors>, String> {
    let length = file.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes)).ok_or("it ends inside the length of its header")?;
    if length > MAX_HEADER_BYTES {
        return Err(format!("its header has {length} bytes, more than the {MAX_HEADER_BYTES} allowed; it is not a safetensors file"));
    }
    let data_start = 8 + length as usize;
    let header = file.get(8..data_start).ok_or_else(|| format!("it ends inside its header of {length} bytes"))?;
    let header: Header = serde_json::from_slice(header).map_err(|error| format!("its header cannot be read: {error}"))?;
    let data_bytes = (file.len() - data_start) as u64;
    let mut spans = Vec::with_capacity(header.0.len());
    let mut entries = BTreeMap::new();
    for (name, entry) in header.0 {
        let (start, end) = entry.data_offsets;
        if start > end || end > data_bytes {
            return Err(format!("tensor `{name}` lies at {start}..{end} of {data_bytes} bytes of data"));
        }
        let shape: Option<Vec<usize>> = entry.shape.iter().map(|&size| usize::try_from(size).ok()).collect();
        let numbers = entry.shape.iter().try_fold(1u64, |numbers, &size| numbers.checked_mul(size));
        let expected = bits(&entry.dtype).and_then(|bits| numbers?.checked_mul(bits / 8));
        let (Some(shape), Some(true)) = (shape, expected.map(|expected| expected == end - start)) else {
            return Err(format!("tensor `{name}` of type {} and shape {:?} cannot have {} bytes", entry.dtype, entry.shape, end - start));
        };
        spans.push((start, end));
        let range = data_start + start as usize..data_start + end as usize;
        entries.insert(name, Safetensors { dtype: entry.dtype, shape, range });
    }
    spans.sort_unstable();
    let covered = spans.into_iter().try_fold(0, |end, span| (span.0 == end).then_some(span.1));
    match covered {
        Some(end) if end == data_bytes => Ok(entries),
        _ => Err("its tensors do not cover its data without gaps and overlaps".to_string()),
    }
}
