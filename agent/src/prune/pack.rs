//! Writes the network that is left as an artifact, adapters merged, a block of rows at a time.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use espalier_kernels::Device;
use espalier_models::artifact::{Artifact, ArtifactWriter};
use espalier_models::manifest::TextDiagnosis;
use espalier_models::tensor::{DType, TensorSpec, model_tensors};
use espalier_models::{Manifest, Part, TensorKey, TensorSource};
use espalier_runtime::{Adapter, DeviceTensors, Network};

use super::selection::Selection;
use crate::error::{AgentError, Result};

/// An adapter on the host, ready to be merged into one layer's matrices: `W += scale · U · V`.
pub struct HostAdapter {
    layer: usize,
    parts: Vec<Part>,
    rank: usize,
    scale: f32,
    model_side: Vec<f32>,
    unit_sides: Vec<Vec<f32>>,
}

impl HostAdapter {
    /// Copies adapters from the device.
    pub fn download<D: Device>(device: &D, adapters: &[Adapter<D>]) -> Result<Vec<Self>> {
        let read = |buffer: &D::Buffer| -> Result<Vec<f32>> {
            let mut numbers = vec![0.0; device.len(buffer)];
            device.read(buffer, 0, &mut numbers)?;
            Ok(numbers)
        };
        adapters
            .iter()
            .map(|adapter| {
                Ok(Self {
                    layer: adapter.layer,
                    parts: adapter.parts.clone(),
                    rank: adapter.rank,
                    scale: adapter.scale,
                    model_side: read(&adapter.model_side)?,
                    unit_sides: adapter.unit_sides.iter().map(read).collect::<Result<_>>()?,
                })
            })
            .collect()
    }

    /// Adds this adapter's part of `row` of `key` to `out [d_model]`.
    fn merge(&self, key: TensorKey, row: usize, out: &mut [f32]) {
        let side = self.parts.iter().position(|part| *part == key.part);
        let (Some(side), true) = (side, key.layer == Some(self.layer as u32)) else { return };
        let u = &self.unit_sides[side][row * self.rank..(row + 1) * self.rank];
        for (u, v) in u.iter().zip(self.model_side.chunks_exact(out.len())) {
            let factor = self.scale * u;
            out.iter_mut().zip(v).for_each(|(out, v)| *out += factor * v);
        }
    }
}

/// What a new artifact says of itself beside its layers.
#[derive(Debug, Clone)]
pub struct PackNote {
    /// One sentence for the artifact's history.
    pub history: String,
    /// What was measured on the holdout.
    pub measured: Option<espalier_models::manifest::Measured>,
}

/// Writes the selected units of `source`, with `adapters` (of the whole source) merged, to `path`. At most a block of rows is in memory.
pub fn pack(source: &Artifact, selection: &Selection, adapters: &[HostAdapter], path: &Path, note: PackNote) -> Result<PathBuf> {
    pack_for(source, selection, adapters, path, note, source.manifest().diagnosis.clone())
}

/// As [`pack`], for another diagnosis by text than the source's.
pub fn pack_for(
    source: &Artifact,
    selection: &Selection,
    adapters: &[HostAdapter],
    path: &Path,
    note: PackNote,
    diagnosis: Option<TextDiagnosis>,
) -> Result<PathBuf> {
    let before = source.manifest();
    let mut origin = before.origin.clone();
    origin.history.push(note.history);
    let manifest = Manifest {
        layers: selection.stored_layers(before),
        tensors: Vec::new(),
        levels: Vec::new(),
        origin,
        measured: note.measured,
        diagnosis,
        ..before.clone()
    };
    let kept: Vec<usize> = selection.kept().map(|(index, _)| index).collect();
    let specs = model_tensors(&manifest.architecture, &manifest.shape());
    let mut writer = ArtifactWriter::create(path, manifest, matrix_dtype(before))?;
    if let Some(tokenizer) = source.tokenizer()? {
        writer.write_tokenizer(tokenizer)?;
    }
    for spec in specs {
        let from = TensorKey { layer: spec.key.layer.map(|layer| kept[layer as usize] as u32), part: spec.key.part };
        let rows = from.layer.and_then(|layer| selection.rows(&before.architecture, layer as usize, from.part));
        match (spec.is_vector(), rows) {
            (true, rows) => {
                let all = source.vector(from)?;
                let numbers: Vec<f32> = rows.map_or(all.clone(), |rows| rows.iter().map(|row| all[*row]).collect());
                writer.write_rows(spec.key, &numbers)?;
            }
            (false, rows) => copy_matrix(source, from, &spec, rows, adapters, &mut writer)?,
        }
    }
    Ok(writer.finish()?)
}

