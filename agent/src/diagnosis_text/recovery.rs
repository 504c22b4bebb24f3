//! LoRA adapters trained on prompts, each with the label of its class (Hu et al., 2021): the loss is that of the label's tokens alone.

use espalier_kernels::{Device, NO_TARGET};
use espalier_runtime::{Adapter, Gradients, Input, Keep, LogitRows, Network, Pass, Workspace, WorkspaceSize, workspace_bytes};

use super::prompts::TextExamples;
use crate::error::{AgentError, Result};
use crate::signals::{Rng, normalise};
use crate::train::batches::Batches;
use crate::train::optimizer::{Constants, Optimizer, Schedule};
use crate::train::progress::{Progress, Report, RunningMean, Stop};
use crate::train::recovery::{Length, RecoveryOptions, RecoveryReport, with_margin};

/// Trains fresh adapters on `network`, one prompt at a time, the gradients of a step's `options.batch` prompts added up. All activations
/// are kept where that fits `available` bytes, else the inputs of the layers.
pub fn recover<D: Device>(
    network: &Network<D>,
    examples: &TextExamples<'_>,
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
    let mut optimizer = Optimizer::for_adapters(device, &adapters, Constants::default())?;
    let mut gradients = Gradients::of_adapters(device, &adapters)?;
    let taken: u64 = adapters.iter().map(|adapter| 4 * adapter.bytes(device)).sum();
    let size = fitting_size(network, examples.longest(), options.adapters.rank, available.saturating_sub(taken))?;
    let mut workspace = Workspace::new(device, &network.architecture, &network.shape, size)?;
    let mut batches = Batches::new(examples, 1, options.augment, options.seed ^ 0x10aa)?;
    let batch = options.batch.max(1);
    let steps = match length {
        Length::Steps(steps) => steps,
        Length::Epochs(epochs) => (epochs * batches.per_epoch() as f64 / batch as f64).round() as usize,
    };
    let schedule = Schedule { peak: options.learning_rate, warmup: (steps / 10).max(1), total: steps };
    let mut targets = device.indices(&vec![NO_TARGET; size.sequence])?;
    let (mut loss, mut latest) = (RunningMean::new(0.1), f64::NAN);
    let mut window = Vec::new();
    progress.begin("LoRA", steps);
    for step in 0..steps {
        let mut value = 0.0;
        gradients.clear(device)?;
        for _ in 0..batch {
            stop.check()?;
            let (samples, classes) = batches.next_batch()?;
            window.clear();
            window.extend_from_slice(samples);
            // The noise of the augmentation has made the window wider than the model will ever see one.
            if normalise(&mut window).is_err() {
                continue;
            }
            let sequence = examples.sequence(&window, classes[0] as usize)?;
            device.write_indices(&mut targets, &sequence.targets)?;
            let pass = Pass { network, adapters: &adapters, gates: None };
            let input = Input::Tokens { ids: &sequence.ids, sequence: sequence.ids.len() };
            value += device.enter(|| pass.loss_and_gradients(&mut workspace, input, &targets, &mut gradients))? / batch as f64;
        }
        if !value.is_finite() {
            return Err(AgentError::Training(format!("the loss became {value} at step {step}; lower the learning rate")));
        }
        device.enter(|| {
            gradients.scale(device, 1.0 / batch as f32)?;
            gradients.clip(device, 1.0)?;
            optimizer.step_adapters(device, &mut adapters, &gradients, schedule.at(step))
        })?;
        latest = loss.add(value);
        progress.step(Report { done: step + 1, total: steps, loss: latest, accuracy: None });
    }
    let seconds = started.elapsed().as_secs_f64();
    progress.end(&format!("{steps} steps in {seconds:.1} s, loss {latest:.3}"));
    Ok((adapters, RecoveryReport { steps, micro_batch: 1, loss: latest, seconds }))
}

/// The workspace of one prompt.
fn fitting_size<D: Device>(network: &Network<D>, sequence: usize, rank: usize, available: u64) -> Result<WorkspaceSize> {
    let mut needed = 0;
    for keep in [Keep::Everything, Keep::LayerInputs] {
        let size = WorkspaceSize { batch: 1, sequence, keep, logits: LogitRows::All, rank, gates: false };
        needed = with_margin(workspace_bytes(&network.architecture, &network.shape, &size));
        if needed <= available {
            return Ok(size);
        }
    }
    Err(AgentError::LimitTooSmall { what: "training on one prompt at a time".into(), needed, limit: available })
}
