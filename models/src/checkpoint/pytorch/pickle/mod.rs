//! Reads the pickle inside a PyTorch checkpoint as data, without running anything.
//!
//! A pickle is a program for a small stack machine (Python's `pickletools` documents every opcode). `torch.save` uses few of its opcodes
//! and few names of functions to call. Those are known here, and what they would build is built as plain data: strings, numbers, tuples,
//! dictionaries, and tensors as a place in a storage. Any other opcode and any other name is refused.
//!
//! Memory is bounded whatever the bytes say: at most [`MAX_VALUES`] values of 32 bytes, [`MAX_ITEMS`] items of 4 bytes in tuples, lists and
//! dictionaries; strings stay in the file.

use std::collections::HashMap;

mod calls;
mod values;

use calls::global;
use values::kind;
pub(super) use values::{Built, Element, Value};

/// The longest pickle.
const MAX_PICKLE_BYTES: usize = 16 << 20;
/// The most values that a pickle may build; a tensor takes about 20.
const MAX_VALUES: usize = 512 << 10;
/// The most items of all tuples, lists and dictionaries together.
const MAX_ITEMS: usize = 1 << 20;
/// The most values on the stack at once.
const MAX_STACK: usize = 512 << 10;
/// The most open tuples, lists and dictionaries.
const MAX_MARKS: usize = 1024;
/// The most tensors of one file.
const MAX_TENSORS: usize = 64 << 10;
/// The most dimensions of a tensor.
pub(super) const MAX_DIMS: usize = 8;

/// The index of a value.
type Id = u32;

/// Reads `pickle`.
///
/// # Errors
/// What is wrong with it and at which byte, as a clause that follows its path.
pub(super) fn read(pickle: &[u8]) -> Result<Built<'_>, String> {
    if pickle.len() > MAX_PICKLE_BYTES {
        return Err(format!("its pickle has {} bytes; at most {MAX_PICKLE_BYTES} are allowed", pickle.len()));
    }
    let mut machine = Machine {
        pickle,
        at: 0,
        built: Built { values: vec![Value::None], storages: Vec::new(), tensors: Vec::new(), top: 0 },
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        items: 0,
    };
    loop {
        let at = machine.at;
        match machine.step() {
            Ok(None) => {}
            Ok(Some(top)) => {
                machine.built.top = top;
                return Ok(machine.built);
            }
            Err(problem) => return Err(format!("byte {at} of its pickle: {problem}")),
        }
    }
}

/// The stack machine.
struct Machine<'a> {
    pickle: &'a [u8],
    at: usize,
    built: Built<'a>,
    stack: Vec<Id>,
    /// Where on the stack each open tuple, list or dictionary starts.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Items of all containers.
    items: usize,
}

const EMPTY: &str = "it takes a value from an empty stack";

