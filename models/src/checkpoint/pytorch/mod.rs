//! Reads tensors from PyTorch checkpoints, `pytorch_model.bin` or any `.bin`, `.pt` and `.pth` that `torch.save` wrote since PyTorch 1.6.
//!
//! Such a file is a ZIP archive ([`zip`]) of one folder: `data.pkl` says which tensors there are ([`pickle`]), `data/KEY` holds the numbers
//! of a storage, `byteorder` says which byte comes first. Nothing in it is run. A tensor is a view of a storage; any strides are read, and
//! tensors may share a storage.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use super::shards::Entry;
use super::tensors::{Numbers, decode};
use crate::tensor::DType;

mod pickle;
mod zip;

use pickle::{Built, Element, MAX_DIMS, Value};

/// The file of a checkpoint in one file.
pub(super) const SINGLE: &str = "pytorch_model.bin";
/// The list of shards of a checkpoint in several.
pub(super) const INDEX: &str = "pytorch_model.bin.index.json";
/// The longest name of a tensor.
const MAX_NAME_BYTES: usize = 4096;
/// The keys under which training programs keep the state_dict beside other things.
const WRAPPERS: [&str; 2] = ["state_dict", "model"];

/// Where one tensor of a PyTorch file lies.
#[derive(Debug, Clone)]
pub(super) struct Pytorch {
    /// None for what is no tensor.
    element: Option<Element>,
    /// Rows first.
    shape: Vec<usize>,
    /// Numbers from one element to the next of each dimension.
    strides: Vec<usize>,
    /// Bytes in the file from the tensor's first number to the end of its storage.
    range: Range<usize>,
}

/// Whether `path` is a file that this module reads, or refuses with better words than others.
pub(super) fn recognises(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["bin", "pt", "pth"].iter().any(|known| extension.eq_ignore_ascii_case(known)))
}

impl Entry for Pytorch {
    fn parse(file: &[u8], path: &Path) -> Result<BTreeMap<String, Self>, String> {
        parse(file, path)
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn numbers(&self) -> Numbers<'_> {
        match (self.float(), self.element) {
            (Some(dtype), _) => Numbers::Float(dtype),
            (None, Some(element)) => Numbers::Other(element.name()),
            (None, None) => Numbers::Other("no tensor"),
        }
    }

    fn read(&self, file: &[u8], first: usize, out: &mut [f32]) -> Option<Option<usize>> {
        let dtype = self.float()?;
        // The shape was checked when the file was opened.
        let numbers: usize = self.shape.iter().product();
        first.checked_add(out.len()).filter(|&end| end <= numbers)?;
        Some(self.decode(&file[self.range.clone()], dtype, first, out))
    }
}

impl Pytorch {
    /// The number format, where it is one that an artifact can hold.
    fn float(&self) -> Option<DType> {
        match self.element? {
            Element::F32 => Some(DType::F32),
            Element::F16 => Some(DType::F16),
            Element::Bf16 => Some(DType::Bf16),
            _ => None,
        }
    }

    /// Reads the numbers from `first` on, row-major, of a tensor whose first number is at the start of `storage`. All of them were found
    /// to lie in the storage when the file was opened. Returns where the first that is not finite is.
    fn decode(&self, storage: &[u8], dtype: DType, first: usize, out: &mut [f32]) -> Option<usize> {
        let width = self.element.map_or(1, Element::bytes);
        let Some((&columns, &step)) = self.shape.last().zip(self.strides.last()).filter(|_| !out.is_empty()) else {
            return if out.is_empty() { None } else { decode(dtype, storage, out) };
        };
        let (mut done, mut bad) = (0, None);
        while done < out.len() {
            let (row, column) = ((first + done) / columns, (first + done) % columns);
            let run = (columns - column).min(out.len() - done);
            let start = (self.row_start(row) + column * step) * width;
            let numbers = &mut out[done..done + run];
            let found = if step == 1 {
                decode(dtype, &storage[start..start + run * width], numbers)
            } else {
                numbers
                    .iter_mut()
                    .enumerate()
                    .filter_map(|(at, number)| {
                        decode(dtype, &storage[start + at * step * width..], std::slice::from_mut(number)).map(|_| at)
                    })
                    .fold(None, |bad, at| bad.or(Some(at)))
            };
            bad = bad.or(found.map(|at| done + at));
            done += run;
        }
        bad
    }

    /// The place in the storage of the first number of row `row`, rows being counted over all dimensions but the last.
    fn row_start(&self, mut row: usize) -> usize {
        let mut start = 0;
        let outer = self.shape.len() - 1;
        for (&size, &stride) in self.shape[..outer].iter().zip(&self.strides[..outer]).rev() {
            start += row % size * stride;
            row /= size;
        }
        start
    }
}

