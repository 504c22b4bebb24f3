//! The models whose graphs are compared with the native engine: every parity fixture as it is and pruned in two ways, fixtures in 16 bits
//! and quantised, those pruned too, and a signal model, dense and pruned.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use espalier_agent::prune::pack::{PackNote, pack, write_network};
use espalier_agent::prune::{LayerSelection, Selection};
use espalier_kernels::{CpuDevice, Device, Unlimited};
use espalier_models::architecture::Input as InputKind;
use espalier_models::checkpoint::import;
use espalier_models::{Artifact, DType, Units};
use espalier_runtime::{
    Budget, Continues, Generator, Input, Keep, LogitRows, Network, Pass, Residency, Sampling, Workspace, WorkspaceSize,
};

pub type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// Windows or sequences of a batch.
pub const BATCH: usize = 2;
/// Tokens of a sequence.
pub const SEQUENCE: usize = 17;
/// Tokens of the prompt that is continued.
pub const PROMPT: usize = 8;
/// Tokens of the continuation.
pub const GREEDY: usize = 16;

/// A model, and the one of the same numbers in f32 that says what it computes.
pub struct Case {
    pub name: String,
    pub artifact: Arc<Artifact>,
    pub reference: Arc<Artifact>,
}

/// Every case, each in a folder of its own under `root`; `signal` is a trained signal model.
pub fn cases(root: &Path, signal: &Path) -> Fallible<Vec<Case>> {
    let mut cases = Vec::new();
    let parity = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity");
    let mut fixtures: Vec<PathBuf> = std::fs::read_dir(parity)?
        .filter_map(|entry| Some(entry.ok()?.path()).filter(|path| path.join("model.safetensors").is_file()))
        .collect();
    fixtures.sort();
    for fixture in fixtures {
        let name = fixture.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let place = |suffix: &str| -> Fallible<PathBuf> {
            let folder = root.join(format!("{name}{suffix}"));
            std::fs::create_dir_all(&folder)?;
            Ok(folder.join("model.esp"))
        };
        let imported = |path: PathBuf, dtype| -> Fallible<Arc<Artifact>> {
            import(&fixture, &path, Some(dtype), &mut |_, _| {})?;
            Ok(Arc::new(Artifact::open(&path)?))
        };
        let dense = imported(place("")?, DType::F32)?;
        for (suffix, cut) in CUTS {
            cases.push(single(format!("{name}-{suffix}"), cut_to(&dense, cut, &place(&format!("-{suffix}"))?)?));
        }
        for (suffix, dtype) in [("f16", DType::F16), ("bf16", DType::Bf16), ("q8", DType::Q8), ("q4", DType::Q4)] {
            let artifact = imported(place(&format!("-{suffix}"))?, dtype)?;
            if matches!(dtype, DType::Q8 | DType::Q4) {
                let cut = cut_to(&artifact, pruned, &place(&format!("-{suffix}-pruned"))?)?;
                cases.push(dequantised(format!("{name}-{suffix}-pruned"), cut)?);
            }
            cases.push(dequantised(format!("{name}-{suffix}"), artifact)?);
        }
        cases.push(single(name, dense));
    }
    let folders = ["signal", "signal-pruned", "signal-emptied"].map(|name| root.join(name));
    folders.iter().try_for_each(std::fs::create_dir_all)?;
    let dense = folders[0].join("model.esp");
    std::fs::copy(signal, &dense)?;
    let dense = Arc::new(Artifact::open(&dense)?);
    for ((suffix, cut), folder) in CUTS.into_iter().zip(&folders[1..]) {
        cases.push(single(format!("signal-{suffix}"), cut_to(&dense, cut, &folder.join("model.esp"))?));
    }
    cases.push(single("signal".to_string(), dense));
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(cases)
}

/// Beside a model of fewer bits, one of the same numbers in f32.
fn dequantised(name: String, artifact: Arc<Artifact>) -> Fallible<Case> {
    let path = artifact.path().with_file_name("f32.esp");
    let reference = write_network(artifact.manifest().clone(), DType::F32, artifact.as_ref(), &path)?;
    Ok(Case { name, artifact, reference: Arc::new(Artifact::open(&reference)?) })
}

fn single(name: String, artifact: Arc<Artifact>) -> Case {
    Case { name, reference: artifact.clone(), artifact }
}

/// What stays of the layer at an index, of that many.
type Cut = fn(usize, usize, &Units) -> Option<LayerSelection>;

