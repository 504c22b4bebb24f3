//! Whether a sidecar fits its graph, and what of the shapes remains open.

use std::path::Path;

use super::graph::{Extent, ForeignGraph, Slot};
use super::sidecar::{Pooling, Sidecar, SidecarInput, SidecarOutput};
use super::tensor::ElementType;
use crate::error::{Error, Result, quoted};

/// How the graph takes a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `[batch, window]`.
    Flat,
    /// `[batch, 1, window]`.
    Channel,
    /// `[batch, patches, patch]`, cut every `stride` samples.
    Patches {
        /// Patches of a window.
        patches: usize,
        /// Samples of a patch.
        patch: usize,
        /// Samples between the starts of neighbouring patches.
        stride: usize,
    },
    /// `[batch, sequence]` of token ids.
    Tokens,
}

/// A graph's shapes as the sidecar has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// How it takes its input.
    pub layout: Layout,
    /// Whether it takes any number of windows or texts at once; else one.
    pub batches: bool,
}

impl Binding {
    /// Checks `sidecar`, of the file `path`, against `graph`.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where they do not fit.
    pub(super) fn new(graph: &ForeignGraph, sidecar: &Sidecar, path: &Path) -> Result<Self> {
        bind(graph, sidecar).map_err(|problem| {
            let graph = graph.path().display();
            Error::checkpoint(path, format!("it does not fit {graph}: {problem} (`espalier inspect {graph}` shows the graph)"))
        })
    }
}

fn bind(graph: &ForeignGraph, sidecar: &Sidecar) -> std::result::Result<Binding, String> {
    let (named, layout) = match &sidecar.input {
        SidecarInput::Window(signal) => {
            let slot = find(&graph.inputs, "input", &signal.name, ElementType::FLOAT)?;
            let rank = slot.dims.as_ref().map_or(0, Vec::len);
            (vec![signal.name.as_str()], if rank == 3 { Layout::Channel } else { Layout::Flat })
        }
        SidecarInput::Patches(signal) => {
            let (patches, patch) = signal.patches().zip(signal.patch).ok_or("its patches do not fit into its window")?;
            let layout = Layout::Patches { patches, patch, stride: signal.stride.unwrap_or(patch) };
            (vec![signal.name.as_str()], layout)
        }
        SidecarInput::Tokens(tokens) => {
            let names = [Some(&tokens.ids), tokens.mask.as_ref(), tokens.types.as_ref()];
            (names.into_iter().flatten().map(String::as_str).collect(), Layout::Tokens)
        }
    };
    if let Some(slot) = graph.inputs.iter().find(|slot| !named.contains(&slot.name.as_str())) {
        let (name, shape) = (quoted(&slot.name), slot.shape());
        return Err(format!("the graph has the input {name} ({shape}), which the sidecar does not name"));
    }
    let (element, wanted) = match (&sidecar.input, layout) {
        (_, Layout::Tokens) => (ElementType::INT64, vec![None, None]),
        (SidecarInput::Window(signal), Layout::Channel) => (ElementType::FLOAT, vec![None, Some(1), Some(signal.window)]),
        (_, Layout::Patches { patches, patch, .. }) => (ElementType::FLOAT, vec![None, Some(patches), Some(patch)]),
        _ => (ElementType::FLOAT, vec![None, sidecar.signal().map(|signal| signal.window)]),
    };
    let mut batches = true;
    for name in &named {
        let slot = find(&graph.inputs, "input", name, element)?;
        batches &= fit(slot, "input", &wanted)?;
        // A sequence that is fixed would refuse every text of another length.
        if let (Layout::Tokens, Some([_, Extent::Size(size)])) = (layout, slot.dims.as_deref()) {
            return Err(format!("the input {} takes exactly {size} tokens; export the graph with a dynamic sequence", quoted(name)));
        }
    }
    output(graph, sidecar)?;
    Ok(Binding { layout, batches })
}

fn output(graph: &ForeignGraph, sidecar: &Sidecar) -> std::result::Result<(), String> {
    let (name, wanted) = match &sidecar.output {
        SidecarOutput::Logits { name, classes } | SidecarOutput::Probabilities { name, classes } => (name, vec![None, Some(classes.len())]),
        SidecarOutput::Embedding(embedding) if embedding.pooling == Pooling::None => (&embedding.name, vec![None, None]),
        SidecarOutput::Embedding(embedding) => (&embedding.name, vec![None, None, None]),
    };
    let slot = find(&graph.outputs, "output", name, ElementType::FLOAT)?;
    if let (Some([_, Extent::Size(size)]), [_, Some(classes)]) = (slot.dims.as_deref(), wanted.as_slice())
        && *size != *classes as u64
    {
        return Err(format!("the output {} has {size} numbers a window, but the sidecar names {classes} classes", quoted(name)));
    }
    fit(slot, "output", &wanted).map(drop)
}

/// The input or output `name`, which must be of `element`.
fn find<'a>(slots: &'a [Slot], what: &str, name: &str, element: ElementType) -> std::result::Result<&'a Slot, String> {
    let Some(slot) = slots.iter().find(|slot| slot.name == name) else {
        let known: Vec<String> = slots.iter().take(8).map(|slot| quoted(&slot.name)).collect();
        return Err(format!("the graph has no {what} {}; it has {}", quoted(name), known.join(", ")));
    };
    if slot.element != element {
        let (name, found, expected) = (quoted(name), slot.element.name(), element.name());
        return Err(format!("the {what} {name} has numbers of type {found}; expected {expected}"));
    }
    Ok(slot)
}

/// Whether the first dimension is open, where the others are as `wanted`.
fn fit(slot: &Slot, what: &str, wanted: &[Option<usize>]) -> std::result::Result<bool, String> {
    let shape = || {
        let dims: Vec<String> = wanted.iter().map(|dim| dim.map_or("any".to_string(), |dim| dim.to_string())).collect();
        format!("the {what} {} is {}; the sidecar makes it [{}]", quoted(&slot.name), slot.shape(), dims.join(", "))
    };
    let Some(dims) = &slot.dims else { return Ok(true) };
    if dims.len() != wanted.len() {
        return Err(shape());
    }
    for (found, wanted) in dims.iter().zip(wanted) {
        if let (Extent::Size(found), Some(wanted)) = (found, wanted)
            && *found != *wanted as u64
        {
            return Err(shape());
        }
    }
    match dims.first() {
        Some(Extent::Size(1)) => Ok(false),
        Some(Extent::Size(batch)) => {
            let name = quoted(&slot.name);
            Err(format!("the {what} {name} takes {batch} windows or texts at once; export the graph with a batch of 1 or a dynamic one"))
        }
        _ => Ok(true),
    }
}
