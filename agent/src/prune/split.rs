//! How much goes at each stage.
//!
//! The cascade's paper does not say how a ratio is split over layers, heads and channels. Here it is measured on the holdout, by whole
//! plans: for every number of layers (the least changing go first), the plan is completed with the same share of heads and channels, as
//! gates, and the plan with the lowest loss says how many layers go. The stage after it does the same for heads, completed by channels,
//! on the recovered network; channels take what is left. A split can also be given. Why whole plans: docs/decisions/0003.

use espalier_kernels::Device;
use espalier_models::formats::blocks::BLOCK;
use espalier_models::{DType, Manifest, Units};
use espalier_runtime::Network;

use super::pack::matrix_dtype;
use super::selection::Selection;
use super::target::{Target, describe};
use super::trial::{Trial, layer_change};
use crate::criteria::l1::{L1Scores, l1};
use crate::error::{AgentError, Result};
use crate::train::Examples;

/// What is kept: layers, KV groups a layer (heads, where every head has its own) and channels a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Split {
    /// Kept layers.
    pub layers: usize,
    /// Kept KV groups of every kept layer.
    pub heads: usize,
    /// Kept channels of every kept layer.
    pub channels: usize,
}

/// Channels that a layer keeps at least, and whose multiples it keeps: one row block of the widest vector unit, or, of a network that is
/// stored in blocks of quants, one block of the down projection.
pub fn channel_block(manifest: &Manifest) -> usize {
    match matrix_dtype(manifest) {
        DType::F32 | DType::F16 | DType::Bf16 => 8,
        DType::Q8 | DType::Q4 => BLOCK,
    }
}

/// One network whose units are scored, and what is cut from it.
pub(super) struct Cutter<'a, D: Device> {
    pub network: &'a Network<D>,
    pub manifest: &'a Manifest,
    pub target: Target,
    pub scores: Vec<Option<L1Scores>>,
}

impl<'a, D: Device> Cutter<'a, D> {
    /// Scores all units by L1.
    pub fn new(network: &'a Network<D>, manifest: &'a Manifest, target: Target) -> Result<Self> {
        let mut scores: Vec<Option<L1Scores>> = (0..network.shape.layers.len()).map(|_| None).collect();
        for layer in network.kept_layers() {
            scores[layer] = Some(l1(network, layer)?);
            network.layer_done(layer)?;
        }
        Ok(Self { network, manifest, target, scores })
    }

    fn units(&self, layer: usize) -> Result<&Units> {
        Ok(self.network.units(layer)?)
    }

    fn fits(&self, selection: &Selection) -> Result<bool> {
        self.target.fits(self.manifest, selection)
    }

    /// At most `groups` KV groups in every kept layer, those with the largest scores.
    pub fn with_groups(&self, selection: &Selection, groups: usize) -> Result<Selection> {
        let mut cut = selection.clone();
        for (layer, kept) in cut.layers.iter_mut().enumerate() {
            if let (Some(kept), Some(scores)) = (kept, &self.scores[layer]) {
                let best = best(&scores.groups, kept.groups.clone(), groups);
                kept.keep_groups(self.units(layer)?, best);
            }
        }
        Ok(cut)
    }

    /// At most `channels` channels in every kept layer, those with the largest scores.
    pub fn with_channels(&self, selection: &Selection, channels: usize) -> Selection {
        let mut cut = selection.clone();
        for (kept, scores) in cut.layers.iter_mut().zip(&self.scores) {
            if let (Some(kept), Some(scores)) = (kept, scores) {
                kept.channels = best(&scores.channels, std::mem::take(&mut kept.channels), channels);
            }
        }
        cut
    }

    /// The smallest network with these layers.
    pub fn smallest(&self, selection: &Selection) -> Result<Selection> {
        Ok(self.with_channels(&self.with_groups(selection, 1)?, channel_block(self.manifest)))
    }

