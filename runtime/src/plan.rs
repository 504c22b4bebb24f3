//! What a model will hold, bytes by purpose, before anything is loaded.

use espalier_kernels::buffer_bytes;
use espalier_models::architecture::Positions;
use espalier_models::tensor::model_tensors;
use espalier_models::{Architecture, Manifest, ModelShape};

use crate::classify::serving_size;
use crate::decoding::step_bytes;
use crate::generate::{choosing_bytes, generating_size};
use crate::score::scoring_size;
use crate::workspace::workspace_bytes;

/// Bytes by purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// One line a purpose.
    pub lines: Vec<PlanLine>,
}

/// Bytes of one purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanLine {
    /// What for.
    pub purpose: String,
    /// How many.
    pub bytes: u64,
}

/// What the process itself holds beside everything that is reserved: the binary's relocated data (0.5 MiB), the heap's small blocks, the
/// queue, thread stacks, and the scratch of matrix products. A node that has trained, pruned and swapped holds 1.8 to 1.9 MiB of it
/// (`RssAnon` of `espalier demo` at its end), rounded up.
pub const PROCESS_BYTES: u64 = 2 << 20;

/// Tokens of a prompt of the text way of diagnosis with its label: 24 statistics of about 12 tokens each take 300 to 400, with byte-level
/// vocabularies of few merges up to twice as many.
pub const MAX_PROMPT_TOKENS: usize = 1024;

/// Bytes of memory that a byte of `tokenizer.json` takes at most, which is while it is read: the tokenizers library held 13 to 21 times the
/// file just after (SmolLM2, Qwen2.5-Coder, Gemma 3; `RssAnon`), and 7 to 10 times once free memory was given back.
const TOKENIZER_FACTOR: u64 = 22;

/// Bytes that the tokenizer of a model takes; 0 for a model without one.
pub fn tokenizer_bytes(manifest: &Manifest) -> u64 {
    manifest.tokenizer.map_or(0, |span| span.bytes.saturating_mul(TOKENIZER_FACTOR))
}

impl Plan {
    /// Serving a model: windows one at a time, or one sequence as long as the context.
    pub fn serving(manifest: &Manifest, file_bytes: u64) -> Self {
        let architecture = &manifest.architecture;
        let shape = manifest.shape();
        let mut lines = vec![
            line("process", PROCESS_BYTES),
            line("weights (mapped)", file_bytes),
            line("norms, biases and tables (copied)", copied_bytes(architecture, &shape)),
        ];
        let classifier = architecture.patches() > 0;
        // A diagnosis by text reads one prompt; other sequences may be as long as the context.
        let tokens = architecture.context().min(if manifest.diagnosis.is_some() { MAX_PROMPT_TOKENS } else { usize::MAX });
        let size = match (classifier, &manifest.diagnosis) {
            (true, _) => serving_size(architecture.patches(), 1),
            (false, Some(_)) => scoring_size(manifest, tokens),
            (false, None) => generating_size(tokens),
        };
        lines.push(line("activations", workspace_bytes(architecture, &shape, &size)));
        if !classifier {
            let steps = if manifest.diagnosis.is_some() { 0 } else { step_bytes(tokens) };
            lines.push(line("KV cache", kv_bytes(architecture, &shape, tokens) + steps));
        }
        if manifest.diagnosis.is_some() {
            lines.push(line("tokenizer, while it is read", tokenizer_bytes(manifest)));
        }
        if !classifier && manifest.diagnosis.is_none() {
            lines.push(line("sampling", choosing_bytes(architecture)));
        }
        Self { lines }
    }

    /// A line that is added.
    pub fn with(mut self, purpose: &str, bytes: u64) -> Self {
        self.lines.push(line(purpose, bytes));
        self
    }

    /// All lines together.
    pub fn total(&self) -> u64 {
        self.lines.iter().map(|line| line.bytes).sum()
    }
}

fn line(purpose: &str, bytes: u64) -> PlanLine {
    PlanLine { purpose: purpose.into(), bytes }
}

/// Bytes of what a network copies from its artifact: vectors, the KV group of every head, and rotary frequencies.
fn copied_bytes(architecture: &Architecture, shape: &ModelShape) -> u64 {
    let tensors = model_tensors(architecture, shape);
    let vectors = tensors.iter().filter(|tensor| tensor.is_vector()).map(|tensor| tensor.columns);
    let heads = shape.kept().map(|(_, units)| units.heads.len());
    let frequencies = match architecture.positions {
        Positions::Rotary { dims, .. } => dims / 2,
        Positions::Learned { .. } => 0,
    };
    vectors.chain(heads).chain(architecture.spans.iter().map(|_| frequencies)).map(buffer_bytes).sum()
}

/// Bytes of the keys and values of `tokens` tokens.
fn kv_bytes(architecture: &Architecture, shape: &ModelShape, tokens: usize) -> u64 {
    let layer = |groups: usize| 2 * buffer_bytes(tokens * groups * architecture.attention.head_dim);
    shape.kept().map(|(_, units)| layer(units.groups)).sum()
}
