//! Questions with answers, in the prompt formats of lm-evaluation-harness (EleutherAI), without examples in the prompt.
//!
//! | task | prompt | answer |
//! |--|--|--|
//! | `piqa` | `Question: {goal}\nAnswer:` | the likelier of two solutions |
//! | `arc_easy` | `Question: {question}\nAnswer:` | the likeliest of three to five answers |
//! | `gsm8k` | `Question: {question}\nAnswer:` | the last number of a greedy continuation |
//!
//! A choice follows the prompt after a space. `acc` takes the choice with the largest log-likelihood, `acc_norm` that with the largest
//! log-likelihood divided by the choice's length in bytes, the space before it not counted.

use std::path::{Path, PathBuf};

use crate::error::{AgentError, Result};

pub mod choice;
pub mod files;
pub mod solution;

pub use choice::{ChoiceQuestion, ChoiceScores};
pub use solution::{NumberQuestion, SolutionScores};

/// A set of questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Task {
    /// Physical commonsense, two choices (Bisk et al., 2020).
    Piqa,
    /// Science questions for schools, the easy set (Clark et al., 2018).
    ArcEasy,
    /// Grade-school mathematics (Cobbe et al., 2021).
    Gsm8k,
}

impl Task {
    /// The task's name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Task::Piqa => "piqa",
            Task::ArcEasy => "arc_easy",
            Task::Gsm8k => "gsm8k",
        }
    }

    /// The file of the questions: `data` itself, or the one in that folder.
    pub fn file(self, data: &Path) -> Result<PathBuf> {
        if data.is_file() {
            return Ok(data.to_path_buf());
        }
        let name = match self {
            Task::Piqa => "piqa.valid.jsonl",
            Task::ArcEasy => "arc_easy.test.json",
            Task::Gsm8k => "gsm8k.test.jsonl",
        };
        let candidates = [data.join(name), data.join("text").join(name)];
        let missing = || AgentError::Usage(format!("{} is neither a file of questions nor a folder with {name}", data.display()));
        candidates.into_iter().find(|path| path.is_file()).ok_or_else(missing)
    }
}

/// The prompt of a question.
pub(crate) fn prompt(question: &str) -> String {
    format!("Question: {question}\nAnswer:")
}

/// A share with its interval.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Share {
    /// Of all questions.
    pub value: f64,
    /// Lower end of the 95 % interval.
    pub low: f64,
    /// Upper end of the 95 % interval.
    pub high: f64,
}

impl Share {
    /// `right` of `count`, with Wilson's score interval (1927): questions are independent of each other, and near 0 and 1 the normal
    /// approximation leaves the range.
    pub fn of(right: usize, count: usize) -> Self {
        let (n, z) = (count.max(1) as f64, 1.959_964);
        let value = right as f64 / n;
        let scale = 1.0 / (1.0 + z * z / n);
        let middle = scale * (value + z * z / (2.0 * n));
        let half = scale * z * (value * (1.0 - value) / n + z * z / (4.0 * n * n)).sqrt();
        Self { value, low: (middle - half).max(0.0), high: (middle + half).min(1.0) }
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} % [{:.2}, {:.2}]", 100.0 * self.value, 100.0 * self.low, 100.0 * self.high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    #[test]
    fn intervals_are_the_published_ones() {
        let cases = [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)];
        for (right, count, low, high) in cases {
            let share = Share::of(right, count);
            assert!((share.low - low).abs() < 5e-5 && (share.high - high).abs() < 5e-5, "{right} of {count}: {share:?}");
        }
    }
}
