//! ONNX: a model as a graph that ONNX Runtime, TensorRT and others run.
//!
//! The graph is the network as the artifact stores it, every layer with its own units. Batch and sequence are known when it runs.
//!
//! | | name | dimensions |
//! |---|---|---|
//! | input | `input_ids` i64, or `patches` f32 of a signal model | `[batch, sequence]`, `[batch, patches, patch]` |
//! | first output | `logits` f32 | `[batch, sequence, vocabulary]`, `[batch, classes]` |
//! | with a cache: inputs | `past_key_values.{layer}.key`, `.value` f32 | `[batch, groups, past_sequence, head_dim]` |
//! | with a cache: outputs | `present.{layer}.key`, `.value` f32 | `[batch, groups, total_sequence, head_dim]` |
//!
//! `layer` counts as the artifact does; layers that are removed or have no heads carry nothing. Position 0 is the first token that was
//! ever read; with an empty past the sequence is a prompt.
//!
//! Weights are ONNX *external data*: the graph names the artifact's file and the offset and length of each tensor, so that nothing is
//! copied and the graph file is small. It then belongs to these bytes in this folder. ONNX Runtime maps f32 weights and computes on the
//! mapped pages when its session option `session.disable_prepacking` is 1; weights in 16 bits and fewer it converts to f32 when it loads.

use std::io::{BufWriter, Write};
use std::path::Path;

use crate::artifact::{Artifact, folder};
use crate::checkpoint::place::place_file;
use crate::error::{Error, Result};
use crate::manifest::Manifest;

mod functions;
mod graph;
mod layer;
mod network;
mod positions;
pub(crate) mod protobuf;
mod quantised;
mod weights;

pub use graph::{Element, Weight};
use graph::{Graph, Place};
use protobuf::Message;

/// The longest file that readers of protobuf take: they count its bytes in 32 bits with a sign.
const MAX_BYTES: usize = i32::MAX as usize;

/// How a graph is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OnnxOptions {
    /// Keys and values of earlier tokens come in and go out.
    pub cache: bool,
    /// The weights are in the graph's file; else in the artifact, which must lie in the same folder.
    pub embed: bool,
}

/// What was written, and what ONNX Runtime will hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnnxExport {
    /// Nodes of the graph.
    pub nodes: usize,
    /// Length of the graph's file in bytes.
    pub file_bytes: u64,
    /// Bytes of weights that stay in the artifact.
    pub external_bytes: u64,
    /// Bytes of the f32 copies that ONNX Runtime makes of other weights when it loads the graph.
    pub copied_bytes: u64,
}

/// What a graph's first output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnnxOutput {
    /// `logits`.
    #[default]
    Logits,
    /// `states` f32 `[batch, sequence, d_model]`: the hidden states behind the final norm. The output matrix is left out.
    States,
}

/// What ONNX Runtime will hold of an artifact's graph, without making it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnnxPlan {
    /// Nodes of the graph.
    pub nodes: usize,
    /// Bytes of the f32 copies that ONNX Runtime makes of other formats when it loads the graph.
    pub copied_bytes: u64,
    /// Bytes of copies that it holds at most while it loads the graph.
    pub loading_bytes: u64,
}

/// The graph of an artifact in memory, its weights outside it.
pub struct OnnxGraph {
    /// The `ModelProto`.
    pub model: Vec<u8>,
    /// The weights, each an initializer of that name.
    pub weights: Vec<Weight>,
    /// Nodes of the graph.
    pub nodes: usize,
    /// Bytes of the f32 copies that ONNX Runtime makes of other weights when it loads the graph.
    pub copied_bytes: u64,
    /// Bytes of all copies of weights that it holds while it loads the graph, those that it keeps among them.
    pub loading_bytes: u64,
}

