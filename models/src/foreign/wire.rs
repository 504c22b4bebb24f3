//! Reads the protobuf wire format (protobuf.dev, "Encoding"), never past the end of what it is given.

use std::ops::Range;

use crate::error::quoted;

/// The longest name that a graph may give anything.
pub(super) const MAX_NAME_BYTES: usize = 4096;

/// Why a file is no message, with the place.
pub(super) type Parsed<T> = Result<T, String>;

/// A run of fields, and where in the file it starts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message<'a> {
    bytes: &'a [u8],
    start: usize,
}

/// A field of a message.
#[derive(Debug, Clone)]
pub(super) struct Field<'a> {
    /// Its number.
    pub number: u32,
    value: Value<'a>,
    /// Its bytes in the file, the tag among them.
    pub range: Range<usize>,
}

#[derive(Debug, Clone, Copy)]
enum Value<'a> {
    Varint(u64),
    Fixed,
    Bytes(&'a [u8]),
}

impl<'a> Message<'a> {
    /// A whole file.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, start: 0 }
    }

    /// Its fields, in order; after an error there are no more.
    pub fn fields(self) -> Fields<'a> {
        Fields { message: self, at: 0 }
    }
}

/// The fields of a message that are still to be read.
pub(super) struct Fields<'a> {
    message: Message<'a>,
    at: usize,
}

impl<'a> Fields<'a> {
    fn take(&mut self, count: u64) -> Parsed<&'a [u8]> {
        let rest = &self.message.bytes[self.at..];
        match usize::try_from(count).ok().and_then(|count| rest.get(..count)) {
            Some(taken) => {
                self.at += taken.len();
                Ok(taken)
            }
            None => Err(format!("{count} bytes at byte {} pass the end at byte {}", self.place(), self.place() + rest.len())),
        }
    }

    fn varint(&mut self) -> Parsed<u64> {
        let start = self.place();
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = u64::from(self.take(1)?[0]);
            value |= (byte & 0x7f) << shift;
            if byte < 0x80 {
                // The tenth byte has one bit of the value.
                return if shift == 63 && byte > 1 { Err(format!("the number at byte {start} has more than 64 bits")) } else { Ok(value) };
            }
        }
        Err(format!("the number at byte {start} has more than 64 bits"))
    }

    fn place(&self) -> usize {
        self.message.start + self.at
    }

    fn field(&mut self) -> Parsed<Field<'a>> {
        let start = self.place();
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok().filter(|number| *number > 0);
        let number = number.ok_or_else(|| format!("the field at byte {start} has the number {}", tag >> 3))?;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            kind => return Err(format!("the field at byte {start} is of kind {kind}, which ONNX does not use")),
        };
        Ok(Field { number, value, range: start..self.place() })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Parsed<Field<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.message.bytes.len() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.at = self.message.bytes.len();
        }
        Some(field)
    }
}

impl<'a> Field<'a> {
    fn expected<T>(&self, what: &str) -> Parsed<T> {
        Err(format!("field {} at byte {} is no {what}", self.number, self.range.start))
    }

    /// An integer; a negative one is written as its 64-bit complement.
    pub fn int(&self) -> Parsed<i64> {
        match self.value {
            Value::Varint(value) => Ok(value as i64),
            _ => self.expected("integer"),
        }
    }

    /// Integers: one, or several that are packed. Reads on until there are more than `most`.
    pub fn ints(&self, into: &mut Vec<i64>, most: usize) -> Parsed<()> {
        match self.value {
            Value::Varint(value) => into.push(value as i64),
            Value::Bytes(bytes) => {
                let mut fields = Message { bytes, start: self.payload().start }.fields();
                while fields.at < bytes.len() && into.len() <= most {
                    into.push(fields.varint()? as i64);
                }
            }
            Value::Fixed => return self.expected("integer"),
        }
        Ok(())
    }

    /// Bytes.
    pub fn bytes(&self) -> Parsed<&'a [u8]> {
        match self.value {
            Value::Bytes(bytes) => Ok(bytes),
            _ => self.expected("run of bytes"),
        }
    }

    /// Where in the file its bytes lie.
    pub fn payload(&self) -> Range<usize> {
        let length = if let Value::Bytes(bytes) = self.value { bytes.len() } else { 0 };
        self.range.end - length..self.range.end
    }

    /// A text of at most `most` bytes.
    pub fn text(&self, most: usize) -> Parsed<&'a str> {
        let bytes = self.bytes()?;
        let start = self.range.start;
        if bytes.len() > most {
            return Err(format!("the text at byte {start} has {} bytes; at most {most} are read", bytes.len()));
        }
        std::str::from_utf8(bytes).map_err(|error| format!("the text at byte {start} is no UTF-8: {error}"))
    }

    /// The name of something.
    pub fn name(&self) -> Parsed<String> {
        let name = self.text(MAX_NAME_BYTES)?;
        if name.chars().any(char::is_control) {
            return Err(format!(
                "the name {} at byte {} has control characters",
                quoted(&name.escape_debug().to_string()),
                self.range.start
            ));
        }
        Ok(name.to_string())
    }

    /// A message.
    pub fn message(&self) -> Parsed<Message<'a>> {
        Ok(Message { bytes: self.bytes()?, start: self.payload().start })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Parsed<Vec<Field<'_>>> {
        Message::new(bytes).fields().collect()
    }

    /// The examples of protobuf's own page on the encoding.
    #[test]
    fn fields_are_read_as_protobuf_says() {
        let fields = read(&[0x08, 0x96, 0x01, 0x12, 7, b't', b'e', b's', b't', b'i', b'n', b'g', 0x1d, 0, 0, 0x80, 0x3f]).unwrap();
        assert_eq!((fields[0].number, fields[0].int().unwrap()), (1, 150));
        assert_eq!((fields[1].text(20).unwrap(), fields[1].payload(), fields[1].range.clone()), ("testing", 5..12, 3..12));
        assert_eq!((fields[2].number, fields[2].range.clone()), (3, 12..17));
        assert!(fields[2].int().is_err() && fields[0].bytes().is_err() && fields[1].text(6).is_err());
        let negative = read(&[0x08, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]).unwrap();
        assert_eq!(negative[0].int().unwrap(), -2);
        let mut packed = Vec::new();
        read(&[0x32, 3, 3, 0x8e, 2]).unwrap()[0].ints(&mut packed, 8).unwrap();
        assert_eq!(packed, [3, 270]);
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let cases: [(&[u8], &str); 8] = [
            (&[0x08], "pass the end"),
            (&[0x12, 5, 1, 2], "5 bytes at byte 2 pass the end at byte 4"),
            (&[0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], "pass the end"),
            (&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02], "more than 64 bits"),
            (&[0x08, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01], "more than 64 bits"),
            (&[0x0b], "kind 3"),
            (&[0x00, 1], "the number 0"),
            (&[0x0d, 1, 2], "4 bytes"),
        ];
        let mut wrong = Vec::new();
        for (bytes, reason) in cases {
            match read(bytes) {
                Ok(_) => wrong.push(format!("{bytes:x?} was read")),
                Err(error) if !error.contains(reason) => wrong.push(format!("{bytes:x?}: expected `{reason}`, found: {error}")),
                Err(_) => {}
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
