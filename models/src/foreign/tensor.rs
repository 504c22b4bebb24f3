//! The tensors that a graph brings, wherever in it they stand: their sizes, and where their numbers lie.

use std::ops::Range;

use super::external::Files;
use super::wire::{Field, Message, Parsed};
use crate::error::quoted;

/// Most dimensions of a tensor.
const MAX_DIMENSIONS: usize = 32;
/// Most numbers of a tensor: more than any file holds, and few enough that no length made of it overflows.
const MAX_NUMBERS: u64 = 1 << 48;

/// A number format by its number in `TensorProto.DataType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ElementType(pub u32);

impl ElementType {
    /// Single precision.
    pub const FLOAT: Self = Self(1);
    /// 64-bit integers.
    pub const INT64: Self = Self(7);
    const TEXT: Self = Self(8);

    /// Its name in the ONNX standard.
    pub fn name(self) -> &'static str {
        const NAMES: [&str; 17] = [
            "undefined",
            "float",
            "uint8",
            "int8",
            "uint16",
            "int16",
            "int32",
            "int64",
            "string",
            "bool",
            "float16",
            "double",
            "uint32",
            "uint64",
            "complex64",
            "complex128",
            "bfloat16",
        ];
        match self.0 {
            17..=20 => "float8",
            21 => "uint4",
            22 => "int4",
            23 => "float4",
            24 => "float8e8m0",
            25 => "uint2",
            26 => "int2",
            number => NAMES.get(number as usize).copied().unwrap_or("unknown"),
        }
    }

    /// Bits of a number; none for texts and for what is not known.
    fn bits(self) -> Option<u64> {
        match self.0 {
            2 | 3 | 9 | 17..=20 | 24 => Some(8),
            4 | 5 | 10 | 16 => Some(16),
            1 | 6 | 12 => Some(32),
            7 | 11 | 13 | 14 => Some(64),
            15 => Some(128),
            21..=23 => Some(4),
            25 | 26 => Some(2),
            _ => None,
        }
    }

    /// Whether it is a floating-point number or a quantised one in bytes: what weights are.
    pub(super) fn is_of_weights(self) -> bool {
        matches!(self.0, 1 | 2 | 3 | 10 | 11 | 16)
    }

    /// Bytes at multiples of which a number is read.
    pub(super) fn alignment(self) -> usize {
        self.bits().map_or(1, |bits| (bits / 8).clamp(1, 8) as usize)
    }
}

/// Where the numbers of a tensor lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Numbers {
    /// In the graph's file, as they are computed with.
    Raw(Range<usize>),
    /// In the graph's file, one field a number or packed.
    Fields,
    /// In another file: its index, and the place in it.
    External(usize, Range<usize>),
}

/// A tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tensor {
    pub name: String,
    pub element: ElementType,
    pub dims: Vec<u64>,
    pub numbers: Numbers,
    /// Product of the dimensions.
    pub count: u64,
    /// Bytes of its numbers.
    pub bytes: u64,
}

/// What a `TensorProto` says, before it is understood.
#[derive(Default)]
struct Said<'a> {
    dims: Vec<i64>,
    element: u32,
    name: String,
    raw: Option<Range<usize>>,
    fields: usize,
    entries: Vec<(&'a str, &'a str)>,
    external: bool,
}

