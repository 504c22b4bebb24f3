//! Writes the protobuf wire format (protobuf.dev, "Encoding"): a message is a run of fields, each a tag and a value.
//!
//! Bytes that lie in a file already are not copied: a message keeps their range until it is written.

use std::io::Write;
use std::ops::Range;

/// A message in the making.
#[derive(Debug, Default)]
pub(crate) struct Message {
    pieces: Vec<Piece>,
    /// What follows the pieces.
    tail: Vec<u8>,
    /// Bytes of the pieces.
    before: usize,
}

#[derive(Debug)]
enum Piece {
    Bytes(Vec<u8>),
    File(Range<usize>),
}

/// How a field's value is written: the low three bits of its tag.
const VARINT: u32 = 0;
const DELIMITED: u32 = 2;
const FIXED_32: u32 = 5;

impl Message {
    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.before + self.tail.len()
    }

    /// An integer.
    pub(crate) fn int(&mut self, field: u32, value: i64) {
        self.varint(u64::from(field << 3 | VARINT));
        // A negative number is written as its 64-bit complement.
        self.varint(value as u64);
    }

    /// A length, a count or an offset: at most 2⁶³ − 1, as every length in memory is.
    pub(crate) fn size(&mut self, field: u32, value: usize) {
        self.int(field, value as i64);
    }

    /// A single-precision number.
    pub(crate) fn float(&mut self, field: u32, value: f32) {
        self.varint(u64::from(field << 3 | FIXED_32));
        self.tail.extend_from_slice(&value.to_le_bytes());
    }

    /// A text.
    pub(crate) fn text(&mut self, field: u32, value: &str) {
        self.bytes(field, value.as_bytes());
    }

    /// Bytes.
    pub(crate) fn bytes(&mut self, field: u32, value: &[u8]) {
        self.delimited(field, value.len());
        self.tail.extend_from_slice(value);
    }

    /// Bytes of a file, which [`write`](Self::write) is given.
    pub(crate) fn file_bytes(&mut self, field: u32, range: Range<usize>) {
        self.delimited(field, range.len());
        self.push_file(range);
    }

    /// A message as a field.
    pub(crate) fn message(&mut self, field: u32, value: Message) {
        self.delimited(field, value.len());
        for piece in value.pieces {
            match piece {
                Piece::Bytes(bytes) => self.tail.extend_from_slice(&bytes),
                Piece::File(range) => self.push_file(range),
            }
        }
        self.tail.extend_from_slice(&value.tail);
    }

    /// Fields that are written already.
    pub(crate) fn raw(&mut self, fields: &[u8]) {
        self.tail.extend_from_slice(fields);
    }

    /// Writes the message to `out`; `file` holds the bytes of every [`file_bytes`](Self::file_bytes).
    pub(crate) fn write(&self, file: &[u8], out: &mut impl Write) -> std::io::Result<()> {
        for piece in &self.pieces {
            match piece {
                Piece::Bytes(bytes) => out.write_all(bytes)?,
                Piece::File(range) => out.write_all(file.get(range.clone()).ok_or(std::io::ErrorKind::UnexpectedEof)?)?,
            }
        }
        out.write_all(&self.tail)
    }

    fn push_file(&mut self, range: Range<usize>) {
        self.before += self.tail.len() + range.len();
        self.pieces.push(Piece::Bytes(std::mem::take(&mut self.tail)));
        self.pieces.push(Piece::File(range));
    }

    fn delimited(&mut self, field: u32, len: usize) {
        self.varint(u64::from(field << 3 | DELIMITED));
        self.varint(len as u64);
    }

    /// Seven bits a byte, lowest first; the high bit says that more follow.
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.tail.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.tail.push(value as u8);
    }
}

/// A `StringStringEntryProto` of ONNX.
pub(crate) fn entry(key: &str, value: &str) -> Message {
    let mut entry = Message::default();
    entry.text(1, key);
    entry.text(2, value);
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(message: &Message, file: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        message.write(file, &mut out).unwrap();
        assert_eq!(out.len(), message.len());
        out
    }

    /// The examples of protobuf's own page on the encoding, and bytes of a file inside a message.
    #[test]
    fn fields_are_written_as_protobuf_says() {
        let mut simple = Message::default();
        simple.int(1, 150);
        assert_eq!(written(&simple, &[]), [0x08, 0x96, 0x01]);
        let mut outer = Message::default();
        outer.message(3, simple);
        outer.text(2, "testing");
        assert_eq!(written(&outer, &[]), [0x1a, 3, 0x08, 0x96, 0x01, 0x12, 7, b't', b'e', b's', b't', b'i', b'n', b'g']);
        let mut negative = Message::default();
        negative.int(1, -2);
        assert_eq!(written(&negative, &[]), [0x08, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
        let mut number = Message::default();
        number.float(2, 1.0);
        assert_eq!(written(&number, &[]), [0x15, 0, 0, 0x80, 0x3f]);
        let mut inner = Message::default();
        inner.file_bytes(9, 1..3);
        inner.int(1, 1);
        let mut outer = Message::default();
        outer.message(1, inner);
        assert_eq!(written(&outer, &[7, 8, 9, 10]), [0x0a, 6, 0x4a, 2, 8, 9, 0x08, 1]);
        assert!(outer.write(&[7, 8], &mut Vec::new()).is_err());
    }
}