/// Rows that are in memory at once: with 4096 columns, 1 MiB.
const BLOCK_ROWS: usize = 64;

fn copy_matrix(
    source: &Artifact,
    from: TensorKey,
    spec: &TensorSpec,
    rows: Option<Vec<usize>>,
    adapters: &[HostAdapter],
    writer: &mut ArtifactWriter,
) -> Result<()> {
    let adapters: Vec<&HostAdapter> =
        adapters.iter().filter(|adapter| from.layer == Some(adapter.layer as u32) && adapter.parts.contains(&from.part)).collect();
    let mut block = vec![0.0; BLOCK_ROWS * spec.columns];
    for start in (0..spec.rows).step_by(BLOCK_ROWS) {
        let count = BLOCK_ROWS.min(spec.rows - start);
        let block = &mut block[..count * spec.columns];
        for (offset, out) in block.chunks_exact_mut(spec.columns).enumerate() {
            let row = rows.as_ref().map_or(start + offset, |rows| rows[start + offset]);
            source.read_rows(from, row..row + 1, out)?;
            adapters.iter().for_each(|adapter| adapter.merge(from, row, out));
        }
        writer.write_rows(spec.key, block)?;
    }
    // What was read for the copy leaves the working set again.
    if let Some(stored) = source.find(from) {
        source.unmap_pages(source.range(stored))?;
    }
    Ok(())
}

/// The number format of a stored network's matrices.
pub fn matrix_dtype(manifest: &Manifest) -> DType {
    manifest.tensors.iter().find(|tensor| !tensor.key.part.is_vector()).map_or(DType::F32, |tensor| tensor.dtype)
}

/// Writes a network that was trained, in f32.
pub fn write_trained<D: Device>(device: &D, network: &mut Network<D>, manifest: Manifest, path: &Path) -> Result<PathBuf> {
    let specs = model_tensors(&manifest.architecture, &manifest.shape());
    let columns: BTreeMap<_, _> = specs.iter().map(|spec| (spec.key, spec.columns)).collect();
    let width = |key, buffer: &D::Buffer| columns.get(&key).copied().unwrap_or(device.len(buffer));
    let tensors = network.trainable().into_iter().map(|(key, buffer)| (key, &*buffer, width(key, buffer))).collect();
    write_network(manifest, DType::F32, &DeviceTensors::new(device, tensors), path)
}

/// Writes a whole network from tensors in memory (a trained one).
pub fn write_network(manifest: Manifest, dtype: DType, source: &dyn TensorSource, path: &Path) -> Result<PathBuf> {
    let specs = model_tensors(&manifest.architecture, &manifest.shape());
    let mut writer = ArtifactWriter::create(path, manifest, dtype)?;
    if let Some(tokenizer) = source.tokenizer()? {
        writer.write_tokenizer(tokenizer)?;
    }
    for spec in specs {
        let mut block = vec![0.0; BLOCK_ROWS.min(spec.rows.max(1)) * spec.columns];
        for start in (0..spec.rows).step_by(BLOCK_ROWS) {
            let rows: Range<usize> = start..(start + BLOCK_ROWS).min(spec.rows);
            let block = &mut block[..rows.len() * spec.columns];
            source.rows(spec.key, rows, block)?;
            if let Some(index) = block.iter().position(|x| !x.is_finite()) {
                let number = block[index];
                return Err(AgentError::Training(format!("{} holds {number} after training; lower the learning rate", spec.key)));
            }
            writer.write_rows(spec.key, block)?;
        }
    }
    Ok(writer.finish()?)
}
