//! How good a classifier's predictions are: accuracy with an interval that respects recordings, confusion, per-class scores, cross entropy
//! and agreement with another model.
//!
//! Windows of one recording are alike, so an interval that takes windows as independent is far too narrow. The bootstrap here draws
//! *clusters* with replacement: recordings, or blocks of [`BLOCK_WINDOWS`] windows where a class has a single recording. It draws within
//! each class, because a test set's mix of classes is chosen, not observed (Davison and Hinkley, Bootstrap Methods, 1997, sections 2.4
//! and 3.2).

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::signals::SplitMix64;
use crate::table::Table;

/// Windows in a block where a class has one recording.
pub const BLOCK_WINDOWS: usize = 20;
/// Bootstrap resamples: the 2.5 % quantile then rests on 25 values, and its own noise is far below an interval's width.
pub const RESAMPLES: usize = 1000;
/// Probabilities below this count as this in the cross entropy, so that one confident mistake costs at most 27.6 nats.
pub const PROBABILITY_FLOOR: f64 = 1e-12;
/// How far a row of probabilities may sum from 1: f32 softmax over thousands of classes stays well inside.
const SUM_TOLERANCE: f64 = 1e-3;

/// What is wrong with a set of predictions.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum MetricsError {
    /// No class names were given.
    #[error("predictions need at least one class; the model's list of class names is empty")]
    NoClasses,
    /// There is nothing to evaluate.
    #[error("there are no predictions to evaluate; give at least one window")]
    Empty,
    /// The label is not a class.
    #[error("window {window} has label {label}, but there are {classes} classes; labels count from 0")]
    Label {
        /// Index of the window.
        window: usize,
        /// Its label.
        label: usize,
        /// Number of classes.
        classes: usize,
    },
    /// The row has the wrong length.
    #[error("window {window} has {found} probabilities, but there are {expected} classes; give one a class")]
    Width {
        /// Index of the window.
        window: usize,
        /// Its probabilities.
        found: usize,
        /// Number of classes.
        expected: usize,
    },
    /// The row is no distribution.
    #[error("window {window}: the probabilities are not a distribution (sum {sum}, smallest {smallest}); give the softmax of the logits")]
    NotADistribution {
        /// Index of the window.
        window: usize,
        /// Sum of its row.
        sum: f64,
        /// Smallest value of its row.
        smallest: f32,
    },
    /// The class to leave out does not exist.
    #[error("the class `{name}` does not exist; the classes are {known}")]
    UnknownClass {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// The other predictions are of other windows.
    #[error("agreement needs the same windows in the same order: {detail}")]
    OtherWindows {
        /// Where the two differ.
        detail: String,
    },
}

/// Predictions of one model on one list of windows, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Predictions {
    classes: Vec<String>,
    labels: Vec<usize>,
    recordings: Vec<u32>,
    /// `[windows, classes]`
    probabilities: Vec<f32>,
}

impl Predictions {
    /// No predictions yet, for these classes.
    ///
    /// # Errors
    /// Where there are no classes.
    pub fn new(classes: &[String]) -> Result<Self, MetricsError> {
        if classes.is_empty() {
            return Err(MetricsError::NoClasses);
        }
        Ok(Self { classes: classes.to_vec(), labels: Vec::new(), recordings: Vec::new(), probabilities: Vec::new() })
    }

    /// Adds a window: its true class, the recording it was cut from, and the model's probabilities `[classes]`.
    ///
    /// # Errors
    /// Where the label is no class, or the row is no distribution over the classes.
    pub fn push(&mut self, label: usize, recording: u32, probabilities: &[f32]) -> Result<(), MetricsError> {
        let (window, classes) = (self.len(), self.classes.len());
        if label >= classes {
            return Err(MetricsError::Label { window, label, classes });
        }
        if probabilities.len() != classes {
            return Err(MetricsError::Width { window, found: probabilities.len(), expected: classes });
        }
        let sum: f64 = probabilities.iter().map(|&p| f64::from(p)).sum();
        let smallest = probabilities.iter().copied().fold(f32::INFINITY, f32::min);
        // A NaN anywhere makes the sum NaN, which no comparison accepts.
        if !((sum - 1.0).abs() <= SUM_TOLERANCE && smallest >= 0.0) {
            return Err(MetricsError::NotADistribution { window, sum, smallest });
        }
        self.labels.push(label);
        self.recordings.push(recording);
        self.probabilities.extend_from_slice(probabilities);
        Ok(())
    }

