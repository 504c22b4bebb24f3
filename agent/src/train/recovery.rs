//! Recovery after a cut: LoRA adapters, trained on the calibration set while the base stays as it is (Hu et al., 2021; the cascade's
//! settings are those of arXiv 2606.26861).

use espalier_kernels::Device;
use espalier_runtime::{Adapter, AdapterOptions, Gradients, Input, Keep, LogitRows, Network, Pass, Workspace, WorkspaceSize, workspace_bytes};

use super::batches::{Batches, Examples};
use super::optimizer::{Constants, Optimizer, Schedule};
use super::progress::{Progress, Report, RunningMean, Stop};
use crate::error::{AgentError, Result};
use crate::signals::{Augment, Rng};

/// How long a recovery is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Length {
    /// Optimizer steps.
    Steps(usize),
    /// Passes over the calibration set.
    Epochs(f64),
}

/// How a cut is recovered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RecoveryOptions {
    /// Which adapters.
    pub adapters: AdapterOptions,
    /// Windows in a step; fewer where memory is short.
    pub batch: usize,
    /// Peak learning rate.
    pub learning_rate: f32,
    /// Augmentation of every window.
    pub augment: Augment,
    /// Seed of adapters, order and augmentation.
    pub seed: u64,
}

impl Default for RecoveryOptions {
    fn default() -> Self {
        Self { adapters: AdapterOptions::default(), batch: 32, learning_rate: 3e-3, augment: Augment::default(), seed: 42 }
    }
}

/// How a recovery went.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RecoveryReport {
    /// Optimizer steps.
    pub steps: usize,
    /// Windows in a step.
    pub batch: usize,
    /// Running mean of the loss at the end, in nats.
    pub loss: f64,
    /// Seconds.
    pub seconds: f64,
}

/// Trains fresh adapters on `network`. Of the batch sizes `batch`, `batch / 2` … the largest whose activations fit `available` bytes is
/// taken, keeping all activations where that fits too; the loss is the same, only its gradient is noisier and slower.
pub fn recover<D: Device>(
    network: &Network<D>,
    examples: &dyn Examples,
    length: Length,
    options: RecoveryOptions,
    available: u64,
    progress: &mut dyn Progress,
    stop: &Stop,
) -> Result<(Vec<Adapter<D>>, RecoveryReport)> {
    let started = std::time::Instant::now();
    let device = &network.device;
    let mut rng = Rng::for_stream(options.seed, 1);
    let mut adapters = Adapter::for_network(network, options.adapters, &mut || rng.between(-1.0, 1.0) as f32)?;
    let size = fitting_size(network, options.batch, options.adapters.rank, available)?;
    let mut workspace = Workspace::new(device, &network.architecture, &network.shape, size)?;
    let mut optimizer = Optimizer::for_adapters(device, &adapters, Constants::default())?;
    let mut gradients = Gradients::of_adapters(device, &adapters)?;
    let mut batches = Batches::new(examples, size.batch, options.augment, options.seed ^ 0x10aa)?;
    let steps = match length {
        Length::Steps(steps) => steps,
        Length::Epochs(epochs) => (epochs * batches.per_epoch() as f64).round() as usize,
    };
    let schedule = Schedule { peak: options.learning_rate, warmup: (steps / 10).max(1), total: steps };
    let mut targets = device.indices(&vec![0; size.batch])?;
    let mut loss = RunningMean::new(0.1);
    let mut latest = f64::NAN;
    progress.begin("recovery", steps);
    for step in 0..steps {
        stop.check()?;
        let (windows, classes) = batches.next_batch()?;
        device.write_indices(&mut targets, classes)?;
        let value = device.enter(|| {
            gradients.clear(device)?;
            let pass = Pass { network, adapters: &adapters, gates: None };
            let value = pass.loss_and_gradients(&mut workspace, Input::Windows(windows), &targets, &mut gradients)?;
            gradients.clip(device, 1.0)?;
            optimizer.step_adapters(device, &mut adapters, &gradients, schedule.at(step))?;
            Ok::<_, AgentError>(value)
        })?;
        if !value.is_finite() {
            return Err(AgentError::Training(format!("the loss became {value} at step {step} of the recovery; lower its learning rate")));
        }
        latest = loss.add(value);
        progress.step(Report { done: step + 1, total: steps, loss: latest, accuracy: None });
    }
    let seconds = started.elapsed().as_secs_f64();
    progress.end(&format!("{steps} steps in {seconds:.1} s, loss {latest:.3}"));
    Ok((adapters, RecoveryReport { steps, batch: size.batch, loss: latest, seconds }))
}

/// The largest workspace within `available` bytes, of which a quarter is left for gradients, moments and packing.
fn fitting_size<D: Device>(network: &Network<D>, batch: usize, rank: usize, available: u64) -> Result<WorkspaceSize> {
    let sequence = network.architecture.patches();
    let usable = available - available / 4;
    let mut smallest = u64::MAX;
    let mut candidate = batch.max(1);
    loop {
        for keep in [Keep::Everything, Keep::LayerInputs] {
            let size = WorkspaceSize { batch: candidate, sequence, keep, logits: LogitRows::All, rank, gates: false };
            let bytes = workspace_bytes(&network.architecture, &network.shape, &size);
            if bytes <= usable {
                return Ok(size);
            }
            smallest = smallest.min(bytes);
        }
        if candidate == 1 {
            return Err(AgentError::LimitTooSmall { what: "recovery of one window at a time".into(), needed: smallest + smallest / 3, limit: available });
        }
        candidate = candidate.div_ceil(2);
    }
}