/// The tensors of `file`, which is at `path`.
fn parse(file: &[u8], path: &Path) -> Result<BTreeMap<String, Pytorch>, String> {
    if !file.starts_with(&zip::MAGIC) {
        return Err(not_an_archive(file, path));
    }
    let files = zip::entries(file)?;
    let is_top = |name: &str| name == "data.pkl" || name.split_once('/').is_some_and(|(_, rest)| rest == "data.pkl");
    let mut tops = files.keys().filter(|name| is_top(name));
    let (Some(top), None) = (tops.next(), tops.next()) else {
        return Err("its archive is no PyTorch checkpoint: it must have one data.pkl; write it with torch.save".to_string());
    };
    let folder = top.strip_suffix("data.pkl").unwrap_or_default();
    if files.contains_key(&format!("{folder}constants.pkl")) {
        return Err("it is a TorchScript program; save the module's state_dict with torch.save and import that".to_string());
    }
    if let Some(range) = files.get(&format!("{folder}byteorder")) {
        let order = &file[range.clone()];
        if order != b"little" {
            let found = String::from_utf8_lossy(&order[..order.len().min(16)]).into_owned();
            return Err(format!("its byte order is `{found}`; only `little` can be read, write it on a little-endian machine"));
        }
    }
    let built = pickle::read(&file[files[top].clone()])?;
    let mut entries = BTreeMap::new();
    for (name, value) in state_dict(&built)? {
        if name.len() > MAX_NAME_BYTES {
            return Err(format!("a tensor's name has {} bytes; at most {MAX_NAME_BYTES} are allowed", name.len()));
        }
        let entry = match value {
            &Value::Tensor(index) => {
                let data = |key: &str| files.get(&format!("{folder}data/{key}")).cloned();
                tensor(&built, index, &data).map_err(|problem| format!("tensor `{name}` {problem}"))?
            }
            _ => Pytorch { element: None, shape: Vec::new(), strides: Vec::new(), range: 0..0 },
        };
        entries.insert(name.to_string(), entry);
    }
    Ok(entries)
}

/// The sentence for a file that is no ZIP archive.
fn not_an_archive(file: &[u8], path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let convert = format!(
        "convert it where PyTorch is: python3 -c 'import torch; torch.save(torch.load(\"{name}\", map_location=\"cpu\", weights_only=True), \"{name}\")'"
    );
    if file.first() == Some(&0x80) {
        format!("it is a plain pickle, as PyTorch wrote before version 1.6; only its ZIP checkpoints can be read; {convert}")
    } else if file.get(257..262) == Some(b"ustar") {
        format!("it is a tar archive, as PyTorch wrote before version 0.2; only its ZIP checkpoints can be read; {convert}")
    } else {
        "it is no PyTorch checkpoint: it does not start as a ZIP archive does; write it with torch.save".to_string()
    }
}

/// The names and values of the checkpoint's state_dict: the whole pickle, or what it keeps under `state_dict` or `model`.
fn state_dict<'a, 'b>(built: &'b Built<'a>) -> Result<impl Iterator<Item = (&'a str, &'b Value<'a>)> + use<'a, 'b>, String> {
    const NONE: &str = "it holds no dictionary of tensors by name; save the state_dict and import that";
    let top = built.top();
    let inner = built.entries(top).ok_or(NONE)?;
    let inner = inner.filter(|(name, value)| WRAPPERS.contains(name) && matches!(value, Value::Dict(_)));
    // `state_dict` before `model` where both are there.
    let wrapped = inner.max_by_key(|(name, _)| WRAPPERS.iter().rev().position(|wrapper| wrapper == name)).map(|(_, value)| value);
    built.entries(wrapped.unwrap_or(top)).ok_or_else(|| NONE.to_string())
}

/// Where the tensor `index` lies; `data` gives the bytes of a storage's key. All its numbers are found to lie in its storage.
fn tensor(built: &Built, index: u32, data: &dyn Fn(&str) -> Option<Range<usize>>) -> Result<Pytorch, String> {
    let tensor = &built.tensors[index as usize];
    let storage = built.storages[tensor.storage as usize];
    let key: String = storage.key.chars().take(80).collect();
    let bytes = data(storage.key).ok_or_else(|| format!("has its numbers in `data/{key}`, which the archive does not have"))?;
    let width = storage.element.bytes();
    let stored = storage.numbers.checked_mul(width as u64);
    if stored != Some(bytes.len() as u64) {
        let (numbers, element) = (storage.numbers, storage.element.name());
        return Err(format!(
            "has a storage of {numbers} {element} numbers, but `data/{key}` has {} bytes; copy the file again",
            bytes.len()
        ));
    }
    let (shape, strides) = (&tensor.shape, &tensor.strides);
    debug_assert!(shape.len() <= MAX_DIMS);
    let wrong = || {
        format!(
            "of shape {shape:?} and strides {strides:?} at {} does not lie in its storage of {} numbers",
            tensor.offset, storage.numbers
        )
    };
    let numbers = shape.iter().try_fold(1u64, |numbers, &size| numbers.checked_mul(size)).ok_or_else(wrong)?;
    let last =
        shape.iter().zip(strides).try_fold(0u64, |last, (&size, &stride)| last.checked_add(size.saturating_sub(1).checked_mul(stride)?));
    let end = last.and_then(|last| last.checked_add(tensor.offset)?.checked_add(1)).ok_or_else(wrong)?;
    if tensor.offset > storage.numbers || numbers > 0 && end > storage.numbers {
        return Err(wrong());
    }
    if numbers > storage.numbers {
        return Err(format!("of shape {shape:?} repeats its {} numbers; save it after .contiguous()", storage.numbers));
    }
    let sizes = |sizes: &[u64]| sizes.iter().map(|&size| usize::try_from(size)).collect::<Result<Vec<_>, _>>();
    // A tensor without numbers may have any strides, a dimension of one number too; they are never used.
    let (shape, strides) = (sizes(shape).map_err(|_| wrong())?, sizes(strides).map_err(|_| wrong())?);
    let start = bytes.start + tensor.offset as usize * width;
    Ok(Pytorch { element: Some(storage.element), shape, strides, range: start..bytes.end })
}
