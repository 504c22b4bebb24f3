//! The dense network of the cascade's paper, and pruned ones of the ratios that it reports. The numbers in them are random: they change no
//! time.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use espalier_agent::signal_model::{SignalSize, dense_manifest};
use espalier_models::tensor::model_tensors;
use espalier_models::{Architecture, Artifact, ArtifactWriter, DType, Manifest, ModelShape, Units};

/// A network in a file.
pub struct Model {
    pub name: String,
    pub path: PathBuf,
    pub parameters: usize,
    pub ratio: f64,
    pub file_bytes: u64,
    /// Layers, heads and channels.
    pub split: [usize; 3],
    /// Multiplications and additions of a window.
    pub window_flops: f64,
}

/// Ratio, layers and heads; channels are as many as the ratio leaves.
const PRUNED: [(f64, usize, usize); 2] = [(5.8, 6, 4), (13.8, 4, 3)];

/// The networks, made where they are not there.
pub fn models(folder: &Path) -> Result<Vec<Model>> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let size = SignalSize::PAPER;
    let architecture = size.architecture(&["N", "B", "IR", "OR"].map(String::from), 12_000.0)?;
    let dense = size.shape().parameters(&architecture);
    let mut models = vec![model(folder, &architecture, dense, "dense", [size.layers, size.heads, size.channels])?];
    for (ratio, layers, heads) in PRUNED {
        let fits = |channels: &usize| {
            let shape = ModelShape::uniform(layers, Units::dense(heads, heads, *channels));
            shape.parameters(&architecture) as f64 * ratio <= dense as f64
        };
        let channels = (8..=size.channels).rev().step_by(8).find(fits).with_context(|| format!("no shape has a ratio of {ratio}"))?;
        models.push(model(folder, &architecture, dense, &format!("pruned {ratio}×"), [layers, heads, channels])?);
    }
    Ok(models)
}

fn model(folder: &Path, architecture: &Architecture, dense: usize, name: &str, [layers, heads, channels]: [usize; 3]) -> Result<Model> {
    let shape = ModelShape::uniform(layers, Units::dense(heads, heads, channels));
    let path = folder.join(format!("{layers}-{heads}-{channels}.esp"));
    if !path.exists() {
        let made = dense_manifest(name, architecture.clone(), &shape, "random numbers for a bench".into(), None);
        let origin = espalier_models::manifest::Origin { dense_parameters: dense as u64, ..made.origin.clone() };
        write(&path, Manifest { origin, ..made }, architecture, &shape)?;
    }
    let artifact = Artifact::open(&path)?;
    let (parameters, patches) = (artifact.manifest().parameters(), architecture.patches());
    Ok(Model {
        name: name.to_string(),
        parameters,
        ratio: artifact.manifest().compression_ratio(),
        file_bytes: artifact.file_bytes(),
        split: [layers, heads, channels],
        window_flops: 2.0 * parameters as f64 * patches as f64,
        path,
    })
}

/// Writes a network of random numbers, as large as those of a fresh one.
fn write(path: &Path, manifest: Manifest, architecture: &Architecture, shape: &ModelShape) -> Result<()> {
    let mut writer = ArtifactWriter::create(path, manifest, DType::F32)?;
    let mut state = 1_u32;
    for spec in model_tensors(architecture, shape) {
        let numbers: Vec<f32> = (0..spec.rows * spec.columns)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let number = (state >> 8) as f32 / (1 << 24) as f32 - 0.5;
                if spec.key.part.is_norm() { 1.0 } else { number * 0.07 }
            })
            .collect();
        writer.write_rows(spec.key, &numbers)?;
    }
    writer.finish()?;
    Ok(())
}
