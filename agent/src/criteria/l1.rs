//! L1 norm of a unit's weights over its whole coupled slice (arXiv 2606.26861; without data, so it costs one read of the weights).

use espalier_kernels::Device;
use espalier_models::{Part, TensorKey};
use espalier_runtime::Network;

use crate::error::Result;

/// L1 scores of one layer's units.
#[derive(Debug, Clone, PartialEq)]
pub struct L1Scores {
    /// Every query head: its Q rows and O rows, and the K and V rows of its group.
    pub heads: Vec<f64>,
    /// Every KV group as one coupled unit: its K and V rows, and the Q and O rows of all heads that share it.
    pub groups: Vec<f64>,
    /// Every channel: its up (and gate) row and its down row.
    pub channels: Vec<f64>,
}

/// Scores the units of one layer.
pub fn l1<D: Device>(network: &Network<D>, layer: usize) -> Result<L1Scores> {
    let units = network.units(layer)?;
    let width = network.architecture.attention.head_dim;
    let by_head =
        |part| -> Result<Vec<f64>> { Ok(row_norms(network, layer, part)?.chunks(width.max(1)).map(|rows| rows.iter().sum()).collect()) };
    let add = |a: Vec<f64>, b: Vec<f64>| -> Vec<f64> { a.iter().zip(&b).map(|(a, b)| a + b).collect() };
    let own = add(by_head(Part::Query)?, by_head(Part::AttentionOutput)?);
    let shared = add(by_head(Part::Key)?, by_head(Part::Value)?);
    let mut groups = shared.clone();
    for (score, group) in own.iter().zip(&units.heads) {
        groups[*group as usize] += score;
    }
    let heads = own.iter().zip(&units.heads).map(|(score, group)| score + shared[*group as usize]).collect();
    let mut channels = add(row_norms(network, layer, Part::Up)?, row_norms(network, layer, Part::Down)?);
    if network.architecture.ffn.gated {
        channels = add(channels, row_norms(network, layer, Part::Gate)?);
    }
    Ok(L1Scores { heads, groups, channels })
}

fn row_norms<D: Device>(network: &Network<D>, layer: usize, part: Part) -> Result<Vec<f64>> {
    let device = &network.device;
    let weight = network.weight(TensorKey::of_layer(layer, part))?;
    let (rows, _) = device.weight_shape(weight);
    let mut out = device.zeros(rows)?;
    let mut norms = vec![0.0; rows];
    device.row_l1(&mut out, weight)?;
    device.read(&out, 0, &mut norms)?;
    Ok(norms.into_iter().map(f64::from).collect())
}
