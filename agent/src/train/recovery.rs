//! Recovery after a cut: LoRA adapters, trained on the calibration set while the base stays as it is (Hu et al., 2021; the cascade's
//! settings are those of arXiv 2606.26861).

use espalier_kernels::{Device, NO_TARGET};
use espalier_models::architecture::Output;
use espalier_runtime::{
    Adapter, AdapterOptions, Gradients, Input, Keep, LogitRows, Network, Pass, Workspace, WorkspaceSize, workspace_bytes,
};

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

impl Length {
    /// Optimizer steps, where a pass over the set has `per_epoch`. Any part of an epoch is at least one step.
    pub fn steps(self, per_epoch: f64) -> usize {
        match self {
            Length::Steps(steps) => steps,
            Length::Epochs(epochs) if epochs > 0.0 => ((epochs * per_epoch).round() as usize).max(1),
            Length::Epochs(_) => 0,
        }
    }
}

/// How a cut is recovered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RecoveryOptions {
    /// Which adapters.
    pub adapters: AdapterOptions,
    /// Windows in a step. Where memory is short they are taken a few at a time, the last few in full, and their gradients added up.
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
    /// Windows at a time.
    pub micro_batch: usize,
    /// Running mean of the loss at the end, in nats.
    pub loss: f64,
    /// Seconds.
    pub seconds: f64,
}

/// Trains fresh adapters on `network`. Of the sizes `batch`, `batch / 2` … as many windows are taken at a time as have activations that fit
/// `available` bytes, keeping all activations where that fits too; the gradients of a step are added up. Where `batch` is a power of two a
/// step is the same whatever the memory, only slower; else it rounds up to whole micro-batches.
pub fn recover<D: Device>(
    network: &Network<D>,
    examples: &dyn Examples,
    length: Length,
    options: RecoveryOptions,
    available: u64,
    progress: &mut dyn Progress,
    stop: &Stop,
) -> Result<(Vec<Adapter<D>>, RecoveryReport)> {
    if let Some(prompts) = examples.by_text() {
        return crate::diagnosis_text::recovery::recover(network, prompts, length, options, available, progress, stop);
    }
    let device = &network.device;
    let (sequence, windows) = (network.architecture.patches(), options.batch);
    let training = Training { name: "recovery", examples, length, options, available, sequence, windows };
    training.run(network, progress, stop, &mut |part| {
        device.write_indices(part.targets, part.classes)?;
        let input = Input::Windows(part.windows);
        Ok(device.enter(|| part.pass.loss_and_gradients(part.workspace, input, part.targets, part.gradients))?)
    })
}

/// A few windows of a step, and what they are trained with.
pub(crate) struct MicroBatch<'a, D: Device> {
    pub pass: Pass<'a, D>,
    pub workspace: &'a mut Workspace<D>,
    /// As many as there are rows of logits.
    pub targets: &'a mut D::Indices,
    /// Added to.
    pub gradients: &'a mut Gradients<D>,
    /// Augmented windows `[classes, window]`.
    pub windows: &'a [f32],
    pub classes: &'a [u32],
}

/// The training of adapters, whatever a window becomes before the network reads it.
pub(crate) struct Training<'a> {
    /// For the progress bar.
    pub name: &'static str,
    pub examples: &'a dyn Examples,
    pub length: Length,
    pub options: RecoveryOptions,
    /// Bytes for adapters, their gradients and moments, and activations.
    pub available: u64,
    /// Patches or tokens of a window.
    pub sequence: usize,
    /// Windows at a time at most.
    pub windows: usize,
}

