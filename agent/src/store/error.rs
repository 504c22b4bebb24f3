//! What the store says when something is not as it should be.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::journal::NOTE_BYTES;

/// Why the store cannot do what was asked.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The operating system refused.
    #[error("the model store could not {action} {}: {source}; check that the disk has room and the folder may be written", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is a store already.
    #[error("{} already holds a model store; open it, or give an empty folder", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// There is no store.
    #[error("{} holds no model store: factory.esp is missing; create the store with a factory artifact first", path.display())]
    Missing {
        /// The folder.
        path: PathBuf,
    },
    /// No artifact in the store can be served.
    #[error("{} cannot be served: {reason}; put the factory artifact back and open the store again", path.display())]
    Factory {
        /// The factory artifact.
        path: PathBuf,
        /// What reading its id said.
        reason: String,
    },
    /// What is to be stored is no artifact, or not the one that was named.
    #[error("{} cannot be taken into the model store: {reason}; write the artifact again", path.display())]
    Artifact {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The steps of a swap were asked for out of order.
    #[error("the model store cannot {action}: {reason}; begin a candidate, put it on probation, then commit it")]
    Order {
        /// What was asked.
        action: &'static str,
        /// Why not now.
        reason: String,
    },
    /// The note is too long for the journal.
    #[error("a progress note may have {NOTE_BYTES} bytes, but this one has {length}; shorten it")]
    Note {
        /// Bytes of the note.
        length: usize,
    },
}

/// What opening a store had to repair or leave behind: one sentence each, empty when all was as it should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// The sentences, in the order in which they were found.
    pub notes: Vec<String>,
}

impl fmt::Display for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.notes.join("\n"))
    }
}

pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_path_buf();
    move |source| StoreError::Io { action, path, source }
}
