//! Scores and embeddings of language models, against what PyTorch computes on the parity fixtures.

use std::path::Path;
use std::sync::Arc;

use espalier_kernels::{CpuDevice, Unlimited};
use espalier_models::Artifact;
use espalier_models::checkpoint::import;
use espalier_runtime::{Budget, Embeds, Scorer, Scores};
use safetensors::SafeTensors;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// Fixtures of every kind of position, norm and attention span.
const FAMILIES: [&str; 8] = ["gpt2", "opt", "gpt_neox", "phi", "llama-gqa2", "mistral", "qwen3", "gemma3"];

/// A fixture, imported, with what PyTorch computes on it.
struct Fixture {
    artifact: Arc<Artifact>,
    expected: Vec<u8>,
    weights: Vec<u8>,
    _place: tempfile::TempDir,
}

impl Fixture {
    fn open(name: &str) -> Fallible<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(name);
        let place = tempfile::tempdir()?;
        let path = place.path().join("model.esp");
        import(&folder, &path, None, &mut |_, _| {})?;
        Ok(Self {
            artifact: Arc::new(Artifact::open(&path)?),
            expected: std::fs::read(folder.join("expected.safetensors"))?,
            weights: std::fs::read(folder.join("model.safetensors"))?,
            _place: place,
        })
    }

    fn scorer(&self, capacity: usize) -> Fallible<Scorer<CpuDevice>> {
        let budget = Arc::new(Budget::unlimited());
        Ok(Scorer::open(&CpuDevice::new(1, Arc::new(Unlimited))?, &budget, &self.artifact, capacity)?)
    }

    /// The batch, one sequence each.
    fn ids(&self) -> Fallible<Vec<Vec<u32>>> {
        let tensors = SafeTensors::deserialize(&self.expected)?;
        let tensor = tensors.tensor("input_ids")?;
        let ids: Vec<u32> = tensor.data().chunks_exact(8).map(|x| u32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect();
        Ok(ids.chunks_exact(tensor.shape()[1]).map(<[u32]>::to_vec).collect())
    }
}

fn numbers(bytes: &[u8], name: &str) -> Fallible<Vec<f32>> {
    let tensors = SafeTensors::deserialize(bytes)?;
    Ok(tensors.tensor(name)?.data().chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect())
}

/// `−ln softmax(logits)[target]` in f64.
fn loss_of(logits: &[f32], target: u32) -> f64 {
    let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
    sum.ln() - f64::from(logits[target as usize])
}

#[test]
fn the_loss_of_a_sequence_is_pytorchs() -> Fallible<()> {
    for name in FAMILIES {
        let fixture = Fixture::open(name)?;
        let (ids, expected) = (fixture.ids()?, f64::from(numbers(&fixture.expected, "loss")?[0]));
        let mut scorer = fixture.scorer(ids[0].len())?;
        let mut total = 0.0;
        for ids in &ids {
            total += scorer.loss(ids, 1)?;
        }
        let mean = total / (ids.len() * (ids[0].len() - 1)) as f64;
        assert!((mean - expected).abs() < 1e-5 * expected, "{name}: {mean}, expected {expected}");
    }
    Ok(())
}

/// What sequences have in common is computed once; a shared beginning, a shorter repetition and a fresh sequence give what PyTorch's
/// logits say.
#[test]
fn a_continuation_scores_the_same_whatever_was_read_before() -> Fallible<()> {
    for name in FAMILIES {
        let fixture = Fixture::open(name)?;
        let (ids, logits) = (fixture.ids()?, numbers(&fixture.expected, "logits")?);
        let (length, width) = (ids[0].len(), logits.len() / ids.len() / ids[0].len());
        let expected = |row: usize, first: usize, end: usize| -> f64 {
            let at = |t: usize| &logits[(row * length + t - 1) * width..][..width];
            (first..end).map(|t| loss_of(at(t), ids[row][t])).sum()
        };
        let mut scorer = fixture.scorer(length)?;
        let cases = [(0, 1, 17), (0, 9, 17), (0, 9, 12), (0, 16, 17), (1, 5, 17), (0, 3, 9), (0, 3, 17)];
        for (row, first, end) in cases {
            let (found, expected) = (scorer.loss(&ids[row][..end], first)?, expected(row, first, end));
            assert!((found - expected).abs() < 1e-4 * expected, "{name} {row} {first} {end}: {found}, expected {expected}");
        }
        let whole: usize = cases.iter().map(|(_, _, end)| end - 1).sum();
        assert!(scorer.tokens_read() < whole as u64, "{} tokens were read where all are {whole}", scorer.tokens_read());
        for (ids, first) in [(&ids[0][..1], 1), (&ids[0][..4], 0), (&ids[0][..4], 4), (&[1, 2, 97][..], 1), (&[0; 18][..], 1)] {
            assert!(scorer.loss(ids, first).is_err(), "{ids:?} from {first}");
        }
        let mut losses = Vec::new();
        for length in [1, 7, 16, 9] {
            scorer.next_losses(&ids[0][..length], &[ids[0][length], ids[1][0]], &mut losses)?;
            let expected = [ids[0][length], ids[1][0]].map(|id| loss_of(&logits[(length - 1) * width..][..width], id));
            let close = losses.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-4 * expected);
            assert!(close && losses.len() == 2, "{name}: after {length}: {losses:?}, expected {expected:?}");
        }
        assert!(scorer.next_losses(&[], &[1], &mut losses).is_err() && scorer.next_losses(&[1], &[97], &mut losses).is_err());
        let again = scorer.loss(&ids[1], 1)?;
        assert!((again - expected(1, 1, 17)).abs() < 1e-4 * again, "an error leaves nothing behind");
    }
    Ok(())
}

#[test]
fn an_embedding_is_the_mean_of_the_states_after_the_final_norm() -> Fallible<()> {
    let fixture = Fixture::open("gpt2")?;
    let ids = fixture.ids()?;
    let layers = fixture.artifact.manifest().layers.len();
    let hidden = numbers(&fixture.expected, &format!("hidden.{layers}"))?;
    let d = fixture.artifact.manifest().architecture.d_model;
    let [weight, bias] = ["transformer.ln_f.weight", "transformer.ln_f.bias"].map(|name| numbers(&fixture.weights, name));
    let (weight, bias) = (weight?, bias?);
    let mut expected = vec![0.0_f64; d];
    let row = &hidden[ids[0].len() * d..][..ids[0].len() * d];
    for state in row.chunks_exact(d) {
        let mean = state.iter().map(|x| f64::from(*x)).sum::<f64>() / d as f64;
        let variance = state.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / d as f64;
        for (index, out) in expected.iter_mut().enumerate() {
            let normed = (f64::from(state[index]) - mean) / (variance + 1e-5).sqrt();
            *out += (normed * f64::from(weight[index]) + f64::from(bias[index])) / ids[0].len() as f64;
        }
    }
    let mut found = vec![0.0; d];
    fixture.scorer(ids[0].len())?.mean_state(&ids[1], &mut found)?;
    assert!(found.iter().all(|x| x.is_finite()), "{found:?}");
    let largest = expected.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
    let worst = found.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
    assert!(worst < 1e-4 * largest, "off by {worst} of {largest}");
    Ok(())
}
