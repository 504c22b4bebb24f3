//! The holdout loss of a removal that is only tried: units gated to zero, nothing written.

use espalier_kernels::Device;
use espalier_runtime::{Gates, Input, Keep, LogitRows, Network, Pass, Workspace, WorkspaceSize, workspace_bytes};

use super::selection::Selection;
use crate::criteria::lcr::ResidualChange;
use crate::error::{AgentError, Result};
use crate::train::Examples;
use crate::train::dense::right_share;
use crate::train::recovery::with_margin;

/// Mean cross entropy and accuracy on the holdout.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HoldoutScore {
    /// Nats.
    pub loss: f64,
    /// Share of right windows.
    pub accuracy: f64,
}

/// Windows at once, where memory allows: large enough for the matrix products, small enough for a small device.
const BATCH: usize = 32;

/// Evenly spread windows of a set, at most `limit`.
pub fn spread(count: usize, limit: usize) -> impl Iterator<Item = usize> {
    let taken = count.min(limit);
    (0..taken).map(move |index| index * count / taken.max(1))
}

/// What is called with the normalised windows of a batch and their classes.
type EachBatch<'a> = dyn FnMut(&[f32], &[u32]) -> Result<()> + 'a;

/// Runs `work` on batches of normalised windows of `examples`, at most `limit` windows in all.
fn batches(examples: &dyn Examples, limit: usize, batch: usize, work: &mut EachBatch<'_>) -> Result<()> {
    let (mut windows, mut classes) = (Vec::new(), Vec::new());
    let length = examples.window();
    for index in spread(examples.count(), limit) {
        let start = windows.len();
        windows.resize(start + length, 0.0);
        let Some(class) = examples.load(index, &mut windows[start..])? else {
            windows.truncate(start);
            continue;
        };
        classes.push(class);
        if classes.len() == batch {
            work(&windows, &classes)?;
            windows.clear();
            classes.clear();
        }
    }
    if classes.is_empty() { Ok(()) } else { work(&windows, &classes) }
}

/// The largest batch up to [`BATCH`] whose workspace fits `available` bytes.
fn workspace<D: Device>(network: &Network<D>, examples: &dyn Examples, keep: Keep, available: u64) -> Result<(Workspace<D>, usize)> {
    // Prompts differ in length, so each is a batch of its own.
    let (sequence, mut batch) = examples.by_text().map_or((network.architecture.patches(), BATCH), |prompts| (prompts.longest(), 1));
    loop {
        let size = WorkspaceSize { batch, sequence, keep, logits: LogitRows::All, rank: 0, gates: true };
        let needed = with_margin(workspace_bytes(&network.architecture, &network.shape, &size));
        if needed <= available {
            return Ok((Workspace::new(&network.device, &network.architecture, &network.shape, size)?, batch));
        }
        if batch == 1 {
            return Err(AgentError::LimitTooSmall { what: "importance of one window at a time".into(), needed, limit: available });
        }
        batch /= 2;
    }
}

/// Tries removals on one network.
pub struct Trial<'a, D: Device> {
    network: &'a Network<D>,
    holdout: &'a dyn Examples,
    limit: usize,
    workspace: Workspace<D>,
    batch: usize,
}

impl<'a, D: Device> Trial<'a, D> {
    /// Tries on at most `limit` evenly spread windows of `holdout`, within `available` bytes.
    pub fn new(network: &'a Network<D>, holdout: &'a dyn Examples, limit: usize, available: u64) -> Result<Self> {
        // Half: layers are scored, with a workspace of their own, while this one is there.
        let (workspace, batch) = workspace(network, holdout, Keep::Nothing, available / 2)?;
        Ok(Self { network, holdout, limit, workspace, batch })
    }

    /// The holdout's score with only the selected units.
    pub fn score(&mut self, selection: &Selection) -> Result<HoldoutScore> {
        let network = self.network;
        let gates = gates(network, selection)?;
        let device = &network.device;
        let width = network.architecture.output_width();
        let mut targets = device.indices(&vec![0; self.batch * self.workspace.size().sequence])?;
        let (mut loss, mut right, mut count) = (0.0, 0.0, 0.0);
        let workspace = &mut self.workspace;
        batches(self.holdout, self.limit, self.batch, &mut |windows, classes| {
            let pass = Pass { network, adapters: &[], gates: Some(&gates) };
            if let Some(prompts) = self.holdout.by_text() {
                let (own, is_right) = prompts.judge(&pass, workspace, &mut targets, windows, classes[0] as usize)?;
                loss += own;
                right += f64::from(u8::from(is_right));
                count += 1.0;
                return Ok(());
            }
            device.write_indices(&mut targets, classes)?;
            let weight = classes.len() as f64;
            loss += weight * device.enter(|| pass.loss(workspace, Input::Windows(windows), &targets))?;
            right += weight * right_share(device, workspace, classes, width)?;
            count += weight;
            Ok(())
        })?;
        if count == 0.0 {
            return Err(AgentError::Training("the holdout has no usable window".into()));
        }
        Ok(HoldoutScore { loss: loss / count, accuracy: right / count })
    }
}

/// LCR of every selected layer on at most `limit` evenly spread windows of `calibration`, with `selection` gated; by stored index.
pub fn layer_change<D: Device>(
    network: &Network<D>,
    calibration: &dyn Examples,
    limit: usize,
    available: u64,
    selection: &Selection,
) -> Result<Vec<(usize, f64)>> {
    let gates = gates(network, selection)?;
    let (mut workspace, batch) = workspace(network, calibration, Keep::LayerInputs, available)?;
    let kept = network.kept_layers();
    let mut change = ResidualChange::new(kept.len());
    batches(calibration, limit, batch, &mut |windows, classes| {
        let pass = Pass { network, adapters: &[], gates: Some(&gates) };
        if let Some(prompts) = calibration.by_text() {
            let ids = prompts.sequence(windows, classes[0] as usize)?.ids;
            return change.add(&pass, &mut workspace, Input::Tokens { ids: &ids, sequence: ids.len() }, ids.len());
        }
        change.add(&pass, &mut workspace, Input::Windows(windows), classes.len() * network.architecture.patches())
    })?;
    let selected = |layer: &usize| selection.layers.get(*layer).is_some_and(Option::is_some);
    Ok(kept.into_iter().zip(change.lcr()).filter(|(layer, _)| selected(layer)).collect())
}

/// Gates that leave only the selected units.
pub fn gates<D: Device>(network: &Network<D>, selection: &Selection) -> Result<Gates<D>> {
    let mut gates = Gates::open(network.shape.layers.len());
    for (index, layer) in selection.layers.iter().enumerate() {
        let Some(units) = network.shape.layers.get(index).and_then(espalier_models::LayerShape::units) else { continue };
        let Some(layer) = layer else {
            gates.skip_layer(index, true)?;
            continue;
        };
        let factors = |kept: &[usize], count: usize| {
            let mut factors = vec![0.0; count];
            kept.iter().for_each(|unit| factors[*unit] = 1.0);
            factors
        };
        if layer.heads.len() < units.heads.len() {
            gates.set_heads(&network.device, index, &factors(&layer.heads, units.heads.len()))?;
        }
        if layer.channels.len() < units.channels {
            gates.set_channels(&network.device, index, &factors(&layer.channels, units.channels))?;
        }
    }
    Ok(gates)
}
