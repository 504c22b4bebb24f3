//! Raw little-endian f32 samples, without a header: files (`.f32`, `.raw`, `.bin`) and endless streams such as standard input.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::error::SignalError;
use super::recording::check_count;

const BUFFER_BYTES: usize = 16 * 1024;

/// Samples from any byte stream, in pieces of any size; nothing is allocated after the start.
#[derive(Debug)]
pub struct RawSource<R> {
    reader: R,
    path: PathBuf,
    buffer: Box<[u8]>,
    /// Bytes of a sample that has not come whole yet: at most 3, at the start of the buffer.
    pending: usize,
    /// Samples delivered so far.
    position: u64,
}

impl<R: Read> RawSource<R> {
    /// Reads from `reader`; `path` is for messages (`-` for standard input).
    pub fn new(reader: R, path: &Path) -> Self {
        Self { reader, path: path.to_path_buf(), buffer: vec![0; BUFFER_BYTES].into_boxed_slice(), pending: 0, position: 0 }
    }

    /// Samples delivered so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Fills the front of `out` with what has come and says how many; waits for at least one; 0 means the stream has ended (or `out` is
    /// empty). A stream that ends inside a sample is an error.
    pub fn read(&mut self, out: &mut [f32]) -> Result<usize, SignalError> {
        if out.is_empty() {
            return Ok(0);
        }
        let room = out.len().saturating_mul(4).min(BUFFER_BYTES);
        while self.pending < 4 {
            match self.reader.read(&mut self.buffer[self.pending..room]) {
                Ok(0) if self.pending == 0 => return Ok(0),
                Ok(0) => {
                    let place = format!("byte {}", self.position.saturating_mul(4));
                    let problem = format!("{} bytes at the end", self.pending);
                    let expected = "whole samples of 4 bytes (little-endian f32)";
                    return Err(SignalError::malformed(
                        &self.path,
                        place,
                        problem,
                        expected,
                        "check that the sender writes f32 and is not cut off",
                    ));
                }
                Ok(bytes) => self.pending += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(SignalError::io(&self.path, "read")(error)),
            }
        }
        let samples = self.pending / 4;
        for (value, bytes) in out.iter_mut().zip(self.buffer[..samples * 4].chunks_exact(4)) {
            *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        self.buffer.copy_within(samples * 4..self.pending, 0);
        self.pending -= samples * 4;
        self.position = self.position.saturating_add(samples as u64);
        Ok(samples)
    }
}

/// All samples of a finite stream.
pub fn read(reader: impl Read, path: &Path) -> Result<Vec<f32>, SignalError> {
    let mut source = RawSource::new(reader, path);
    let mut piece = vec![0.0; BUFFER_BYTES / 4];
    let mut samples = Vec::new();
    loop {
        let count = source.read(&mut piece)?;
        if count == 0 {
            return Ok(samples);
        }
        check_count(path, source.position())?;
        samples.extend_from_slice(&piece[..count]);
    }
}
