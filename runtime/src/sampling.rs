//! How the next token is chosen from its logits.
//!
//! The filters are those of transformers' `generate`, in its order: repetition penalty (Keskar et al., 2019), temperature, top-k (Fan et
//! al., 2018), top-p (Holtzman et al., 2020), min-p (Nguyen et al., 2024). Each sees what the one before it has left; at temperature 0
//! only the penalty acts, and the largest logit wins.

use crate::error::{Result, RuntimeError};

/// What is done to the logits before a token is drawn. The default takes the most likely token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0: the most likely token; else logits are divided by it before sampling.
    pub temperature: f32,
    /// Only this many of the largest logits are kept (all that equal the last of them too); 0 keeps all.
    pub top_k: usize,
    /// The fewest most likely tokens are kept whose probabilities together reach this; 1 keeps all.
    pub top_p: f32,
    /// Tokens less likely than this share of the most likely one are dropped; 0 keeps all.
    pub min_p: f32,
    /// Logits of tokens that are in the prompt or the continuation are divided by this where they are positive and multiplied by it
    /// where they are negative; 1 leaves them.
    pub repetition_penalty: f32,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0 }
    }
}

impl Sampling {
    /// An error that names the setting which is out of its range.
    pub fn check(&self) -> Result<()> {
        let Self { temperature, top_p, min_p, repetition_penalty, .. } = *self;
        let settings = [
            ("temperature", temperature, temperature.is_finite() && temperature >= 0.0, "0 or more"),
            ("top-p", top_p, top_p > 0.0 && top_p <= 1.0, "more than 0, at most 1"),
            ("min-p", min_p, (0.0..=1.0).contains(&min_p), "0 to 1"),
            ("repetition penalty", repetition_penalty, repetition_penalty.is_finite() && repetition_penalty > 0.0, "more than 0"),
        ];
        match settings.iter().find(|(_, _, possible, _)| !possible) {
            None => Ok(()),
            Some((name, value, _, expected)) => Err(RuntimeError::Input(format!("a {name} of {value} is not possible; give {expected}"))),
        }
    }
}

/// Draws tokens. Its buffers are made once for a continuation.
pub struct Sampler {
    sampling: Sampling,
    /// Whether a token has occurred; empty where nothing is penalised.
    seen: Vec<bool>,
    /// Tokens that are left, with their logits divided by the temperature, then with their weights.
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// Bytes that it holds at most for every token of the vocabulary.
    pub(crate) const BYTES_A_TOKEN: usize = size_of::<bool>() + size_of::<(f32, u32)>();

    /// A sampler of token ids below `vocabulary` that has seen no token.
    pub fn new(sampling: Sampling, vocabulary: usize) -> Result<Self> {
        sampling.check()?;
        let seen = if sampling.repetition_penalty == 1.0 { Vec::new() } else { vec![false; vocabulary] };
        let candidates = Vec::with_capacity(if sampling.temperature > 0.0 { vocabulary } else { 0 });
        Ok(Self { sampling, seen, candidates })
    }

    /// Marks tokens of the prompt or the continuation as seen.
    pub fn observe(&mut self, ids: &[u32]) {
        for id in ids {
            if let Some(seen) = self.seen.get_mut(*id as usize) {
                *seen = true;
            }
        }
    }

    /// Chooses a token by its `logits [vocabulary]` and marks it as seen. `uniform` yields numbers in [0, 1) and is only asked when the
    /// temperature is not 0.
    ///
    /// # Errors
    /// A logit that is not a number: there is no distribution to draw from.
    pub fn choose(&mut self, logits: &[f32], uniform: &mut dyn FnMut() -> f64) -> Result<u32> {
        if let Some(id) = logits.iter().position(|logit| logit.is_nan() || *logit == f32::INFINITY) {
            return Err(RuntimeError::Input(format!("the logit of token {id} is {}; the model's weights are damaged", logits[id])));
        }
        let id = if self.sampling.temperature > 0.0 { self.draw(logits, uniform) } else { self.largest(logits) };
        self.observe(&[id]);
        Ok(id)
    }

    fn penalised(&self, id: usize, logit: f32) -> f32 {
        match self.seen.get(id) {
            Some(true) if logit < 0.0 => logit * self.sampling.repetition_penalty,
            Some(true) => logit / self.sampling.repetition_penalty,
            _ => logit,
        }
    }

