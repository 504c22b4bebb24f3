//! A network from scratch.

use espalier_kernels::Device;
use espalier_models::{Architecture, ModelShape};
use espalier_runtime::{Gradients, Input, Keep, LogitRows, Network, Pass, RuntimeError, Workspace, WorkspaceSize};

use super::batches::{Batches, Examples};
use super::optimizer::{Constants, Optimizer, Schedule};
use super::progress::{Progress, Report, RunningMean, Stop};
use crate::error::{AgentError, Result};
use crate::signals::{Augment, Rng};

/// How a network is trained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DenseOptions {
    /// Windows in a step.
    pub batch: usize,
    /// Steps.
    pub steps: usize,
    /// Peak learning rate.
    pub learning_rate: f32,
    /// Weight decay of matrices.
    pub weight_decay: f32,
    /// Augmentation of every window.
    pub augment: Augment,
    /// Seed of initial weights, order and augmentation.
    pub seed: u64,
}

/// How a training went.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DenseReport {
    /// Optimizer steps.
    pub steps: usize,
    /// Running mean of the loss at the end, in nats.
    pub loss: f64,
    /// Seconds.
    pub seconds: f64,
}

/// Gradients longer than this are shortened: a bound against single bad batches, as GPT-2's and most later recipes use it.
const CLIP: f64 = 1.0;

/// Trains a fresh network of `shape`.
pub fn train_dense<D: Device>(
    device: &D,
    architecture: Architecture,
    shape: ModelShape,
    examples: &dyn Examples,
    options: DenseOptions,
    progress: &mut dyn Progress,
    stop: &Stop,
) -> Result<(Network<D>, DenseReport)> {
    let started = std::time::Instant::now();
    let mut rng = Rng::for_stream(options.seed, 0);
    let sequence = architecture.patches();
    let size = WorkspaceSize { batch: options.batch, sequence, keep: Keep::Everything, logits: LogitRows::All, rank: 0, gates: false };
    let mut workspace = Workspace::new(device, &architecture, &shape, size)?;
    let mut network = Network::initialise(device.clone(), architecture, shape, &mut || rng.normal() as f32)?;
    let constants = Constants { weight_decay: options.weight_decay, beta2: 0.99, ..Constants::default() };
    let mut optimizer = Optimizer::for_parameters(&mut network, constants)?;
    let mut gradients = Gradients::of_parameters(&mut network)?;
    let mut batches = Batches::new(examples, options.batch, options.augment, options.seed ^ 0x5eed)?;
    let schedule = Schedule { peak: options.learning_rate, warmup: (options.steps / 20).max(1), total: options.steps };
    let mut targets = device.indices(&vec![0; options.batch])?;
    let (mut loss, mut accuracy) = (RunningMean::new(0.05), RunningMean::new(0.05));
    let mut latest = 0.0;
    progress.begin("training", options.steps);
    for step in 0..options.steps {
        stop.check()?;
        let (windows, classes) = batches.next_batch()?;
        device.write_indices(&mut targets, classes)?;
        let value = device.enter(|| {
            gradients.clear(device)?;
            let value = Pass::of(&network).loss_and_gradients(&mut workspace, Input::Windows(windows), &targets, &mut gradients)?;
            gradients.clip(device, CLIP)?;
            optimizer.step_parameters(&mut network, &gradients, schedule.at(step))?;
            Ok::<_, AgentError>(value)
        })?;
        if !value.is_finite() {
            return Err(AgentError::Training(format!("the loss became {value} at step {step}; lower the learning rate")));
        }
        latest = loss.add(value);
        let right = accuracy.add(right_share(device, &workspace, classes, network.architecture.output_width())?);
        progress.step(Report { done: step + 1, total: options.steps, loss: latest, accuracy: Some(right) });
    }
    let seconds = started.elapsed().as_secs_f64();
    progress.end(&format!("{} steps in {seconds:.1} s, loss {latest:.3}", options.steps));
    Ok((network, DenseReport { steps: options.steps, loss: latest, seconds }))
}

/// Share of the rows of the last pass's logits whose largest is the class.
pub(crate) fn right_share<D: Device>(device: &D, workspace: &Workspace<D>, classes: &[u32], width: usize) -> Result<f64> {
    let mut logits = vec![0.0; classes.len() * width];
    device.read(workspace.logits(), 0, &mut logits).map_err(RuntimeError::from)?;
    let right = logits.chunks_exact(width).zip(classes).filter(|(row, class)| largest(row) == **class as usize).count();
    Ok(right as f64 / classes.len().max(1) as f64)
}

/// Index of the largest number; the first of equals.
pub(crate) fn largest(row: &[f32]) -> usize {
    let mut best = 0;
    for (index, x) in row.iter().enumerate() {
        if *x > row[best] {
            best = index;
        }
    }
    best
}
