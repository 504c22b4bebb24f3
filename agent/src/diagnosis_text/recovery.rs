//! LoRA adapters trained on prompts, each with the label of its class (Hu et al., 2021): the loss is that of the label's tokens alone.

use espalier_kernels::Device;
use espalier_runtime::{Adapter, Input, Network};

use super::prompts::TextExamples;
use crate::error::Result;
use crate::signals::normalise;
use crate::train::progress::{Progress, Stop};
use crate::train::recovery::{Length, RecoveryOptions, RecoveryReport, Training};

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
    let device = &network.device;
    let mut window = Vec::new();
    let training = Training { name: "LoRA", examples, length, options, available, sequence: examples.longest(), windows: 1 };
    training.run(network, progress, stop, &mut |part| {
        window.clear();
        window.extend_from_slice(part.windows);
        // The noise of the augmentation has made the window wider than the model will ever see one.
        if normalise(&mut window).is_err() {
            return Ok(0.0);
        }
        let sequence = examples.sequence(&window, part.classes[0] as usize)?;
        device.write_indices(part.targets, &sequence.targets)?;
        let input = Input::Tokens { ids: &sequence.ids, sequence: sequence.ids.len() };
        Ok(device.enter(|| part.pass.loss_and_gradients(part.workspace, input, part.targets, part.gradients))?)
    })
}
