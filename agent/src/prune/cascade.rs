//! The cascade (arXiv 2606.26861): layers, then heads, then FFN channels, each stage recovered with LoRA and importance estimated anew on
//! the recovered network before the next.
//!
//! Every stage ends as an artifact: the cut network is written, read back layer by layer while its adapters are trained, and written
//! again with them merged. So the memory that a cascade needs beside the served model is one layer, the activations of a batch, and the
//! adapters; and a stage's artifact is all that is needed to go on from it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use espalier_kernels::{Device, Purpose, Reservation};
use espalier_models::artifact::Artifact;
use espalier_models::formats::Format;
use espalier_models::manifest::Measured;
use espalier_models::tensor::{layer_tensors, model_tensors};
use espalier_models::{Manifest, ModelShape, TensorSpec};
use espalier_runtime::{Budget, Keep, LogitRows, Network, Residency, WorkspaceSize, workspace_bytes};

use super::pack::{HostAdapter, PackNote, matrix_dtype, pack};
use super::selection::Selection;
use super::split::{Cutter, Split};
use super::target::{Target, describe};
use super::trial::{HoldoutScore, Trial};
use crate::diagnosis_text::token_limit;
use crate::error::{AgentError, Result, file_error};
use crate::train::recovery::with_margin;
use crate::train::{Examples, Length, Progress, RecoveryOptions, Stop, recover};

/// How a cascade is done.
#[derive(Debug, Clone, PartialEq)]
pub struct CascadeOptions {
    /// What the network must fit into.
    pub target: Target,
    /// What is kept; measured where it is not given.
    pub split: Option<Split>,
    /// Recovery after the layers, the heads and the channels. A length of 0 leaves it out.
    pub lengths: [Length; 3],
    /// How a stage is recovered.
    pub recovery: RecoveryOptions,
    /// Windows of the holdout on which a cut is tried.
    pub trial_windows: usize,
    /// Windows of the calibration set on which layers are scored.
    pub calibration_windows: usize,
}

/// One stage as it went.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct StageReport {
    /// `layers`, `heads` or `channels`.
    pub stage: &'static str,
    /// What is left, in words.
    pub left: String,
    /// Kept parameters.
    pub parameters: usize,
    /// Bytes of the stage's artifact.
    pub artifact_bytes: u64,
    /// Holdout loss after the cut, before recovery.
    pub cut_loss: f64,
    /// Holdout accuracy after the cut, before recovery.
    pub cut_accuracy: f64,
    /// Holdout loss after recovery.
    pub loss: f64,
    /// Holdout accuracy after recovery.
    pub accuracy: f64,
    /// Optimizer steps.
    pub steps: usize,
    /// Seconds, everything included.
    pub seconds: f64,
    /// The stage's artifact.
    #[serde(skip)]
    pub path: PathBuf,
}

/// How a cascade went.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct CascadeResult {
    /// The three stages.
    pub stages: Vec<StageReport>,
    /// What was kept.
    pub split: Split,
    /// Holdout loss of the network it began with.
    pub dense_loss: f64,
    /// Holdout accuracy of the network it began with.
    pub dense_accuracy: f64,
}

/// Everything that a cascade works with.
pub struct Cascade<'a, D: Device> {
    /// Where it computes; its ledger is the budget.
    pub device: D,
    /// What it may hold.
    pub budget: &'a Arc<Budget>,
    /// Windows for importance and recovery.
    pub calibration: &'a dyn Examples,
    /// Windows that decide.
    pub holdout: &'a dyn Examples,
    /// How it is done.
    pub options: CascadeOptions,
    /// The folder for the stages' artifacts; each is left there.
    pub folder: &'a Path,
    /// Hears how it goes.
    pub progress: &'a mut dyn Progress,
    /// Stops it.
    pub stop: &'a Stop,
}

/// What a cascade holds beside what devices book: a batch of windows (256 KiB at 32 × 2048), rows on their way into an artifact and the
/// writer's buffer (under 512 KiB together for a network that a small board serves), and the scratch of matrix products.
const HOST_BYTES: u64 = 1 << 20;

const STAGES: [&str; 3] = ["layers", "heads", "channels"];

impl CascadeOptions {
    /// Bytes that a cascade needs at least beside the model that is mapped already: one layer of a stage, the activations of a window at a
    /// time, and the adapters with their gradients and moments.
    pub fn needed_bytes(&self, manifest: &Manifest) -> u64 {
        let architecture = &manifest.architecture;
        let shape = manifest.shape();
        let rank = self.recovery.adapters.rank;
        // A language model that judges by text reads a prompt where another reads patches.
        let size = WorkspaceSize {
            batch: 1,
            sequence: manifest.diagnosis.as_ref().map_or(architecture.patches(), |_| token_limit(architecture)),
            keep: Keep::LayerInputs,
            logits: LogitRows::All,
            rank,
            gates: true,
        };
        HOST_BYTES
            + streamed_bytes(manifest, &shape)
            + with_margin(workspace_bytes(architecture, &shape, &size))
            + 4 * adapter_bytes(manifest, self)
    }
}

