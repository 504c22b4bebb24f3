//! One recording: the samples of one sensor and what is known about how they were taken.

use std::path::{Path, PathBuf};

use super::error::SignalError;

/// Most samples that one recording may have: 1 GiB as f32, more than six hours at 12 kHz.
pub const MAX_SAMPLES: usize = 1 << 28;

/// The samples of one sensor, in the unit of the file, with what file and name tell about them.
#[derive(Debug, Clone, PartialEq)]
pub struct Recording {
    /// The file it came from.
    pub path: PathBuf,
    /// The file's name without extension.
    pub name: String,
    /// The array, column or channel inside the file, where the format has several.
    pub signal: Option<String>,
    /// The samples `[n]`. They may hold NaN or infinity where the format can; a window with one is refused when it is normalised.
    pub samples: Vec<f32>,
    /// Samples a second, where the file or its layout tells.
    pub sample_rate_hz: Option<f64>,
    /// Shaft turns a minute, where the file or its layout tells.
    pub rpm: Option<f64>,
    /// The class, in this program's short names (`N`, `B`, `IR`, `OR`) where the file's name tells.
    pub class: Option<String>,
    /// Motor load in horsepower, where the file's name tells.
    pub load_hp: Option<u32>,
}

/// What is known of a recording without its samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// The array, column or channel inside the file, where the format has several.
    pub signal: Option<String>,
    /// How many samples it has.
    pub samples: usize,
    /// Samples a second, where the file tells.
    pub sample_rate_hz: Option<f64>,
    /// Shaft turns a minute, where the file tells.
    pub rpm: Option<f64>,
}

/// Which signal of a file to read. The default chooses as the readers' pages say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// MATLAB: the array's name.
    pub array: Option<String>,
    /// CSV: the column.
    pub column: Option<Column>,
    /// WAV: the channel, counted from 0; the first when none is given.
    pub channel: Option<u16>,
}

/// A column of a CSV file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Column {
    /// Counted from 0.
    Index(usize),
    /// By its name in the header line.
    Name(String),
}

/// The file's name without extension, for people.
pub(crate) fn stem(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Refuses a count of samples over [`MAX_SAMPLES`].
pub(crate) fn check_count(path: &Path, samples: u64) -> Result<usize, SignalError> {
    match usize::try_from(samples) {
        Ok(count) if count <= MAX_SAMPLES => Ok(count),
        _ => Err(SignalError::TooLarge {
            path: path.to_path_buf(),
            what: "the number of samples",
            found: samples.to_string(),
            limit: format!("{MAX_SAMPLES} samples"),
        }),
    }
}
