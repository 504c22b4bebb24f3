//! Engines for the artifacts of a node.

use std::path::Path;
use std::sync::{Arc, Weak};

use espalier_kernels::Device;
use espalier_models::Artifact;
use espalier_runtime::{Budget, Plan};

#[cfg(feature = "ort")]
use crate::diagnosis;
use crate::diagnosis::{Engine, NativeEngine};
use crate::diagnosis_text::TextEngine;
use crate::engine::OpenDevice;
use crate::error::Result;
use crate::on_device;

/// The id of an artifact, after its checksums were all read.
pub fn artifact_id(path: &Path) -> std::result::Result<u64, String> {
    let artifact = Artifact::open(path).map_err(|error| error.to_string())?;
    artifact.verify().map_err(|error| error.to_string())?;
    Ok(artifact.id())
}

/// An engine for an artifact, booked in the budget, and the artifact for as long as the engine lives.
pub fn open_engine(device: &OpenDevice, budget: &Arc<Budget>, path: &Path) -> Result<Served> {
    let artifact = Arc::new(Artifact::open(path)?);
    let engine: Box<dyn Engine> = match device {
        #[cfg(feature = "ort")]
        OpenDevice::Ort(_, ort) => match artifact.manifest().diagnosis {
            Some(_) => Box::new(TextEngine::open_in_ort(*ort, budget, &artifact, None)?),
            None => Box::new(diagnosis::ort::OrtEngine::open(*ort, budget, &artifact)?),
        },
        device => on_device!(device, device => engine_on(device, budget, &artifact))?,
    };
    Ok((engine, Arc::downgrade(&artifact)))
}

/// An engine, and the artifact for as long as it lives.
pub type Served = (Box<dyn Engine>, Weak<Artifact>);

fn engine_on<D: Device>(device: &D, budget: &Arc<Budget>, artifact: &Arc<Artifact>) -> Result<Box<dyn Engine>> {
    Ok(match artifact.manifest().diagnosis {
        Some(_) => Box::new(TextEngine::open(device, budget, artifact, None)?),
        None => Box::new(NativeEngine::open(device, budget, artifact)?),
    })
}

/// What serving an artifact holds, as planned.
pub fn planned_bytes(path: &Path) -> Result<u64> {
    let artifact = Artifact::open(path)?;
    Ok(Plan::serving(artifact.manifest(), artifact.file_bytes()).total())
}