impl Tensor {
    /// Reads a `TensorProto`; a file that it refers to is looked at and added to `files`.
    pub fn read(message: Message<'_>, files: &mut Files) -> Parsed<Self> {
        let said = said(message)?;
        let called = quoted(&said.name);
        let (count, dims) = extent(&said.dims).map_err(|problem| format!("the tensor {called} {problem}"))?;
        let element = ElementType(said.element);
        let bytes = match element.bits() {
            Some(bits) => (u128::from(count) * u128::from(bits)).div_ceil(8) as u64,
            None if element == ElementType::TEXT && !said.external && said.raw.is_none() => said.fields as u64,
            None => {
                return Err(format!(
                    "the tensor {called} has numbers of type {} ({}), which none is read of",
                    said.element,
                    element.name()
                ));
            }
        };
        let numbers = match (said.external, said.raw) {
            (true, None) if said.fields == 0 => {
                let (file, range) = files.place(&said.entries, bytes).map_err(|problem| format!("the tensor {called} {problem}"))?;
                Numbers::External(file, range)
            }
            (true, _) => return Err(format!("the tensor {called} has numbers inside the graph and outside")),
            (false, Some(range)) if range.len() as u64 == bytes => Numbers::Raw(range),
            (false, Some(range)) => {
                let found = range.len();
                return Err(format!("the tensor {called} of {dims:?} {} has {found} bytes; expected {bytes}", element.name()));
            }
            // A number takes a byte at least, so that what is promised but not there is refused before anything is allocated for it.
            (false, None) if (said.fields as u64) < count / if element.bits() < Some(8) { 4 } else { 1 } => {
                return Err(format!("the tensor {called} of {dims:?} has {} bytes of numbers; expected {count} numbers", said.fields));
            }
            (false, None) => Numbers::Fields,
        };
        Ok(Self { name: said.name, element, dims, numbers, count, bytes })
    }
}

fn said(message: Message<'_>) -> Parsed<Said<'_>> {
    let mut said = Said::default();
    for field in message.fields() {
        let field = field?;
        match field.number {
            1 => field.ints(&mut said.dims, MAX_DIMENSIONS)?,
            2 => {
                said.element = u32::try_from(field.int()?).map_err(|_| format!("the number type at byte {} is none", field.range.start))?
            }
            3 => return Err(format!("the tensor at byte {} is in segments, which none is read of", field.range.start)),
            4..=7 | 10 | 11 => said.fields = said.fields.saturating_add(fields_bytes(&field)),
            8 => said.name = field.name()?,
            9 if said.raw.is_none() => said.raw = field.bytes().map(|_| Some(field.payload()))?,
            9 => return Err(format!("the tensor {} has its bytes twice", quoted(&said.name))),
            13 => said.entries.push(entry(field.message()?)?),
            14 => said.external = field.int()? == 1,
            _ => {}
        }
        if said.dims.len() > MAX_DIMENSIONS || said.entries.len() > MAX_DIMENSIONS {
            return Err(format!("the tensor {} has more than {MAX_DIMENSIONS} dimensions or places", quoted(&said.name)));
        }
    }
    Ok(said)
}

fn fields_bytes(field: &Field<'_>) -> usize {
    field.range.len().min(field.payload().len().max(1))
}

/// A `StringStringEntryProto`.
pub(super) fn entry(message: Message<'_>) -> Parsed<(&str, &str)> {
    let (mut key, mut value) = ("", "");
    for field in message.fields() {
        let field = field?;
        match field.number {
            1 => key = field.text(super::wire::MAX_NAME_BYTES)?,
            2 => value = field.text(MAX_VALUE_BYTES)?,
            _ => {}
        }
    }
    Ok((key, value))
}

/// The longest value beside a key: exporters write whole configurations there.
const MAX_VALUE_BYTES: usize = 16 << 20;

/// How many numbers dimensions make.
fn extent(dims: &[i64]) -> Parsed<(u64, Vec<u64>)> {
    let sizes = dims.iter().map(|&dim| u64::try_from(dim)).collect::<Result<Vec<u64>, _>>();
    let sizes = sizes.map_err(|_| format!("has the dimensions {dims:?}, one of them negative"))?;
    let product = sizes.iter().try_fold(1u64, |product, &size| product.checked_mul(size).filter(|product| *product <= MAX_NUMBERS));
    // A zero makes the product small again, whatever stands before it.
    let largest = sizes.iter().all(|&size| size <= MAX_NUMBERS);
    match product {
        Some(product) if largest => Ok((product, sizes)),
        _ => Err(format!("has the dimensions {dims:?}, more numbers than any file holds")),
    }
}
