//! Changes to a training window that keep its class: where a turn of the shaft begins, which way the sensor points, and a little noise.

use super::rng::Rng;
use super::windows::mean_and_deviation;

/// What training does to each window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Augment {
    /// Roll the window by a random number of samples, its end coming in at its start.
    pub roll: bool,
    /// Change the sign of the whole window with probability ½.
    pub flip: bool,
    /// Standard deviation of added white noise, in standard deviations of the window; 0 adds none.
    pub noise: f64,
}

impl Default for Augment {
    fn default() -> Self {
        Self { roll: true, flip: true, noise: 0.1 }
    }
}

impl Augment {
    /// Leaves windows as they are.
    pub const NONE: Self = Self { roll: false, flip: false, noise: 0.0 };

    /// Changes a window `[n]` in place. A normalised one stays so within the noise: deviation √(1 + noise²).
    pub fn apply(&self, window: &mut [f32], rng: &mut Rng) {
        if self.roll && !window.is_empty() {
            window.rotate_left(rng.below(window.len()));
        }
        if self.flip && rng.coin() {
            window.iter_mut().for_each(|value| *value = -*value);
        }
        if self.noise > 0.0 {
            let noise = self.noise * mean_and_deviation(window).1;
            window.iter_mut().for_each(|value| *value = (f64::from(*value) + noise * rng.normal()) as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roll_and_sign_keep_the_samples_and_noise_has_its_size() {
        let window: Vec<f32> = (0..2048).map(|i| (i as f32 * 0.37).sin()).collect();
        let mut rng = Rng::new(1);
        let mut changed = window.clone();
        Augment { noise: 0.0, ..Augment::default() }.apply(&mut changed, &mut rng);
        assert_ne!(changed, window);
        let sorted = |values: &[f32]| {
            let mut values: Vec<f32> = values.iter().map(|value| value.abs()).collect();
            values.sort_by(f32::total_cmp);
            values
        };
        assert_eq!(sorted(&changed), sorted(&window));
        let mut noisy = window.clone();
        Augment { roll: false, flip: false, noise: 0.1 }.apply(&mut noisy, &mut rng);
        let added: Vec<f32> = noisy.iter().zip(&window).map(|(noisy, clean)| noisy - clean).collect();
        let ratio = mean_and_deviation(&added).1 / mean_and_deviation(&window).1;
        assert!((ratio - 0.1).abs() < 0.01, "{ratio}");
        let mut same = window.clone();
        Augment::NONE.apply(&mut same, &mut rng);
        assert_eq!(same, window);
    }
}
