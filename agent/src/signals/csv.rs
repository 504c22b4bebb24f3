//! Text tables: one column of numbers, separated by commas, semicolons or tabs, with or without a header line.
//!
//! Without a choice the first column of numbers is taken, passing over one that the header calls time or a counter. A cell that is no
//! finite number is refused with its line; only blank lines and lines that start with `#` are passed over.

use std::io::{self, Read};
use std::path::Path;

use csv::{ReaderBuilder, StringRecord, Trim};

use super::error::SignalError;
use super::recording::{Column, check_count};

/// Longest line. It bounds the memory that a file without line ends can take.
const MAX_LINE_BYTES: usize = 1 << 20;
/// Header names of columns that count samples instead of measuring.
const CLOCKS: [&str; 10] = ["time", "t", "timestamp", "time_s", "time (s)", "time_ms", "seconds", "index", "sample", "n"];
const FIX: &str = "correct that line, or choose a column of numbers by name or position";

/// The samples of a column, and the column's name or "column n" (counted from 0).
pub fn read(reader: impl Read, path: &Path, column: Option<&Column>) -> Result<(Vec<f32>, String), SignalError> {
    let mut lines = LimitedLines { reader, since_line_end: 0, in_quotes: false };
    let mut start = vec![0u8; 4096];
    let mut filled = 0;
    while filled < start.len() {
        match lines.read(&mut start[filled..]) {
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            Err(error) => return Err(SignalError::io(path, "read")(error)),
        }
    }
    start.truncate(filled);
    let delimiter = delimiter(&start);
    let start = start.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&start);
    let mut table = ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(Trim::All)
        .delimiter(delimiter)
        .comment(Some(b'#'))
        .from_reader(start.chain(lines));
    let mut record = StringRecord::new();
    let mut next = |record: &mut StringRecord| table.read_record(record).map_err(|error| broken(path, error));
    if !next(&mut record)? {
        return Err(SignalError::malformed(path, "line 1", "an empty file", "a line for each sample", "check the export"));
    }
    // A first line with any cell that is no number is a header.
    let header = record.iter().any(|cell| cell.parse::<f64>().is_err()).then(|| record.clone());
    if header.is_some() && !next(&mut record)? {
        return Err(SignalError::malformed(path, "line 2", "a header without data", "a line for each sample", "check the export"));
    }
    let index = choose(column, header.as_ref(), &record, path)?;
    let name = header.as_ref().and_then(|header| header.get(index)).map_or_else(|| format!("column {index}"), str::to_string);
    let mut samples = Vec::new();
    loop {
        samples.push(cell(&record, index, &name, path)?);
        check_count(path, samples.len() as u64)?;
        if !next(&mut record)? {
            return Ok((samples, name));
        }
    }
}

fn choose(column: Option<&Column>, header: Option<&StringRecord>, first: &StringRecord, path: &Path) -> Result<usize, SignalError> {
    let names = || match header {
        Some(header) => format!("the columns {}", header.iter().take(20).collect::<Vec<_>>().join(", ")),
        None => format!("{} columns without names, counted from 0", first.len()),
    };
    let missing = |wanted: String| SignalError::NoSuchSignal { path: path.to_path_buf(), wanted, found: names() };
    match column {
        Some(Column::Index(index)) if *index < first.len() => Ok(*index),
        Some(Column::Index(index)) => Err(missing(format!("column {index}"))),
        Some(Column::Name(name)) => {
            header.and_then(|header| header.iter().position(|cell| cell == name)).ok_or_else(|| missing(format!("column `{name}`")))
        }
        None => {
            let is_clock = |index: usize| {
                header.and_then(|header| header.get(index)).is_some_and(|name| CLOCKS.contains(&name.to_ascii_lowercase().as_str()))
            };
            let numeric = |index: &usize| first.get(*index).is_some_and(|cell| cell.parse::<f64>().is_ok());
            (0..first.len()).filter(|index| !is_clock(*index)).find(numeric).ok_or_else(|| missing("column of numbers".to_string()))
        }
    }
}

fn cell(record: &StringRecord, index: usize, name: &str, path: &Path) -> Result<f32, SignalError> {
    let line = record.position().map_or(0, |position| position.line());
    let place = || format!("line {line}, {name}");
    let Some(text) = record.get(index) else {
        return Err(SignalError::malformed(path, place(), format!("{} cells", record.len()), format!("at least {}", index + 1), FIX));
    };
    match text.parse::<f32>() {
        Ok(value) if value.is_finite() => Ok(value),
        _ => Err(SignalError::malformed(path, place(), format!("`{}`", text.chars().take(40).collect::<String>()), "a finite number", FIX)),
    }
}

fn broken(path: &Path, error: csv::Error) -> SignalError {
    let place = error.position().map_or("the file".to_string(), |position| format!("line {}", position.line()));
    match error.into_kind() {
        csv::ErrorKind::Io(source) if source.kind() != io::ErrorKind::InvalidData => SignalError::io(path, "read")(source),
        csv::ErrorKind::Io(source) => SignalError::malformed(path, place, source.to_string(), "lines of text", "check the export"),
        csv::ErrorKind::Utf8 { .. } => SignalError::malformed(path, place, "bytes that are not UTF-8", "text", "export it as UTF-8"),
        _ => SignalError::malformed(path, place, "a line that cannot be split into cells", "cells separated by commas", FIX),
    }
}

/// The separator that the first line has most of: `;`, a tab or `,`.
fn delimiter(start: &[u8]) -> u8 {
    let line = start.split(|byte| *byte == b'\n').find(|line| !line.starts_with(b"#")).unwrap_or_default();
    let count = |separator: u8| line.iter().filter(|byte| **byte == separator).count();
    [b',', b';', b'\t'].into_iter().rev().max_by_key(|separator| count(*separator)).unwrap_or(b',')
}

/// Passes bytes on until a line exceeds its limit. A line end inside quotes does not count, as it does not end the table's row: an open
/// quote would otherwise make one cell of the rest of the file.
struct LimitedLines<R> {
    reader: R,
    since_line_end: usize,
    in_quotes: bool,
}

impl<R: Read> Read for LimitedLines<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let bytes = self.reader.read(out)?;
        for byte in &out[..bytes] {
            self.in_quotes ^= *byte == b'"';
            self.since_line_end = if *byte == b'\n' && !self.in_quotes { 0 } else { self.since_line_end + 1 };
            if self.since_line_end > MAX_LINE_BYTES {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("a line (or an open quote) of more than {MAX_LINE_BYTES} bytes"),
                ));
            }
        }
        Ok(bytes)
    }
}