const CUTS: [(&str, Cut); 2] = [("pruned", pruned), ("emptied", emptied)];

/// Of three layers and more the second goes; of the others every third channel, the first KV group of the first layer where there are
/// more, and the last query head of the last. Units stay in another order than they had.
fn pruned(index: usize, layers: usize, units: &Units) -> Option<LayerSelection> {
    if layers > 2 && index == 1 {
        return None;
    }
    let mut kept = LayerSelection::all(units);
    if index == 0 {
        kept.keep_groups(units, (usize::from(units.groups > 1)..units.groups).rev().collect());
    } else if index + 1 == layers && kept.heads.len() > 1 {
        kept.heads.pop();
        kept.heads.reverse();
    }
    kept.channels = (0..units.channels).rev().filter(|channel| channel % 3 != 0).collect();
    Some(kept)
}

/// The first layer has no heads, the last no channels.
fn emptied(index: usize, layers: usize, units: &Units) -> Option<LayerSelection> {
    let mut kept = LayerSelection::all(units);
    if index == 0 {
        kept.keep_groups(units, Vec::new());
    } else if index + 1 == layers {
        kept.channels.clear();
    }
    Some(kept)
}

fn cut_to(dense: &Arc<Artifact>, cut: Cut, path: &Path) -> Fallible<Arc<Artifact>> {
    let shape = dense.manifest().shape();
    let layers = shape.layers.len();
    let selected = shape.layers.iter().enumerate().map(|(index, layer)| cut(index, layers, layer.units()?)).collect();
    let note = PackNote { history: "Cut by a test.".to_string(), measured: None };
    Ok(Arc::new(Artifact::open(&pack(dense, &Selection { layers: selected }, &[], path, note)?)?))
}

/// What a model reads in a comparison.
pub enum Given {
    /// `[BATCH, SEQUENCE]`.
    Tokens(Vec<u32>),
    /// `[BATCH, window]`.
    Windows(Vec<f32>),
}

impl Case {
    /// The same numbers on every run.
    pub fn given(&self) -> Given {
        match self.artifact.manifest().architecture.input {
            InputKind::Tokens { vocabulary } => {
                Given::Tokens((0..BATCH * SEQUENCE).map(|index| ((index * index * 7 + index * 3 + 1) % vocabulary) as u32).collect())
            }
            InputKind::Patches { window, .. } => {
                Given::Windows((0..BATCH * window).map(|index| (index as f32 * 0.37).sin() + 0.5 * (index as f32 * 1.9).cos()).collect())
            }
        }
    }

    /// The native engine's logits: `[BATCH, SEQUENCE, vocabulary]` or `[BATCH, classes]`.
    pub fn logits(&self, given: &Given) -> Fallible<Vec<f32>> {
        self.logits_of(&self.reference, given)
    }

    /// The native engine's logits of another artifact of the same shape.
    pub fn logits_of(&self, artifact: &Arc<Artifact>, given: &Given) -> Fallible<Vec<f32>> {
        let network = Network::load(CpuDevice::new(1, Arc::new(Unlimited))?, artifact, Residency::Resident)?;
        let (input, sequence, rows) = match given {
            Given::Tokens(ids) => (Input::Tokens { ids, sequence: SEQUENCE }, SEQUENCE, BATCH * SEQUENCE),
            Given::Windows(windows) => (Input::Windows(windows), network.architecture.patches(), BATCH),
        };
        let size = WorkspaceSize { batch: BATCH, sequence, keep: Keep::Nothing, logits: LogitRows::All, rank: 0, gates: false };
        let mut workspace = Workspace::new(&network.device, &network.architecture, &network.shape, size)?;
        Pass::of(&network).forward(&mut workspace, input, None)?;
        let mut logits = vec![0.0; rows * network.architecture.output_width()];
        network.device.read(workspace.logits(), 0, &mut logits)?;
        Ok(logits)
    }

    /// The native engine's greedy continuation of the prompt.
    pub fn greedy(&self, prompt: &[u32]) -> Fallible<Vec<u32>> {
        let device = CpuDevice::new(1, Arc::new(Unlimited))?;
        let mut generator = Generator::open(&device, &Arc::new(Budget::unlimited()), &self.reference, prompt.len() + GREEDY)?;
        let mut found = Vec::new();
        generator.generate(prompt, GREEDY, Sampling::default(), &mut || 0.0, &mut |id| {
            found.push(id);
            true
        })?;
        Ok(found)
    }
}
