//! A session that turns windows into class probabilities.

use std::sync::Arc;

use espalier_kernels::{Device, Reservation};
use espalier_models::artifact::Artifact;

use crate::budget::Budget;
use crate::error::{Result, RuntimeError};
use crate::forward::Pass;
use crate::mapped::load_resident;
use crate::network::Network;
use crate::workspace::{Keep, LogitRows, Workspace, WorkspaceSize};

/// Passes that are kept recorded. Who judges windows as they come has one or two numbers of them, and every recording takes memory of the
/// driver's that nobody books.
const RECORDED_PASSES: usize = 4;

/// A classifier that is ready: network, buffers, and the reservation of its mapped pages. A device that can record a pass does so at the
/// second that has so many windows and replays it from then on, for each of the last four numbers of windows. After that neither the device
/// nor the host allocates.
pub struct Classifier<D: Device> {
    network: Network<D>,
    workspace: Workspace<D>,
    window: usize,
    probabilities: Vec<f32>,
    /// Recorded passes, each with its number of windows; the last used first.
    passes: [(usize, D::Graph); RECORDED_PASSES],
    _mapped: Option<Reservation>,
}

impl<D: Device> Classifier<D> {
    /// Opens a session for up to `batch` windows at once. Where the device reads in place, the artifact's whole mapping counts as working
    /// set and is reserved.
    pub fn open(device: &D, budget: &Arc<Budget>, artifact: &Arc<Artifact>, batch: usize) -> Result<Self> {
        let architecture = &artifact.manifest().architecture;
        let espalier_models::architecture::Input::Patches { window, .. } = architecture.input else {
            let path = artifact.path().display();
            return Err(RuntimeError::Input(format!("{path} is a language model; it does not classify windows (see `espalier generate`)")));
        };
        let size = serving_size(architecture.patches(), batch);
        let workspace = Workspace::new(device, architecture, &artifact.manifest().shape(), size)?;
        let (network, mapped) = load_resident(device, budget, artifact)?;
        let probabilities = vec![0.0; batch * network.architecture.output_width()];
        Ok(Self { network, workspace, window, probabilities, passes: Default::default(), _mapped: mapped })
    }

    /// Probabilities `[windows, classes]` of normalised windows, one after the other.
    pub fn classify(&mut self, windows: &[f32]) -> Result<&[f32]> {
        let classes = self.network.architecture.output_width();
        let count = windows.len() / self.window.max(1);
        let Self { network, workspace, passes, .. } = self;
        let graph = recorded(passes, count);
        let device = network.device.clone();
        device.enter(|| {
            let pass = Pass::of(network);
            pass.place(workspace, windows)?;
            device.replay(graph, || {
                pass.forward_placed(workspace, count)?;
                device.softmax(&mut workspace.logits, count, classes)?;
                Ok::<_, RuntimeError>(())
            })
        })?;
        let out = &mut self.probabilities[..count * classes];
        self.network.device.read(&self.workspace.logits, 0, out)?;
        Ok(out)
    }

    /// The network that is served.
    pub fn network(&self) -> &Network<D> {
        &self.network
    }

    /// Samples of a window.
    pub fn window(&self) -> usize {
        self.window
    }
}

/// The recording for `count` windows, moved to the front: other numbers of windows are other work.
fn recorded<G: Default>(passes: &mut [(usize, G); RECORDED_PASSES], count: usize) -> &mut G {
    match passes.iter().position(|(windows, _)| *windows == count) {
        Some(index) => passes[..=index].rotate_right(1),
        None => {
            passes.rotate_right(1);
            passes[0] = (count, G::default());
        }
    }
    &mut passes[0].1
}

/// The workspace of a classifier.
pub(crate) fn serving_size(sequence: usize, batch: usize) -> WorkspaceSize {
    WorkspaceSize { batch, sequence, keep: Keep::Nothing, logits: LogitRows::All, rank: 0, gates: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_numbers_of_windows_keep_their_recordings() {
        let mut passes: [(usize, u32); RECORDED_PASSES] = Default::default();
        let mut uses = |counts: &[usize]| -> Vec<u32> {
            let one = |count: &usize| {
                let graph = recorded(&mut passes, *count);
                *graph += 1;
                *graph
            };
            counts.iter().map(one).collect()
        };
        assert_eq!(uses(&[8, 8, 3, 8, 3]), [1, 2, 1, 3, 2]);
        assert_eq!(uses(&[1, 2, 8, 3]), [1, 1, 4, 3], "four are kept");
        assert_eq!(uses(&[5, 2, 8, 3, 1]), [1, 2, 5, 4, 1], "the one that was used longest ago goes");
    }
}
