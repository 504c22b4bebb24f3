//! Simulated vibration of a machine with a healthy or faulty bearing.
//!
//! The usual impulse model (McFadden, Smith: J. Sound Vib. 96, 1984, for a single point defect; Antoni, Randall: J. Sound Vib. 265, 2003,
//! for the slip): a fault strikes at its frequency with random slip; the load zone at the shaft's rate (inner race) or the cage's (ball)
//! scales each strike; the housing answers each with decaying resonances; shaft harmonics and coloured noise are added. What it makes is
//! **simulated** and must be called so wherever it shows.

use std::f64::consts::TAU;

use serde::{Deserialize, Serialize};

use super::bearing::Bearing;
use super::rng::Rng;

/// Resonances of a housing.
pub const MODES: usize = 3;

/// The state of a bearing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Healthy.
    None,
    /// On a ball.
    Ball,
    /// On the inner race.
    Inner,
    /// On the outer race.
    Outer,
}

impl Fault {
    /// Every state, in the order of the classes.
    pub const ALL: [Self; 4] = [Self::None, Self::Ball, Self::Inner, Self::Outer];

    /// The class's short name.
    pub fn class(self) -> &'static str {
        match self {
            Self::None => "N",
            Self::Ball => "B",
            Self::Inner => "IR",
            Self::Outer => "OR",
        }
    }
}

/// A resonance of the housing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Mode {
    /// Natural frequency in Hz.
    pub frequency_hz: f64,
    /// Damping ratio: 0.02 to 0.08 for bolted housings.
    pub damping: f64,
}

/// A machine: what stays the same whatever its bearing's state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Its name.
    pub id: String,
    /// The bearing.
    pub bearing: Bearing,
    /// Resonances, lowest first.
    pub modes: [Mode; MODES],
    /// How strongly strikes on outer race, inner race and ball excite each mode (rows in this order): their ways to the sensor differ.
    pub paths: [[f64; MODES]; 3],
    /// Amplitudes of the first shaft harmonics, relative to the noise.
    pub shaft_harmonics: [f64; 3],
    /// Coefficient of the first-order autoregression that colours the noise, 0 (white) to below 1.
    pub noise_colour: f64,
    /// Standard deviation of the time between strikes, relative to its mean: 0.01 to 0.02.
    pub slip: f64,
}

/// One recording's circumstances.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Condition {
    /// The bearing's state.
    pub fault: Fault,
    /// Shaft turns a minute.
    pub rpm: f64,
    /// Radial load, 0 to 1 of nominal: a higher load widens the load zone.
    pub load: f64,
    /// Power of the strikes over the power of the noise, in dB.
    pub snr_db: f64,
}

impl Machine {
    /// `samples` samples of vibration at `rate_hz`. The unit is arbitrary: noise has a standard deviation of 1.
    pub fn record(&self, condition: &Condition, rate_hz: f64, samples: usize, rng: &mut Rng) -> Vec<f32> {
        let noise = self.noise(rate_hz, samples, rng);
        let strikes = self.strikes(condition, rate_hz, samples, rng);
        // The noise has power 1, so the strikes' power is the ratio itself.
        let gain = if condition.fault == Fault::None { 0.0 } else { 10f64.powf(condition.snr_db / 20.0) / deviation(&strikes) };
        let shaft = condition.rpm / 60.0 / rate_hz;
        let phases: [f64; 3] = std::array::from_fn(|_| rng.uniform());
        let harmonic = |i: usize| -> f64 {
            let turns = i as f64 * shaft;
            (0..3).map(|k| self.shaft_harmonics[k] * (TAU * ((k + 1) as f64 * turns + phases[k])).sin()).sum()
        };
        (0..samples).map(|i| (gain * strikes[i] + noise[i] + harmonic(i)) as f32).collect()
    }

