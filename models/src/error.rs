//! What can go wrong with an artifact or a checkpoint, each a sentence for the person who reads it.

use std::io;
use std::path::{Path, PathBuf};

use crate::tensor::{DType, TensorKey};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong: what, where, what was expected and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} {}: {cause}{}", path.display(), advice(cause))]
    Io {
        /// What was tried, as a verb: `read`, `write`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// The file is something else.
    #[error("{} is not an Espalier artifact: it does not start with the artifact's magic bytes; give a .esp file", path.display())]
    NotAnArtifact {
        /// The file.
        path: PathBuf,
    },
    /// The file was written by a later program.
    #[error(
        "{} has artifact format version {version}, but this program reads versions up to {supported}; update the program",
        path.display()
    )]
    NewerVersion {
        /// The file.
        path: PathBuf,
        /// The file's format version.
        version: u32,
        /// The newest version that this program reads.
        supported: u32,
    },
    /// The file was written by an earlier program, in a format that is no longer read.
    #[error(
        "{} has artifact format version {version}, but this program reads version {supported}; import or train the model again",
        path.display()
    )]
    OlderVersion {
        /// The file.
        path: PathBuf,
        /// The file's format version.
        version: u32,
        /// The version that this program reads.
        supported: u32,
    },
    /// The file's bytes are not what was written: a checksum or a length does not fit.
    #[error("{} is damaged: {problem}; copy it again or use another artifact", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where, what was expected and what was found.
        problem: String,
    },
    /// Pages of a mapped file could not be read.
    #[error(
        "{} cannot be read any more: the storage failed, or the file was changed while it was used; copy it again or use another artifact",
        path.display()
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
    },
    /// The manifest contradicts itself or names something that cannot be.
    #[error("the manifest of {} makes no sense: {problem}; write the artifact again", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Which entry, what was expected and what was found.
        problem: String,
    },
    /// The model has no such tensor.
    #[error("{} has no tensor `{key}`", path.display())]
    NoTensor {
        /// The artifact.
        path: PathBuf,
        /// The tensor.
        key: TensorKey,
    },
    /// The caller asked for rows that are not there, or gave a buffer or values of the wrong length.
    #[error("`{key}`: {problem}")]
    Request {
        /// The tensor.
        key: TensorKey,
        /// What was expected and what was given.
        problem: String,
    },
    /// A weight is NaN or infinite.
    #[error("{}: tensor `{tensor}` holds {value} at element {element}; weights must be finite", path.display())]
    NotFinite {
        /// The file that holds, or would hold, the tensor.
        path: PathBuf,
        /// The tensor's name there.
        tensor: String,
        /// Index of the first such element.
        element: usize,
        /// The element.
        value: f32,
    },
    /// A weight is too large for the number format.
    #[error(
        "{}: `{tensor}` holds {value} at element {element}, which {dtype:?} cannot hold; write the artifact as bf16 or f32",
        path.display()
    )]
    TooLarge {
        /// The artifact that was being written.
        path: PathBuf,
        /// The tensor.
        tensor: TensorKey,
        /// Index of the first such element.
        element: usize,
        /// The element.
        value: f32,
        /// The format.
        dtype: DType,
    },
    /// A checkpoint's file cannot be understood.
    #[error("{}: {problem}", path.display())]
    Checkpoint {
        /// The file or folder.
        path: PathBuf,
        /// Where in it, what was expected, what was found and what to do.
        problem: String,
    },
    /// A checkpoint needs something that this program does not do exactly.
    #[error("{}: {feature} is not supported; {expected}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What the checkpoint asks for.
        feature: String,
        /// What is supported.
        expected: String,
    },
    /// A checkpoint lacks a tensor that its configuration promises.
    #[error("{} has no tensor `{tensor}`, which its configuration promises; the checkpoint is incomplete", path.display())]
    MissingTensor {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor's name there.
        tensor: String,
    },
    /// A checkpoint has tensors that its configuration does not explain.
    #[error(
        "{} has tensors that its configuration does not explain: {}; leaving them out would change what the model computes",
        path.display(), listed(tensors)
    )]
    UnknownTensors {
        /// The checkpoint.
        path: PathBuf,
        /// The tensors' names.
        tensors: Vec<String>,
    },
    /// A checkpoint dialect cannot say what the model has become.
    #[error("the {dialect} format cannot express this model: {reason}; export it in the espalier format")]
    Inexpressible {
        /// The dialect.
        dialect: &'static str,
        /// What it cannot express.
        reason: String,
    },
    /// Someone asked for the work to stop.
    #[error("the work on {} was stopped before it was done; nothing was written", path.display())]
    Stopped {
        /// The file that would have been written.
        path: PathBuf,
    },
    /// The file cannot be written as asked.
    #[error("cannot write {}: {problem}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why, and what to do.
        problem: String,
    },
}

impl Error {
    /// An I/O error on `path` while trying to `action` (a verb).
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_path_buf();
        move |cause| Error::Io { action, path, cause }
    }

    /// The file at `path` is damaged.
    pub(crate) fn damaged(path: &Path, problem: impl Into<String>) -> Error {
        Error::Damaged { path: path.to_path_buf(), problem: problem.into() }
    }

    /// The checkpoint file at `path` cannot be understood.
    pub(crate) fn checkpoint(path: &Path, problem: impl Into<String>) -> Error {
        Error::Checkpoint { path: path.to_path_buf(), problem: problem.into() }
    }

    /// A request for the tensor `key` that cannot be met.
    pub(crate) fn request(key: TensorKey, problem: impl Into<String>) -> Error {
        Error::Request { key, problem: problem.into() }
    }
}

/// What a person can do about an I/O error.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free some space there or write to another disk",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => "; check the rights on the file and its folder",
        io::ErrorKind::NotFound => "; check the path",
        io::ErrorKind::FileTooLarge => "; the file system cannot hold so large a file, write to another disk",
        _ => "",
    }
}

/// The first names of a list, and how many more there are.
fn listed(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let mut text = names.iter().take(SHOWN).map(|name| quoted(name)).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}

/// A text from outside in a sentence: at most its first 80 characters, in backquotes.
pub(crate) fn quoted(text: &str) -> String {
    const SHOWN: usize = 80;
    match text.char_indices().nth(SHOWN) {
        None => format!("`{text}`"),
        Some((end, _)) => format!("`{}…`", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_texts_are_short() {
        let (fits, long) = ("é".repeat(80), "é".repeat(81));
        assert_eq!(quoted(&fits), format!("`{fits}`"));
        assert_eq!(quoted(&long), format!("`{fits}…`"));
    }
}
