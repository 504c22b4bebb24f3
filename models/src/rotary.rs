//! The wavelengths of rotary positions.

use serde::{Deserialize, Serialize};

/// How fast the pairs of a head turn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rotary {
    /// The base of the geometric sequence of wavelengths.
    pub base: f64,
    /// How the sequence is stretched for contexts longer than the model was first made for.
    pub scaling: RotaryScaling,
}

/// How wavelengths are stretched.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum RotaryScaling {
    /// They are not.
    None,
    /// All by the same factor (position interpolation; Chen et al., arXiv 2306.15595).
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Long ones by a factor, short ones not, those in between by a factor in between (Llama 3.1; Grattafiori et al., arXiv 2407.21783).
    Llama3 {
        /// The factor of the longest wavelengths.
        factor: f64,
        /// Wavelengths longer than `original_context / low_freq_factor` are stretched in full.
        low_freq_factor: f64,
        /// Wavelengths shorter than `original_context / high_freq_factor` are not stretched.
        high_freq_factor: f64,
        /// The context that the model was first made for.
        original_context: usize,
    },
}

impl Rotary {
    /// Unscaled, of this base.
    pub const fn of_base(base: f64) -> Self {
        Self { base, scaling: RotaryScaling::None }
    }

    /// The angle per position of each of `dims / 2` rotated pairs: `base^(−2i/dims)`, scaled.
    pub fn frequencies(&self, dims: usize) -> Vec<f64> {
        let plain = (0..dims / 2).map(|i| self.base.powf(-2.0 * i as f64 / dims as f64));
        plain.map(|frequency| self.scaling.apply(frequency)).collect()
    }

    /// What cannot be in it, in a sentence.
    pub(crate) fn check(&self) -> Result<(), String> {
        let positive = |what: &str, value: f64| match value.is_finite() && value > 0.0 {
            true => Ok(()),
            false => Err(format!("the rotary {what} is {value}; expected a finite number above 0")),
        };
        positive("base", self.base)?;
        match self.scaling {
            RotaryScaling::None => Ok(()),
            RotaryScaling::Linear { factor } => positive("factor", factor),
            RotaryScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                positive("factor", factor)?;
                positive("low frequency factor", low_freq_factor)?;
                positive("high frequency factor", high_freq_factor)?;
                positive("original context", original_context as f64)?;
                if low_freq_factor >= high_freq_factor {
                    return Err(format!(
                        "the rotary low frequency factor is {low_freq_factor}; expected less than the high one, {high_freq_factor}"
                    ));
                }
                Ok(())
            }
        }
    }
}

impl RotaryScaling {
    fn apply(self, frequency: f64) -> f64 {
        match self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let turns = original_context as f64 * frequency / std::f64::consts::TAU;
                // 0 where the wave is stretched in full, 1 where it is not.
                let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                (1.0 - kept) * frequency / factor + kept * frequency
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What transformers 5.23 computes for Llama 3.1 (head size 128, base 500 000, factor 8, 1 and 4, 8192), at some pairs.
    #[test]
    fn llama3_stretches_long_waves_only() {
        let scaling = RotaryScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
        let frequencies = Rotary { base: 500_000.0, scaling }.frequencies(128);
        let plain = Rotary::of_base(500_000.0).frequencies(128);
        assert_eq!((frequencies.len(), frequencies[0], frequencies[20]), (64, 1.0, plain[20]));
        assert!((frequencies[63] * 8.0 - plain[63]).abs() < 1e-18);
        assert!((1..64).all(|i| frequencies[i] < frequencies[i - 1]), "{frequencies:?}");
        assert_eq!(Rotary { base: 10_000.0, scaling: RotaryScaling::Linear { factor: 4.0 } }.frequencies(4), [0.25, 0.0025]);
    }
}
