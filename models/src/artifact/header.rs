//! The fixed first bytes of an artifact: where everything else lies and the checksums that cover it.
//!
//! | bytes | field |
//! |---|---|
//! | 0..8 | magic |
//! | 8..12 | format version, u32 |
//! | 12..16 | CRC32C of the manifest, u32 |
//! | 16..24 | length of the manifest in bytes, u64; it starts at 64 |
//! | 24..32 | length of the chunk table in bytes, u64; it follows the manifest |
//! | 32..40 | first byte of the data region, u64 |
//! | 40..48 | length of the file in bytes, u64 |
//! | 48..52 | CRC32C of the chunk table, u32 |
//! | 52..60 | zero |
//! | 60..64 | CRC32C of bytes 0..60, u32 |

use std::ops::Range;
use std::path::Path;

use super::{CHUNK_BYTES, DATA_ALIGNMENT, FORMAT_VERSION, MAX_MANIFEST_BYTES};
use crate::error::{Error, Result};

/// Length of the header in bytes.
pub(super) const HEADER_BYTES: usize = 64;

/// The first bytes of every artifact. The line ends and the end-of-file character show a transfer that took the file for text.
pub(super) const MAGIC: [u8; 8] = *b"\x89ESP\r\n\x1a\n";

/// The most zeros that may lie between the chunk table and the data region.
const MAX_PADDING_BYTES: u64 = 64 * 1024;

/// The header's fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// CRC32C of the manifest.
    pub manifest_crc: u32,
    /// Length of the manifest in bytes.
    pub manifest_bytes: u64,
    /// CRC32C of the chunk table.
    pub table_crc: u32,
    /// Length of the chunk table in bytes.
    pub table_bytes: u64,
    /// First byte of the data region.
    pub data_start: u64,
    /// Length of the file in bytes.
    pub file_bytes: u64,
}

impl Header {
    /// The header as it is stored.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.manifest_crc.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.manifest_bytes.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.table_bytes.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.data_start.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.file_bytes.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.table_crc.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads and checks the header of `file`, the whole file's bytes; `path` is for the errors.
    ///
    /// After this, the sections lie inside the file one after the other, in the order header, manifest, table, data.
    pub fn decode(file: &[u8], path: &Path) -> Result<Self> {
        if !file.starts_with(&MAGIC) {
            return Err(Error::NotAnArtifact { path: path.to_path_buf() });
        }
        if file.len() < HEADER_BYTES {
            return Err(Error::damaged(path, format!("it ends after {} bytes, inside its header of {HEADER_BYTES}", file.len())));
        }
        let word = |at: usize| u32::from_le_bytes([file[at], file[at + 1], file[at + 2], file[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let version = word(8);
        if version > FORMAT_VERSION {
            return Err(Error::NewerVersion { path: path.to_path_buf(), version, supported: FORMAT_VERSION });
        }
        if crc32c::crc32c(&file[..60]) != word(60) {
            return Err(Error::damaged(path, "the checksum of its header does not fit"));
        }
        if (1..FORMAT_VERSION).contains(&version) {
            return Err(Error::OlderVersion { path: path.to_path_buf(), version, supported: FORMAT_VERSION });
        }
        if version != FORMAT_VERSION || long(52) != 0 {
            return Err(Error::damaged(path, format!("its header has format version {version} or reserved bytes that no program wrote")));
        }
        let header = Self {
            manifest_crc: word(12),
            manifest_bytes: long(16),
            table_bytes: long(24),
            data_start: long(32),
            file_bytes: long(40),
            table_crc: word(48),
        };
        if header.file_bytes != file.len() as u64 {
            return Err(Error::damaged(path, format!("it has {} bytes where {} were written", file.len(), header.file_bytes)));
        }
        header.check_sections().map_err(|problem| Error::damaged(path, problem))?;
        Ok(header)
    }

    /// Checks that the sections follow each other inside the file and that the table has one entry a chunk.
    fn check_sections(&self) -> Result<(), String> {
        if self.manifest_bytes > MAX_MANIFEST_BYTES {
            return Err(format!("its manifest has {} bytes, more than the {MAX_MANIFEST_BYTES} allowed", self.manifest_bytes));
        }
        let table_end = (HEADER_BYTES as u64 + self.manifest_bytes).checked_add(self.table_bytes);
        let padding = table_end.and_then(|end| self.data_start.checked_sub(end));
        if padding.is_none_or(|padding| padding > MAX_PADDING_BYTES) || !self.data_start.is_multiple_of(DATA_ALIGNMENT) {
            return Err(format!("its data region cannot start at byte {}", self.data_start));
        }
        let data = self.file_bytes.checked_sub(self.data_start).ok_or_else(|| "its data region starts behind its end".to_string())?;
        if data.div_ceil(CHUNK_BYTES as u64) * 4 != self.table_bytes {
            return Err(format!("its chunk table of {} bytes does not fit its {data} bytes of data", self.table_bytes));
        }
        Ok(())
    }

    /// The manifest's bytes.
    pub fn manifest(&self) -> Range<usize> {
        HEADER_BYTES..HEADER_BYTES + self.manifest_bytes as usize
    }

    /// The chunk table's bytes.
    pub fn table(&self) -> Range<usize> {
        let start = self.manifest().end;
        start..start + self.table_bytes as usize
    }

    /// The zeros between the chunk table and the data region.
    pub fn padding(&self) -> Range<usize> {
        self.table().end..self.data_start as usize
    }
}
