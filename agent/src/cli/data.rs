//! The recordings a command reads.

use std::path::PathBuf;

use crate::data::Data;
use crate::error::{AgentError, Result};
use crate::signals::splits::Protocol;
use crate::signals::{Corpus, ReadOptions};

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