impl<D: Device> Cascade<'_, D> {
    /// Runs the three stages from `source` and returns how they went; the last stage's artifact is the result. The caller has booked the
    /// source's map, which stays resident; of the stages' artifacts one layer at a time is.
    pub fn run(&mut self, source: &Arc<Artifact>) -> Result<CascadeResult> {
        self.check(source)?;
        let _host = Reservation::new(self.budget.clone(), Purpose::Pack, HOST_BYTES)?;
        let mut current = source.clone();
        let mut stages: Vec<StageReport> = Vec::new();
        let mut dense = None;
        for stage in 0..STAGES.len() {
            self.stop.check()?;
            let started = std::time::Instant::now();
            let residency = if stage == 0 { Residency::Resident } else { Residency::Streamed };
            let (selection, before) = self.cut(&current, stage, residency)?;
            let dense = dense.get_or_insert(before);
            let report = self.write_stage(&current, &selection, stage, *dense)?;
            current = Arc::new(Artifact::open(&report.path)?);
            stages.push(StageReport { seconds: started.elapsed().as_secs_f64(), ..report });
        }
        let dense = dense.unwrap_or(HoldoutScore { loss: f64::NAN, accuracy: f64::NAN });
        let shape = current.manifest().shape();
        let first = shape.kept().next().map(|(_, units)| (units.groups, units.channels)).unwrap_or((0, 0));
        let split = Split { layers: shape.kept().count(), heads: first.0, channels: first.1 };
        Ok(CascadeResult { stages, split, dense_loss: dense.loss, dense_accuracy: dense.accuracy })
    }

    /// Refuses what cannot work before anything is read at length.
    fn check(&self, source: &Artifact) -> Result<()> {
        let manifest = source.manifest();
        if manifest.architecture.patches() == 0 && self.calibration.by_text().is_none() {
            return Err(AgentError::Usage(format!(
                "{} is a language model that was not trained to make a diagnosis; the cascade recovers models that judge signals",
                source.path().display()
            )));
        }
        if let Some(split) = self.options.split {
            split.check(manifest)?;
        }
        let needed = self.budget.used() + self.options.needed_bytes(manifest);
        let limit = self.budget.limit();
        if needed > limit {
            return Err(AgentError::LimitTooSmall { what: "pruning this model".into(), needed, limit });
        }
        Ok(())
    }

    /// Loads a network with the reservation of what is not booked yet.
    fn load(&self, artifact: &Arc<Artifact>, residency: Residency) -> Result<(Network<D>, Reservation)> {
        let bytes = match residency {
            Residency::Resident => 0,
            Residency::Streamed => streamed_bytes(artifact.manifest(), &artifact.manifest().shape()),
        };
        let mapped = Reservation::new(self.budget.clone(), Purpose::Weights, bytes)?;
        Ok((Network::load(self.device.clone(), artifact, residency)?, mapped))
    }

    /// Decides what a stage cuts, and scores the network before it.
    fn cut(&mut self, current: &Arc<Artifact>, stage: usize, residency: Residency) -> Result<(Selection, HoldoutScore)> {
        let (network, _mapped) = self.load(current, residency)?;
        let options = &self.options;
        let cutter = Cutter::new(&network, current.manifest(), options.target)?;
        if stage == 0 && options.split.is_none() {
            cutter.check_feasible()?;
        }
        let available = self.budget.available();
        let mut trial = Trial::new(&network, self.holdout, options.trial_windows, available)?;
        let before = trial.score(&Selection::all(&network.shape))?;
        let selection = match stage {
            0 => {
                let (limit, keep) = (options.calibration_windows, options.split.map(|split| split.layers));
                let left = self.budget.available();
                cutter.cut_layers(&mut trial, self.calibration, limit, left, keep)?
            }
            1 => cutter.cut_groups(&mut trial, options.split.map(|split| split.heads))?,
            _ => cutter.cut_channels(options.split.map(|split| split.channels))?,
        };
        Ok((selection, before))
    }

    /// Writes the cut network, recovers it, and writes it again with the adapters merged.
    fn write_stage(&mut self, current: &Arc<Artifact>, selection: &Selection, stage: usize, dense: HoldoutScore) -> Result<StageReport> {
        let cut_path = self.folder.join(format!("{}-cut.esp", STAGES[stage]));
        let path = self.folder.join(format!("{}.esp", STAGES[stage]));
        let history = format!("pruned to {} by the cascade", describe(&selection.shape(&current.manifest().shape())));
        pack(current, selection, &[], &cut_path, PackNote { history, measured: None })?;
        let cut = Arc::new(Artifact::open(&cut_path)?);
        let cut_score = self.score(&cut)?;
        let length = self.options.lengths[stage];
        // What was not cut needs no recovery: an earlier stage's recovery stands.
        let nothing_cut = cut.manifest().parameters() == current.manifest().parameters();
        let (steps, score) = if is_zero(length) || nothing_cut {
            std::fs::rename(&cut_path, &path).map_err(|error| file_error("cannot rename", &cut_path, &error))?;
            (0, cut_score)
        } else {
            self.recover_into(&cut, &path, length, stage)?
        };
        drop(cut);
        if cut_path.exists() {
            std::fs::remove_file(&cut_path).map_err(|error| file_error("cannot remove", &cut_path, &error))?;
        }
        let artifact = Artifact::open(&path)?;
        log::info!("{}: holdout loss {:.3} → {:.3} cut → {:.3} recovered", STAGES[stage], dense.loss, cut_score.loss, score.loss);
        Ok(StageReport {
            stage: STAGES[stage],
            left: describe(&artifact.manifest().shape()),
            parameters: artifact.manifest().parameters(),
            artifact_bytes: artifact.file_bytes(),
            cut_loss: cut_score.loss,
            cut_accuracy: cut_score.accuracy,
            loss: score.loss,
            accuracy: score.accuracy,
            steps,
            seconds: 0.0,
            path,
        })
    }

    fn recover_into(&mut self, cut: &Arc<Artifact>, path: &Path, length: Length, stage: usize) -> Result<(usize, HoldoutScore)> {
        let (network, mapped) = self.load(cut, Residency::Streamed)?;
        // The seed moves with the stage, so that two stages do not train on the same order and noise.
        let recovery = RecoveryOptions { seed: self.options.recovery.seed.wrapping_add(stage as u64), ..self.options.recovery };
        let available = self.budget.available();
        let (adapters, report) = recover(&network, self.calibration, length, recovery, available, self.progress, self.stop)?;
        let host = HostAdapter::download(&network.device, &adapters)?;
        drop(adapters);
        drop(network);
        drop(mapped);
        let selection = Selection::all(&cut.manifest().shape());
        let note = |measured| PackNote {
            history: format!("recovered with LoRA rank {} in {} steps", recovery.adapters.rank, report.steps),
            measured,
        };
        pack(cut, &selection, &host, path, note(None))?;
        let score = self.score(&Arc::new(Artifact::open(path)?))?;
        if stage + 1 == STAGES.len() {
            // The last stage's artifact is the one that is served: it carries what the holdout said of it.
            let measured = Measured { accuracy: Some(score.accuracy), loss: score.loss, latency_ms: None };
            pack(cut, &selection, &host, path, note(Some(measured)))?;
        }
        Ok((report.steps, score))
    }

    /// The whole holdout's score of an artifact.
    fn score(&self, artifact: &Arc<Artifact>) -> Result<HoldoutScore> {
        let (network, _mapped) = self.load(artifact, Residency::Streamed)?;
        let mut trial = Trial::new(&network, self.holdout, self.options.trial_windows, self.budget.available())?;
        trial.score(&Selection::all(&network.shape))
    }
}