impl Training<'_> {
    /// Trains fresh adapters; `add` gives the loss of a micro-batch and adds its gradients.
    pub fn run<D: Device>(
        self,
        network: &Network<D>,
        progress: &mut dyn Progress,
        stop: &Stop,
        add: &mut dyn FnMut(MicroBatch<'_, D>) -> Result<f64>,
    ) -> Result<(Vec<Adapter<D>>, RecoveryReport)> {
        let Self { name, examples, length, options, available, .. } = self;
        let started = std::time::Instant::now();
        let device = &network.device;
        let mut rng = Rng::for_stream(options.seed, 1);
        let mut adapters = Adapter::for_network(network, options.adapters, &mut || rng.between(-1.0, 1.0) as f32)?;
        let mut optimizer = Optimizer::for_adapters(device, &adapters, Constants::default())?;
        let mut gradients = Gradients::of_adapters(device, &adapters)?;
        // The adapters, their gradients and two moments are there; what is left of the budget is for activations.
        let taken: u64 = adapters.iter().map(|adapter| 4 * adapter.bytes(device)).sum();
        let size = self.fitting_size(network, available.saturating_sub(taken))?;
        let mut workspace = Workspace::new(device, &network.architecture, &network.shape, size)?;
        let parts = options.batch.max(1).div_ceil(size.batch);
        let mut batches = Batches::new(examples, size.batch, options.augment, options.seed ^ 0x10aa)?;
        let steps = length.steps(batches.per_epoch() as f64 / parts as f64);
        let schedule = Schedule { peak: options.learning_rate, warmup: (steps / 10).max(1), total: steps };
        let rows = match network.architecture.output {
            Output::Classes { .. } => size.batch,
            Output::NextToken { .. } => size.batch * size.sequence,
        };
        let mut targets = device.indices(&vec![NO_TARGET; rows])?;
        let (mut loss, mut latest) = (RunningMean::new(0.1), f64::NAN);
        progress.begin(name, steps);
        for step in 0..steps {
            let mut value = 0.0;
            gradients.clear(device)?;
            for _ in 0..parts {
                stop.check()?;
                let (windows, classes) = batches.next_batch()?;
                let pass = Pass { network, adapters: &adapters, gates: None };
                let (workspace, targets, gradients) = (&mut workspace, &mut targets, &mut gradients);
                value += add(MicroBatch { pass, workspace, targets, gradients, windows, classes })? / parts as f64;
            }
            if !value.is_finite() {
                return Err(AgentError::Training(format!("the loss became {value} at step {step} of the {name}; lower its learning rate")));
            }
            device.enter(|| {
                gradients.scale(device, 1.0 / parts as f32)?;
                gradients.clip(device, 1.0)?;
                optimizer.step_adapters(device, &mut adapters, &gradients, schedule.at(step))
            })?;
            latest = loss.add(value);
            progress.step(Report { done: step + 1, total: steps, loss: latest, accuracy: None });
        }
        let seconds = started.elapsed().as_secs_f64();
        progress.end(&format!("{steps} steps in {seconds:.1} s, loss {latest:.3}"));
        Ok((adapters, RecoveryReport { steps, micro_batch: size.batch, loss: latest, seconds }))
    }

    /// The largest workspace that fits `available` bytes with its margin.
    fn fitting_size<D: Device>(&self, network: &Network<D>, available: u64) -> Result<WorkspaceSize> {
        let (sequence, rank) = (self.sequence, self.options.adapters.rank);
        let mut smallest = u64::MAX;
        let mut batch = self.windows.max(1);
        loop {
            for keep in [Keep::Everything, Keep::LayerInputs] {
                let size = WorkspaceSize { batch, sequence, keep, logits: LogitRows::All, rank, gates: false };
                let bytes = with_margin(workspace_bytes(&network.architecture, &network.shape, &size));
                if bytes <= available {
                    return Ok(size);
                }
                smallest = smallest.min(bytes);
            }
            if batch == 1 {
                let what = format!("{} of one window at a time", self.name);
                return Err(AgentError::LimitTooSmall { what, needed: smallest, limit: available });
            }
            batch /= 2;
        }
    }
}

/// Bytes of activations with what goes with them: the windows of a batch on the host and the scratch of matrix products.
pub fn with_margin(activations: u64) -> u64 {
    activations + activations / 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_an_epoch_is_at_least_one_step_and_none_is_none() {
        let cases = [
            (Length::Steps(0), 10.0, 0),
            (Length::Steps(7), 0.1, 7),
            (Length::Epochs(0.0), 10.0, 0),
            (Length::Epochs(1.0), 10.0 / 32.0, 1),
            (Length::Epochs(1e-9), 10.0, 1),
            (Length::Epochs(2.0), 10.0, 20),
        ];
        let failures: Vec<String> = cases
            .iter()
            .filter(|(length, per_epoch, steps)| length.steps(*per_epoch) != *steps)
            .map(|(length, per_epoch, steps)| format!("{length:?} of {per_epoch}: {}, expected {steps}", length.steps(*per_epoch)))
            .collect();
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }
}
