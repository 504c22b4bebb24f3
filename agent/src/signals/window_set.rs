//! The windows of a side of a split, made one at a time from the store.

use std::path::Path;
use std::sync::Arc;

use espalier_models::foreign::Normalisation;

use super::corpus::Corpus;
use super::error::SignalError;
use super::noise::Noise;
use super::splits::{Segment, Split};
use super::store::SampleStore;
use super::windows::{BadWindow, check_window, normalise_as};

/// Where a window lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Index into the set's segments, and the block that a bootstrap over recordings draws.
    pub segment: usize,
    /// Index of the recording in the store.
    pub recording: usize,
    /// Its first sample in the recording.
    pub start: usize,
}

/// Windows of some segments; nothing but their bounds is held.
#[derive(Debug, Clone)]
pub struct WindowSet {
    store: Arc<SampleStore>,
    segments: Vec<Segment>,
    /// Number of the first window of each segment; one more for the end.
    firsts: Vec<usize>,
    length: usize,
    hop: usize,
    noise: Option<Noise>,
    normalisation: Normalisation,
}

impl WindowSet {
    /// Windows of `length` samples every `hop` samples within each segment: `hop = length` for test and holdout.
    pub fn new(store: Arc<SampleStore>, segments: &[Segment], length: usize, hop: usize) -> Result<Self, SignalError> {
        check_window(length, hop)?;
        let mut firsts = vec![0];
        for segment in segments {
            let samples = store.samples(segment.recording).unwrap_or(0);
            if segment.start > segment.end || segment.end > samples {
                let given = format!("samples {}..{} of recording {}", segment.start, segment.end, segment.recording);
                return Err(SignalError::BadOption { option: "a segment", given, expected: format!("samples within its {samples}") });
            }
            let windows = (segment.end - segment.start).checked_sub(length).map_or(0, |rest| rest / hop + 1);
            firsts.push(firsts.last().copied().unwrap_or(0) + windows);
        }
        Ok(Self { store, segments: segments.to_vec(), firsts, length, hop, noise: None, normalisation: Normalisation::Window })
    }

    /// The same windows with noise added before normalisation. A window's id is its place, so that it meets the same noise in
    /// every set that has it.
    pub fn with_noise(mut self, noise: Option<Noise>) -> Self {
        self.noise = noise;
        self
    }

    /// The same windows, normalised in another way.
    pub fn with_normalisation(mut self, normalisation: Normalisation) -> Self {
        self.normalisation = normalisation;
        self
    }

    /// How many windows.
    pub fn len(&self) -> usize {
        self.firsts.last().copied().unwrap_or(0)
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Samples of a window.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The segments, in the order of the windows.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The store, to give its pages back.
    pub fn store(&self) -> &SampleStore {
        &self.store
    }

    /// Where window `index` lies. Panics if `index ≥ len()`, as indexing does.
    pub fn place(&self, index: usize) -> Place {
        assert!(index < self.len(), "window {index} of {}", self.len());
        let segment = self.firsts.partition_point(|first| *first <= index) - 1;
        let Segment { recording, start, .. } = self.segments[segment];
        Place { segment, recording, start: start + (index - self.firsts[segment]) * self.hop }
    }

    /// The class of window `index`. Panics if `index ≥ len()`.
    pub fn class(&self, index: usize) -> usize {
        self.segments[self.place(index).segment].class
    }

    /// Copies window `index` as it was recorded into `out` `[length]` and gives its class. Panics if `index ≥ len()` or `out` has another
    /// length.
    pub fn raw_window(&self, index: usize, out: &mut [f32]) -> usize {
        assert_eq!(out.len(), self.length, "samples of a window");
        let place = self.place(index);
        let inside = self.store.read(place.recording, place.start, out);
        assert!(inside, "segments are checked against the store when the set is made");
        self.segments[place.segment].class
    }

    /// Copies window `index` into `out` `[length]`, adds the noise if there is one, normalises, and gives the class. Panics as
    /// [`Self::raw_window`] does.
    pub fn window(&self, index: usize, out: &mut [f32]) -> Result<usize, BadWindow> {
        let class = self.raw_window(index, out);
        if let Some(noise) = &self.noise {
            // Noise is sized by the window's deviation: one NaN would spread over the window and hide its place.
            if let Some(index) = out.iter().position(|value| !value.is_finite()) {
                return Err(BadWindow::NotFinite { index });
            }
            let place = self.place(index);
            noise.add(out, (place.recording as u64) << 32 | place.start as u64);
        }
        normalise_as(out, self.normalisation)?;
        Ok(class)
    }

    /// How many windows each of `classes` classes has.
    pub fn class_counts(&self, classes: usize) -> Vec<usize> {
        let mut counts = vec![0; classes];
        for (segment, bounds) in self.segments.iter().zip(self.firsts.windows(2)) {
            if let Some(count) = counts.get_mut(segment.class) {
                *count += bounds[1] - bounds[0];
            }
        }
        counts
    }

    /// Reads every window once; the first that cannot be normalised is the error, with its place in the recording that `name` names by its
    /// number in the store.
    pub fn check(&self, name: &dyn Fn(usize) -> String) -> Result<(), SignalError> {
        let mut window = vec![0.0; self.length];
        for index in 0..self.len() {
            if let Err(reason) = self.window(index, &mut window) {
                let place = self.place(index);
                return Err(SignalError::Window { recording: name(place.recording), start: place.start, reason });
            }
        }
        Ok(())
    }
}

/// The sides of a split, ready to read.
#[derive(Debug, Clone)]
pub struct Sets {
    /// The calibration set, in overlapping windows.
    pub train: WindowSet,
    /// The holdout.
    pub holdout: WindowSet,
    /// The test sets, in the order of the split.
    pub tests: Vec<WindowSet>,
}

impl Sets {
    /// Reads the recordings of `split` into one store in `folder`; training windows start every `training_hop` samples, the others do not
    /// overlap.
    pub fn open(corpus: &Corpus, split: &Split, folder: &Path, training_hop: usize) -> Result<Self, SignalError> {
        let store = Arc::new(corpus.store(split, folder)?);
        let set = |segments: &[Segment], hop| WindowSet::new(store.clone(), segments, split.window, hop);
        let train = set(&split.train, training_hop)?;
        let holdout = set(&split.holdout, split.window)?;
        let tests = split.test.iter().map(|test| set(&test.segments, split.window)).collect::<Result<_, _>>()?;
        Ok(Self { train, holdout, tests })
    }
}