fn is_zero(length: Length) -> bool {
    match length {
        Length::Steps(steps) => steps == 0,
        Length::Epochs(epochs) => epochs <= 0.0,
    }
}

/// Mapped bytes of a streamed network: what no layer owns, and its largest layer.
fn streamed_bytes(manifest: &Manifest, shape: &ModelShape) -> u64 {
    let dtype = matrix_dtype(manifest);
    let stored = |spec: &TensorSpec| Format::of(spec, dtype).bytes().unwrap_or(usize::MAX) as u64;
    let mut layers: BTreeMap<Option<u32>, u64> = BTreeMap::new();
    for spec in model_tensors(&manifest.architecture, shape) {
        let bytes = layers.entry(spec.key.layer).or_default();
        *bytes = bytes.saturating_add(stored(&spec));
    }
    let fixed = layers.remove(&None).unwrap_or(0);
    fixed.saturating_add(layers.into_values().max().unwrap_or(0))
}

/// Bytes of the adapters of a network.
fn adapter_bytes(manifest: &Manifest, options: &CascadeOptions) -> u64 {
    let architecture = &manifest.architecture;
    let adapters = &options.recovery.adapters;
    let groups = adapters.groups(architecture.attention.fused_qkv, architecture.ffn.gated);
    let mut numbers = 0;
    for (layer, units) in manifest.shape().kept() {
        let specs = layer_tensors(architecture, layer, units);
        let rows = |part| specs.iter().find(|spec| spec.key.part == part).map_or(0, |spec| spec.rows);
        let units: usize = groups.iter().flatten().map(|part| rows(*part)).sum();
        numbers += adapters.rank * (units + groups.len() * architecture.d_model);
    }
    4 * numbers as u64
}
