//! The recordings a command reads.

use std::path::PathBuf;

use crate::error::{AgentError, Result};
use crate::signals::splits::Protocol;
use crate::signals::window_set::Sets;
use crate::signals::{Corpus, ReadOptions, Split, TRAINING_HOP, WINDOW};

/// Which recordings, split how.
#[derive(Debug, Clone, clap::Args)]
pub struct DataArgs {
    /// The folder of recordings: CWRU or UESTC files, a simulated corpus, or one folder a class [default: $ESPALIER_DATA].
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// How they are split: cwru-load, cwru-size:007|014|021, uestc-speed:RPM, uestc-3to1:RPM, simulated, generic [default: what fits].
    #[arg(long, value_name = "NAME")]
    pub split: Option<String>,
}

/// A split whose windows can be read.
pub struct Data {
    /// The recordings.
    pub corpus: Corpus,
    /// Which side each belongs to.
    pub split: Split,
    /// The windows.
    pub sets: Sets,
    _scratch: tempfile::TempDir,
}

impl DataArgs {
    /// Reads the recordings into a scratch file.
    pub fn open(&self) -> Result<Data> {
        let folder = match (&self.data, std::env::var_os("ESPALIER_DATA")) {
            (Some(folder), _) => folder.clone(),
            (None, Some(folder)) => PathBuf::from(folder),
            (None, None) => return Err(AgentError::Usage("no recordings: give --data DIR, or set ESPALIER_DATA to their folder".into())),
        };
        let protocol =
            self.split.as_deref().map(str::parse::<Protocol>).transpose().map_err(|error| AgentError::Usage(error.to_string()))?;
        let corpus = Corpus::open_with(&folder, protocol.as_ref(), &ReadOptions::default())?;
        let protocol = protocol.unwrap_or_else(|| Protocol::default_for(corpus.kind));
        Data::new(corpus, &protocol)
    }
}

impl Data {
    /// Splits a corpus by a protocol.
    pub fn new(corpus: Corpus, protocol: &Protocol) -> Result<Self> {
        let split = Split::new(&corpus, protocol, WINDOW)?;
        let scratch = tempfile::tempdir()
            .map_err(|error| crate::error::file_error("cannot make a scratch folder in", &std::env::temp_dir(), &error))?;
        let sets = Sets::open(&corpus, &split, scratch.path(), TRAINING_HOP)?;
        Ok(Self { corpus, split, sets, _scratch: scratch })
    }

    /// Reads every training window once; the first that cannot be used is an error that names its recording.
    pub fn check(&self) -> Result<()> {
        Ok(self.sets.train.check(&|recording| self.corpus.entries[recording].path.display().to_string())?)
    }

    /// The rate at which the recordings were sampled, in hertz; an error where they differ or none is known.
    pub fn sample_rate_hz(&self) -> Result<f64> {
        let mut rates = self.corpus.entries.iter().filter_map(|entry| entry.sample_rate_hz.map(|rate| (rate, &entry.path)));
        let Some((first, path)) = rates.next() else {
            return Err(AgentError::Usage(format!("no recording in {} names its sample rate", self.corpus.root.display())));
        };
        match rates.find(|(rate, _)| (rate - first).abs() > 0.01 * first) {
            Some((rate, other)) => {
                let (path, other) = (path.display(), other.display());
                Err(AgentError::Usage(format!("{path} is sampled at {first} Hz but {other} at {rate} Hz; train on recordings of one rate")))
            }
            None => Ok(first),
        }
    }
}