impl<'a> Machine<'a> {
    /// Runs one opcode; returns the value of the whole pickle at its end.
    fn step(&mut self) -> Result<Option<Id>, String> {
        match self.take(1)?[0] {
            // PROTO: 2 is what torch.save writes, up to 5 exist.
            0x80 => match self.take(1)?[0] {
                2..=5 => {}
                version => return Err(format!("pickle protocol {version} is not known; 2 to 5 are")),
            },
            // FRAME: only a hint for buffering.
            0x95 => {
                self.take(8)?;
            }
            b'.' => return Ok(Some(self.pop()?)),
            b'(' => {
                if self.marks.len() == MAX_MARKS {
                    return Err(format!("more than {MAX_MARKS} open tuples, lists and dictionaries"));
                }
                self.marks.push(self.stack.len());
            }
            b'N' => self.push(Value::None)?,
            0x88 | 0x89 => self.push(Value::Bool)?,
            b'K' => {
                let value = i64::from(self.take(1)?[0]);
                self.push(Value::Int(value))?;
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(value.into()))?;
            }
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(value.into()))?;
            }
            0x8a => self.long()?,
            b'G' => {
                self.take(8)?;
                self.push(Value::Float)?;
            }
            b'X' => {
                let length = u32::from_le_bytes(self.array()?);
                self.text(length as usize)?;
            }
            0x8c => {
                let length = self.take(1)?[0];
                self.text(length.into())?;
            }
            opcode => self.build(opcode)?,
        }
        Ok(None)
    }

    /// Runs an opcode that works on values.
    fn build(&mut self, opcode: u8) -> Result<(), String> {
        match opcode {
            b')' => self.push(Value::Tuple([].into())),
            b']' => self.push(Value::List(Vec::new())),
            b'}' => self.push(Value::Dict(Vec::new())),
            0x85..=0x87 => {
                let start = self.stack.len().checked_sub(usize::from(opcode - 0x84)).ok_or(EMPTY)?;
                self.tuple(start)
            }
            b't' => {
                let start = self.mark()?;
                self.tuple(start)
            }
            b'a' => {
                let start = self.stack.len().checked_sub(1).ok_or(EMPTY)?;
                self.append(start)
            }
            b'e' => {
                let start = self.mark()?;
                self.append(start)
            }
            b's' => {
                let start = self.stack.len().checked_sub(2).ok_or(EMPTY)?;
                self.set(start)
            }
            b'u' => {
                let start = self.mark()?;
                self.set(start)
            }
            b'q' | b'r' | 0x94 => self.remember(opcode),
            b'h' | b'j' => {
                let key = if opcode == b'h' { self.take(1)?[0].into() } else { u32::from_le_bytes(self.array()?) };
                let id = *self.memo.get(&key).ok_or_else(|| format!("it recalls value {key}, which was never remembered"))?;
                self.push_id(id)
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Value::Global(global(module, name)?))
            }
            0x93 => {
                let (name, module) = (self.pop_text("a name")?, self.pop_text("a module")?);
                self.push(Value::Global(global(module, name)?))
            }
            b'R' => self.call(),
            b'Q' => self.storage(),
            b'b' => self.set_state(),
            _ => Err(format!(
                "opcode 0x{opcode:02x} ({}) is not one that torch.save writes for tensors; save the state_dict alone and import that",
                opcode_name(opcode)
            )),
        }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.pickle.len()).ok_or("it ends in the middle; copy the file again")?;
        let bytes = &self.pickle[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let bytes = self.take(N)?;
        let mut array = [0; N];
        array.copy_from_slice(bytes);
        Ok(array)
    }

    /// LONG1: a little-endian number of any length in two's complement.
    fn long(&mut self) -> Result<(), String> {
        let length = usize::from(self.take(1)?[0]);
        let bytes = self.take(length)?;
        if length > 8 {
            return Err(format!("an integer of {length} bytes; at most 8 are allowed"));
        }
        let negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide[..length].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(wide)))
    }

    fn text(&mut self, length: usize) -> Result<(), String> {
        let bytes = self.take(length)?;
        let text = std::str::from_utf8(bytes).map_err(|_| "a text that is not UTF-8")?;
        self.push(Value::Text(text))
    }

    /// A line of text of GLOBAL.
    fn line(&mut self) -> Result<&'a str, String> {
        const MAX_LINE_BYTES: usize = 256;
        let rest = &self.pickle[self.at..];
        let length = rest.iter().take(MAX_LINE_BYTES).position(|&byte| byte == b'\n').ok_or("a name that does not end")?;
        let line = self.take(length)?;
        self.take(1)?;
        std::str::from_utf8(line).map_err(|_| "a name that is not UTF-8".to_string())
    }

    fn push(&mut self, value: Value<'a>) -> Result<(), String> {
        let id = self.built.values.len();
        if id == MAX_VALUES {
            return Err(format!("it has more than {MAX_VALUES} values; save the state_dict alone, or in several files"));
        }
        self.built.values.push(value);
        self.push_id(id as Id)
    }

    fn push_id(&mut self, id: Id) -> Result<(), String> {
        if self.stack.len() == MAX_STACK {
            return Err(format!("more than {MAX_STACK} values wait on the stack"));
        }
        self.stack.push(id);
        Ok(())
    }

    /// Counts `items` more items of a container.
    fn charge(&mut self, items: usize) -> Result<(), String> {
        self.items = self.items.saturating_add(items);
        if self.items > MAX_ITEMS {
            return Err(format!("its tuples, lists and dictionaries have more than {MAX_ITEMS} items; save the state_dict alone"));
        }
        Ok(())
    }

    fn pop(&mut self) -> Result<Id, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(EMPTY.to_string());
        }
        self.stack.pop().ok_or_else(|| EMPTY.to_string())
    }

    fn pop_text(&mut self, what: &str) -> Result<&'a str, String> {
        let id = self.pop()?;
        match self.built.value(id) {
            Value::Text(text) => Ok(text),
            other => Err(format!("{what} must be a text, not {}", kind(other))),
        }
    }

    /// Where the values since the last mark start.
    fn mark(&mut self) -> Result<usize, String> {
        self.marks.pop().ok_or_else(|| "it closes what was never opened".to_string())
    }

    fn tuple(&mut self, start: usize) -> Result<(), String> {
        self.above_marks(start)?;
        self.charge(self.stack.len() - start)?;
        let items = self.stack.split_off(start).into_boxed_slice();
        self.push(Value::Tuple(items))
    }

    /// Refuses to take values from under an open mark.
    fn above_marks(&self, start: usize) -> Result<(), String> {
        if self.marks.last().is_some_and(|&mark| start < mark) { Err(EMPTY.to_string()) } else { Ok(()) }
    }

    /// Appends the values from `start` on to the list under them.
    fn append(&mut self, start: usize) -> Result<(), String> {
        let list = start.checked_sub(1).ok_or(EMPTY)?;
        self.above_marks(list)?;
        self.charge(self.stack.len() - start)?;
        let target = *self.stack.get(list).ok_or(EMPTY)? as usize;
        match &mut self.built.values[target] {
            Value::List(items) => items.extend(self.stack.drain(start..)),
            other => return Err(format!("it appends to {}", kind(other))),
        }
        Ok(())
    }

    /// Adds the keys and values from `start` on to the dictionary under them.
    fn set(&mut self, start: usize) -> Result<(), String> {
        let dict = start.checked_sub(1).ok_or(EMPTY)?;
        self.above_marks(dict)?;
        self.charge(self.stack.len() - start)?;
        let target = *self.stack.get(dict).ok_or(EMPTY)? as usize;
        if !(self.stack.len() - start).is_multiple_of(2) {
            return Err("a key without a value".to_string());
        }
        match &mut self.built.values[target] {
            Value::Dict(entries) => entries.extend(self.stack[start..].chunks_exact(2).map(|pair| (pair[0], pair[1]))),
            other => return Err(format!("it sets an entry of {}", kind(other))),
        }
        self.stack.truncate(start);
        Ok(())
    }

    /// BINPUT, LONG_BINPUT and MEMOIZE: remembers the value on top of the stack.
    fn remember(&mut self, opcode: u8) -> Result<(), String> {
        let key = match opcode {
            b'q' => self.take(1)?[0].into(),
            b'r' => u32::from_le_bytes(self.array()?),
            _ => self.memo.len() as u32,
        };
        let id = *self.stack.last().ok_or(EMPTY)?;
        if self.memo.len() >= MAX_VALUES {
            return Err(format!("it remembers more than {MAX_VALUES} values"));
        }
        self.memo.insert(key, id);
        Ok(())
    }
}

/// The names of the opcodes that other pickles use.
fn opcode_name(opcode: u8) -> &'static str {
    match opcode {
        b'0' => "POP",
        b'1' => "POP_MARK",
        b'2' => "DUP",
        b'F' => "FLOAT",
        b'I' => "INT",
        b'L' => "LONG",
        b'P' => "PERSID",
        b'S' => "STRING",
        b'T' => "BINSTRING",
        b'U' => "SHORT_BINSTRING",
        b'V' => "UNICODE",
        b'd' => "DICT",
        b'g' => "GET",
        b'i' => "INST",
        b'l' => "LIST",
        b'o' => "OBJ",
        b'p' => "PUT",
        b'B' => "BINBYTES",
        b'C' => "SHORT_BINBYTES",
        0x81 => "NEWOBJ",
        0x82 => "EXT1",
        0x83 => "EXT2",
        0x84 => "EXT4",
        0x8b => "LONG4",
        0x8d => "BINUNICODE8",
        0x8e => "BINBYTES8",
        0x8f => "EMPTY_SET",
        0x90 => "ADDITEMS",
        0x91 => "FROZENSET",
        0x92 => "NEWOBJ_EX",
        0x96 => "BYTEARRAY8",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        _ => "unknown",
    }
}
