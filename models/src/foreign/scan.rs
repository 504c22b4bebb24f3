//! Reads a `ModelProto`, with everything inside it that may refer to a file.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use super::external::Files;
use super::graph::{Extent, Slot};
use super::tensor::{ElementType, Tensor, entry};
use super::wire::{Message, Parsed};
use crate::error::quoted;

/// Most nodes, in branches and loops too; the largest language models have some ten thousand.
const MAX_NODES: usize = 1 << 20;
/// Most tensors that a graph brings.
const MAX_TENSORS: usize = 1 << 17;
/// Most inputs and outputs.
const MAX_SLOTS: usize = 4096;
/// Graphs inside graphs: branches, loops and functions.
const MAX_DEPTH: usize = 16;
/// The largest dimension of an input or output.
const MAX_EXTENT: i64 = 1 << 32;

/// What has been read so far.
pub(super) struct Scan {
    pub has_graph: bool,
    pub ir_version: i64,
    pub producer: String,
    pub opsets: Vec<(String, i64)>,
    pub properties: BTreeMap<String, String>,
    pub nodes: usize,
    pub operators: BTreeMap<String, usize>,
    pub inputs: Vec<Slot>,
    pub outputs: Vec<Slot>,
    pub tensors: Vec<(Tensor, Range<usize>)>,
    inner: usize,
    pub inner_bytes: u64,
    pub files: Files,
}

impl Scan {
    pub fn new(folder: &Path) -> Self {
        Self {
            has_graph: false,
            ir_version: 0,
            producer: String::new(),
            opsets: Vec::new(),
            properties: BTreeMap::new(),
            nodes: 0,
            operators: BTreeMap::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            tensors: Vec::new(),
            inner: 0,
            inner_bytes: 0,
            files: Files::new(folder),
        }
    }

    /// Reads a `ModelProto`.
    pub fn model(&mut self, model: Message<'_>) -> Parsed<()> {
        for field in model.fields() {
            let field = field?;
            match field.number {
                1 => self.ir_version = field.int()?,
                2 => self.producer = field.name()?,
                3 if !field.bytes()?.is_empty() => self.producer = format!("{} {}", self.producer, field.name()?).trim().to_string(),
                7 if self.has_graph => return Err(format!("it has a second graph at byte {}", field.range.start)),
                7 => {
                    self.has_graph = true;
                    self.main_graph(field.message()?)?;
                }
                8 => self.opsets.push(opset(field.message()?)?),
                14 => {
                    let (key, value) = entry(field.message()?)?;
                    self.properties.insert(key.to_string(), value.to_string());
                }
                25 => self.function(field.message()?)?,
                _ => {}
            }
            if self.opsets.len() > MAX_SLOTS || self.properties.len() > MAX_SLOTS {
                return Err(format!("it has more than {MAX_SLOTS} operator sets or properties"));
            }
        }
        Ok(())
    }

    fn main_graph(&mut self, graph: Message<'_>) -> Parsed<()> {
        for field in graph.fields() {
            let field = field?;
            match field.number {
                1 => self.node(field.message()?, 0)?,
                5 => {
                    self.count_tensor()?;
                    let tensor = Tensor::read(field.message()?, &mut self.files)?;
                    self.tensors.push((tensor, field.range));
                }
                11 => self.inputs.push(slot(field.message()?)?),
                12 => self.outputs.push(slot(field.message()?)?),
                15 => self.sparse(field.message()?)?,
                _ => {}
            }
            if self.inputs.len() > MAX_SLOTS || self.outputs.len() > MAX_SLOTS {
                return Err(format!("it has more than {MAX_SLOTS} inputs or outputs"));
            }
        }
        Ok(())
    }

