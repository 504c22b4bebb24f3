//! The bytes of an artifact's data region on their way to the file, and the checksums of its chunks.

use std::fs::File;
use std::os::unix::fs::FileExt;

use tempfile::NamedTempFile;

use super::CHUNK_BYTES;

/// Zeros whose checksum is taken at once; a chunk is a multiple of them.
const ZEROS: [u8; 4096] = [0; 4096];

/// The data region of the file, written from front to back, with the checksums of its chunks.
pub(super) struct Sink {
    file: NamedTempFile,
    /// Next byte to be written, from the start of the file.
    position: u64,
    /// Bytes in the chunk that is being written, and their checksum.
    in_chunk: usize,
    crc: u32,
    /// Checksums of all complete chunks, as they are stored.
    table: Vec<u8>,
    /// The checksum of a chunk of zeros.
    zero_chunk: u32,
}

impl Sink {
    /// A region that starts at byte `start` of the new file `file`.
    pub(super) fn new(file: NamedTempFile, start: u64) -> Self {
        Self { file, position: start, in_chunk: 0, crc: 0, table: Vec::new(), zero_chunk: zero_chunk() }
    }

    /// The file.
    pub(super) fn file(&self) -> &File {
        self.file.as_file()
    }

    /// Next byte to be written, from the start of the file.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Appends bytes to the data region.
    pub(super) fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.as_file().write_all_at(bytes, self.position)?;
        self.count(bytes);
        Ok(())
    }

    /// Adds bytes that are in the file, or zeros that need not be, to the checksums.
    fn count(&mut self, bytes: &[u8]) {
        self.position += bytes.len() as u64;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (part, after) = rest.split_at(rest.len().min(CHUNK_BYTES - self.in_chunk));
            self.crc = crc32c::crc32c_append(self.crc, part);
            self.in_chunk += part.len();
            if self.in_chunk == CHUNK_BYTES {
                self.close_chunk();
            }
            rest = after;
        }
    }

    /// Passes over `bytes` bytes that have been written to their place already.
    pub(super) fn count_written(&mut self, bytes: usize) -> std::io::Result<()> {
        let mut part = [0; ZEROS.len()];
        let mut left = bytes;
        while left > 0 {
            let part = &mut part[..left.min(ZEROS.len())];
            self.file.as_file().read_exact_at(part, self.position)?;
            self.count(part);
            left -= part.len();
        }
        Ok(())
    }

    /// Leaves zeros up to `offset`, which a new file has; nothing where it has been passed.
    pub(super) fn skip_to(&mut self, offset: u64) {
        while self.position < offset {
            if self.in_chunk == 0 && offset - self.position >= CHUNK_BYTES as u64 {
                self.table.extend_from_slice(&self.zero_chunk.to_le_bytes());
                self.position += CHUNK_BYTES as u64;
                continue;
            }
            let to_chunk = CHUNK_BYTES - self.in_chunk;
            let count = (offset - self.position).min(to_chunk.min(ZEROS.len()) as u64) as usize;
            self.count(&ZEROS[..count]);
        }
    }

    /// Moves the chunk's checksum to the table.
    fn close_chunk(&mut self) {
        self.table.extend_from_slice(&self.crc.to_le_bytes());
        (self.crc, self.in_chunk) = (0, 0);
    }

    /// The file and the table of all chunks, the last short one included.
    pub(super) fn end_chunks(mut self) -> (NamedTempFile, Vec<u8>) {
        if self.in_chunk > 0 {
            self.close_chunk();
        }
        (self.file, self.table)
    }
}

/// The checksum of a chunk of zeros.
fn zero_chunk() -> u32 {
    (0..CHUNK_BYTES / ZEROS.len()).fold(0, |crc, _| crc32c::crc32c_append(crc, &ZEROS))
}
