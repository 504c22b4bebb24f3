//! Perplexity: the exponential of the mean loss of a token given those before it.
//!
//! A long text is cut into windows that do not overlap, each read by itself: a window of `n` tokens has `n − 1` targets, since its first
//! token has nothing before it. What is left at the end, shorter than a window, is not scored. This is how the pruning literature reports
//! WikiText-2 (GPTQ, SparseGPT; GISP, arXiv 2510.18030, at 128 tokens), so a number is comparable only at the same length.

use espalier_runtime::Scores;

use crate::error::{AgentError, Result};
use crate::train::{Progress, Report, Stop};

/// Perplexity of one text.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct TextPerplexity {
    /// `exp(cross entropy)`.
    pub perplexity: f64,
    /// Mean loss of a scored token, in nats.
    pub cross_entropy_nats: f64,
    /// The loss of a token, in bits, times the tokens of the whole text by its bytes: comparable between tokenizers.
    pub bits_per_byte: f64,
    /// Tokens of the whole text.
    pub text_tokens: usize,
    /// Bytes of the whole text.
    pub text_bytes: usize,
    /// Tokens of a window.
    pub window_tokens: usize,
    /// Windows that were scored.
    pub windows: usize,
    /// Tokens whose loss was counted.
    pub scored_tokens: usize,
    /// Tokens that were read in a second.
    pub tokens_per_second: f64,
}

/// Scores the first `windows` (or all) windows of `window` tokens of a text, given as its tokens and its length in bytes.
pub fn of_text(
    scorer: &mut dyn Scores,
    ids: &[u32],
    text_bytes: usize,
    window: usize,
    windows: Option<usize>,
    progress: &mut dyn Progress,
    stop: &Stop,
) -> Result<TextPerplexity> {
    if window < 2 {
        return Err(AgentError::Usage(format!("a window of {window} tokens has no token with one before it; give --seq-len 2 or more")));
    }
    let whole = ids.len() / window;
    if whole == 0 {
        let tokens = ids.len();
        return Err(AgentError::Usage(format!("the text has {tokens} tokens, less than a window of {window}; give a smaller --seq-len")));
    }
    let count = windows.unwrap_or(whole);
    if count > whole || count == 0 {
        return Err(AgentError::Usage(format!(
            "the text has {whole} windows of {window} tokens, not {count}; give --windows 1 to {whole}"
        )));
    }
    let started = std::time::Instant::now();
    let mut loss = 0.0;
    progress.begin("windows", count);
    for (index, ids) in ids.chunks_exact(window).take(count).enumerate() {
        stop.check()?;
        loss += scorer.loss(ids, 1)?;
        let mean = loss / ((index + 1) * (window - 1)) as f64;
        progress.step(Report { done: index + 1, total: count, loss: mean, accuracy: None });
    }
    let seconds = started.elapsed().as_secs_f64();
    let scored_tokens = count * (window - 1);
    let mean = loss / scored_tokens as f64;
    progress.end(&format!("{count} of {window} tokens in {seconds:.1} s"));
    Ok(TextPerplexity {
        perplexity: mean.exp(),
        cross_entropy_nats: mean,
        bits_per_byte: mean / std::f64::consts::LN_2 * ids.len() as f64 / text_bytes.max(1) as f64,
        text_tokens: ids.len(),
        text_bytes,
        window_tokens: window,
        windows: count,
        scored_tokens,
        tokens_per_second: (count * window) as f64 / seconds.max(1e-9),
    })
}

/// Tokens of one sequence: those before `first` are its context and are not scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// All tokens.
    pub ids: Vec<u32>,
    /// The first that is scored, at least 1.
    pub first: usize,
}

/// Perplexities of sequences of their own.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct SequencePerplexity {
    /// Mean over the sequences of the perplexity of each.
    pub mean_perplexity: f64,
    /// Half the width of its 95 % interval, by the normal approximation; none for one sequence.
    pub interval: Option<f64>,
    /// Perplexity over all scored tokens.
    pub perplexity: f64,
    /// Mean loss of a scored token, in nats.
    pub cross_entropy_nats: f64,
    /// Sequences that were scored.
    pub sequences: usize,
    /// Tokens whose loss was counted.
    pub scored_tokens: usize,
    /// Tokens that were read in a second.
    pub tokens_per_second: f64,
    /// The perplexity of each sequence, in order.
    pub each: Vec<f64>,
}

/// Scores every sequence by itself.
pub fn of_sequences(
    scorer: &mut dyn Scores,
    sequences: &[Sequence],
    progress: &mut dyn Progress,
    stop: &Stop,
) -> Result<SequencePerplexity> {
    let started = std::time::Instant::now();
    let (mut loss, mut scored, mut read) = (0.0, 0, 0);
    let mut each = Vec::with_capacity(sequences.len());
    progress.begin("sequences", sequences.len());
    for (index, sequence) in sequences.iter().enumerate() {
        stop.check()?;
        let count = sequence.ids.len().saturating_sub(sequence.first);
        let own = scorer.loss(&sequence.ids, sequence.first)?;
        each.push((own / count.max(1) as f64).exp());
        loss += own;
        scored += count;
        read += sequence.ids.len();
        progress.step(Report { done: index + 1, total: sequences.len(), loss: loss / scored.max(1) as f64, accuracy: None });
    }
    if each.is_empty() {
        return Err(AgentError::Usage("there are no sequences to score; give a file with at least one".into()));
    }
    let seconds = started.elapsed().as_secs_f64();
    progress.end(&format!("{} in {seconds:.1} s", each.len()));
    let mean_perplexity = each.iter().sum::<f64>() / each.len() as f64;
    let squares: f64 = each.iter().map(|perplexity| (perplexity - mean_perplexity).powi(2)).sum();
    let interval = (each.len() > 1).then(|| 1.96 * (squares / (each.len() - 1) as f64 / each.len() as f64).sqrt());
    let mean = loss / scored as f64;
    Ok(SequencePerplexity {
        mean_perplexity,
        interval,
        perplexity: mean.exp(),
        cross_entropy_nats: mean,
        sequences: each.len(),
        scored_tokens: scored,
        tokens_per_second: read as f64 / seconds.max(1e-9),
        each,
    })
}
