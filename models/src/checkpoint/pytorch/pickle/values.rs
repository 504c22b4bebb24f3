//! What a pickle builds: plain values, storages and tensors.

use super::Id;

/// What a pickle can build.
#[derive(Debug)]
pub(in super::super) enum Value<'a> {
    /// None, or an object of which nothing is of interest.
    None,
    Bool,
    Int(i64),
    Float,
    Text(&'a str),
    Tuple(Box<[Id]>),
    List(Vec<Id>),
    /// In the order of insertion; a later entry of a key replaces an earlier one.
    Dict(Vec<(Id, Id)>),
    /// A name that may be called.
    Global(Global),
    /// The index of a storage.
    Storage(u32),
    /// The index of a tensor.
    Tensor(u32),
}

/// The names that a pickle may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildTensorV2,
    RebuildParameter,
    Size,
    /// Inert: a number format or device that a checkpoint mentions.
    Named,
    Storage(Element),
}

/// The number format of a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Element {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl Element {
    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Element::F64 | Element::I64 => 8,
            Element::F32 | Element::I32 => 4,
            Element::F16 | Element::Bf16 | Element::I16 => 2,
            Element::I8 | Element::U8 | Element::Bool => 1,
        }
    }

    /// The format's name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Element::F64 => "F64",
            Element::F32 => "F32",
            Element::F16 => "F16",
            Element::Bf16 => "BF16",
            Element::I64 => "I64",
            Element::I32 => "I32",
            Element::I16 => "I16",
            Element::I8 => "I8",
            Element::U8 => "U8",
            Element::Bool => "BOOL",
        }
    }
}

/// A storage: a file of the archive, seen as numbers.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Storage<'a> {
    pub element: Element,
    /// The file's name in the archive's `data` folder.
    pub key: &'a str,
    /// How many numbers it has.
    pub numbers: u64,
}

/// A tensor as a view of a storage: element `[i, j]` is number `offset + i * strides[0] + j * strides[1]`.
#[derive(Debug, Clone)]
pub(in super::super) struct Tensor {
    pub storage: u32,
    pub offset: u64,
    pub shape: Vec<u64>,
    pub strides: Vec<u64>,
}

/// What a pickle has built.
pub(in super::super) struct Built<'a> {
    pub(super) values: Vec<Value<'a>>,
    pub storages: Vec<Storage<'a>>,
    pub tensors: Vec<Tensor>,
    pub(super) top: Id,
}

impl<'a> Built<'a> {
    /// The value that the whole pickle is.
    pub fn top(&self) -> &Value<'a> {
        self.value(self.top)
    }

    /// A value.
    pub fn value(&self, id: Id) -> &Value<'a> {
        &self.values[id as usize]
    }

    /// The entries of a dictionary with their text keys; the last entry wins. None where it is no dictionary or a key is no text.
    pub fn entries<'b>(&'b self, value: &'b Value<'a>) -> Option<impl Iterator<Item = (&'a str, &'b Value<'a>)> + use<'a, 'b>> {
        let Value::Dict(entries) = value else { return None };
        let texts = entries.iter().all(|&(key, _)| matches!(self.value(key), Value::Text(_)));
        texts.then(|| {
            entries.iter().filter_map(|&(key, value)| match self.value(key) {
                Value::Text(key) => Some((*key, self.value(value))),
                _ => None,
            })
        })
    }
}

/// What a value is, in messages.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::None => "nothing",
        Value::Bool => "a truth value",
        Value::Int(_) | Value::Float => "a number",
        Value::Text(_) => "a text",
        Value::Tuple(_) => "a tuple",
        Value::List(_) => "a list",
        Value::Dict(_) => "a dictionary",
        Value::Global(_) => "a name",
        Value::Storage(_) => "a storage",
        Value::Tensor(_) => "a tensor",
    }
}
