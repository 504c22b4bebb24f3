//! Shuffled, augmented batches of a window set.

use crate::diagnosis_text::TextExamples;
use crate::error::{AgentError, Result};
use crate::signals::{Augment, Rng, WindowSet};

/// Windows with their classes, read one at a time so that a set need not be in memory.
pub trait Examples: Sync {
    /// Windows in the set.
    fn count(&self) -> usize;
    /// Samples of a window.
    fn window(&self) -> usize;
    /// Writes a window, normalised by itself, and returns its class; none for a window that has no verdict (constant, or not finite).
    fn load(&self, index: usize, out: &mut [f32]) -> Result<Option<u32>>;
    /// The windows as prompts; none where the model reads windows themselves.
    fn by_text(&self) -> Option<&TextExamples<'_>> {
        None
    }
}

/// Batches of a set, every window once an epoch, in a new order each.
pub struct Batches<'a> {
    examples: &'a dyn Examples,
    augment: Augment,
    rng: Rng,
    order: Vec<u32>,
    next: usize,
    batch: usize,
    windows: Vec<f32>,
    classes: Vec<u32>,
}

impl<'a> Batches<'a> {
    /// Batches of up to `batch` windows. An empty set is an error.
    pub fn new(examples: &'a dyn Examples, batch: usize, augment: Augment, seed: u64) -> Result<Self> {
        if examples.count() == 0 {
            return Err(AgentError::Training("the training set has no windows".into()));
        }
        let order: Vec<u32> = (0..examples.count() as u32).collect();
        let next = order.len();
        Ok(Self { examples, augment, rng: Rng::new(seed), order, next, batch: batch.max(1), windows: Vec::new(), classes: Vec::new() })
    }

    /// Batches in an epoch.
    pub fn per_epoch(&self) -> usize {
        self.order.len().div_ceil(self.batch)
    }

    /// The next batch: normalised windows and classes. A window without a varying signal is passed over.
    pub fn next_batch(&mut self) -> Result<(&[f32], &[u32])> {
        self.windows.clear();
        self.classes.clear();
        let length = self.examples.window();
        let mut passed_over = 0;
        while self.classes.len() < self.batch.min(self.order.len()) {
            if self.next == self.order.len() {
                self.rng.shuffle(&mut self.order);
                self.next = 0;
            }
            let index = self.order[self.next] as usize;
            self.next += 1;
            let start = self.windows.len();
            self.windows.resize(start + length, 0.0);
            let window = &mut self.windows[start..];
            if let Some(class) = self.examples.load(index, window)? {
                self.augment.apply(window, &mut self.rng);
                self.classes.push(class);
                continue;
            }
            self.windows.truncate(start);
            passed_over += 1;
            if passed_over > self.order.len() {
                return Err(AgentError::Training("no window of the training set has a finite, varying signal".into()));
            }
        }
        Ok((&self.windows, &self.classes))
    }
}

impl Examples for WindowSet {
    fn count(&self) -> usize {
        self.len()
    }

    fn window(&self) -> usize {
        self.length()
    }

    fn load(&self, index: usize, out: &mut [f32]) -> Result<Option<u32>> {
        Ok(self.window(index, out).ok().map(|class| class as u32))
    }
}