/// Writes the artifact's network as an ONNX graph to the file `out`, which has another name until it is complete. Every checksum of the
/// weights is compared. Memory: the graph, without weights.
///
/// # Errors
/// [`Error::Write`] where the file cannot be as asked: a cache where there is nothing to carry, another folder than the artifact's, too
/// large with the weights in it; [`Error::Damaged`] and [`Error::Io`].
pub fn export_onnx(artifact: &Artifact, out: &Path, options: OnnxOptions) -> Result<OnnxExport> {
    let refuse = |problem: String| Error::Write { path: out.to_path_buf(), problem };
    if out.file_name().is_none() || out.is_dir() {
        return Err(refuse("it is no name of a file; give one, such as model.onnx".to_string()));
    }
    let same = |a: &Path, b: &Path| -> Result<bool> {
        let full = |path: &Path| path.canonicalize().map_err(Error::io("look up", path));
        Ok(full(a)? == full(b)?)
    };
    if out.exists() && same(out, artifact.path())? {
        return Err(refuse("it is the artifact itself; give another name, such as model.onnx".to_string()));
    }
    let place = match options.embed {
        true => Place::Inside,
        false if same(folder(out), folder(artifact.path()))? => Place::Beside(file_name(artifact).map_err(refuse)?),
        false => {
            return Err(refuse(format!(
                "a graph reads its weights from the artifact, which must lie in the same folder; write it to {}, or give --embed to put the \
                 weights into it",
                folder(artifact.path()).display()
            )));
        }
    };
    let (graph, copies) = network::graph(artifact, options.cache, OnnxOutput::Logits, true).map_err(|error| match error {
        Error::Inexpressible { reason, .. } => refuse(reason),
        other => other,
    })?;
    let nodes = graph.nodes();
    let weights: usize = graph.weights().iter().map(|weight| weight.range.len()).sum();
    let model = finish(graph, place, artifact);
    if model.len() > MAX_BYTES {
        let advice = if options.embed { "; leave out --embed and write it into the artifact's folder" } else { "" };
        return Err(refuse(format!("it would have {} bytes, but readers of ONNX files take at most {MAX_BYTES}{advice}", model.len())));
    }
    place_file(out, |temporary| {
        let mut file = BufWriter::with_capacity(1 << 18, temporary.as_file_mut());
        let written = model.write(&artifact.map(), &mut file).and_then(|()| file.flush());
        artifact.check_pages()?;
        written.map_err(Error::io("write", out))
    })?;
    let external_bytes = if options.embed { 0 } else { weights as u64 };
    Ok(OnnxExport { nodes, file_bytes: model.len() as u64, external_bytes, copied_bytes: copies.held })
}

/// The artifact's network as a graph in memory, its weights named as external data of the artifact's file.
///
/// # Errors
/// [`Error::Inexpressible`] for a cache where there is nothing to carry, [`Error::Damaged`], and [`Error::Write`] where the artifact's name is
/// no UTF-8 text.
pub fn onnx_graph(artifact: &Artifact, cache: bool, output: OnnxOutput) -> Result<OnnxGraph> {
    let (graph, copies) = network::graph(artifact, cache, output, true)?;
    let (weights, nodes) = (graph.weights().to_vec(), graph.nodes());
    let refuse = |problem| Error::Write { path: artifact.path().to_path_buf(), problem };
    let message = finish(graph, Place::Beside(file_name(artifact).map_err(refuse)?), artifact);
    let mut model = Vec::with_capacity(message.len());
    message.write(&[], &mut model).map_err(Error::io("make a graph of", artifact.path()))?;
    Ok(OnnxGraph { model, weights, nodes, copied_bytes: copies.held, loading_bytes: copies.loading })
}

/// What [`onnx_graph`] would make, without reading the weights.
///
/// # Errors
/// [`Error::Inexpressible`] as [`onnx_graph`] has it.
pub fn onnx_plan(artifact: &Artifact, cache: bool) -> Result<OnnxPlan> {
    let (graph, copies) = network::graph(artifact, cache, OnnxOutput::Logits, false)?;
    Ok(OnnxPlan { nodes: graph.nodes(), copied_bytes: copies.held, loading_bytes: copies.loading })
}

/// The name under which a graph in the artifact's folder finds it.
fn file_name(artifact: &Artifact) -> Result<&str, String> {
    let name = artifact.path().file_name().and_then(|name| name.to_str());
    name.ok_or_else(|| format!("the name of {} is no UTF-8 text, which ONNX needs; rename the artifact", artifact.path().display()))
}

/// The `ModelProto`, which says in its metadata what the model is.
fn finish(graph: Graph, place: Place<'_>, artifact: &Artifact) -> Message {
    let manifest = artifact.manifest();
    let mut properties = vec![("espalier.name", manifest.name.clone()), ("espalier.artifact", format!("{:016x}", artifact.id()))];
    properties.extend(signal_properties(manifest));
    graph.finish(place, &properties)
}

/// What a signal model's reader must know: classes, and the window that patches are cut from.
fn signal_properties(manifest: &Manifest) -> Vec<(&'static str, String)> {
    let architecture = &manifest.architecture;
    let mut properties = Vec::new();
    if !architecture.classes().is_empty() {
        properties.push(("espalier.classes", serde_json::Value::from(architecture.classes().to_vec()).to_string()));
    }
    if let crate::architecture::Input::Patches { window, stride, sample_rate_hz, .. } = architecture.input {
        properties.push(("espalier.window", window.to_string()));
        properties.push(("espalier.stride", stride.to_string()));
        properties.push(("espalier.sample_rate_hz", sample_rate_hz.to_string()));
    }
    properties
}