    /// Number of windows.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are no windows.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The class names, in the order of the probabilities.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// The most probable class of every window; the first of equals.
    pub fn predicted(&self) -> Vec<usize> {
        let best = |row: &[f32]| (1..row.len()).fold(0, |best, class| if row[class] > row[best] { class } else { best });
        self.probabilities.chunks_exact(self.classes.len()).map(best).collect()
    }

    /// Share of windows on which both models name the same class.
    ///
    /// # Errors
    /// Where the two are not of the same windows.
    pub fn agreement(&self, other: &Self) -> Result<f64, MetricsError> {
        let detail = if self.is_empty() {
            return Err(MetricsError::Empty);
        } else if self.classes != other.classes {
            format!("the classes differ ({} and {})", self.classes.join(", "), other.classes.join(", "))
        } else if self.len() != other.len() {
            format!("there are {} windows and {}", self.len(), other.len())
        } else if let Some(window) =
            (0..self.len()).find(|&w| (self.labels[w], self.recordings[w]) != (other.labels[w], other.recordings[w]))
        {
            format!("window {window} has another label or recording")
        } else {
            let same = self.predicted().iter().zip(other.predicted()).filter(|(mine, theirs)| **mine == *theirs).count();
            return Ok(same as f64 / self.len() as f64);
        };
        Err(MetricsError::OtherWindows { detail })
    }

    /// Everything at once. `without` names a class whose windows are left out of a second accuracy; `reference` are another model's
    /// predictions of the same windows; `seed` is the bootstrap's.
    ///
    /// # Errors
    /// Where there is no window, the class does not exist or the reference is of other windows.
    pub fn evaluate(&self, without: Option<&str>, reference: Option<&Predictions>, seed: u64) -> Result<Evaluation, MetricsError> {
        if self.is_empty() {
            return Err(MetricsError::Empty);
        }
        let predicted = self.predicted();
        let mut confusion = vec![vec![0u64; self.classes.len()]; self.classes.len()];
        for (&label, &prediction) in self.labels.iter().zip(&predicted) {
            confusion[label][prediction] += 1;
        }
        let right = |class: usize| confusion[class][class];
        let windows = |class: usize| confusion[class].iter().sum::<u64>();
        let correct: u64 = (0..self.classes.len()).map(right).sum();
        let without = match without {
            None => None,
            Some(name) => {
                let unknown = || MetricsError::UnknownClass { name: name.to_owned(), known: self.classes.join(", ") };
                let class = self.classes.iter().position(|known| known == name).ok_or_else(unknown)?;
                let rest = self.len() as u64 - windows(class);
                (rest > 0).then(|| Without {
                    class: name.to_owned(),
                    windows: rest,
                    accuracy: (correct - right(class)) as f64 / rest as f64,
                })
            }
        };
        let per_class = class_scores(&self.classes, &confusion);
        let present: Vec<f64> = per_class.iter().filter(|scores| scores.windows > 0).filter_map(|scores| scores.f1).collect();
        Ok(Evaluation {
            windows: self.len() as u64,
            accuracy: correct as f64 / self.len() as f64,
            interval: self.interval(&predicted, seed),
            without,
            macro_f1: present.iter().sum::<f64>() / present.len().max(1) as f64,
            cross_entropy_nats: self.cross_entropy(),
            agreement: reference.map(|other| self.agreement(other)).transpose()?,
            per_class,
            confusion,
        })
    }