    /// Cuts layers by LCR, measured again before each cut.
    pub fn cut_layers(
        &self,
        trial: &mut Trial<'_, D>,
        calibration: &dyn Examples,
        limit: usize,
        available: u64,
        keep: Option<usize>,
    ) -> Result<Selection> {
        let mut selection = Selection::all(&self.network.shape);
        let mut best: Option<(f64, Selection)> = None;
        loop {
            if keep.is_none() {
                self.consider(trial, &selection, self.complete(&selection)?, &mut best)?;
            }
            let candidates = removable(&selection);
            if candidates.is_empty() || keep.is_some_and(|keep| selection.kept().count() <= keep.max(2)) {
                return Ok(best.map_or(selection, |(_, best)| best));
            }
            let change = layer_change(self.network, calibration, limit, available, &selection)?;
            let lowest = change.iter().filter(|(layer, _)| candidates.contains(layer)).min_by(|a, b| a.1.total_cmp(&b.1));
            let Some((layer, lcr)) = lowest else { return Ok(selection) };
            log::info!("next to go is layer {}: LCR {lcr:.4}", self.manifest.layers[*layer].original);
            selection.layers[*layer] = None;
        }
    }

    /// Tries a whole plan and remembers the cut that begins the best one.
    fn consider(
        &self,
        trial: &mut Trial<'_, D>,
        cut: &Selection,
        plan: Option<Selection>,
        best: &mut Option<(f64, Selection)>,
    ) -> Result<()> {
        let Some(plan) = plan else { return Ok(()) };
        let loss = trial.score(&plan)?.loss;
        log::info!("plan {}: holdout loss {loss:.3} before recovery", describe(&plan.shape(&self.network.shape)));
        if best.as_ref().is_none_or(|(lowest, _)| loss < *lowest) {
            *best = Some((loss, cut.clone()));
        }
        Ok(())
    }

    /// The selection with heads and channels cut to the target in nearly the same share; none where that is impossible.
    fn complete(&self, selection: &Selection) -> Result<Option<Selection>> {
        let (most_groups, most_channels) = (self.most_groups(selection), self.most_channels(selection));
        let mut best: Option<(f64, Selection)> = None;
        for groups in (1..=most_groups).rev() {
            let heads = self.with_groups(selection, groups)?;
            let Some(plan) = self.largest_channels(&heads, |candidate| self.fits(candidate))? else { continue };
            let share = |part: usize, whole: usize| part as f64 / whole.max(1) as f64;
            let imbalance = (share(groups, most_groups) - share(self.most_channels(&plan), most_channels)).abs();
            if best.as_ref().is_none_or(|(lowest, _)| imbalance < *lowest) {
                best = Some((imbalance, plan));
            }
        }
        Ok(best.map(|(_, plan)| plan))
    }

    fn most_groups(&self, selection: &Selection) -> usize {
        selection.kept().map(|(_, layer)| layer.groups.len()).max().unwrap_or(0)
    }

    fn most_channels(&self, selection: &Selection) -> usize {
        selection.kept().map(|(_, layer)| layer.channels.len()).max().unwrap_or(0)
    }

    /// Cuts KV groups, the same number in every layer.
    pub fn cut_groups(&self, trial: &mut Trial<'_, D>, keep: Option<usize>) -> Result<Selection> {
        let all = Selection::all(&self.network.shape);
        if let Some(keep) = keep {
            return self.with_groups(&all, keep.max(1));
        }
        let mut best = None;
        for groups in (1..=self.most_groups(&all)).rev() {
            let cut = self.with_groups(&all, groups)?;
            let plan = self.largest_channels(&cut, |candidate| self.fits(candidate))?;
            self.consider(trial, &cut, plan, &mut best)?;
        }
        match best {
            Some((_, cut)) => Ok(cut),
            None => Err(self.target.infeasible(self.manifest, &self.smallest(&all)?)),
        }
    }