    /// The first of the largest.
    fn largest(&self, logits: &[f32]) -> u32 {
        let mut best = (f32::NEG_INFINITY, 0);
        for (id, logit) in logits.iter().enumerate() {
            let logit = self.penalised(id, *logit);
            if logit > best.0 {
                best = (logit, id as u32);
            }
        }
        best.1
    }

    fn draw(&mut self, logits: &[f32], uniform: &mut dyn FnMut() -> f64) -> u32 {
        let mut candidates = std::mem::take(&mut self.candidates);
        candidates.clear();
        let temperature = self.sampling.temperature;
        candidates.extend(logits.iter().enumerate().map(|(id, logit)| (self.penalised(id, *logit) / temperature, id as u32)));
        keep_largest(&mut candidates, self.sampling.top_k);
        let largest = candidates.iter().map(|(score, _)| *score).fold(f32::NEG_INFINITY, f32::max);
        if !largest.is_finite() {
            // The temperature is so low that a logit divided by it is no number any more.
            self.candidates = candidates;
            return self.largest(logits);
        }
        // Probabilities relative to that of the most likely token.
        candidates.iter_mut().for_each(|(score, _)| *score = (*score - largest).exp());
        keep_nucleus(&mut candidates, self.sampling.top_p);
        if self.sampling.min_p > 0.0 {
            candidates.retain(|(weight, _)| *weight >= self.sampling.min_p);
        }
        let mut left = uniform() * total(&candidates);
        let drawn = candidates.iter().find(|(weight, _)| {
            left -= f64::from(*weight);
            left < 0.0
        });
        // Rounding may leave a rest behind the last candidate; then the most likely token is as good as that one.
        let id = drawn.map_or_else(|| self.largest(logits), |(_, id)| *id);
        self.candidates = candidates;
        id
    }
}

/// All weights together.
fn total(candidates: &[(f32, u32)]) -> f64 {
    candidates.iter().map(|(weight, _)| f64::from(*weight)).sum()
}

