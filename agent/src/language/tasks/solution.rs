//! Solutions that end in a number.

use espalier_runtime::{Continues, Sampling};

use super::{Share, prompt};
use crate::error::{AgentError, Result};
use crate::text::{TextStream, Tokenizer};
use crate::train::{Progress, Report, Stop};

/// Tokens of a solution at most, as in lm-evaluation-harness.
pub const MAX_SOLUTION_TOKENS: usize = 256;

/// A question whose answer is a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumberQuestion {
    /// What is asked.
    pub question: String,
    /// The number, as [`last_number`] writes it.
    pub answer: String,
}

/// How many solutions were right.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct SolutionScores {
    /// Questions.
    pub questions: usize,
    /// The last number of the solution equals the answer.
    pub exact_match: Share,
    /// Tokens that were generated.
    pub generated_tokens: usize,
}

/// Solves every question greedily. A solution ends where the model begins another question.
pub fn solve(
    generator: &mut dyn Continues,
    tokenizer: &Tokenizer,
    capacity: usize,
    questions: &[NumberQuestion],
    progress: &mut dyn Progress,
    stop: &Stop,
) -> Result<SolutionScores> {
    let stops = ["Question:".to_string()];
    let (mut right, mut generated) = (0, 0);
    progress.begin("questions", questions.len());
    for (index, question) in questions.iter().enumerate() {
        stop.check()?;
        let ids = tokenizer.encode(&prompt(&question.question), true)?;
        let room = capacity.saturating_sub(ids.len()).min(MAX_SOLUTION_TOKENS);
        if room == 0 {
            let tokens = ids.len();
            return Err(AgentError::Usage(format!("question {} has {tokens} tokens, but the model reads {capacity} at most", index + 1)));
        }
        let mut stream = TextStream::new(tokenizer, &ids, &stops)?;
        let (mut text, mut failed) = (String::new(), None);
        generator.clear()?;
        let speed = generator.generate(&ids, room, Sampling::default(), &mut || 0.0, &mut |id| match stream.push(id, &mut text) {
            Ok(stopped) => !stopped && !tokenizer.is_end(id) && !stop.is_asked(),
            Err(error) => {
                failed = Some(error);
                false
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        stop.check()?;
        stream.finish(&mut text)?;
        generated += speed.generated_tokens;
        right += usize::from(last_number(&text).as_deref() == Some(question.answer.as_str()));
        let done = index + 1;
        progress.step(Report { done, total: questions.len(), loss: 0.0, accuracy: Some(right as f64 / done as f64) });
    }
    progress.end(&format!("{} solved, {right} right", questions.len()));
    Ok(SolutionScores { questions: questions.len(), exact_match: Share::of(right, questions.len()), generated_tokens: generated })
}

/// The last number of a text: digits with an optional minus sign before and an optional fraction behind; commas between digits are left
/// out, and so are zeros that say nothing (`-1,200.50` gives `-1200.5`, `07` gives `7`).
pub fn last_number(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let end = bytes.iter().rposition(u8::is_ascii_digit)? + 1;
    let mut start = end;
    while start > 0 && matches!(bytes[start - 1], b'0'..=b'9' | b',' | b'.') {
        start -= 1;
    }
    let token = text[start..end].trim_start_matches([',', '.']);
    let digits: String = token.chars().filter(|c| *c != ',').collect();
    // Of `3.1.2` only the last fraction is a number's.
    let parts: Vec<&str> = digits.split('.').collect();
    let number = match parts.as_slice() {
        [whole] => whole.to_string(),
        [.., whole, fraction] => format!("{whole}.{fraction}"),
        [] => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((&number, ""));
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    let negative = text[..start].ends_with('-') && !text[..start - 1].ends_with(|c: char| c.is_ascii_alphanumeric());
    let sign = if negative && !(whole.is_empty() && fraction.is_empty()) { "-" } else { "" };
    let whole = if whole.is_empty() { "0" } else { whole };
    Some(if fraction.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_is_found_however_it_is_written() {
        let cases = [
            ("so 16 - 3 = 13 eggs.\n#### 18", Some("18")),
            ("It costs $1,200.50.", Some("1200.5")),
            ("from 5 to -3.", Some("-3")),
            ("10-3", Some("3")),
            ("7.00 dollars", Some("7")),
            ("x = .5", Some("5")),
            ("section 3.1.2", Some("1.2")),
            ("-0", Some("0")),
            ("007", Some("7")),
            ("none at all", None),
            ("", None),
        ];
        let failures: Vec<String> = cases
            .iter()
            .filter(|(text, expected)| last_number(text).as_deref() != *expected)
            .map(|(text, expected)| format!("{text:?}: {:?}, expected {expected:?}", last_number(text)))
            .collect();
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }
}
