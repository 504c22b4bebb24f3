//! Reading a recording from a file, whatever its format.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use super::error::SignalError;
use super::mat::MatFile;
use super::naming::{CWRU_RATE_HZ, CwruName, UESTC_RATE_HZ, UestcName};
use super::recording::{ReadOptions, Recording, Summary, check_count, stem};
use super::{csv, npy, raw, wav};

/// Extensions that are read.
pub const EXTENSIONS: [&str; 9] = ["mat", "csv", "tsv", "txt", "wav", "npy", "f32", "raw", "bin"];

/// The format of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// MATLAB v5.
    Mat,
    /// Text table.
    Csv,
    /// RIFF/WAVE.
    Wav,
    /// NumPy array.
    Npy,
    /// Little-endian f32.
    Raw,
}

impl Format {
    /// By the first bytes where the format has a magic, else by the extension (case does not matter).
    pub fn of(path: &Path, start: &[u8]) -> Result<Self, SignalError> {
        if start.starts_with(b"MATLAB ") || start.starts_with(b"\x89HDF") {
            return Ok(Self::Mat);
        }
        if start.starts_with(b"\x93NUMPY") {
            return Ok(Self::Npy);
        }
        if start.starts_with(b"RIFF") {
            return Ok(Self::Wav);
        }
        match path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase()).as_deref() {
            Some("mat") => Ok(Self::Mat),
            Some("csv" | "tsv" | "txt") => Ok(Self::Csv),
            Some("wav") => Ok(Self::Wav),
            Some("npy") => Ok(Self::Npy),
            Some("f32" | "raw" | "bin") => Ok(Self::Raw),
            _ => Err(SignalError::Unsupported {
                path: path.to_path_buf(),
                what: "a file of unknown format".to_string(),
                remedy: "give a MATLAB v5 (.mat), CSV, WAV, NumPy (.npy) or raw f32 (.f32, .raw, .bin) file",
            }),
        }
    }
}

/// Reads the recording in a file; see [`read_recording_with`].
pub fn read_recording(path: &Path) -> Result<Recording, SignalError> {
    read_recording_with(path, &ReadOptions::default())
}

/// Reads the recording in a file, choosing its signal by `options`, else by the rules of the format's page.
///
/// In MATLAB files the choice is `X{record}_DE_time` with the record in the file's name, else the only `.._DE_time`, else `Data`, else the
/// only vector. Class, load and nominal speed are filled in for names of the CWRU and UESTC corpora.
pub fn read_recording_with(path: &Path, options: &ReadOptions) -> Result<Recording, SignalError> {
    let (mut reader, format) = open(path)?;
    let mut summary = Summary { signal: None, samples: 0, sample_rate_hz: None, rpm: None };
    let samples = match format {
        Format::Mat => {
            let mut file = MatFile::open(reader, path)?;
            let index;
            (index, summary) = mat_summary(&mut file, path, options)?;
            file.read(index)?
        }
        Format::Csv => {
            let (samples, name) = csv::read(reader, path, options.column.as_ref())?;
            summary.signal = Some(name);
            samples
        }
        Format::Wav => {
            summary = wav::summary(&mut reader, path, options.channel)?;
            reader.rewind().map_err(SignalError::io(path, "read"))?;
            wav::read(reader, path, options.channel)?
        }
        Format::Npy => npy::read(reader, path)?,
        Format::Raw => raw::read(reader, path)?,
    };
    Ok(describe(path, summary, samples))
}

/// What a file holds, without keeping its samples: from the header alone, except for CSV, which is read through.
pub fn summarise(path: &Path, options: &ReadOptions) -> Result<Summary, SignalError> {
    let (reader, format) = open(path)?;
    let mut summary = match format {
        Format::Mat => mat_summary(&mut MatFile::open(reader, path)?, path, options)?.1,
        Format::Csv => {
            let (samples, name) = csv::read(reader, path, options.column.as_ref())?;
            Summary { signal: Some(name), samples: samples.len(), sample_rate_hz: None, rpm: None }
        }
        Format::Wav => wav::summary(reader, path, options.channel)?,
        Format::Npy => npy::summary(reader, path)?,
        Format::Raw => {
            let bytes = reader.get_ref().metadata().map_err(SignalError::io(path, "measure"))?.len();
            if !bytes.is_multiple_of(4) {
                let expected = "whole samples of 4 bytes (little-endian f32)";
                return Err(SignalError::malformed(
                    path,
                    format!("byte {bytes}"),
                    "the file ends inside a sample",
                    expected,
                    "write it again as f32",
                ));
            }
            Summary { signal: None, samples: check_count(path, bytes / 4)?, sample_rate_hz: None, rpm: None }
        }
    };
    let named = describe(path, summary.clone(), Vec::new());
    (summary.sample_rate_hz, summary.rpm) = (named.sample_rate_hz, named.rpm);
    Ok(summary)
}

