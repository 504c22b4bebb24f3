//! Windows of a stream: cutting samples that come in pieces of any size, and normalising each window by itself.

use std::fmt;

use espalier_models::foreign::Normalisation;

use super::error::SignalError;

/// Samples of a window unless said otherwise.
pub const WINDOW: usize = 2048;
/// Samples between the starts of neighbouring training windows unless said otherwise: four views of each stretch of signal, after which
/// another halving gives almost the same windows again. Test and holdout windows never overlap.
pub const TRAINING_HOP: usize = 512;
/// Longest window: what bounds the buffers of a stream.
pub const MAX_WINDOW: usize = 1 << 20;

/// Why a window cannot be normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadWindow {
    /// Every sample is the same, up to rounding: a dead sensor or a saturated one.
    Constant,
    /// A sample is NaN or infinite.
    NotFinite {
        /// Its index in the window.
        index: usize,
    },
}

impl fmt::Display for BadWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant => f.write_str("all its samples are the same"),
            Self::NotFinite { index } => write!(f, "its sample {index} is not a finite number"),
        }
    }
}

impl std::error::Error for BadWindow {}

/// Mean and (population) standard deviation of a window, in f64.
pub fn mean_and_deviation(window: &[f32]) -> (f64, f64) {
    if window.is_empty() {
        return (0.0, 0.0);
    }
    let n = window.len() as f64;
    let mean = window.iter().map(|value| f64::from(*value)).sum::<f64>() / n;
    // The second pass is about the mean, so that an offset far above the vibration loses no digits.
    let variance = window.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>() / n;
    (mean, variance.sqrt())
}

/// z-scores a window in place: mean 0, standard deviation 1. On an error it is left as it was.
pub fn normalise(window: &mut [f32]) -> Result<(), BadWindow> {
    normalise_as(window, Normalisation::Window)
}

/// Does to a window in place what a model wants done. A window without a finite, varying signal is an error, and left as it was, whatever
/// the model wants.
pub fn normalise_as(window: &mut [f32], normalisation: Normalisation) -> Result<(), BadWindow> {
    let (mean, deviation) = check_signal(window)?;
    let (mean, deviation) = match normalisation {
        Normalisation::Window => (mean, deviation),
        Normalisation::None => return Ok(()),
        Normalisation::Fixed { mean, deviation } => (mean, deviation),
    };
    let scale = 1.0 / deviation;
    for value in window {
        *value = ((f64::from(*value) - mean) * scale) as f32;
    }
    Ok(())
}

/// Mean and standard deviation of a window with a finite, varying signal.
fn check_signal(window: &[f32]) -> Result<(f64, f64), BadWindow> {
    if let Some(index) = window.iter().position(|value| !value.is_finite()) {
        return Err(BadWindow::NotFinite { index });
    }
    let (mean, deviation) = mean_and_deviation(window);
    let largest = window.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    // Below one part in 2^23 of the largest sample, all that is left is the rounding of f32.
    if deviation <= f64::from(largest) * f64::from(f32::EPSILON) {
        return Err(BadWindow::Constant);
    }
    Ok((mean, deviation))
}

/// A window as it came, before normalisation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window<'a> {
    /// Counts the windows of the stream from 0; never reused.
    pub sequence: u64,
    /// Index in the stream of the first sample.
    pub start: u64,
    /// The samples `[length]`.
    pub samples: &'a [f32],
}

/// Cuts a stream into windows; allocates once, at the start.
#[derive(Debug)]
pub struct Windower {
    buffer: Box<[f32]>,
    filled: usize,
    hop: usize,
    sequence: u64,
    /// Index in the stream of the buffer's first sample.
    start: u64,
    /// The buffer's window has been given out and makes room at the next call.
    delivered: bool,
}

impl Windower {
    /// Windows of `length` samples that start every `hop` samples; 1 ≤ hop ≤ length ≤ [`MAX_WINDOW`].
    pub fn new(length: usize, hop: usize) -> Result<Self, SignalError> {
        check_window(length, hop)?;
        Ok(Self { buffer: vec![0.0; length].into_boxed_slice(), filled: 0, hop, sequence: 0, start: 0, delivered: false })
    }