    /// Cuts channels down to what the target leaves.
    pub fn cut_channels(&self, keep: Option<usize>) -> Result<Selection> {
        let all = Selection::all(&self.network.shape);
        if let Some(keep) = keep {
            return Ok(self.with_channels(&all, keep.max(1)));
        }
        if self.fits(&all)? {
            return Ok(all);
        }
        match self.largest_channels(&all, |candidate| self.fits(candidate))? {
            Some(selection) => Ok(selection),
            None => Err(self.target.infeasible(self.manifest, &self.smallest(&all)?)),
        }
    }

    /// The most channels a layer, in whole row blocks, for which `holds` is true; it must stay true for fewer.
    fn largest_channels(&self, selection: &Selection, holds: impl Fn(&Selection) -> Result<bool>) -> Result<Option<Selection>> {
        let (most, block) = (self.most_channels(selection), channel_block(self.manifest));
        // A network that has less than a block keeps what it has.
        let (mut low, mut high) = (0, (most / block).max(usize::from(most > 0)));
        while low < high {
            let middle = (low + high).div_ceil(2);
            if holds(&self.with_channels(selection, middle * block))? {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        Ok(if low > 0 { Some(self.with_channels(selection, low * block)) } else { None })
    }

    /// An error where even the smallest network misses the target.
    pub fn check_feasible(&self) -> Result<()> {
        let smallest = smallest_of_all(self.manifest);
        if self.fits(&smallest)? { Ok(()) } else { Err(self.target.infeasible(self.manifest, &smallest)) }
    }
}

/// The smallest network that pruning can leave: the first and the last layer, one KV group and a [`channel_block`] of channels each. Which
/// units they are does not change its size.
pub fn smallest_of_all(manifest: &Manifest) -> Selection {
    let shape = manifest.shape();
    let mut selection = Selection::all(&shape);
    for layer in removable(&selection) {
        selection.layers[layer] = None;
    }
    for (kept, units) in selection.layers.iter_mut().zip(shape.layers.iter().map(espalier_models::LayerShape::units)) {
        if let (Some(kept), Some(units)) = (kept, units) {
            kept.keep_groups(units, (0..units.groups.min(1)).collect());
            kept.channels.truncate(channel_block(manifest));
        }
    }
    selection
}

/// Layers that may go: neither the first nor the last of those that stay.
fn removable(selection: &Selection) -> Vec<usize> {
    let kept: Vec<usize> = selection.kept().map(|(layer, _)| layer).collect();
    kept.get(1..kept.len().saturating_sub(1)).unwrap_or(&[]).to_vec()
}

/// The `count` units with the largest scores, largest first.
fn best(scores: &[f64], mut units: Vec<usize>, count: usize) -> Vec<usize> {
    units.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    units.truncate(count);
    units
}

impl Split {
    /// An error where the split asks for more than the network has, or for nothing.
    pub fn check(&self, manifest: &Manifest) -> Result<()> {
        let shape = manifest.shape();
        let most = |of: fn(&Units) -> usize| shape.kept().map(|(_, units)| of(units)).max().unwrap_or(0);
        let has = Split { layers: shape.kept().count(), heads: most(|units| units.groups), channels: most(|units| units.channels) };
        let fits = |wanted: usize, has: usize, least: usize| (least..=has).contains(&wanted);
        if fits(self.layers, has.layers, 2.min(has.layers)) && fits(self.heads, has.heads, 1) && fits(self.channels, has.channels, 1) {
            let block = channel_block(manifest);
            if block == BLOCK && self.channels < has.channels && !self.channels.is_multiple_of(BLOCK) {
                return Err(AgentError::Usage(format!(
                    "a split of {} channels cuts through a block of {BLOCK}, in which {:?} weights are stored; keep a multiple of {BLOCK}",
                    self.channels,
                    matrix_dtype(manifest)
                )));
            }
            return Ok(());
        }
        Err(AgentError::Usage(format!(
            "a split of {} layers, {} heads and {} channels cannot be cut from {} layers, {} heads and {} channels (at least 2 layers, 1 head and 1 channel stay)",
            self.layers, self.heads, self.channels, has.layers, has.heads, has.channels
        )))
    }
}
