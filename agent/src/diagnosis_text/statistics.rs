//! Statistics of a window: what a person who reads vibration would look at.
//!
//! `x` are the `N` samples, `s_k` the amplitudes `2|X_k|/N` of the discrete Fourier transform at the frequencies `f_k = k · rate / N`,
//! `k = 1..N/2` (the mean is no vibration), `p_k = s_k / Σ s` their shares. Moments divide by the count, not by one less.
//!
//! | of the samples | |
//! |--|--|
//! | mean, standard deviation, variance | `μ`, `σ`, `σ²` |
//! | square-root amplitude | `(mean √|x|)²` |
//! | absolute mean, peak | `mean |x|`, `max |x|` |
//! | skewness, kurtosis | `mean (x − μ)³ / σ³`, `mean (x − μ)⁴ / σ⁴` |
//! | kurtosis index | `mean x⁴ / rms⁴` |
//! | peak, waveform, pulse index | `peak / rms`, `rms / absolute mean`, `peak / absolute mean` |
//!
//! | of the spectrum | |
//! |--|--|
//! | mean, variance, skewness, kurtosis | of the amplitudes `s_k` |
//! | centroid, standard deviation | `c = Σ p f`, `d = √(Σ p (f − c)²)` |
//! | RMS frequency, mean frequency | `√(Σ p f²)`, `√(Σ p f⁴ / Σ p f²)` |
//! | regularity, variation | `Σ p f² / √(Σ p f⁴)`, `d / c` |
//! | 8th, 16th moment | `Σ p ((f − c) / d)ⁿ` |

use std::sync::Arc;

use realfft::num_complex::Complex;
use realfft::{RealFftPlanner, RealToComplex};

/// Names of the statistics of the samples, in order.
pub const TIME_NAMES: [&str; 12] = [
    "mean",
    "standard deviation",
    "square-root amplitude",
    "absolute mean",
    "peak",
    "skewness",
    "kurtosis",
    "variance",
    "kurtosis index",
    "peak index",
    "waveform index",
    "pulse index",
];

/// Names of the statistics of the spectrum, in order.
pub const FREQUENCY_NAMES: [&str; 12] = [
    "mean",
    "variance",
    "skewness",
    "kurtosis",
    "centroid",
    "standard deviation",
    "RMS frequency",
    "mean frequency",
    "regularity",
    "variation",
    "8th moment",
    "16th moment",
];

/// The statistics of one window, in the order of their names.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Statistics {
    /// Of the samples.
    pub time: [f64; 12],
    /// Of the spectrum; frequencies in hertz.
    pub frequency: [f64; 12],
}

/// Computes statistics of windows of one length, with buffers of its own.
pub struct StatisticsOf {
    sample_rate_hz: f64,
    transform: Arc<dyn RealToComplex<f64>>,
    samples: Vec<f64>,
    spectrum: Vec<Complex<f64>>,
    scratch: Vec<Complex<f64>>,
    /// `[N/2]`, from the first frequency above 0 on.
    amplitudes: Vec<f64>,
}

impl StatisticsOf {
    /// Of windows of `window` samples.
    pub fn new(window: usize, sample_rate_hz: f64) -> Self {
        let transform = RealFftPlanner::new().plan_fft_forward(window);
        Self {
            sample_rate_hz,
            samples: transform.make_input_vec(),
            spectrum: transform.make_output_vec(),
            scratch: transform.make_scratch_vec(),
            amplitudes: vec![0.0; window / 2],
            transform,
        }
    }

    /// The statistics of a window. One of another length, or without a varying signal, has none.
    pub fn of(&mut self, window: &[f32]) -> Option<Statistics> {
        if window.len() != self.samples.len() || window.len() < 4 {
            return None;
        }
        self.samples.iter_mut().zip(window).for_each(|(sample, x)| *sample = f64::from(*x));
        let time = time_statistics(&self.samples)?;
        self.transform.process_with_scratch(&mut self.samples, &mut self.spectrum, &mut self.scratch).ok()?;
        let scale = 2.0 / window.len() as f64;
        self.amplitudes.iter_mut().zip(&self.spectrum[1..]).for_each(|(s, x)| *s = scale * x.norm());
        let frequency = frequency_statistics(&self.amplitudes, self.sample_rate_hz / window.len() as f64)?;
        Some(Statistics { time, frequency })
    }
}

/// Mean, variance, skewness and kurtosis; none where nothing varies.
fn moments(x: &[f64]) -> Option<[f64; 4]> {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    let central = |power: i32| x.iter().map(|x| (x - mean).powi(power)).sum::<f64>() / n;
    let variance = central(2);
    // False for NaN too.
    (variance.is_finite() && variance > 0.0).then(|| [mean, variance, central(3) / variance.powf(1.5), central(4) / variance.powi(2)])
}