fn open(path: &Path) -> Result<(BufReader<File>, Format), SignalError> {
    let mut file = File::open(path).map_err(SignalError::io(path, "open"))?;
    if !file.metadata().map_err(SignalError::io(path, "measure"))?.is_file() {
        return Err(SignalError::Unsupported {
            path: path.to_path_buf(),
            what: "something that is no regular file".into(),
            remedy: "give a file",
        });
    }
    let mut start = Vec::with_capacity(8);
    (&mut file).take(8).read_to_end(&mut start).map_err(SignalError::io(path, "read"))?;
    file.rewind().map_err(SignalError::io(path, "read"))?;
    let format = Format::of(path, &start)?;
    Ok((BufReader::with_capacity(64 * 1024, file), format))
}

/// The chosen array and what the file says about it.
fn mat_summary<R: Read + Seek>(file: &mut MatFile<R>, path: &Path, options: &ReadOptions) -> Result<(usize, Summary), SignalError> {
    let index = choose_array(file, path, options)?;
    let array = &file.arrays()[index];
    let (name, count) = (array.name.clone(), array.count().unwrap_or(u64::MAX));
    let samples = check_count(path, count)?;
    let rpm = match name.strip_suffix("_DE_time") {
        Some(record) => file.scalar(&format!("{record}RPM"))?,
        None => None,
    };
    let sample_rate_hz = file.scalar("SampleFrequency")?;
    Ok((index, Summary { signal: Some(name), samples, sample_rate_hz, rpm }))
}

fn choose_array<R: Read + Seek>(file: &MatFile<R>, path: &Path, options: &ReadOptions) -> Result<usize, SignalError> {
    let arrays = file.arrays();
    let named = |name: &str| arrays.iter().position(|array| array.is_vector() && array.name == name);
    let only = |wanted: &dyn Fn(usize) -> bool| {
        let mut found = (0..arrays.len()).filter(|index| arrays[*index].is_vector() && wanted(*index));
        found.next().filter(|_| found.next().is_none())
    };
    if let Some(name) = &options.array {
        let wanted = || format!("vector `{name}` of real numbers");
        return named(name).ok_or_else(|| SignalError::NoSuchSignal { path: path.to_path_buf(), wanted: wanted(), found: file.listing() });
    }
    let stem = stem(path);
    // The data center's own files are named by the bare record number.
    let record = CwruName::parse(&stem).map(|name| name.record).or_else(|| stem.parse().ok());
    record
        .and_then(|record| named(&format!("X{record:03}_DE_time")))
        .or_else(|| only(&|index| arrays[index].name.ends_with("_DE_time")))
        .or_else(|| named("Data"))
        .or_else(|| only(&|index| arrays[index].count().is_some_and(|count| count > 1)))
        .ok_or_else(|| SignalError::NoSuchSignal {
            path: path.to_path_buf(),
            wanted: "single vector of samples (X..._DE_time, Data, or the only one)".to_string(),
            found: file.listing(),
        })
}

/// Adds what the file's name tells; what the file itself says has precedence.
fn describe(path: &Path, summary: Summary, samples: Vec<f32>) -> Recording {
    let name = stem(path);
    let mut recording = Recording {
        path: path.to_path_buf(),
        signal: summary.signal,
        samples,
        sample_rate_hz: summary.sample_rate_hz,
        rpm: summary.rpm,
        class: None,
        load_hp: None,
        name,
    };
    if let Some(name) = CwruName::parse(&recording.name) {
        recording.class = Some(name.class.to_string());
        recording.load_hp = Some(name.load_hp);
        recording.rpm = recording.rpm.or(name.nominal_rpm());
        recording.sample_rate_hz = recording.sample_rate_hz.or(Some(CWRU_RATE_HZ));
    } else if let Some(name) = UestcName::parse(&recording.name) {
        recording.class = Some(name.class.to_string());
        recording.rpm = recording.rpm.or(Some(f64::from(name.rpm)));
        recording.sample_rate_hz = recording.sample_rate_hz.or(Some(UESTC_RATE_HZ));
    }
    recording
}