    fn cross_entropy(&self) -> f64 {
        let rows = self.probabilities.chunks_exact(self.classes.len());
        let total: f64 = rows.zip(&self.labels).map(|(row, &label)| -f64::from(row[label]).max(PROBABILITY_FLOOR).ln()).sum();
        total / self.len().max(1) as f64
    }

    /// `(right, windows)` of every cluster, grouped by class.
    fn clusters(&self, predicted: &[usize]) -> Vec<Vec<(u64, u64)>> {
        let mut strata: Vec<BTreeMap<u32, Vec<bool>>> = vec![BTreeMap::new(); self.classes.len()];
        for (window, &label) in self.labels.iter().enumerate() {
            strata[label].entry(self.recordings[window]).or_default().push(predicted[window] == label);
        }
        let tally = |windows: &[bool]| (windows.iter().filter(|right| **right).count() as u64, windows.len() as u64);
        let cut = |recordings: BTreeMap<u32, Vec<bool>>| match recordings.len() {
            1 => recordings.values().flat_map(|windows| windows.chunks(BLOCK_WINDOWS)).map(tally).collect(),
            _ => recordings.values().map(|windows| tally(windows)).collect::<Vec<_>>(),
        };
        strata.into_iter().filter(|recordings| !recordings.is_empty()).map(cut).collect()
    }

    fn interval(&self, predicted: &[usize], seed: u64) -> Interval {
        let strata = self.clusters(predicted);
        let mut random = SplitMix64::new(seed);
        let mut accuracies: Vec<f64> = (0..RESAMPLES)
            .map(|_| {
                let (mut right, mut windows) = (0, 0);
                for clusters in &strata {
                    for _ in clusters {
                        let drawn = clusters[random.below(clusters.len())];
                        right += drawn.0;
                        windows += drawn.1;
                    }
                }
                right as f64 / windows as f64
            })
            .collect();
        accuracies.sort_by(f64::total_cmp);
        let quantile = |share: f64| accuracies[(share * (RESAMPLES - 1) as f64).round() as usize];
        let clusters = strata.iter().map(|stratum| stratum.len() as u64).sum();
        Interval { low: quantile(0.025), high: quantile(0.975), clusters, seed }
    }
}

/// What predictions are worth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Windows that were evaluated.
    pub windows: u64,
    /// Share of windows that were right.
    pub accuracy: f64,
    /// 95 % interval of the accuracy.
    pub interval: Interval,
    /// Accuracy on the windows of all other classes; none where it was not asked for, or no other class has a window.
    pub without: Option<Without>,
    /// `[true class][predicted class]`, in windows.
    pub confusion: Vec<Vec<u64>>,
    /// One entry a class.
    pub per_class: Vec<ClassScores>,
    /// Mean F1 over the classes that have windows.
    pub macro_f1: f64,
    /// Mean cross entropy, in nats.
    pub cross_entropy_nats: f64,
    /// Share of windows on which the reference names the same class; none without a reference.
    pub agreement: Option<f64>,
}

/// A percentile bootstrap interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The 2.5 % quantile.
    pub low: f64,
    /// The 97.5 % quantile.
    pub high: f64,
    /// Recordings and blocks that were drawn from; few of them mean a rough interval.
    pub clusters: u64,
    /// The seed that gives this interval again.
    pub seed: u64,
}

/// Accuracy without the windows of one class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Without {
    /// The class that is left out.
    pub class: String,
    /// Windows of the other classes.
    pub windows: u64,
    /// Share of them that were right.
    pub accuracy: f64,
}

/// The scores of one class; none where a ratio has no denominator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassScores {
    /// The class.
    pub name: String,
    /// Windows that are of this class.
    pub windows: u64,
    /// Share of the windows called this class that are of it.
    pub precision: Option<f64>,
    /// Share of the windows of this class that are called it.
    pub recall: Option<f64>,
    /// Harmonic mean of the two: `2·TP / (2·TP + FP + FN)`.
    pub f1: Option<f64>,
}

