//! Checkpoints for the tests: the parity fixtures, changed copies of them, and what comes back of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use espalier_models::checkpoint::{export_safetensors, import};
use espalier_models::{Artifact, DType, Dialect, LayerShape, Manifest, Result, Units};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// A tensor of a file: type, shape, bytes.
pub type Raw = (Dtype, Vec<usize>, Vec<u8>);

/// The folder of fixtures.
pub fn parity() -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/parity");
    std::env::var_os("ESPALIER_PARITY").map_or_else(default, PathBuf::from)
}

/// All fixtures, in alphabetical order.
pub fn fixtures() -> Vec<PathBuf> {
    let folders = std::fs::read_dir(parity()).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> = folders.filter(|path| path.join("model.safetensors").is_file()).collect();
    folders.sort();
    assert!(folders.len() >= 12, "{folders:?}");
    folders
}

pub fn read(path: &Path) -> BTreeMap<String, Raw> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter().map(|(name, view)| (name.to_string(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()))).collect()
}

pub fn write(path: &Path, tensors: &BTreeMap<String, Raw>) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// The names of all tensors that differ.
pub fn different(one: &BTreeMap<String, Raw>, other: &BTreeMap<String, Raw>) -> Vec<String> {
    let names: std::collections::BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    names.into_iter().filter(|&name| one.get(name) != other.get(name)).cloned().collect()
}

pub fn config(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap()
}

/// A checkpoint in a folder of its own.
pub struct Checkpoint(pub tempfile::TempDir);

impl Checkpoint {
    /// A copy of the fixture `name`, its config and tensors changed.
    pub fn changed(name: &str, config_change: impl FnOnce(&mut Value), change: impl FnOnce(&mut BTreeMap<String, Raw>)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = parity().join(name);
        let (mut config, mut tensors) = (config(&source), read(&source.join("model.safetensors")));
        config_change(&mut config);
        change(&mut tensors);
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        write(&folder.path().join("model.safetensors"), &tensors);
        Self(folder)
    }

    pub fn import(&self) -> Result<Artifact> {
        let out = self.0.path().join("model.esp");
        import(self.0.path(), &out, None, &mut |_, _| {})?;
        Artifact::open(&out)
    }
}

/// Imports, exports in the dialect, and reads what was written.
pub fn round_trip(folder: &Path, dtype: Option<DType>, dialect: Option<Dialect>) -> (Artifact, BTreeMap<String, Raw>, Value) {
    let work = tempfile::tempdir().unwrap();
    let (out, back) = (work.path().join("model.esp"), work.path().join("back"));
    import(folder, &out, dtype, &mut |_, _| {}).unwrap();
    let artifact = Artifact::open(&out).unwrap();
    artifact.verify().unwrap();
    export_safetensors(&artifact, artifact.manifest(), &back, dialect).unwrap();
    assert_eq!(std::fs::read_dir(work.path()).unwrap().count(), 2, "nothing but the artifact and the folder is left");
    (artifact, read(&back.join("model.safetensors")), config(&back))
}

/// An f32 tensor rounded to 16 bits.
pub fn rounded((_, shape, data): &Raw, dtype: Dtype) -> Raw {
    let values = data.chunks(4).map(|quad| f32::from_le_bytes(quad.try_into().unwrap()));
    let bits = values.map(|value| match dtype {
        Dtype::F16 => half::f16::from_f32(value).to_bits(),
        _ => half::bf16::from_f32(value).to_bits(),
    });
    (dtype, shape.clone(), bits.flat_map(u16::to_le_bytes).collect())
}

/// The manifest of the fixture `name` with other layers.
pub fn pruned(name: &str, layers: &[LayerShape]) -> Manifest {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("model.esp");
    import(&parity().join(name), &out, None, &mut |_, _| {}).unwrap();
    let imported = Artifact::open(&out).unwrap().manifest().clone();
    Manifest { origin: imported.origin, ..super::manifest(imported.architecture, layers.to_vec()) }
}

pub fn kept(heads: &[u32], groups: usize, channels: usize) -> LayerShape {
    LayerShape::Kept(Units { heads: heads.to_vec(), groups, channels, span: 0 })
}

/// Writes an artifact of the manifest, exports it in the dialect and imports that again.
pub fn export_and_import(manifest: &Manifest, dialect: Option<Dialect>) -> Result<(Artifact, Artifact)> {
    let work = tempfile::tempdir().unwrap();
    let (out, back, again) = (work.path().join("a.esp"), work.path().join("back"), work.path().join("b.esp"));
    super::write(&out, manifest, DType::F16, 3)?;
    let artifact = Artifact::open(&out)?;
    let exported = export_safetensors(&artifact, artifact.manifest(), &back, dialect);
    if exported.is_err() {
        assert!(!back.exists() && std::fs::read_dir(work.path()).unwrap().count() == 1, "a refused export leaves nothing behind");
    }
    exported?;
    import(&back, &again, None, &mut |_, _| {})?;
    Ok((artifact, Artifact::open(&again)?))
}

/// The tensors of a fixture as `1 + w` in f32 leaves them, for a family whose norms are stored as what they add to 1; else as they are.
pub fn as_stored(folder: &Path, mut tensors: BTreeMap<String, Raw>) -> BTreeMap<String, Raw> {
    if config(folder)["model_type"] != "gemma3_text" {
        return tensors;
    }
    for (_, (dtype, _, data)) in tensors.iter_mut().filter(|(name, _)| name.ends_with("norm.weight") || name.ends_with("layernorm.weight"))
    {
        let through = |value: f32| (1.0 + value) - 1.0;
        match dtype {
            Dtype::F32 => data.chunks_exact_mut(4).for_each(|quad| {
                let value = f32::from_le_bytes(quad.try_into().unwrap());
                quad.copy_from_slice(&through(value).to_le_bytes());
            }),
            Dtype::F16 => data.chunks_exact_mut(2).for_each(|pair| {
                let value = half::f16::from_le_bytes(pair.try_into().unwrap()).to_f32();
                pair.copy_from_slice(&half::f16::from_f32(through(value)).to_le_bytes());
            }),
            _ => data.chunks_exact_mut(2).for_each(|pair| {
                let value = half::bf16::from_le_bytes(pair.try_into().unwrap()).to_f32();
                pair.copy_from_slice(&half::bf16::from_f32(through(value)).to_le_bytes());
            }),
        }
    }
    tensors
}
