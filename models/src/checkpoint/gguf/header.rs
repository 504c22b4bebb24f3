//! Writes the head of a GGUF file: metadata and descriptions of tensors.

use super::reader::{DEFAULT_ALIGNMENT, MAGIC};

/// The version that is written.
const VERSION: u32 = 3;

/// Metadata and tensors of a file that is to be written.
#[derive(Default)]
pub(super) struct Header {
    keys: u64,
    values: Vec<u8>,
    tensors: u64,
    infos: Vec<u8>,
    /// Bytes of the tensors so far.
    data: u64,
}

/// Appends a text with its length.
fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

impl Header {
    fn key(&mut self, key: &str, kind: u32) -> &mut Vec<u8> {
        self.keys += 1;
        put_text(&mut self.values, key);
        self.values.extend_from_slice(&kind.to_le_bytes());
        &mut self.values
    }

    /// An array's key, its values' type and their number.
    fn array(&mut self, key: &str, kind: u32, count: usize) -> &mut Vec<u8> {
        let values = self.key(key, 9);
        values.extend_from_slice(&kind.to_le_bytes());
        values.extend_from_slice(&(count as u64).to_le_bytes());
        values
    }

    pub fn count(&mut self, key: &str, value: u32) {
        self.key(key, 4).extend_from_slice(&value.to_le_bytes());
    }

    pub fn number(&mut self, key: &str, value: f32) {
        self.key(key, 6).extend_from_slice(&value.to_le_bytes());
    }

    pub fn flag(&mut self, key: &str, value: bool) {
        self.key(key, 7).push(u8::from(value));
    }

    pub fn text(&mut self, key: &str, value: &str) {
        put_text(self.key(key, 8), value);
    }

    pub fn texts(&mut self, key: &str, values: &[String]) {
        let out = self.array(key, 8, values.len());
        values.iter().for_each(|value| put_text(out, value));
    }

    pub fn numbers(&mut self, key: &str, values: &[f32]) {
        let out = self.array(key, 6, values.len());
        values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
    }

    pub fn integers(&mut self, key: &str, values: &[i32]) {
        let out = self.array(key, 5, values.len());
        values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
    }

    /// Adds a tensor of `shape`, rows first, of the type `kind` and `bytes` bytes, behind those before it. None where the file would be
    /// larger than a file can be.
    pub fn tensor(&mut self, name: &str, shape: &[usize], kind: u32, bytes: u64) -> Option<()> {
        put_text(&mut self.infos, name);
        self.infos.extend_from_slice(&(shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&size| self.infos.extend_from_slice(&(size as u64).to_le_bytes()));
        self.infos.extend_from_slice(&kind.to_le_bytes());
        self.infos.extend_from_slice(&self.data.to_le_bytes());
        self.tensors += 1;
        self.data = self.data.checked_add(bytes)?.checked_next_multiple_of(DEFAULT_ALIGNMENT)?;
        Some(())
    }

    /// The head with the padding that follows it, and the bytes of the whole file.
    pub fn finish(self) -> (Vec<u8>, u64) {
        let mut head = MAGIC.to_vec();
        head.extend_from_slice(&VERSION.to_le_bytes());
        head.extend_from_slice(&self.tensors.to_le_bytes());
        head.extend_from_slice(&self.keys.to_le_bytes());
        head.extend_from_slice(&self.values);
        head.extend_from_slice(&self.infos);
        head.resize(head.len().next_multiple_of(DEFAULT_ALIGNMENT as usize), 0);
        let bytes = head.len() as u64 + self.data;
        (head, bytes)
    }
}
