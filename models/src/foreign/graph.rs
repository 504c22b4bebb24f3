//! What an ONNX file says: inputs, outputs, operators, weights, and the files that it refers to.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::{Mmap, UncheckedAdvice};

use super::external::{ExternalFile, Files, map};
use super::scan::Scan;
use super::tensor::{ElementType, Numbers, Tensor};
use super::wire::Message;
use crate::artifact::folder;
use crate::error::{Error, Result, quoted};

/// The longest file: readers of protobuf count its bytes in 32 bits with a sign.
pub const MAX_GRAPH_BYTES: u64 = i32::MAX as u64;
/// Weights of fewer bytes stay in the graph: sizes and axes, which ONNX Runtime wants to see when it checks shapes.
const MIN_WEIGHT_BYTES: u64 = 1024;

/// A dimension of an input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extent {
    /// Known.
    Size(u64),
    /// Known when the graph runs; the name, which may be empty.
    Open(String),
}

/// An input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// Its number format.
    pub element: ElementType,
    /// Its dimensions; none where the graph does not say how many there are.
    pub dims: Option<Vec<Extent>>,
}

impl Slot {
    /// Its shape as a person reads it: `float [batch, 1, 2048]`.
    pub fn shape(&self) -> String {
        let dims = self.dims.as_ref().map(|dims| {
            let names = dims.iter().map(|dim| match dim {
                Extent::Size(size) => size.to_string(),
                Extent::Open(name) if name.is_empty() => "?".to_string(),
                Extent::Open(name) => name.clone(),
            });
            format!("[{}]", names.collect::<Vec<_>>().join(", "))
        });
        format!("{} {}", self.element.name(), dims.unwrap_or_else(|| "of any shape".to_string()))
    }
}

/// A weight whose bytes are handed to ONNX Runtime beside the graph.
#[derive(Debug, Clone, Copy)]
pub struct ForeignWeight<'a> {
    /// Its name in the graph.
    pub name: &'a str,
    /// Its number format.
    pub element: ElementType,
    /// Its dimensions.
    pub dims: &'a [u64],
    /// Its numbers, in a map of the file that holds them.
    pub bytes: &'a [u8],
    /// Whether the numbers can be read where they lie; else they must be copied, since they start between two.
    pub is_aligned: bool,
}

/// An ONNX file of another program, mapped and read; the numbers of its weights are not looked at.
pub struct ForeignGraph {
    path: PathBuf,
    map: Mmap,
    /// Version of the file format.
    pub ir_version: i64,
    /// The program that wrote it, as far as it says.
    pub producer: String,
    /// Operator sets by domain; the empty one is ONNX's own.
    pub opsets: Vec<(String, i64)>,
    /// What the producer noted beside the graph.
    pub properties: BTreeMap<String, String>,
    /// Nodes, in branches, loops and functions too.
    pub nodes: usize,
    /// How often each operator occurs.
    pub operators: BTreeMap<String, usize>,
    /// Inputs that must be given: those without an initializer.
    pub inputs: Vec<Slot>,
    /// Outputs.
    pub outputs: Vec<Slot>,
    tensors: Vec<(Tensor, Range<usize>)>,
    /// Bytes of tensors inside nodes and inner graphs.
    inner_bytes: u64,
    files: Files,
}