/// Keeps the `k` largest scores and all that equal the last of them; all where `k` is 0.
fn keep_largest(candidates: &mut Vec<(f32, u32)>, k: usize) {
    if k == 0 || k >= candidates.len() {
        return;
    }
    let (_, &mut (least, _), _) = candidates.select_nth_unstable_by(k - 1, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    candidates.retain(|(score, _)| *score >= least);
}

/// Keeps the tokens before which, from the most likely on, the probabilities together are less than `p`: the most likely one always.
fn keep_nucleus(candidates: &mut Vec<(f32, u32)>, p: f32) {
    if p >= 1.0 {
        return;
    }
    let all = total(candidates);
    let wanted = f64::from(p) * all;
    // Tokens as unlikely as this hold, all together, less than what the nucleus may leave out: they need not be sorted.
    let least = 0.5 * (all - wanted) / candidates.len() as f64;
    candidates.retain(|(weight, _)| f64::from(*weight) > least);
    candidates.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut before = 0.0;
    let kept = candidates.iter().take_while(|(weight, _)| {
        let keeps = before < wanted;
        before += f64::from(*weight);
        keeps
    });
    let kept = kept.count().max(1);
    candidates.truncate(kept);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Natural logarithms of probabilities, which then are what a softmax gives.
    fn logs(probabilities: &[f32]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln()).collect()
    }

    /// The probability of each token, measured on an even grid of the uniform numbers.
    fn distribution(sampling: Sampling, logits: &[f32], seen: &[u32]) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        let grid = 10_000;
        for point in 0..grid {
            let mut sampler = Sampler::new(sampling, logits.len()).expect("possible settings");
            sampler.observe(seen);
            let id = sampler.choose(logits, &mut || (f64::from(point) + 0.5) / f64::from(grid)).expect("finite logits");
            counts[id as usize] += 1.0 / f64::from(grid);
        }
        counts
    }

    /// A name, the settings, the probabilities, the tokens that were seen, and the probabilities after the filters.
    type Case<'a> = (&'a str, Sampling, &'a [f32], &'a [u32], &'a [f64]);

    /// Each case by hand: `p = [0.1, 0.4, 0.3, 0.2]` unless it says otherwise.
    #[test]
    fn sampling_follows_the_filtered_probabilities() {
        let p = [0.1, 0.4, 0.3, 0.2];
        let warm = Sampling { temperature: 1.0, ..Sampling::default() };
        let cases: [Case<'_>; 10] = [
            ("as they are", warm, &p, &[], &[0.1, 0.4, 0.3, 0.2]),
            ("greedy", Sampling::default(), &p, &[], &[0.0, 1.0, 0.0, 0.0]),
            // A temperature of 1/2 squares: 1, 16, 9, 4 of 30.
            ("sharper", Sampling { temperature: 0.5, ..warm }, &p, &[], &[1.0 / 30.0, 16.0 / 30.0, 9.0 / 30.0, 4.0 / 30.0]),
            ("top 2", Sampling { top_k: 2, ..warm }, &p, &[], &[0.0, 4.0 / 7.0, 3.0 / 7.0, 0.0]),
            // The second and third are equally likely, so both stay.
            ("top 2 of equals", Sampling { top_k: 2, ..warm }, &[0.1, 0.4, 0.25, 0.25], &[], &[0.0, 4.0 / 9.0, 2.5 / 9.0, 2.5 / 9.0]),
            // 0.4 is less than 0.6, 0.4 + 0.3 is not.
            ("top-p 0.6", Sampling { top_p: 0.6, ..warm }, &p, &[], &[0.0, 4.0 / 7.0, 3.0 / 7.0, 0.0]),
            ("top-p below the largest", Sampling { top_p: 0.01, ..warm }, &p, &[], &[0.0, 1.0, 0.0, 0.0]),
            // The threshold is 0.6 · 0.4 = 0.24.
            ("min-p 0.6", Sampling { min_p: 0.6, ..warm }, &p, &[], &[0.0, 4.0 / 7.0, 3.0 / 7.0, 0.0]),
            // Top-p acts on what top-k has left: of 4/7, 3/7 the first alone reaches 0.5.
            ("top 2, then top-p 0.5", Sampling { top_k: 2, top_p: 0.5, ..warm }, &p, &[], &[0.0, 1.0, 0.0, 0.0]),
            // Token 1's logarithm is doubled: 0.16, so 0.1, 0.16, 0.3, 0.2 of 0.76.
            ("penalty 2", Sampling { repetition_penalty: 2.0, ..warm }, &p, &[1, 1], &[0.1 / 0.76, 0.16 / 0.76, 0.3 / 0.76, 0.2 / 0.76]),
        ];
        let mut failures = Vec::new();
        for (name, sampling, p, seen, expected) in cases {
            let found = distribution(sampling, &logs(p), seen);
            if found.iter().zip(expected).any(|(found, expected)| (found - expected).abs() > 2e-4) {
                failures.push(format!("{name}: {found:?}, expected {expected:?}"));
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }

    #[test]
    fn a_penalty_divides_positive_logits_and_turns_a_greedy_choice() -> Result<()> {
        let sampling = Sampling { repetition_penalty: 1.5, ..Sampling::default() };
        let mut sampler = Sampler::new(sampling, 3)?;
        let logits = [2.0, 1.5, -1.0];
        let chosen: Vec<u32> = (0..3).map(|_| sampler.choose(&logits, &mut || 0.0)).collect::<Result<_>>()?;
        // 2 / 1.5 = 1.33 is less than 1.5, and 1.5 / 1.5 = 1 is less than 1.33.
        assert_eq!(chosen, [0, 1, 0]);
        Ok(())
    }

    #[test]
    fn settings_out_of_range_and_logits_that_are_no_numbers_are_refused() {
        let refused = [
            Sampling { temperature: -1.0, ..Sampling::default() },
            Sampling { temperature: f32::NAN, ..Sampling::default() },
            Sampling { top_p: 0.0, ..Sampling::default() },
            Sampling { min_p: 1.5, ..Sampling::default() },
            Sampling { repetition_penalty: 0.0, ..Sampling::default() },
        ];
        for sampling in refused {
            assert!(Sampler::new(sampling, 4).is_err(), "{sampling:?}");
        }
        let mut sampler = Sampler::new(Sampling::default(), 2).expect("possible settings");
        let error = sampler.choose(&[0.0, f32::NAN], &mut || 0.0).expect_err("NaN");
        assert!(error.to_string().contains("token 1"), "{error}");
    }
}
