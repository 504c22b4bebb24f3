//! Multiple choice by likelihood.

use espalier_runtime::Scores;

use super::{Share, prompt};
use crate::error::{AgentError, Result};
use crate::text::Tokenizer;
use crate::train::{Progress, Report, Stop};

/// A question with choices, one of which is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChoiceQuestion {
    /// What is asked.
    pub question: String,
    /// What may be answered.
    pub choices: Vec<String>,
    /// Index of the right choice.
    pub right: usize,
}

/// How many choices were right.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct ChoiceScores {
    /// Questions.
    pub questions: usize,
    /// By the choice's log-likelihood.
    pub acc: Share,
    /// By the choice's log-likelihood divided by its bytes.
    pub acc_norm: Share,
}

/// Asks every question.
pub fn ask(
    scorer: &mut dyn Scores,
    tokenizer: &Tokenizer,
    questions: &[ChoiceQuestion],
    progress: &mut dyn Progress,
    stop: &Stop,
) -> Result<ChoiceScores> {
    let (mut right, mut right_by_length) = (0, 0);
    let mut chosen_loss = 0.0;
    progress.begin("questions", questions.len());
    for (index, question) in questions.iter().enumerate() {
        stop.check()?;
        let losses = losses(scorer, tokenizer, &prompt(&question.question), question.choices.iter().map(|choice| format!(" {choice}")))?;
        let bytes = question.choices.iter().map(|choice| choice.len().max(1) as f64);
        let by_length: Vec<f64> = losses.iter().zip(bytes).map(|(loss, bytes)| loss / bytes).collect();
        right += usize::from(smallest(&losses) == question.right);
        right_by_length += usize::from(smallest(&by_length) == question.right);
        chosen_loss += losses.get(question.right).copied().unwrap_or(0.0);
        let done = index + 1;
        let accuracy = Some(right_by_length as f64 / done as f64);
        progress.step(Report { done, total: questions.len(), loss: chosen_loss / done as f64, accuracy });
    }
    progress.end(&format!("{} asked", questions.len()));
    let of = |right| Share::of(right, questions.len());
    Ok(ChoiceScores { questions: questions.len(), acc: of(right), acc_norm: of(right_by_length) })
}

/// The loss of each continuation of `context`, in nats over all of its tokens. What two have in common is computed once.
pub fn losses(
    scorer: &mut dyn Scores,
    tokenizer: &Tokenizer,
    context: &str,
    continuations: impl Iterator<Item = String>,
) -> Result<Vec<f64>> {
    let before = tokenizer.encode(context, true)?.len();
    continuations
        .map(|continuation| {
            // Encoded together, since a tokenizer may treat a beginning of its own differently.
            let ids = tokenizer.encode(&format!("{context}{continuation}"), true)?;
            let first = before.min(ids.len().saturating_sub(1));
            if first == 0 {
                return Err(AgentError::Usage(format!("`{context}{continuation}` has too few tokens to be scored")));
            }
            if ids.len() > scorer.capacity() {
                let (tokens, capacity) = (ids.len(), scorer.capacity());
                return Err(AgentError::Usage(format!("a question has {tokens} tokens, but the model reads {capacity} at most")));
            }
            Ok(scorer.loss(&ids, first)?)
        })
        .collect()
}

/// Index of the smallest number; the first of equals.
pub(crate) fn smallest(numbers: &[f64]) -> usize {
    numbers.iter().enumerate().min_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(index, _)| index)
}
