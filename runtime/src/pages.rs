//! Which mapped pages of a network stay resident.

use std::ops::Range;
use std::sync::Arc;

use espalier_models::ModelShape;
use espalier_models::artifact::Artifact;

use crate::error::Result;

/// Whether a network keeps its mapped pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residency {
    /// All layers stay: fastest, for serving.
    Resident,
    /// A layer's pages leave this process as soon as the layer has run (they stay in the page cache, where the system may take them):
    /// the working set is one layer. For pruning and recovery beside a model that is served.
    Streamed,
}

/// The mapped range of every layer.
pub(crate) struct Pages {
    artifact: Option<Arc<Artifact>>,
    layers: Vec<Option<Range<usize>>>,
}

impl Pages {
    /// Of a network that is not mapped.
    pub fn none() -> Self {
        Self { artifact: None, layers: Vec::new() }
    }

    /// Of a network in `artifact`.
    pub fn of(artifact: &Arc<Artifact>, shape: &ModelShape, residency: Residency) -> Self {
        if residency == Residency::Resident {
            return Self { artifact: Some(artifact.clone()), layers: Vec::new() };
        }
        let range = |layer: usize| {
            let tensors = || {
                artifact
                    .manifest()
                    .tensors
                    .iter()
                    .filter(|tensor| tensor.key.layer == Some(layer as u32))
                    .map(|tensor| artifact.range(tensor))
            };
            Some(tensors().map(|range| range.start).min()?..tensors().map(|range| range.end).max()?)
        };
        Self { artifact: Some(artifact.clone()), layers: (0..shape.layers.len()).map(range).collect() }
    }

    /// Checks that all pages that were touched could be read.
    pub fn check(&self) -> Result<()> {
        Ok(self.artifact.as_ref().map_or(Ok(()), |artifact| artifact.check_pages())?)
    }

    /// Called when a layer has run.
    pub fn layer_done(&self, layer: usize) -> Result<()> {
        self.check()?;
        if let (Some(artifact), Some(Some(range))) = (&self.artifact, self.layers.get(layer)) {
            artifact.unmap_pages(range.clone())?;
        }
        Ok(())
    }
}
