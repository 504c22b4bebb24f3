//! LoRA adapters trained on prompts, each with the label of its class (Hu et al., 2021): the loss is that of the label's tokens alone.

use espalier_kernels::{Device, NO_TARGET};
use espalier_runtime::{Adapter, Gradients, Input, Keep, LogitRows, Network, Pass, Workspace, WorkspaceSize, workspace_bytes};

use super::engine::Prompts;
use crate::error::{AgentError, Result};
use crate::signals::{Rng, normalise};
use crate::train::batches::{Batches, Examples};
use crate::train::optimizer::{Constants, Optimizer, Schedule};
use crate::train::progress::{Progress, Report, RunningMean, Stop};
use crate::train::recovery::{Length, RecoveryOptions, RecoveryReport, with_margin};

/// Tokens by which a prompt may be longer than the longest that was looked at.
const SPARE_TOKENS: usize = 32;

/// Prompts that are looked at for their length.
const LOOKED_AT: usize = 64;

/// Trains fresh adapters on `network`, one prompt at a time, the gradients of a step's `options.batch` prompts added up. All activations
/// are kept where that fits `available` bytes, else the inputs of the layers.
#[allow(clippy::too_many_arguments)]
pub fn recover<D: Device>(
    network: &Network<D>,
    prompts: &mut Prompts,
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
    let mut optimizer = Optimizer::for_adapters(device, &adapters, Constants::default())?;
    let mut gradients = Gradients::of_adapters(device, &adapters)?;
    let taken: u64 = adapters.iter().map(|adapter| 4 * adapter.bytes(device)).sum();
    let size = fitting_size(network, prompts, examples, options.adapters.rank, available.saturating_sub(taken))?;
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
    let (mut window, mut next) = (Vec::new(), Vec::new());
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
            let ids = sequence(prompts, &window, classes[0] as usize, &mut next)?;
            check_length(&ids, size.sequence)?;
            device.write_indices(&mut targets, &next)?;
            let pass = Pass { network, adapters: &adapters, gates: None };
            let input = Input::Tokens { ids: &ids, sequence: ids.len() };
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

/// The prompt of a window with the label of `class` but for its last token, and the target of each position in `targets`: the label's
/// tokens at the positions before them.
fn sequence(prompts: &mut Prompts, window: &[f32], class: usize, targets: &mut Vec<u32>) -> Result<Vec<u32>> {
    let mut ids = prompts.prompt(window)?;
    let unknown = || AgentError::Training(format!("class {class} has no label"));
    let label = prompts.labels().get(class).ok_or_else(unknown)?;
    targets.clear();
    targets.resize(ids.len().saturating_sub(1), NO_TARGET);
    targets.extend_from_slice(label);
    ids.extend_from_slice(&label[..label.len() - 1]);
    Ok(ids)
}

fn check_length(ids: &[u32], most: usize) -> Result<()> {
    if ids.len() <= most {
        return Ok(());
    }
    Err(AgentError::Training(format!("a prompt has {} tokens, more than the {most} that room was made for", ids.len())))
}

/// The workspace of one prompt.
fn fitting_size<D: Device>(
    network: &Network<D>,
    prompts: &mut Prompts,
    examples: &dyn Examples,
    rank: usize,
    available: u64,
) -> Result<WorkspaceSize> {
    let mut window = vec![0.0; examples.window()];
    let (mut longest, mut next) = (0, Vec::new());
    let step = examples.count().div_ceil(LOOKED_AT).max(1);
    for index in (0..examples.count()).step_by(step) {
        if let Some(class) = examples.load(index, &mut window)? {
            longest = longest.max(sequence(prompts, &window, class as usize, &mut next)?.len());
        }
    }
    let context = network.architecture.context();
    if longest == 0 || longest > context {
        return Err(AgentError::Training(format!("prompts have {longest} tokens; the model reads 1 to {context}")));
    }
    let sequence = (longest + SPARE_TOKENS).min(context);
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
