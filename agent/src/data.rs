//! Recordings, split and ready to read.

use crate::error::{AgentError, Result};
use crate::signals::splits::Protocol;
use crate::signals::window_set::Sets;
use crate::signals::{Corpus, Split, TRAINING_HOP, WINDOW};

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
