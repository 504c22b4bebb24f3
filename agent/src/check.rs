//! The static check of the structural independence assumption (SIA): may units of this model be scored and removed one by one?
//!
//! Two units are independent where pruning one does not materially change what the other computes (arXiv 2606.26861). Two things break
//! that before any number is looked at: query heads that share keys and values, and FFN activations that are computed in pairs (a gate
//! multiplies up). Both bind units *within* a layer, so that scoring and removing what is bound as one unit restores independence: the
//! KV group instead of the head, the gate/up/down triple instead of each projection's channel.

use std::collections::BTreeMap;
use std::fmt;

use espalier_models::{Architecture, ModelShape, Units};
use serde::{Deserialize, Serialize};

use crate::table::Table;

/// What the static check says about a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StaticCheck {
    /// One entry a kind of layer: layers of the same numbers of heads, groups and channels are one kind.
    pub layers: Vec<LayerKind>,
    /// Most query heads that share one KV group anywhere in the model: D of the paper. 0 where no layer has heads.
    pub sharing: usize,
    /// Whether FFN activations are computed in pairs.
    pub gated: bool,
    /// One entry a way to score and remove.
    pub verdicts: Vec<MethodVerdict>,
}

/// Layers with the same units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerKind {
    /// The layers' positions in the model.
    pub layers: Vec<usize>,
    /// Query heads.
    pub heads: usize,
    /// KV groups.
    pub groups: usize,
    /// Most query heads of one KV group.
    pub sharing: usize,
    /// FFN channels.
    pub channels: usize,
    /// Independence of the attention's units where each head is one.
    pub per_head: Finding,
    /// Independence of the attention's units where each KV group is one.
    pub per_group: Finding,
    /// Independence of the FFN's units where each projection's channel is one.
    pub per_projection: Finding,
    /// Independence of the FFN's units where the channel's slices of all projections are one.
    pub per_channel: Finding,
}

/// Whether the assumption holds for a choice of units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// It holds, for this reason.
    Holds(String),
    /// It does not, for this reason.
    Violated(String),
    /// The layer has no such units.
    None,
}

/// What can be expected of a method on this model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Scores of single components mean what they say.
    Reliable,
    /// As configured the method uses coupled units, and it needs them on this model.
    ReliableWithCoupledUnits,
    /// Scores of single components are taken for independent, and they are not.
    NotReliable,
}

/// One method and its verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MethodVerdict {
    /// Method, criterion and units.
    pub method: String,
    /// What can be expected.
    pub verdict: Verdict,
    /// Why, in a sentence.
    pub reason: String,
}

/// What units a method scores and removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UnitChoice {
    Layer,
    Component,
    Coupled,
}

/// The methods of this program, with the units that each uses. Layers are removed whole, so that nothing within them is torn apart;
/// methods that remove the coupled slices but score projections by themselves count as per component.
const METHODS: [(&str, UnitChoice); 7] = [
    ("cascade, L1 per component", UnitChoice::Component),
    ("cascade, L1 over coupled units", UnitChoice::Coupled),
    ("gisp, wanda-sp, flap, minitron, magnitude per head and projection", UnitChoice::Component),
    ("gisp, wanda-sp, flap, minitron, magnitude over coupled units", UnitChoice::Coupled),
    ("llm-pruner, saap (dependency groups)", UnitChoice::Coupled),
    ("shortgpt, sleb (whole layers)", UnitChoice::Layer),
    ("random over coupled units", UnitChoice::Coupled),
];

impl StaticCheck {
    /// Checks a model by its architecture and what its layers still have. Nothing is read or run.
    pub fn new(architecture: &Architecture, shape: &ModelShape) -> Self {
        let gated = architecture.ffn.gated;
        let mut kinds: BTreeMap<(usize, usize, usize, usize), Vec<usize>> = BTreeMap::new();
        for (layer, units) in shape.kept() {
            kinds.entry((units.heads.len(), units.groups, sharing(units), units.channels)).or_default().push(layer);
        }
        let mut layers: Vec<LayerKind> = kinds.into_iter().map(|(units, layers)| layer_kind(units, gated, layers)).collect();
        layers.sort_by_key(|kind| kind.layers.first().copied());
        let sharing = layers.iter().map(|kind| kind.sharing).max().unwrap_or(0);
        let pairs = layers.iter().any(|kind| matches!(kind.per_projection, Finding::Violated(_)));
        let verdicts = METHODS.iter().map(|(method, choice)| verdict(method, *choice, sharing, pairs)).collect();
        Self { layers, sharing, gated, verdicts }
    }

    /// Whether single heads and single projections' channels may be taken as independent everywhere in the model.
    pub fn holds_per_component(&self) -> bool {
        let violated = |finding: &Finding| matches!(finding, Finding::Violated(_));
        !self.layers.iter().any(|kind| violated(&kind.per_head) || violated(&kind.per_projection))
    }
}

