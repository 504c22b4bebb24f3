//! Reads little-endian values front to back, never past the end.

use std::ops::Range;

/// A place in a file.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// The start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes before this place.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Bytes after this place.
    pub fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| format!("the file ends at byte {}, inside {count} bytes at {}", self.bytes.len(), self.at))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    pub fn u32(&mut self) -> Result<u32, String> {
        self.take(4).map(|bytes| bytes.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte)))
    }

    pub fn u64(&mut self) -> Result<u64, String> {
        self.take(8).map(|bytes| bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    /// A text, a length before it, as its place in the file.
    pub fn text_range(&mut self) -> Result<Range<usize>, String> {
        let start = self.at;
        let length = self.u64()?;
        let bytes = usize::try_from(length).map_err(|_| format!("a text at byte {start} has {length} bytes"))?;
        let text = self.take(bytes)?;
        std::str::from_utf8(text).map_err(|error| format!("the text at byte {start} is not UTF-8: {error}"))?;
        Ok(self.at - bytes..self.at)
    }

    /// A text of at most `most` bytes.
    pub fn text(&mut self, most: usize) -> Result<&'a str, String> {
        let range = self.text_range()?;
        if range.len() > most {
            return Err(format!("a text of {} bytes; at most {most} are allowed", range.len()));
        }
        Ok(std::str::from_utf8(&self.bytes[range]).unwrap_or_default())
    }
}
