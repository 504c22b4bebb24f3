//! White Gaussian noise at a signal-to-noise ratio, the same for the same seed and window on every machine.

use super::rng::Rng;
use super::windows::mean_and_deviation;

/// Noise to add to test windows, before they are normalised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Noise {
    /// Signal power over noise power, in dB. Signal power is the window's variance: an offset carries no vibration.
    pub snr_db: f64,
    /// Seed; with the window's id it decides every deviate.
    pub seed: u64,
}

impl Noise {
    /// The levels of the reported tables, in dB.
    pub const REPORTED_SNR_DB: [f64; 4] = [10.0, 4.0, 0.0, -4.0];

    /// Adds noise to a window `[n]`; `id` names the window.
    pub fn add(&self, window: &mut [f32], id: u64) {
        let (_, deviation) = mean_and_deviation(window);
        let noise = deviation * 10f64.powf(-self.snr_db / 20.0);
        let mut rng = Rng::for_stream(self.seed, id);
        for value in window {
            *value = (f64::from(*value) + noise * rng.normal()) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_has_the_power_asked_for_and_repeats() {
        let clean: Vec<f32> = (0..20_000).map(|i| 5.0 + (i as f32 * 0.1).sin()).collect();
        let mut failures = Vec::new();
        for snr_db in Noise::REPORTED_SNR_DB {
            let noise = Noise { snr_db, seed: 42 };
            let (mut first, mut again, mut other) = (clean.clone(), clean.clone(), clean.clone());
            noise.add(&mut first, 7);
            noise.add(&mut again, 7);
            noise.add(&mut other, 8);
            let added: Vec<f32> = first.iter().zip(&clean).map(|(noisy, clean)| noisy - clean).collect();
            let got = 20.0 * (mean_and_deviation(&clean).1 / mean_and_deviation(&added).1).log10();
            if (got - snr_db).abs() > 0.2 || first != again || first == other {
                failures.push(format!("{snr_db} dB: got {got}"));
            }
        }
        assert!(failures.is_empty(), "{failures:#?}");
    }
}
