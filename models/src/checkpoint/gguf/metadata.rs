//! The key-value pairs of a GGUF file.
//!
//! Every value is checked when the file is opened; arrays and texts stay where they are in the file and are read again when asked for, so
//! that a vocabulary costs no memory.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use super::cursor::Cursor;
use crate::error::quoted;

/// The most keys.
const MAX_KEYS: u64 = 1 << 16;
/// The longest key, as the format's specification has it.
const MAX_KEY_BYTES: usize = 65_535;

/// A value, as the file has it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Single(f32),
    Double(f64),
    Bool(bool),
    /// Bytes of UTF-8 text in the file.
    Text(Range<usize>),
    Array(Array),
}

/// An array of values that are no arrays.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Array {
    /// The values' type.
    pub kind: u32,
    /// How many there are.
    pub count: usize,
    /// Where they are in the file.
    pub bytes: Range<usize>,
}

const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// The name and the width in bytes of a type; strings and arrays have no fixed width.
fn kind_of(kind: u32) -> Option<(&'static str, usize)> {
    const KINDS: [(&str, usize); 13] = [
        ("u8", 1),
        ("i8", 1),
        ("u16", 2),
        ("i16", 2),
        ("u32", 4),
        ("i32", 4),
        ("f32", 4),
        ("bool", 1),
        ("string", 0),
        ("array", 0),
        ("u64", 8),
        ("i64", 8),
        ("f64", 8),
    ];
    KINDS.get(kind as usize).copied()
}

/// The keys of a file and their values, which may lie in the file itself.
pub(super) type Values = BTreeMap<String, Value>;

/// Reads `count` keys and values.
pub(super) fn parse(cursor: &mut Cursor<'_>, count: u64) -> Result<Values, String> {
    if count > MAX_KEYS {
        return Err(format!("it says that it has {count} metadata keys; at most {MAX_KEYS} are allowed"));
    }
    let mut values = Values::new();
    for _ in 0..count {
        let start = cursor.at();
        let key = cursor.text(MAX_KEY_BYTES).map_err(|problem| format!("metadata key at byte {start}: {problem}"))?;
        let kind = cursor.u32()?;
        let value = value(cursor, kind).map_err(|problem| format!("metadata {}: {problem}", quoted(key)))?;
        if values.insert(key.to_string(), value).is_some() {
            return Err(format!("metadata key {} is there twice", quoted(key)));
        }
    }
    Ok(values)
}

/// Reads a value of type `kind`.
fn value(cursor: &mut Cursor<'_>, kind: u32) -> Result<Value, String> {
    match kind {
        STRING => cursor.text_range().map(Value::Text),
        ARRAY => array(cursor).map(Value::Array),
        _ => {
            let (_, width) = kind_of(kind).ok_or_else(|| format!("its type {kind} is not known"))?;
            scalar(kind, cursor.take(width)?)
        }
    }
}

/// The number or flag of type `kind` that `bytes`, of its width, are.
fn scalar(kind: u32, bytes: &[u8]) -> Result<Value, String> {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let (unsigned, unused) = (u64::from_le_bytes(wide), 64 - 8 * bytes.len() as u32);
    Ok(match kind {
        0 | 2 | 4 | 10 => Value::Unsigned(unsigned),
        1 | 3 | 5 | 11 => Value::Signed((unsigned << unused) as i64 >> unused),
        6 => Value::Single(f32::from_bits(unsigned as u32)),
        12 => Value::Double(f64::from_bits(unsigned)),
        7 if unsigned < 2 => Value::Bool(unsigned == 1),
        7 => return Err(format!("a bool is {unsigned}; expected 0 or 1")),
        _ => return Err(format!("its type {kind} is not known")),
    })
}

/// Reads past an array and checks it.
fn array(cursor: &mut Cursor<'_>) -> Result<Array, String> {
    let (kind, count) = (cursor.u32()?, cursor.u64()?);
    let (name, width) = kind_of(kind).ok_or_else(|| format!("it is an array of type {kind}, which is not known"))?;
    if kind == ARRAY {
        return Err("it is an array of arrays, which no model needs".to_string());
    }
    let too_long = || format!("it is an array of {count} values of type {name}, more than the file has room for");
    // A text has at least its length.
    let least = count.checked_mul(if kind == STRING { 8 } else { width as u64 }).ok_or_else(too_long)?;
    if least > cursor.left() as u64 {
        return Err(too_long());
    }
    let start = cursor.at();
    if kind == STRING {
        for _ in 0..count {
            cursor.text_range()?;
        }
    } else {
        let bytes = cursor.take(least as usize)?;
        if kind == 7 && bytes.iter().any(|&byte| byte > 1) {
            return Err("a bool of the array is neither 0 nor 1".to_string());
        }
    }
    Ok(Array { kind, count: count as usize, bytes: start..cursor.at() })
}

impl Array {
    /// The texts of the array in `file`, none where it holds something else.
    pub fn texts<'a>(&self, file: &'a [u8]) -> Option<impl Iterator<Item = &'a str> + Clone + use<'a>> {
        let mut rest = (self.kind == STRING).then(|| &file[self.bytes.clone()])?;
        Some((0..self.count).map_while(move |_| {
            let (length, after) = rest.split_first_chunk::<8>()?;
            let (text, after) = after.split_at_checked(u64::from_le_bytes(*length) as usize)?;
            rest = after;
            std::str::from_utf8(text).ok()
        }))
    }

    /// The values of an array of numbers or flags in `file`; none where it holds texts.
    pub fn scalars<'a>(&self, file: &'a [u8]) -> Option<impl Iterator<Item = Value> + use<'a>> {
        let (_, width) = kind_of(self.kind).filter(|&(_, width)| width > 0)?;
        let kind = self.kind;
        Some(file[self.bytes.clone()].chunks_exact(width).filter_map(move |bytes| scalar(kind, bytes).ok()))
    }
}

impl Value {
    /// The value as a whole number that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::Unsigned(value) => Some(value),
            Value::Signed(value) => u64::try_from(value).ok(),
            _ => None,
        }
    }

    /// The value as a whole number.
    pub fn as_i64(&self) -> Option<i64> {
        match *self {
            Value::Unsigned(value) => i64::try_from(value).ok(),
            Value::Signed(value) => Some(value),
            _ => None,
        }
    }

    /// The value as a finite single.
    pub fn as_f32(&self) -> Option<f32> {
        let value = match *self {
            Value::Single(value) => value,
            Value::Double(value) => value as f32,
            _ => self.as_i64()? as f32,
        };
        Some(value).filter(|value| value.is_finite())
    }

    /// The value as a finite number. A single becomes the shortest decimal that is it: 1e-5, not 9.999999747378752e-6.
    pub fn as_f64(&self) -> Option<f64> {
        let value = match *self {
            Value::Single(value) => value.to_string().parse().ok()?,
            Value::Double(value) => value,
            _ => self.as_i64()? as f64,
        };
        Some(value).filter(|value: &f64| value.is_finite())
    }
}

impl fmt::Display for Value {
    /// A number or a flag as it is, of anything longer what it is.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Unsigned(value) => write!(formatter, "{value}"),
            Value::Signed(value) => write!(formatter, "{value}"),
            Value::Single(value) => write!(formatter, "{value}"),
            Value::Double(value) => write!(formatter, "{value}"),
            Value::Bool(value) => write!(formatter, "{value}"),
            Value::Text(range) => write!(formatter, "a text of {} bytes", range.len()),
            Value::Array(array) => write!(formatter, "an array of {} values", array.count),
        }
    }
}