impl ForeignGraph {
    /// Maps and reads the file at `path`, and maps the files of its folder that it refers to.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Checkpoint`] where it is no ONNX model or beyond a limit, where a tensor's dimensions are negative, too large
    /// or not those of its bytes, or where it refers to what is not in its folder or not in the file.
    pub fn open(path: &Path) -> Result<Self> {
        let length = std::fs::metadata(path).map_err(Error::io("open", path))?.len();
        if length > MAX_GRAPH_BYTES {
            let problem = format!(
                "it has {length} bytes, but readers of ONNX files take at most {MAX_GRAPH_BYTES}; export it with its weights as external data"
            );
            return Err(Error::checkpoint(path, problem));
        }
        let map = map(path)?;
        let refuse = |problem: String| Error::checkpoint(path, format!("it is no ONNX model that can be used: {problem}; export it again"));
        let mut scan = Scan::new(folder(path));
        scan.model(Message::new(&map)).map_err(refuse)?;
        if !scan.has_graph {
            return Err(refuse("it has no graph".to_string()));
        }
        let Scan { ir_version, producer, opsets, properties, nodes, operators, mut inputs, outputs, tensors, inner_bytes, files, .. } =
            scan;
        let given: BTreeSet<&str> = tensors.iter().map(|(tensor, _)| tensor.name.as_str()).collect();
        inputs.retain(|input| !given.contains(input.name.as_str()));
        for slots in [&inputs, &outputs] {
            let mut names = BTreeSet::new();
            if let Some(twice) = slots.iter().find(|slot| !names.insert(&slot.name)) {
                return Err(refuse(format!("it names {} twice among its inputs or outputs", quoted(&twice.name))));
            }
        }
        Ok(Self {
            path: path.to_path_buf(),
            map,
            ir_version,
            producer,
            opsets,
            properties,
            nodes,
            operators,
            inputs,
            outputs,
            tensors,
            inner_bytes,
            files,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its bytes, mapped.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Drops the pages of its file from the map; a later use reads them again.
    ///
    /// # Errors
    /// [`Error::Io`] where the system refuses.
    pub fn unmap_pages(&self) -> Result<()> {
        // SAFETY: the mapping is shared, read-only and backed by the file; a dropped page is read again with the same bytes.
        unsafe { self.map.unchecked_advise(UncheckedAdvice::DontNeed) }.map_err(Error::io("give back pages of", &self.path))
    }

    /// The files beside it that hold weights.
    pub fn external(&self) -> &[ExternalFile] {
        &self.files.found
    }

    /// Numbers in its initializers.
    pub fn parameters(&self) -> u64 {
        self.tensors.iter().map(|(tensor, _)| tensor.count).fold(0, u64::saturating_add)
    }

    /// The weights that are handed over beside the graph: see [`light`](Self::light).
    pub fn weights(&self) -> impl Iterator<Item = ForeignWeight<'_>> {
        self.tensors.iter().filter_map(|(tensor, _)| self.weight(tensor))
    }

    /// Bytes of tensors that stay in the [light](Self::light) graph, of which ONNX Runtime makes copies.
    pub fn inline_bytes(&self) -> u64 {
        let inline = self.tensors.iter().filter(|(tensor, _)| self.weight(tensor).is_none());
        inline.map(|(tensor, _)| tensor.bytes).fold(self.inner_bytes, u64::saturating_add)
    }

    /// The weight that `tensor` is, if it is one that can be handed over.
    fn weight<'a>(&'a self, tensor: &'a Tensor) -> Option<ForeignWeight<'a>> {
        let bytes = match &tensor.numbers {
            Numbers::Raw(range) => self.map.get(range.clone()),
            Numbers::External(file, range) => self.files.found.get(*file).and_then(|file| file.bytes().get(range.clone())),
            Numbers::Fields => None,
        };
        let bytes = bytes.filter(|bytes| tensor.element.is_of_weights() && bytes.len() as u64 >= MIN_WEIGHT_BYTES)?;
        let is_aligned = (bytes.as_ptr() as usize).is_multiple_of(tensor.element.alignment());
        Some(ForeignWeight { name: &tensor.name, element: tensor.element, dims: &tensor.dims, bytes, is_aligned })
    }

    /// The `ModelProto` without the bytes of its [weights](Self::weights), each of which is named as external data where it lies: in this
    /// file or in another of its folder.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where the file's name is no UTF-8 text, which ONNX needs.
    pub fn light(&self) -> Result<Vec<u8>> {
        let name = self.path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| Error::checkpoint(&self.path, "its name is no UTF-8 text, which ONNX needs; rename it"))?;
        let mut moved: BTreeMap<usize, &Tensor> = BTreeMap::new();
        for (tensor, range) in self.tensors.iter().filter(|(tensor, _)| self.weight(tensor).is_some()) {
            moved.insert(range.start, tensor);
        }
        let location = |tensor: &Tensor| match &tensor.numbers {
            Numbers::External(file, range) => (self.files.found[*file].location.clone(), range.clone()),
            Numbers::Raw(range) => (name.to_string(), range.clone()),
            Numbers::Fields => (name.to_string(), 0..0),
        };
        super::light::without(&self.map, &moved, location).map_err(|problem| Error::checkpoint(&self.path, problem))
    }
}
