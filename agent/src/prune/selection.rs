//! Which units of a stored network stay.

use espalier_models::architecture::Architecture;
use espalier_models::manifest::StoredLayer;
use espalier_models::{LayerShape, Manifest, ModelShape, Units};

/// Which units of every stored layer stay, by stored index, most important first: the order in which they are stored again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// One entry a stored layer; none where the layer goes.
    pub layers: Vec<Option<LayerSelection>>,
}

/// The units of one layer that stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSelection {
    /// Query heads; each with its KV group among [`groups`](LayerSelection::groups).
    pub heads: Vec<usize>,
    /// KV groups.
    pub groups: Vec<usize>,
    /// FFN channels.
    pub channels: Vec<usize>,
}

impl LayerSelection {
    /// All units, in stored order.
    pub fn all(units: &Units) -> Self {
        Self { heads: (0..units.heads.len()).collect(), groups: (0..units.groups).collect(), channels: (0..units.channels).collect() }
    }

    /// Keeps only `groups`, most important first, with the query heads that share them.
    pub fn keep_groups(&mut self, units: &Units, groups: Vec<usize>) {
        self.heads = groups.iter().flat_map(|group| self.heads_of(units, *group)).collect();
        self.groups = groups;
    }

    fn heads_of(&self, units: &Units, group: usize) -> Vec<usize> {
        self.heads.iter().copied().filter(|head| units.heads.get(*head) == Some(&(group as u32))).collect()
    }

    /// What the layer then has.
    pub fn units(&self, before: &Units) -> Units {
        let group_of =
            |head: &usize| before.heads.get(*head).and_then(|group| self.groups.iter().position(|kept| kept == &(*group as usize)));
        Units {
            heads: self.heads.iter().map(|head| group_of(head).unwrap_or(0) as u32).collect(),
            groups: self.groups.len(),
            channels: self.channels.len(),
            span: before.span,
        }
    }
}

impl Selection {
    /// Everything stays.
    pub fn all(shape: &ModelShape) -> Self {
        Self { layers: shape.layers.iter().map(|layer| layer.units().map(LayerSelection::all)).collect() }
    }

    /// The shape that is left, with removed layers in their places.
    pub fn shape(&self, before: &ModelShape) -> ModelShape {
        let layer = |(selection, shape): (&Option<LayerSelection>, &LayerShape)| match (selection, shape.units()) {
            (Some(selection), Some(units)) => LayerShape::Kept(selection.units(units)),
            _ => LayerShape::Removed,
        };
        ModelShape { layers: self.layers.iter().zip(&before.layers).map(layer).collect() }
    }

    /// The layers that stay, by stored index.
    pub fn kept(&self) -> impl Iterator<Item = (usize, &LayerSelection)> {
        self.layers.iter().enumerate().filter_map(|(index, layer)| layer.as_ref().map(|layer| (index, layer)))
    }

    /// The stored layers of the network that is left; removed layers are not stored, and every unit keeps the index it had in the
    /// first network.
    pub fn stored_layers(&self, before: &Manifest) -> Vec<StoredLayer> {
        let pick = |from: &[u32], which: &[usize]| which.iter().filter_map(|index| from.get(*index).copied()).collect();
        self.kept()
            .filter_map(|(index, selection)| {
                let layer = before.layers.get(index)?;
                Some(StoredLayer {
                    original: layer.original,
                    shape: LayerShape::Kept(selection.units(layer.shape.units()?)),
                    original_heads: pick(&layer.original_heads, &selection.heads),
                    original_groups: pick(&layer.original_groups, &selection.groups),
                    original_channels: pick(&layer.original_channels, &selection.channels),
                })
            })
            .collect()
    }

    /// The stored rows of one part of a layer that stay, in their new order; none where the part has no unit rows (norms and the biases
    /// of the residual stream stay whole).
    pub fn rows(&self, architecture: &Architecture, layer: usize, part: espalier_models::Part) -> Option<Vec<usize>> {
        use espalier_models::Part::*;
        let selection = self.layers.get(layer)?.as_ref()?;
        let width = architecture.attention.head_dim;
        let wide = |units: &[usize]| units.iter().flat_map(|unit| unit * width..(unit + 1) * width).collect();
        match part {
            Query | QueryBias | AttentionOutput => Some(wide(&selection.heads)),
            Key | KeyBias | Value | ValueBias => Some(wide(&selection.groups)),
            Gate | GateBias | Up | UpBias | Down => Some(selection.channels.clone()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_follow_their_group_and_name_its_new_place() {
        let units = Units { span: 1, ..Units::dense(8, 4, 16) };
        let mut selection = LayerSelection::all(&units);
        selection.keep_groups(&units, vec![3, 1]);
        assert_eq!(selection.heads, [6, 7, 2, 3]);
        assert_eq!(selection.units(&units), Units { heads: vec![0, 0, 1, 1], groups: 2, channels: 16, span: 1 });
    }
}
