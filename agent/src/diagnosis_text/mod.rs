//! The text way of diagnosis: statistics of a window are written as a prompt, and a language model says which class is likeliest to follow.
//!
//! | module | concern |
//! |--|--|
//! | [`statistics`] | 12 statistics of a window's samples and 12 of its spectrum |
//! | [`prompt`] | the statistics as text |
//! | [`prompts`] | windows as tokens, with labels |
//! | [`engine`] | probabilities of the classes by the likelihood of their labels |
//! | [`recovery`] | LoRA adapters trained on prompts with their labels |

use espalier_models::Architecture;
use espalier_models::manifest::TextDiagnosis;
use espalier_runtime::MAX_PROMPT_TOKENS;

pub mod engine;
pub mod prompt;
pub mod prompts;
pub mod recovery;
pub mod statistics;

pub use engine::TextEngine;
pub use prompt::write_prompt;
pub use prompts::{Prompts, TextExamples};
pub use statistics::{Statistics, StatisticsOf};

/// Tokens of a prompt with its label at most: what a model is trained on, it must be able to judge, prune and serve.
pub fn token_limit(architecture: &Architecture) -> usize {
    architecture.context().min(MAX_PROMPT_TOKENS)
}

/// What a model says for a class: a word of its own for the classes of bearings, else the class's name.
fn label(class: &str) -> String {
    match class {
        "N" => "normal",
        "B" => "ball",
        "IR" => "inner",
        "OR" => "outer",
        other => other,
    }
    .to_string()
}

/// How the classes of a split are told apart by text.
pub fn for_classes(classes: &[String], window: usize, sample_rate_hz: f64) -> TextDiagnosis {
    TextDiagnosis { classes: classes.to_vec(), labels: classes.iter().map(|class| label(class)).collect(), window, sample_rate_hz }
}
