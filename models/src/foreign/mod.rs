//! ONNX graphs that other programs wrote: classifiers of signals and encoders of text.
//!
//! A graph says what it reads and gives only as names, number formats and shapes. What a window is, how it is normalised, what the classes are
//! called and how states become an embedding stands in a [`Sidecar`] beside it, `other.onnx.json`. [`ForeignGraph`] is the file, read with
//! limits and never changed; [`ForeignModel`] is both, checked against each other.
//!
//! | module | concern |
//! |--|--|
//! | `wire` | the protobuf wire format |
//! | `tensor`, `external` | tensors and the files that hold them |
//! | `graph`, `scan`, `light` | the file, how it is read, and it without the bytes of its weights |
//! | `sidecar`, `binding`, `template` | what a graph does not say; whether it fits; a first draft of it |
//!
//! A graph is refused where it refers to files outside its folder, to bytes outside a file, or to shapes that no file can hold; its numbers
//! are not looked at.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

mod binding;
mod external;
mod graph;
mod light;
mod scan;
mod sidecar;
mod template;
mod tensor;
#[cfg(test)]
mod tests;
mod wire;

pub use binding::{Binding, Layout};
pub use external::ExternalFile;
pub use graph::{Extent, ForeignGraph, ForeignWeight, MAX_GRAPH_BYTES, Slot};
pub use sidecar::{Embedding, Normalisation, Pooling, Sidecar, SidecarInput, SidecarOutput, SignalInput, TokenInput};
pub use template::template;
pub use tensor::ElementType;

use crate::artifact::folder;
use crate::error::{Error, Result, quoted};

/// A graph and its sidecar, which fit each other.
pub struct ForeignModel {
    /// The graph.
    pub graph: Arc<ForeignGraph>,
    /// The sidecar.
    pub sidecar: Sidecar,
    /// How they fit.
    pub binding: Binding,
    sidecar_path: PathBuf,
    id: OnceLock<u64>,
}

impl ForeignModel {
    /// Opens the graph at `path` and its sidecar: `sidecar`, or the file of the graph's name with `.json` behind it.
    ///
    /// # Errors
    /// As [`ForeignGraph::open`] and [`Sidecar::open`]; [`Error::Checkpoint`] where they do not fit.
    pub fn open(path: &Path, sidecar: Option<&Path>) -> Result<Self> {
        Self::of(Arc::new(ForeignGraph::open(path)?), sidecar)
    }

    /// As [`open`](ForeignModel::open), for a graph that is open.
    ///
    /// # Errors
    /// As [`Sidecar::open`]; [`Error::Checkpoint`] where the two do not fit.
    pub fn of(graph: Arc<ForeignGraph>, sidecar: Option<&Path>) -> Result<Self> {
        let path = graph.path();
        let sidecar_path = sidecar.map_or_else(|| sidecar_beside(path), Path::to_path_buf);
        let sidecar = Sidecar::open(&sidecar_path, path)?;
        let binding = Binding::new(&graph, &sidecar, &sidecar_path)?;
        Ok(Self { graph, sidecar, binding, sidecar_path, id: OnceLock::new() })
    }

    /// The sidecar's file.
    pub fn sidecar_path(&self) -> &Path {
        &self.sidecar_path
    }

    /// Identifies the contents of graph, weights and sidecar. The first call reads every byte of them.
    pub fn id(&self) -> u64 {
        *self.id.get_or_init(|| {
            let graph = crc32c::crc32c(self.graph.bytes());
            let sidecar = serde_json::to_vec(&self.sidecar).unwrap_or_default();
            let rest = self.graph.external().iter().fold(crc32c::crc32c(&sidecar), |crc, file| crc32c::crc32c_append(crc, file.bytes()));
            u64::from(graph) << 32 | u64::from(rest)
        })
    }

    /// The tokenizer of a graph that reads text: a file of the graph's folder; none of one that reads signals.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where the sidecar names a file that is not in there.
    pub fn tokenizer(&self) -> Result<Option<PathBuf>> {
        let SidecarInput::Tokens(tokens) = &self.sidecar.input else { return Ok(None) };
        let refuse = |why| Error::checkpoint(&self.sidecar_path, format!("it names the tokenizer {}, {why}", quoted(&tokens.tokenizer)));
        external::beside(folder(self.graph.path()), &tokens.tokenizer).map(Some).map_err(refuse)
    }

    /// The classes' names; none of an encoder.
    pub fn classes(&self) -> &[String] {
        self.sidecar.classes()
    }
}

/// Where the sidecar of a graph lies unless said otherwise.
pub fn sidecar_beside(graph: &Path) -> PathBuf {
    let mut name = graph.as_os_str().to_os_string();
    name.push(".json");
    PathBuf::from(name)
}

/// Whether a file's name says that it is an ONNX graph.
pub fn is_onnx(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("onnx"))
}
