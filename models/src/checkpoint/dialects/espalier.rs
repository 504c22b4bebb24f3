//! Our own dialect, which can say whatever an artifact can.

use serde::{Deserialize, Serialize};

use super::{Described, Held};
use crate::architecture::Architecture;
use crate::checkpoint::Dialect;
use crate::checkpoint::config::Config;
use crate::error::Result;
use crate::manifest::{Manifest, Measured, Origin, StoredLayer, TextDiagnosis};

/// The `config.json` of our own dialect.
#[derive(Serialize, Deserialize)]
struct EspalierConfig {
    model_type: String,
    name: String,
    architecture: Architecture,
    layers: Vec<StoredLayer>,
    origin: Origin,
    measured: Option<Measured>,
    #[serde(default)]
    diagnosis: Option<TextDiagnosis>,
}

/// Reads the whole architecture and all shapes.
pub(super) fn read(config: &Config, held: Held) -> Result<Described> {
    let parsed: EspalierConfig = config.parse_as()?;
    let EspalierConfig { architecture, layers, origin, name, measured, diagnosis, .. } = parsed;
    let kept = layers.iter().filter(|layer| layer.shape.units().is_some()).count();
    if kept > held.tensors {
        return Err(config.invalid(format!("it lists {kept} layers, but the checkpoint has {} tensors", held.tensors)));
    }
    Ok(Described { dialect: Dialect::Espalier, architecture, layers, origin: Some(origin), name: Some(name), measured, diagnosis })
}

/// Writes them.
pub(super) fn write(manifest: &Manifest) -> serde_json::Result<String> {
    serde_json::to_string_pretty(&EspalierConfig {
        model_type: Dialect::Espalier.name().to_string(),
        name: manifest.name.clone(),
        architecture: manifest.architecture.clone(),
        layers: manifest.layers.clone(),
        origin: manifest.origin.clone(),
        measured: manifest.measured,
        diagnosis: manifest.diagnosis.clone(),
    })
}