    /// Coloured noise of deviation 1: an autoregression, and the housing's answer to broadband excitation, half the power each.
    fn noise(&self, rate_hz: f64, samples: usize, rng: &mut Rng) -> Vec<f64> {
        let mut last = 0.0;
        let mut coloured: Vec<f64> = Vec::with_capacity(samples);
        for _ in 0..samples {
            last = self.noise_colour * last + rng.normal();
            coloured.push(last);
        }
        let excitation: Vec<f64> = (0..samples).map(|_| rng.normal()).collect();
        let mut modal = vec![0.0; samples];
        for mode in &self.modes {
            mode.add_answer(&excitation, 1.0, rate_hz, &mut modal);
        }
        let (coloured_gain, modal_gain) = (0.5f64.sqrt() / deviation(&coloured), 0.5f64.sqrt() / deviation(&modal));
        coloured.iter().zip(&modal).map(|(coloured, modal)| coloured_gain * coloured + modal_gain * modal).collect()
    }

    /// The housing's answer to the strikes, of arbitrary scale; all zero for a healthy bearing.
    fn strikes(&self, condition: &Condition, rate_hz: f64, samples: usize, rng: &mut Rng) -> Vec<f64> {
        let mut answer = vec![0.0; samples];
        let orders = self.bearing.orders();
        let (order, modulation, path) = match condition.fault {
            Fault::None => return answer,
            Fault::Outer => (orders.bpfo, 0.0, &self.paths[0]),
            Fault::Inner => (orders.bpfi, 1.0, &self.paths[1]),
            Fault::Ball => (2.0 * orders.bsf, orders.ftf, &self.paths[2]),
        };
        let shaft_hz = condition.rpm / 60.0;
        let mut train = vec![0.0; samples];
        let mean_interval = rate_hz / (order * shaft_hz);
        let phase = rng.uniform();
        let mut time = rng.uniform() * mean_interval;
        let mut count = 0usize;
        while time < samples as f64 {
            let angle = TAU * (phase + modulation * shaft_hz * time / rate_hz);
            let zone = if modulation == 0.0 { 1.0 } else { load_zone(angle, condition.load) };
            // A ball meets the outer and the inner race in turn; the way from the inner one to the sensor is longer.
            let race = if condition.fault == Fault::Ball && count % 2 == 1 { 0.7 } else { 1.0 };
            add_impulse(&mut train, time, zone * race * (1.0 + 0.1 * rng.normal()));
            // Slip accumulates: each interval is drawn by itself, so strikes drift against the shaft.
            time += mean_interval * (1.0 + self.slip * rng.normal()).max(0.5);
            count += 1;
        }
        for (mode, gain) in self.modes.iter().zip(path) {
            mode.add_answer(&train, *gain, rate_hz, &mut answer);
        }
        answer
    }
}

impl Mode {
    /// Adds the mode's answer to `excitation`: each impulse rings as exp(−ζωt)·sin(ω_d t), as a recursion of second order.
    fn add_answer(&self, excitation: &[f64], gain: f64, rate_hz: f64, out: &mut [f64]) {
        let omega = TAU * self.frequency_hz / rate_hz;
        let radius = (-self.damping * omega).exp();
        let damped = omega * (1.0 - self.damping * self.damping).sqrt();
        let (a1, a2, b) = (2.0 * radius * damped.cos(), -radius * radius, gain * radius * damped.sin());
        let (mut y1, mut y2, mut x1) = (0.0, 0.0, 0.0);
        for (x, out) in excitation.iter().zip(out) {
            let y = b * x1 + a1 * y1 + a2 * y2;
            (x1, y2, y1) = (*x, y1, y);
            *out += y;
        }
    }
}

/// Stribeck's load distribution, (1 − (1 − cos θ)/2ε)^1.5 within the load zone, over a floor: preload keeps the contact closed outside it.
fn load_zone(angle: f64, load: f64) -> f64 {
    const FLOOR: f64 = 0.25;
    let epsilon = 0.35 + 0.3 * load.clamp(0.0, 1.0);
    let inside = (1.0 - (1.0 - angle.cos()) / (2.0 * epsilon)).max(0.0).powf(1.5);
    FLOOR + (1.0 - FLOOR) * inside
}

/// An impulse between two samples is shared by both in proportion.
fn add_impulse(train: &mut [f64], time: f64, amplitude: f64) {
    let index = time as usize;
    let later = time - index as f64;
    for (offset, share) in [(0, 1.0 - later), (1, later)] {
        if let Some(value) = train.get_mut(index + offset) {
            *value += amplitude * share;
        }
    }
}

/// Standard deviation, never zero.
fn deviation(values: &[f64]) -> f64 {
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n).sqrt().max(f64::MIN_POSITIVE)
}