    /// A branch or the body of a loop: only what it brings and refers to matters here.
    fn inner_graph(&mut self, graph: Message<'_>, depth: usize) -> Parsed<()> {
        if depth > MAX_DEPTH {
            return Err(format!("graphs lie in each other more than {MAX_DEPTH} deep"));
        }
        for field in graph.fields() {
            let field = field?;
            match field.number {
                1 => self.node(field.message()?, depth)?,
                5 => self.inner_tensor(field.message()?)?,
                15 => self.sparse(field.message()?)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn function(&mut self, function: Message<'_>) -> Parsed<()> {
        for field in function.fields() {
            let field = field?;
            match field.number {
                7 => self.node(field.message()?, 1)?,
                11 => self.attribute(field.message()?, 1)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn node(&mut self, node: Message<'_>, depth: usize) -> Parsed<()> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(format!("it has more than {MAX_NODES} nodes"));
        }
        let (mut operator, mut domain) = (String::new(), String::new());
        for field in node.fields() {
            let field = field?;
            match field.number {
                4 => operator = field.name()?,
                5 => self.attribute(field.message()?, depth)?,
                7 => domain = field.name()?,
                _ => {}
            }
        }
        let name = if domain.is_empty() || domain == "ai.onnx" { operator } else { format!("{domain}.{operator}") };
        *self.operators.entry(name).or_default() += 1;
        Ok(())
    }

    fn attribute(&mut self, attribute: Message<'_>, depth: usize) -> Parsed<()> {
        for field in attribute.fields() {
            let field = field?;
            match field.number {
                5 | 10 => self.inner_tensor(field.message()?)?,
                6 | 11 => self.inner_graph(field.message()?, depth + 1)?,
                22 | 23 => self.sparse(field.message()?)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn sparse(&mut self, sparse: Message<'_>) -> Parsed<()> {
        for field in sparse.fields() {
            let field = field?;
            if matches!(field.number, 1 | 2) {
                self.inner_tensor(field.message()?)?;
            }
        }
        Ok(())
    }

    fn inner_tensor(&mut self, tensor: Message<'_>) -> Parsed<()> {
        self.count_tensor()?;
        self.inner += 1;
        let tensor = Tensor::read(tensor, &mut self.files)?;
        self.inner_bytes = self.inner_bytes.saturating_add(tensor.bytes);
        Ok(())
    }

    fn count_tensor(&self) -> Parsed<()> {
        if self.tensors.len() + self.inner >= MAX_TENSORS {
            return Err(format!("it brings more than {MAX_TENSORS} tensors"));
        }
        Ok(())
    }
}

/// An `OperatorSetIdProto`.
fn opset(message: Message<'_>) -> Parsed<(String, i64)> {
    let (mut domain, mut version) = (String::new(), 0);
    for field in message.fields() {
        let field = field?;
        match field.number {
            1 => domain = field.name()?,
            2 => version = field.int()?,
            _ => {}
        }
    }
    Ok((domain, version))
}

/// A `ValueInfoProto`.
fn slot(message: Message<'_>) -> Parsed<Slot> {
    let mut slot = Slot { name: String::new(), element: ElementType(0), dims: None };
    let mut kind = None;
    for field in message.fields() {
        let field = field?;
        match field.number {
            1 => slot.name = field.name()?,
            2 => kind = Some(field.message()?),
            _ => {}
        }
    }
    // Sequences and maps are other fields of a `TypeProto`.
    for field in kind.into_iter().flat_map(Message::fields) {
        let field = field?;
        if field.number != 1 {
            continue;
        }
        for field in field.message()?.fields() {
            let field = field?;
            match field.number {
                1 => {
                    slot.element =
                        ElementType(u32::try_from(field.int()?).map_err(|_| format!("{} has no number type", quoted(&slot.name)))?)
                }
                2 => slot.dims = Some(extents(field.message()?, &slot.name)?),
                _ => {}
            }
        }
    }
    Ok(slot)
}

/// A `TensorShapeProto`.
fn extents(message: Message<'_>, name: &str) -> Parsed<Vec<Extent>> {
    let mut dims = Vec::new();
    for field in message.fields() {
        let field = field?;
        if field.number != 1 {
            continue;
        }
        let mut extent = Extent::Open(String::new());
        for field in field.message()?.fields() {
            let field = field?;
            match field.number {
                1 => {
                    let size = field.int()?;
                    if !(0..=MAX_EXTENT).contains(&size) {
                        return Err(format!("{} has a dimension of {size}; expected 0 to {MAX_EXTENT}", quoted(name)));
                    }
                    extent = Extent::Size(size.unsigned_abs());
                }
                2 => extent = Extent::Open(field.name()?),
                _ => {}
            }
        }
        dims.push(extent);
        if dims.len() > 32 {
            return Err(format!("{} has more than 32 dimensions", quoted(name)));
        }
    }
    Ok(dims)
}