/// Most heads of a layer that share one KV group.
fn sharing(units: &Units) -> usize {
    let mut heads: BTreeMap<u32, usize> = BTreeMap::new();
    for group in &units.heads {
        *heads.entry(*group).or_default() += 1;
    }
    heads.values().copied().max().unwrap_or(0)
}

fn layer_kind((heads, groups, sharing, channels): (usize, usize, usize, usize), gated: bool, layers: Vec<usize>) -> LayerKind {
    let per_head = match sharing {
        0 => Finding::None,
        1 => Finding::Holds("every head has keys and values of its own".to_owned()),
        _ => Finding::Violated(format!(
            "up to {sharing} heads read the same keys and values (D = {sharing}), so that pruning these changes them all"
        )),
    };
    let per_group = match sharing {
        0 => Finding::None,
        1 => Finding::Holds("a head is its own KV group".to_owned()),
        _ => Finding::Holds("a KV group leaves with all heads that read it; other groups are untouched".to_owned()),
    };
    let (per_projection, per_channel) = match (channels, gated) {
        (0, _) => (Finding::None, Finding::None),
        (_, false) => (
            Finding::Holds("one activation a channel, and no other channel reads it".to_owned()),
            Finding::Holds("up row and down column leave together".to_owned()),
        ),
        (_, true) => (
            Finding::Violated("the gate multiplies up, so that pruning a channel of one silences the same channel of the other".to_owned()),
            Finding::Holds("gate row, up row and down column leave together; other channels are untouched".to_owned()),
        ),
    };
    LayerKind { layers, heads, groups, sharing, channels, per_head, per_group, per_projection, per_channel }
}

fn verdict(method: &str, choice: UnitChoice, sharing: usize, pairs: bool) -> MethodVerdict {
    let shared = format!("{sharing} heads share keys and values");
    let causes = match (sharing > 1, pairs) {
        (true, true) => format!("{shared} and FFN activations are paired"),
        (true, false) => shared,
        (false, true) => "FFN activations are paired".to_owned(),
        (false, false) => String::new(),
    };
    let (verdict, reason) = match choice {
        UnitChoice::Layer => (Verdict::Reliable, "a layer leaves whole, with everything that is shared within it".to_owned()),
        _ if causes.is_empty() => (Verdict::Reliable, "no keys or values are shared and no activations are paired".to_owned()),
        UnitChoice::Component => (Verdict::NotReliable, format!("{causes}, and the method scores them one by one")),
        UnitChoice::Coupled => (Verdict::ReliableWithCoupledUnits, format!("{causes}, and the method scores and removes them as one")),
    };
    MethodVerdict { method: method.to_owned(), verdict, reason }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Reliable => "reliable",
            Verdict::ReliableWithCoupledUnits => "reliable with coupled units",
            Verdict::NotReliable => "not reliable",
        })
    }
}

impl Finding {
    fn words(&self) -> (&str, &str) {
        match self {
            Finding::Holds(reason) => ("holds", reason),
            Finding::Violated(reason) => ("violated", reason),
            Finding::None => ("no units", ""),
        }
    }
}

impl fmt::Display for StaticCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for kind in &self.layers {
            let LayerKind { heads, groups, channels, sharing, .. } = kind;
            let ffn = if self.gated { "gated FFN channels" } else { "FFN channels" };
            writeln!(f, "layers {}: {heads} heads in {groups} KV groups (D = {sharing}), {channels} {ffn}", ranges(&kind.layers))?;
            let mut table = Table::new(["unit", "SIA", "why"]);
            let findings = [
                ("head", &kind.per_head),
                ("KV group", &kind.per_group),
                ("channel of one projection", &kind.per_projection),
                (if self.gated { "gate/up/down triple" } else { "up/down pair" }, &kind.per_channel),
            ];
            for (unit, finding) in findings {
                let (word, reason) = finding.words();
                table.row([unit, word, reason]);
            }
            writeln!(f, "{table}")?;
        }
        if self.layers.is_empty() {
            writeln!(f, "the model has no layers left: there is nothing to prune\n")?;
        }
        let mut table = Table::new(["method", "verdict", "why"]);
        for MethodVerdict { method, verdict, reason } in &self.verdicts {
            table.row([method.clone(), verdict.to_string(), reason.clone()]);
        }
        write!(f, "{table}")
    }
}