fn time_statistics(x: &[f64]) -> Option<[f64; 12]> {
    let n = x.len() as f64;
    let [mean, variance, skewness, kurtosis] = moments(x)?;
    let of = |f: fn(f64) -> f64| x.iter().map(|x| f(*x)).sum::<f64>() / n;
    let root_amplitude = of(|x| x.abs().sqrt()).powi(2);
    let absolute_mean = of(f64::abs);
    let peak = x.iter().fold(0.0_f64, |peak, x| peak.max(x.abs()));
    let square = of(|x| x * x);
    let rms = square.sqrt();
    let kurtosis_index = of(|x| x.powi(4)) / square.powi(2);
    let indices = [kurtosis_index, peak / rms, rms / absolute_mean, peak / absolute_mean];
    let [kurtosis_index, peak_index, waveform_index, pulse_index] = indices;
    Some([
        mean,
        variance.sqrt(),
        root_amplitude,
        absolute_mean,
        peak,
        skewness,
        kurtosis,
        variance,
        kurtosis_index,
        peak_index,
        waveform_index,
        pulse_index,
    ])
}

/// `step_hz` lies between neighbouring frequencies, and below the first.
fn frequency_statistics(s: &[f64], step_hz: f64) -> Option<[f64; 12]> {
    let [mean, variance, skewness, kurtosis] = moments(s)?;
    let total: f64 = s.iter().sum();
    let over = |f: &dyn Fn(f64) -> f64| s.iter().enumerate().map(|(k, s)| s / total * f((k + 1) as f64 * step_hz)).sum::<f64>();
    let centroid = over(&|f| f);
    let deviation = over(&|f| (f - centroid).powi(2)).sqrt();
    let (second, fourth) = (over(&|f| f * f), over(&|f| f.powi(4)));
    let moment = |power: i32| over(&|f| ((f - centroid) / deviation).powi(power));
    Some([
        mean,
        variance,
        skewness,
        kurtosis,
        centroid,
        deviation,
        second.sqrt(),
        (fourth / second).sqrt(),
        second / fourth.sqrt(),
        deviation / centroid,
        moment(8),
        moment(16),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) -> bool {
        (found - expected).abs() <= 1e-9 * expected.abs().max(1.0)
    }

    /// A square wave of ±1 with a step of 3 at one place: 0, 0, 0, 4 about a mean of 1, by hand.
    #[test]
    fn statistics_of_samples_are_those_by_hand() {
        let found = time_statistics(&[0.0, 0.0, 0.0, 4.0]).expect("a varying signal");
        // μ = 1, σ² = (3·1 + 9)/4 = 3; third moment (−3 + 27)/4 = 6; fourth (3 + 81)/4 = 21; rms = 2, mean |x| = 1, mean √|x| = 0.5.
        let root = 3.0_f64.sqrt();
        let expected = [1.0, root, 0.25, 1.0, 4.0, 6.0 / (3.0 * root), 21.0 / 9.0, 3.0, 64.0 / 16.0, 2.0, 2.0, 4.0];
        for ((name, found), expected) in TIME_NAMES.iter().zip(found).zip(expected) {
            assert!(close(found, expected), "{name}: {found}, expected {expected}");
        }
    }

    #[test]
    fn statistics_of_a_spectrum_are_those_by_hand() {
        // Amplitudes 1 at 10 Hz, 0 at 20 Hz, 3 at 30 Hz, 0 at 40 Hz: shares 1/4 and 3/4.
        let found = frequency_statistics(&[1.0, 0.0, 3.0, 0.0], 10.0).expect("a varying spectrum");
        let centroid = 25.0;
        let deviation = (0.25 * 225.0 + 0.75 * 25.0_f64).sqrt();
        let (second, fourth) = (0.25 * 100.0 + 0.75 * 900.0_f64, 0.25 * 1e4 + 0.75 * 81e4_f64);
        let moment = |n: i32| 0.25 * (15.0 / deviation).powi(n) + 0.75 * (5.0 / deviation).powi(n);
        let expected = [
            (4, centroid),
            (5, deviation),
            (6, second.sqrt()),
            (7, (fourth / second).sqrt()),
            (8, second / fourth.sqrt()),
            (9, deviation / centroid),
            (10, moment(8)),
            (11, moment(16)),
            (0, 1.0),
            (1, 1.5),
        ];
        for (index, expected) in expected {
            assert!(close(found[index], expected), "{}: {}, expected {expected}", FREQUENCY_NAMES[index], found[index]);
        }
    }

    #[test]
    fn a_sine_has_its_frequency_and_amplitude() {
        let window: Vec<f32> = (0..2048).map(|i| (2.0 * (f64::from(i) * std::f64::consts::TAU * 64.0 / 2048.0).sin()) as f32).collect();
        let found = StatisticsOf::new(2048, 20480.0).of(&window).expect("a varying signal");
        assert!((found.frequency[4] - 640.0).abs() < 1.0, "the centroid is {} Hz", found.frequency[4]);
        assert!((found.frequency[0] * 1024.0 - 2.0).abs() < 1e-3, "one line of amplitude 2");
        // 32 samples a period: the mean of |sin| is cot(π/32) / 16, its root mean square √½.
        let waveform_index = 0.5_f64.sqrt() * 16.0 * (std::f64::consts::PI / 32.0).tan();
        assert!((found.time[10] - waveform_index).abs() < 1e-5, "the waveform index is {}", found.time[10]);
    }

    #[test]
    fn a_window_without_a_signal_has_none() {
        let mut of = StatisticsOf::new(64, 1000.0);
        assert_eq!(of.of(&[1.0; 64]), None);
        assert_eq!(of.of(&[0.0; 63]), None);
        let mut window = [0.0; 64];
        window[3] = f32::NAN;
        assert_eq!(of.of(&window), None);
    }
}
