//! One cell: its network, made or taken from the folder of cells, and its measurements.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};
use espalier_agent::data::Data;
use espalier_agent::evaluate::predict;
use espalier_agent::files::publish;
use espalier_agent::metrics::{Evaluation, Predictions};
use espalier_agent::prune::pack::write_trained;
use espalier_agent::prune::{Cascade, Split};
use espalier_agent::signal_model::dense_manifest;
use espalier_agent::signals::{Corpus, Noise, Protocol, ReadOptions};
use espalier_agent::train::{Progress, Report, Stop, train_dense};
use espalier_kernels::CpuDevice;
use espalier_models::Artifact;
use espalier_runtime::{Budget, PROCESS_BYTES};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::{BATCH, Cell, Method, SIZE};

/// Seed of the noise on test windows and of the bootstrap, the same for every network.
pub const NOISE_SEED: u64 = 42;

/// What is known of a finished cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CellResult {
    /// The settings it was made with.
    pub settings: serde_json::Value,
    /// Kept parameters.
    pub parameters: usize,
    /// Dense over kept parameters.
    pub compression_ratio: f64,
    /// Layers, heads and channels that are kept.
    pub kept: [usize; 3],
    /// How the network was made.
    pub made: Made,
    /// Every condition on every test set.
    pub tests: Vec<Tested>,
}

/// How a network was made.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Made {
    /// Optimizer steps: of the training, or of all recoveries.
    pub steps: usize,
    /// Seconds of the training, or of the whole cascade.
    pub seconds: f64,
    /// Accuracy on the holdout.
    pub holdout_accuracy: f64,
    /// Cross entropy on the holdout, in nats.
    pub holdout_loss: f64,
}

/// One condition on one test set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tested {
    /// The test set.
    pub set: String,
    /// Noise; none is clean.
    pub snr_db: Option<f64>,
    /// Windows.
    pub windows: u64,
    /// Share of right windows.
    pub accuracy: f64,
    /// Lower end of its 95 % interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Recordings or blocks that the interval rests on.
    pub clusters: u64,
    /// Accuracy without the normal class, where it is reported.
    pub accuracy_without_n: Option<f64>,
    /// Mean cross entropy, in nats.
    pub cross_entropy_nats: f64,
    /// Share of windows on which the dense network of the same training says the same.
    pub agreement: f64,
}

/// The conditions of every table: clean, then noise.
pub fn conditions() -> Vec<Option<f64>> {
    std::iter::once(None).chain(Noise::REPORTED_SNR_DB.map(Some)).collect()
}

/// What one network says of every test set under every condition.
struct Answers {
    /// The network's cell.
    key: String,
    /// By condition and test set.
    predictions: HashMap<(usize, usize), Predictions>,
}

/// Makes and measures cells.
pub struct Laboratory {
    device: CpuDevice,
    budget: Arc<Budget>,
    stop: Stop,
    recordings: PathBuf,
    cells: PathBuf,
    /// The protocol of the last cell.
    data: Option<(Protocol, Data)>,
    /// What the dense network of the last training says.
    dense: Option<Answers>,
}

impl Laboratory {
    /// Reads `recordings`, keeps results and networks in `cells`.
    pub fn new(threads: usize, recordings: PathBuf, cells: PathBuf, stop: Stop) -> Result<Self> {
        let budget = Arc::new(Budget::new(u64::MAX, PROCESS_BYTES));
        let device = CpuDevice::new(threads, budget.clone())?;
        Ok(Self { device, budget, stop, recordings, cells, data: None, dense: None })
    }

    /// Makes what is missing of a cell and measures it.
    pub fn run(&mut self, cell: &Cell) -> Result<CellResult> {
        self.open(cell)?;
        let (dense, dense_made) = self.dense_network(cell)?;
        let (artifact, made) = match cell.method {
            Method::Dense => (dense.clone(), dense_made),
            Method::Cascade { .. } => self.pruned_network(cell, &dense)?,
        };
        self.dense_predictions(cell, &dense)?;
        let tests = self.measure(cell, &artifact)?;
        let shape = artifact.manifest().shape();
        let (heads, channels) = shape.kept().next().map_or((0, 0), |(_, units)| (units.heads.len(), units.channels));
        let result = CellResult {
            settings: cell.settings(),
            parameters: artifact.manifest().parameters(),
            compression_ratio: artifact.manifest().compression_ratio(),
            kept: [shape.kept().count(), heads, channels],
            made,
            tests,
        };
        write_json(&result_path(&self.cells, cell), &result)?;
        Ok(result)
    }

