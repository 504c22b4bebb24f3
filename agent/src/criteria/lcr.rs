//! How much a layer changes the residual stream.
//!
//! `LCR_l = E[ ‖h_out − h_in‖₂ / ‖h_in‖₂ ]` (arXiv 2606.26861) and block influence `BI_l = E[ 1 − cos(h_in, h_out) ]` (Men et al., 2024),
//! the means over tokens. The layer with the lowest change matters least.

use espalier_kernels::Device;
use espalier_runtime::{Input, Pass, RuntimeError, Workspace};

use crate::error::{AgentError, Result};

/// Sums over the tokens seen so far.
#[derive(Debug, Clone)]
pub struct ResidualChange {
    /// Sum of the change ratios and of 1 − cosine, one pair a kept layer.
    sums: Vec<(f64, f64)>,
    tokens: usize,
}

impl ResidualChange {
    /// Nothing seen, for a network of `layers` kept layers.
    pub fn new(layers: usize) -> Self {
        Self { sums: vec![(0.0, 0.0); layers], tokens: 0 }
    }

    /// Runs a batch of `tokens` tokens and adds what each layer changes. The workspace must keep layer inputs.
    pub fn add<D: Device>(&mut self, pass: &Pass<'_, D>, workspace: &mut Workspace<D>, input: Input<'_>, tokens: usize) -> Result<()> {
        let network = pass.network;
        network.device.enter(|| {
            pass.forward(workspace, input, None)?;
            for (position, sums) in self.sums.iter_mut().enumerate() {
                let (Some(before), Some(after)) = (workspace.hidden(position), workspace.hidden(position + 1)) else {
                    return Err(AgentError::from(RuntimeError::Input("residual change needs a workspace that keeps layer inputs".into())));
                };
                let (lcr, bi) = network.device.residual_change(before, after, tokens, network.architecture.d_model)?;
                sums.0 += lcr;
                sums.1 += bi;
            }
            Ok(())
        })?;
        self.tokens += tokens;
        Ok(())
    }

    /// LCR of every kept layer.
    pub fn lcr(&self) -> Vec<f64> {
        self.sums.iter().map(|sums| sums.0 / self.tokens.max(1) as f64).collect()
    }

    /// Block influence of every kept layer.
    pub fn block_influence(&self) -> Vec<f64> {
        self.sums.iter().map(|sums| sums.1 / self.tokens.max(1) as f64).collect()
    }
}
