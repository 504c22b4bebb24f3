//! Sessions of a model on whichever engine was opened.

use std::sync::Arc;

use espalier_models::Artifact;
use espalier_runtime::{Budget, Classifier, Continues, Embeds, Generator, Scorer, Scores};
#[cfg(feature = "ort")]
use espalier_runtime::{OrtEmbedder, OrtGenerator, OrtModel, OrtScorer};

use crate::engine::OpenDevice;
use crate::error::Result;
use crate::evaluate::{Batches, check_signal_model};
use crate::on_device;

/// What judges up to `batch` windows at once.
pub fn classifier(device: &OpenDevice, budget: &Arc<Budget>, artifact: &Arc<Artifact>, batch: usize) -> Result<Box<dyn Batches>> {
    check_signal_model(artifact)?;
    #[cfg(feature = "ort")]
    if let OpenDevice::Ort(_, ort) = device {
        let size = (batch, artifact.manifest().architecture.patches());
        return Ok(Box::new(OrtModel::open(ort.library, budget, artifact, size, ort.options)?));
    }
    on_device!(device, device => Ok(Box::new(Classifier::open(device, budget, artifact, batch)?)))
}

/// What continues sequences of up to `capacity` tokens.
pub fn generator(device: &OpenDevice, budget: &Arc<Budget>, artifact: &Arc<Artifact>, capacity: usize) -> Result<Box<dyn Continues>> {
    #[cfg(feature = "ort")]
    if let OpenDevice::Ort(_, ort) = device {
        return Ok(Box::new(OrtGenerator::open(ort.library, budget, artifact, capacity, ort.options)?));
    }
    on_device!(device, device => Ok(Box::new(Generator::open(device, budget, artifact, capacity)?)))
}

/// What scores sequences of up to `capacity` tokens.
pub fn scorer(device: &OpenDevice, budget: &Arc<Budget>, artifact: &Arc<Artifact>, capacity: usize) -> Result<Box<dyn Scores>> {
    #[cfg(feature = "ort")]
    if let OpenDevice::Ort(_, ort) = device {
        return Ok(Box::new(OrtScorer::open(ort.library, budget, artifact, capacity, ort.options)?));
    }
    on_device!(device, device => Ok(Box::new(Scorer::open(device, budget, artifact, capacity)?)))
}

/// What embeds sequences of up to `capacity` tokens.
pub fn embedder(device: &OpenDevice, budget: &Arc<Budget>, artifact: &Arc<Artifact>, capacity: usize) -> Result<Box<dyn Embeds>> {
    #[cfg(feature = "ort")]
    if let OpenDevice::Ort(_, ort) = device {
        return Ok(Box::new(OrtEmbedder::open(ort.library, budget, artifact, capacity, ort.options)?));
    }
    on_device!(device, device => Ok(Box::new(Scorer::open(device, budget, artifact, capacity)?)))
}