    fn open(&mut self, cell: &Cell) -> Result<()> {
        if self.data.as_ref().is_none_or(|(protocol, _)| *protocol != cell.protocol) {
            self.data = Some((
                cell.protocol,
                Data::new(Corpus::open_with(&self.recordings, Some(&cell.protocol), &ReadOptions::default())?, &cell.protocol)?,
            ));
        }
        Ok(())
    }

    fn data(&self) -> Result<&Data> {
        self.data.as_ref().map(|(_, data)| data).ok_or_else(|| anyhow!("no recordings are open"))
    }

    /// The network of a cell, if an earlier run finished it.
    fn made(&self, cell: &Cell) -> Result<Option<(Arc<Artifact>, Made)>> {
        let (model, made) = (model_path(&self.cells, cell), made_path(&self.cells, cell));
        match (model.exists(), read_json::<Made>(&made)?) {
            (true, Some(made)) => Ok(Some((Arc::new(Artifact::open(&model)?), made))),
            _ => Ok(None),
        }
    }

    fn dense_network(&self, cell: &Cell) -> Result<(Arc<Artifact>, Made)> {
        let cell = cell.dense();
        if let Some(made) = self.made(&cell)? {
            return Ok(made);
        }
        let data = self.data()?;
        data.check()?;
        let architecture = SIZE.architecture(&data.split.classes, data.sample_rate_hz()?)?;
        let shape = SIZE.shape();
        let steps = (cell.family.epochs() * data.sets.train.len().div_ceil(BATCH) as f64).round() as usize;
        let examples = &data.sets.train;
        let (mut network, report) =
            train_dense(&self.device, architecture.clone(), shape.clone(), examples, cell.training(steps), &mut Lines, &self.stop)?;
        let history = format!("trained on {} for {} steps, seed {}", data.split.name, report.steps, cell.seed);
        let manifest = dense_manifest(&cell.name(), architecture, &shape, history, None);
        let scratch = tempfile::tempdir_in(&self.cells)?;
        let path = scratch.path().join("dense.esp");
        write_trained(&self.device, &mut network, manifest, &path)?;
        let artifact = Arc::new(Artifact::open(&path)?);
        let holdout = predict(&self.device, &self.budget, &artifact, &data.sets.holdout, &self.stop)?.evaluate(None, None, NOISE_SEED)?;
        let made = Made {
            steps: report.steps,
            seconds: report.seconds,
            holdout_accuracy: holdout.accuracy,
            holdout_loss: holdout.cross_entropy_nats,
        };
        self.keep(&cell, &path, made)
    }

    fn pruned_network(&self, cell: &Cell, dense: &Arc<Artifact>) -> Result<(Arc<Artifact>, Made)> {
        if let Some(made) = self.made(cell)? {
            return Ok(made);
        }
        let Method::Cascade { ratio, keep, recovered } = cell.method else { return Err(anyhow!("{} is not pruned", cell.name())) };
        let data = self.data()?;
        let scratch = tempfile::tempdir_in(&self.cells)?;
        let mut cascade = Cascade {
            device: self.device.clone(),
            budget: &self.budget,
            calibration: &data.sets.train,
            holdout: &data.sets.holdout,
            options: cell.pruning(ratio, keep, recovered),
            folder: scratch.path(),
            progress: &mut Lines,
            stop: &self.stop,
        };
        let result = cascade.run(dense)?;
        let last = result.stages.last().context("the cascade had no stages")?;
        let Split { layers, heads, channels } = result.split;
        eprintln!("  kept {layers} layers, {heads} heads, {channels} channels; holdout {:.1} %", 100.0 * last.accuracy);
        let made = Made {
            steps: result.stages.iter().map(|stage| stage.steps).sum(),
            seconds: result.stages.iter().map(|stage| stage.seconds).sum(),
            holdout_accuracy: last.accuracy,
            holdout_loss: last.loss,
        };
        self.keep(cell, &last.path, made)
    }

    /// Puts a finished network into the folder of cells, the network before the note that says it is finished.
    fn keep(&self, cell: &Cell, from: &Path, made: Made) -> Result<(Arc<Artifact>, Made)> {
        let path = model_path(&self.cells, cell);
        publish(from, &path)?;
        write_json(&made_path(&self.cells, cell), &made)?;
        Ok((Arc::new(Artifact::open(&path)?), made))
    }