/// Ascending numbers as `0–3, 5`.
fn ranges(numbers: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let run = |&(first, last): &(usize, usize)| if first == last { first.to_string() } else { format!("{first}–{last}") };
    runs.iter().map(run).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use espalier_models::LayerShape;
    use espalier_models::architecture::{Activation, Attention, AttentionSpan, Ffn, Input, Norm, NormKind, Output, Positions, Residual};

    use super::*;

    fn architecture(gated: bool) -> Architecture {
        Architecture {
            input: Input::Tokens { vocabulary: 100 },
            embedding_scale: None,
            output: Output::NextToken { tied: true, bias: false },
            d_model: 64,
            norm: Norm { kind: NormKind::LayerNorm, epsilon: 1e-5 },
            post_norms: false,
            positions: Positions::Learned { count: 16, offset: 0 },
            spans: vec![AttentionSpan::FULL],
            attention: Attention { head_dim: 8, scale: None, qk_norm: false, qkv_bias: true, output_bias: true, fused_qkv: true },
            ffn: Ffn { gated, activation: Activation::Silu, bias: !gated },
            residual: Residual::Sequential,
        }
    }

    fn verdict_of(check: &StaticCheck, method: &str) -> Verdict {
        check.verdicts.iter().find(|verdict| verdict.method.starts_with(method)).unwrap().verdict
    }

    #[test]
    fn the_verdict_follows_from_sharing_and_pairing() {
        use Verdict::{NotReliable, Reliable, ReliableWithCoupledUnits};
        // (name, heads, groups, gated, D, per component, coupled)
        let cases = [
            ("GPT-2", 12, 12, false, 1, Reliable, Reliable),
            ("Llama with GQA", 32, 8, true, 4, NotReliable, ReliableWithCoupledUnits),
            ("ChatGLM-2", 32, 2, true, 16, NotReliable, ReliableWithCoupledUnits),
            ("Llama with MHA", 32, 32, true, 1, NotReliable, ReliableWithCoupledUnits),
            ("multi-query GELU", 8, 1, false, 8, NotReliable, ReliableWithCoupledUnits),
        ];
        let mut failures = Vec::new();
        for (name, heads, groups, gated, sharing, component, coupled) in cases {
            let check = StaticCheck::new(&architecture(gated), &ModelShape::uniform(4, Units::dense(heads, groups, 128)));
            let found =
                (check.sharing, verdict_of(&check, "cascade, L1 per"), verdict_of(&check, "cascade, L1 over"), check.holds_per_component());
            if found != (sharing, component, coupled, component == Reliable) || verdict_of(&check, "shortgpt") != Reliable {
                failures.push(format!("{name}: {found:?}"));
            }
            if check.layers.len() != 1
                || !matches!(check.layers[0].per_group, Finding::Holds(_))
                || !matches!(check.layers[0].per_channel, Finding::Holds(_))
            {
                failures.push(format!("{name}: coupled units must hold: {:?}", check.layers));
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }

    #[test]
    fn a_pruned_model_is_judged_by_what_is_left() {
        let mut shape = ModelShape::uniform(5, Units::dense(8, 4, 32));
        shape.layers[1] = LayerShape::Removed;
        // One head a group is left: nothing is shared here any more.
        shape.layers[2] = LayerShape::Kept(Units { heads: vec![0, 1], groups: 2, channels: 0, span: 0 });
        let check = StaticCheck::new(&architecture(true), &shape);
        let kinds: Vec<_> = check.layers.iter().map(|kind| (kind.layers.clone(), kind.sharing)).collect();
        assert_eq!(kinds, [(vec![0, 3, 4], 2), (vec![2], 1)]);
        assert_eq!((&check.layers[1].per_projection, &check.layers[1].per_channel), (&Finding::None, &Finding::None));
        assert!(matches!(check.layers[1].per_head, Finding::Holds(_)));
        assert!(check.to_string().contains("layers 0, 3–4: 8 heads in 4 KV groups (D = 2), 32 gated FFN channels"), "{check}");
        let empty = StaticCheck::new(&architecture(true), &ModelShape { layers: vec![LayerShape::Removed] });
        assert!(empty.to_string().contains("no layers left") && empty.holds_per_component());
    }

    #[test]
    fn text_and_json_say_the_same() {
        let check = StaticCheck::new(&architecture(true), &ModelShape::uniform(28, Units::dense(32, 2, 64)));
        let json = serde_json::to_string(&check).unwrap();
        assert_eq!(serde_json::from_str::<StaticCheck>(&json).unwrap(), check);
        assert!(json.contains("\"not_reliable\"") && json.contains("\"sharing\":16"), "{json}");
        let text = check.to_string();
        let missing: Vec<_> = ["D = 16", "layers 0–27", "violated", "gate/up/down triple", "not reliable", "reliable with coupled units"]
            .iter()
            .filter(|part| !text.contains(**part))
            .collect();
        assert!(missing.is_empty(), "{missing:?} in\n{text}");
    }
}