fn class_scores(classes: &[String], confusion: &[Vec<u64>]) -> Vec<ClassScores> {
    let ratio = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
    let scores = |(class, name): (usize, &String)| {
        let right = confusion[class][class];
        let windows: u64 = confusion[class].iter().sum();
        let called: u64 = confusion.iter().map(|row| row[class]).sum();
        let (precision, recall) = (ratio(right, called), ratio(right, windows));
        ClassScores { name: name.clone(), windows, precision, recall, f1: ratio(2 * right, windows + called) }
    };
    classes.iter().enumerate().map(scores).collect()
}

impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: f64| format!("{:.2} %", 100.0 * share);
        let Interval { low, high, clusters, .. } = self.interval;
        let mut summary = Table::default();
        summary.row(["windows".to_owned(), self.windows.to_string()]);
        summary.row(["accuracy".to_owned(), percent(self.accuracy)]);
        summary.row([format!("95 % interval ({clusters} clusters)"), format!("{:.2} – {:.2} %", 100.0 * low, 100.0 * high)]);
        if let Some(without) = &self.without {
            summary.row([format!("accuracy without {}", without.class), percent(without.accuracy)]);
        }
        summary.row(["macro-F1".to_owned(), percent(self.macro_f1)]);
        summary.row(["cross entropy".to_owned(), format!("{:.4} nats", self.cross_entropy_nats)]);
        if let Some(agreement) = self.agreement {
            summary.row(["agreement".to_owned(), percent(agreement)]);
        }
        write!(f, "{summary}")?;
        let share = |value: Option<f64>| value.map_or("–".to_owned(), percent);
        let mut table = Table::new(["class", "windows", "precision", "recall", "F1"]);
        for scores in &self.per_class {
            table.row([scores.name.clone(), scores.windows.to_string(), share(scores.precision), share(scores.recall), share(scores.f1)]);
        }
        let mut matrix =
            Table::new(std::iter::once("true \\ predicted".to_owned()).chain(self.per_class.iter().map(|class| class.name.clone())));
        for (scores, row) in self.per_class.iter().zip(&self.confusion) {
            matrix.row(std::iter::once(scores.name.clone()).chain(row.iter().map(u64::to_string)));
        }
        write!(f, "\n{table}\n{matrix}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// Windows `(label, recording, predicted)`, each predicted with probability 0.7.
    fn predictions(windows: &[(usize, u32, usize)]) -> Predictions {
        let mut all = Predictions::new(&names(&["B", "IR", "N"])).unwrap();
        for &(label, recording, predicted) in windows {
            let mut row = [0.15; 3];
            row[predicted] = 0.7;
            all.push(label, recording, &row).unwrap();
        }
        all
    }

    #[test]
    fn scores_are_those_worked_out_by_hand() {
        let all = predictions(&[(0, 1, 0), (0, 1, 0), (0, 2, 1), (1, 3, 1), (1, 4, 0), (2, 5, 2)]);
        let other = predictions(&[(0, 1, 0), (0, 1, 1), (0, 2, 1), (1, 3, 1), (1, 4, 1), (2, 5, 2)]);
        let evaluation = all.evaluate(Some("N"), Some(&other), 1).unwrap();
        assert_eq!(evaluation.confusion, vec![vec![2, 1, 0], vec![1, 1, 0], vec![0, 0, 1]]);
        let near = |a: f64, b: f64| (a - b).abs() < 1e-7;
        let expected = [
            (evaluation.accuracy, 4.0 / 6.0),
            (evaluation.without.as_ref().unwrap().accuracy, 3.0 / 5.0),
            (evaluation.per_class[0].precision.unwrap(), 2.0 / 3.0),
            (evaluation.per_class[1].recall.unwrap(), 0.5),
            (evaluation.per_class[1].f1.unwrap(), 0.5),
            (evaluation.macro_f1, (2.0 / 3.0 + 0.5 + 1.0) / 3.0),
            (evaluation.cross_entropy_nats, -(4.0 * f64::from(0.7f32).ln() + 2.0 * f64::from(0.15f32).ln()) / 6.0),
            (evaluation.agreement.unwrap(), 4.0 / 6.0),
        ];
        let wrong: Vec<_> = expected.iter().enumerate().filter(|(_, (got, want))| !near(*got, *want)).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    #[test]
    fn the_interval_draws_recordings_not_windows() {
        // Ten recordings of 100 windows, each wholly right or wholly wrong: windows alone would give about 80 ± 2.5 %.
        let windows: Vec<_> = (0..1000).map(|w| (0, w / 100, usize::from(w / 100 >= 8))).collect();
        let windows: Vec<_> = windows.into_iter().map(|(label, recording, predicted)| (label, recording as u32, predicted)).collect();
        let interval = predictions(&windows).evaluate(None, None, 7).unwrap().interval;
        assert_eq!(interval.clusters, 10);
        assert!(interval.low <= 0.6 && interval.high >= 0.95, "{interval:?}");
    }

    #[test]
    fn a_single_recording_is_cut_into_blocks_and_seeds_repeat() {
        let windows: Vec<_> = (0..105).map(|w| (1, 9, if w % 5 == 0 { 0 } else { 1 })).collect();
        let all = predictions(&windows);
        let first = all.evaluate(None, None, 3).unwrap();
        assert_eq!(first.interval.clusters, 6);
        assert_eq!(first, all.evaluate(None, None, 3).unwrap());
        assert!(first.interval.low <= first.accuracy && first.accuracy <= first.interval.high);
    }

    #[test]
    fn bad_rows_are_refused_with_a_sentence() {
        let mut all = Predictions::new(&names(&["a", "b"])).unwrap();
        let cases: [(usize, &[f32], &str); 6] = [
            (2, &[0.5, 0.5], "label 2"),
            (0, &[1.0], "1 probabilities"),
            (0, &[0.9, 0.9], "not a distribution"),
            (0, &[f32::NAN, 1.0], "not a distribution"),
            (0, &[-0.5, 1.5], "not a distribution"),
            (0, &[f32::INFINITY, 0.0], "not a distribution"),
        ];
        let failures: Vec<_> = cases
            .iter()
            .filter(|(label, row, part)| !all.push(*label, 0, row).is_err_and(|error| error.to_string().contains(part)))
            .collect();
        assert!(failures.is_empty(), "{failures:?}");
        assert_eq!(all.evaluate(None, None, 0), Err(MetricsError::Empty));
        assert_eq!(Predictions::new(&[]), Err(MetricsError::NoClasses));
        all.push(0, 0, &[0.5, 0.5]).unwrap();
        assert!(all.evaluate(Some("c"), None, 0).unwrap_err().to_string().contains("the classes are a, b"));
        let mut other = all.clone();
        other.push(1, 0, &[0.5, 0.5]).unwrap();
        assert!(matches!(all.agreement(&other), Err(MetricsError::OtherWindows { .. })));
    }

    #[test]
    fn an_evaluation_survives_json_and_reads_as_text() {
        let evaluation = predictions(&[(0, 1, 0), (1, 2, 1), (1, 3, 0)]).evaluate(Some("B"), None, 0).unwrap();
        let json = serde_json::to_string(&evaluation).unwrap();
        assert_eq!(serde_json::from_str::<Evaluation>(&json).unwrap(), evaluation);
        let text = evaluation.to_string();
        let missing: Vec<_> = ["accuracy", "66.67 %", "accuracy without B", "macro-F1", "nats", "true \\ predicted"]
            .iter()
            .filter(|part| !text.contains(**part))
            .collect();
        assert!(missing.is_empty(), "{missing:?} in\n{text}");
    }
}