    /// Asks the dense network of a training once, for the agreement of all that is cut from it.
    fn dense_predictions(&mut self, cell: &Cell, dense: &Arc<Artifact>) -> Result<()> {
        let key = cell.dense().key();
        if self.dense.as_ref().is_some_and(|answers| answers.key == key) {
            return Ok(());
        }
        let mut predictions = HashMap::new();
        for condition in 0..conditions().len() {
            for set in 0..self.data()?.sets.tests.len() {
                predictions.insert((condition, set), self.ask(dense, condition, set)?);
            }
        }
        self.dense = Some(Answers { key, predictions });
        Ok(())
    }

    fn ask(&self, artifact: &Arc<Artifact>, condition: usize, set: usize) -> Result<Predictions> {
        let noise = conditions()[condition].map(|snr_db| Noise { snr_db, seed: NOISE_SEED });
        let windows = self.data()?.sets.tests[set].clone().with_noise(noise);
        Ok(predict(&self.device, &self.budget, artifact, &windows, &self.stop)?)
    }

    fn measure(&self, cell: &Cell, artifact: &Arc<Artifact>) -> Result<Vec<Tested>> {
        let dense = self.dense.as_ref().context("the dense network was not asked")?;
        let mut tests = Vec::new();
        for (condition, snr_db) in conditions().into_iter().enumerate() {
            for (set, test) in self.data()?.split.test.iter().enumerate() {
                let reference = dense.predictions.get(&(condition, set)).context("the dense network was not asked")?;
                let asked = if cell.method == Method::Dense { None } else { Some(self.ask(artifact, condition, set)?) };
                let evaluation = asked.as_ref().unwrap_or(reference).evaluate(cell.family.without(), Some(reference), NOISE_SEED)?;
                tests.push(tested(&test.name, snr_db, evaluation));
            }
        }
        Ok(tests)
    }
}

fn tested(set: &str, snr_db: Option<f64>, evaluation: Evaluation) -> Tested {
    Tested {
        set: set.to_string(),
        snr_db,
        windows: evaluation.windows,
        accuracy: evaluation.accuracy,
        low: evaluation.interval.low,
        high: evaluation.interval.high,
        clusters: evaluation.interval.clusters,
        accuracy_without_n: evaluation.without.map(|without| without.accuracy),
        cross_entropy_nats: evaluation.cross_entropy_nats,
        agreement: evaluation.agreement.unwrap_or(f64::NAN),
    }
}

/// One line at the end of each part.
struct Lines;

impl Progress for Lines {
    fn begin(&mut self, _what: &str, _total: usize) {}
    fn step(&mut self, _report: Report) {}
    fn end(&mut self, summary: &str) {
        eprintln!("  {summary}");
    }
}

/// The result of a cell that an earlier run finished.
pub fn finished(cells: &Path, cell: &Cell) -> Result<Option<CellResult>> {
    let path = result_path(cells, cell);
    let Some(result) = read_json::<CellResult>(&path)? else { return Ok(None) };
    ensure!(
        result.settings == cell.settings(),
        "{} has other settings than its name says; delete it, and it is computed again",
        path.display()
    );
    Ok(Some(result))
}

fn result_path(cells: &Path, cell: &Cell) -> PathBuf {
    cells.join(format!("{}.json", cell.key()))
}

fn model_path(cells: &Path, cell: &Cell) -> PathBuf {
    cells.join(format!("{}.esp", cell.key()))
}

fn made_path(cells: &Path, cell: &Cell) -> PathBuf {
    cells.join(format!("{}.made.json", cell.key()))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => {
            let value = serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is damaged; delete it, and it is computed again", path.display()))?;
            Ok(Some(value))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    write_atomically(path, &(serde_json::to_string_pretty(value)? + "\n"))
}

/// Writes a file beside its place, then renames it: it is there as a whole or not at all.
pub fn write_atomically(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().context("a file needs a folder")?;
    let write = || -> Result<()> {
        let mut temporary =
            tempfile::Builder::new().permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644)).tempfile_in(folder)?;
        temporary.write_all(text.as_bytes())?;
        temporary.as_file().sync_all()?;
        temporary.persist(path)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