    /// Takes samples from the front of `piece` until a window is whole, and gives it; none when the piece is used up. Call it until then:
    /// `while let Some(window) = windower.next_window(&mut piece) { .. }`.
    pub fn next_window(&mut self, piece: &mut &[f32]) -> Option<Window<'_>> {
        if self.delivered {
            self.buffer.copy_within(self.hop.., 0);
            self.filled -= self.hop;
            self.start += self.hop as u64;
            self.delivered = false;
        }
        let taken = piece.len().min(self.buffer.len() - self.filled);
        let (front, rest) = piece.split_at(taken);
        self.buffer[self.filled..self.filled + taken].copy_from_slice(front);
        self.filled += taken;
        *piece = rest;
        if self.filled < self.buffer.len() {
            return None;
        }
        self.delivered = true;
        let sequence = self.sequence;
        self.sequence += 1;
        Some(Window { sequence, start: self.start, samples: &self.buffer })
    }

    /// Samples were lost: drops the unfinished window, so that none spans the gap, and counts `lost` samples and each window that they would
    /// have filled, so that the gap shows in the sequence numbers (always by at least one).
    pub fn gap(&mut self, lost: u64) {
        let held = if self.delivered { self.filled - self.hop } else { self.filled };
        let begin = self.start + (self.filled - held) as u64;
        let skipped = (held as u64).saturating_add(lost);
        self.start = begin.saturating_add(skipped);
        self.sequence = self.sequence.saturating_add((skipped / self.hop as u64).max(1));
        (self.filled, self.delivered) = (0, false);
    }
}

/// Checks a window length and hop from an option.
pub(crate) fn check_window(length: usize, hop: usize) -> Result<(), SignalError> {
    if !(2..=MAX_WINDOW).contains(&length) {
        return Err(SignalError::BadOption {
            option: "the window",
            given: format!("{length} samples"),
            expected: format!("2 to {MAX_WINDOW} samples"),
        });
    }
    if hop == 0 || hop > length {
        return Err(SignalError::BadOption {
            option: "the hop",
            given: format!("{hop} samples"),
            expected: format!("1 to {length} samples (the window)"),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalised_windows_have_mean_zero_and_deviation_one() {
        for (offset, scale) in [(0.0, 1.0), (1000.0, 0.5), (0.0, 1e-20), (0.0, 1e30)] {
            let mut window: Vec<f32> = (0..256).map(|i| (offset + scale * f64::from(i).sin()) as f32).collect();
            assert_eq!(normalise(&mut window), Ok(()), "offset {offset}, scale {scale}");
            let (mean, deviation) = mean_and_deviation(&window);
            assert!(mean.abs() < 1e-5 && (deviation - 1.0).abs() < 1e-5, "offset {offset}, scale {scale}: {mean} {deviation}");
        }
    }

    #[test]
    fn dead_and_broken_windows_are_told_apart_and_left_alone() {
        let mut window = [0.1f32; 64];
        assert_eq!(normalise(&mut window), Err(BadWindow::Constant));
        window[7] = f32::INFINITY;
        assert_eq!(normalise(&mut window), Err(BadWindow::NotFinite { index: 7 }));
        assert_eq!(window[0], 0.1);
        assert_eq!(normalise(&mut [0.0; 64]), Err(BadWindow::Constant));
        assert_eq!(normalise(&mut []), Err(BadWindow::Constant));
    }

    #[test]
    fn a_window_is_normalised_as_the_model_wants() {
        let signal: Vec<f32> = (0..64).map(|i| 3.0 + f32::sin(i as f32)).collect();
        for (normalisation, expected) in
            [(Normalisation::None, signal[5]), (Normalisation::Fixed { mean: 1.0, deviation: 2.0 }, (signal[5] - 1.0) / 2.0)]
        {
            let mut window = signal.clone();
            assert_eq!(normalise_as(&mut window, normalisation), Ok(()));
            assert!((window[5] - expected).abs() < 1e-6, "{normalisation:?}: {} {expected}", window[5]);
            assert_eq!(normalise_as(&mut [7.0; 8], normalisation), Err(BadWindow::Constant), "a dead sensor has no verdict");
            assert_eq!(normalise_as(&mut [f32::NAN; 8], normalisation), Err(BadWindow::NotFinite { index: 0 }));
        }
    }

    #[test]
    fn a_gap_shows_in_the_sequence_and_no_window_spans_it() {
        let mut windower = Windower::new(4, 4).unwrap();
        let mut piece: &[f32] = &[0.0, 1.0, 2.0, 3.0, 4.0];
        assert_eq!(windower.next_window(&mut piece).map(|window| (window.sequence, window.start)), Some((0, 0)));
        assert!(windower.next_window(&mut piece).is_none());
        windower.gap(9);
        let mut piece: &[f32] = &[14.0, 15.0, 16.0, 17.0];
        let window = windower.next_window(&mut piece).unwrap();
        assert_eq!((window.sequence, window.start, window.samples), (3, 14, &[14.0, 15.0, 16.0, 17.0][..]));
    }
}
