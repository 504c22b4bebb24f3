//! What a graph does not say about itself: a small JSON file beside it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The longest sidecar.
const MAX_BYTES: u64 = 1 << 20;
/// The longest window, as signals have it.
const MAX_WINDOW: usize = 1 << 20;

/// Most samples that the patches of a window may have together, where they overlap.
const MAX_PATCH_SAMPLES: usize = 1 << 24;
/// The longest sequence of tokens.
const MAX_TOKENS: usize = 1 << 16;
/// The longest name of a class, in bytes.
const MAX_CLASS_BYTES: usize = 256;

/// How a graph is used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sidecar {
    /// What it reads.
    pub input: SidecarInput,
    /// What it gives.
    pub output: SidecarOutput,
}

/// What a graph reads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum SidecarInput {
    /// Windows of a signal, `[batch, window]` or `[batch, 1, window]`.
    Window(SignalInput),
    /// Windows cut into patches, `[batch, patches, patch]`.
    Patches(SignalInput),
    /// Token ids, `[batch, sequence]`.
    Tokens(TokenInput),
}

/// Windows of a signal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignalInput {
    /// The graph's input.
    pub name: String,
    /// Samples of a window.
    pub window: usize,
    /// Samples between the starts of neighbouring windows in `run` [default: the window].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hop: Option<usize>,
    /// Samples of a patch, where the kind is patches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patch: Option<usize>,
    /// Samples between the starts of neighbouring patches [default: the patch].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stride: Option<usize>,
    /// Samples a second.
    pub sample_rate_hz: f64,
    /// What is done to a window before the graph reads it.
    pub normalisation: Normalisation,
}

/// What is done to a window before a graph reads it.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Normalisation {
    /// Each window by itself, to mean 0 and standard deviation 1: what the program does for models of its own.
    #[default]
    Window,
    /// Nothing.
    None,
    /// The same for every window.
    Fixed {
        /// What is subtracted.
        mean: f64,
        /// What the difference is divided by.
        deviation: f64,
    },
}

/// Token ids of a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenInput {
    /// The graph's input for token ids.
    pub ids: String,
    /// Its input for the mask: 1 for every token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<String>,
    /// Its input for segment numbers: 0 for every token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub types: Option<String>,
    /// The `tokenizer.json`, from the graph's folder.
    pub tokenizer: String,
    /// The longest text that it was made for, in tokens.
    pub max_tokens: usize,
}

/// What a graph gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum SidecarOutput {
    /// Logits of the classes, `[batch, classes]`.
    Logits {
        /// The graph's output.
        name: String,
        /// The classes' names, in the output's order.
        classes: Vec<String>,
    },
    /// Probabilities of the classes, `[batch, classes]`.
    Probabilities {
        /// The graph's output.
        name: String,
        /// The classes' names, in the output's order.
        classes: Vec<String>,
    },
    /// States of the tokens, `[batch, sequence, d_model]`, or with the pooling `none` an embedding, `[batch, d_model]`.
    Embedding(Embedding),
}

/// How an output becomes an embedding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Embedding {
    /// The graph's output.
    pub name: String,
    /// How the states of the tokens become one.
    pub pooling: Pooling,
    /// Whether it is divided by its length.
    #[serde(default)]
    pub normalise: bool,
}

/// How the states of a text's tokens become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// Their mean over the mask, which has every token of the text.
    Mean,
    /// The first one, of the token that stands before every text.
    Cls,
    /// The graph has done it.
    None,
}

impl Sidecar {
    /// Reads the sidecar of the graph `graph` at `path`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Checkpoint`] where it is missing, no JSON, too long, or has a field that is unknown, missing or impossible.
    pub fn open(path: &Path, graph: &Path) -> Result<Self> {
        let refuse = |problem: String| Error::checkpoint(path, problem);
        let advice = || format!("`espalier inspect {} --template` prints a first draft of it", graph.display());
        // A named pipe would block when it is opened.
        match std::fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let says = "it is missing: what the graph reads and gives stands in this sidecar";
                return Err(refuse(format!("{says}; {}", advice())));
            }
            Err(error) => return Err(Error::io("open", path)(error)),
            Ok(metadata) if !metadata.is_file() => return Err(refuse("it is not a file".to_string())),
            Ok(_) => {}
        }
        let file = File::open(path).map_err(Error::io("open", path))?;
        let mut text = Vec::new();
        // Read to the limit, whatever length the file has by now.
        file.take(MAX_BYTES + 1).read_to_end(&mut text).map_err(Error::io("read", path))?;
        if text.len() as u64 > MAX_BYTES {
            return Err(refuse(format!("it has more than the {MAX_BYTES} bytes that a sidecar may have")));
        }
        let sidecar: Self =
            serde_json::from_slice(&text).map_err(|error| refuse(format!("it is no sidecar of a graph: {error}; {}", advice())))?;
        sidecar.check().map_err(refuse)?;
        Ok(sidecar)
    }

    /// The classes' names; none of an encoder.
    pub fn classes(&self) -> &[String] {
        match &self.output {
            SidecarOutput::Logits { classes, .. } | SidecarOutput::Probabilities { classes, .. } => classes,
            SidecarOutput::Embedding(_) => &[],
        }
    }

    /// The windows that it reads; none where it reads text.
    pub fn signal(&self) -> Option<&SignalInput> {
        match &self.input {
            SidecarInput::Window(signal) | SidecarInput::Patches(signal) => Some(signal),
            SidecarInput::Tokens(_) => None,
        }
    }

    /// Checks what can be checked without the graph.
    fn check(&self) -> std::result::Result<(), String> {
        match &self.input {
            SidecarInput::Window(signal) => {
                signal.check()?;
                if signal.patch.is_some() || signal.stride.is_some() {
                    return Err("`patch` and `stride` are of the input kind patches; its kind is window".to_string());
                }
            }
            SidecarInput::Patches(signal) => {
                signal.check()?;
                let patches = signal.patches().ok_or("`patch` and `stride` must be 1 or more and fit into the window")?;
                let samples = patches.saturating_mul(signal.patch.unwrap_or(0));
                if samples > MAX_PATCH_SAMPLES {
                    return Err(format!(
                        "the patches of a window have {samples} samples; at most {MAX_PATCH_SAMPLES} are read: give a larger `stride`"
                    ));
                }
            }
            SidecarInput::Tokens(tokens) if tokens.max_tokens == 0 || tokens.max_tokens > MAX_TOKENS => {
                return Err(format!("`max_tokens` is {}; expected 1 to {MAX_TOKENS}", tokens.max_tokens));
            }
            SidecarInput::Tokens(_) => {}
        }
        match (&self.input, &self.output) {
            (SidecarInput::Tokens(_), SidecarOutput::Embedding(_)) => return Ok(()),
            (SidecarInput::Tokens(_), _) => return Err("an input of tokens belongs to the output kind embedding".to_string()),
            (_, SidecarOutput::Embedding(_)) => return Err("the output kind embedding belongs to an input of tokens".to_string()),
            _ => {}
        }
        let (classes, mut names) = (self.classes(), BTreeSet::new());
        match classes.iter().find(|name| name.trim().is_empty() || name.len() > MAX_CLASS_BYTES || !names.insert(name.as_str())) {
            Some(name) => Err(format!("the class name `{name:.80}` is empty, too long or there twice")),
            None if classes.len() < 2 => Err(format!("`classes` has {} names; telling classes apart takes two", classes.len())),
            None => Ok(()),
        }
    }
}

impl SignalInput {
    /// How many patches a window has; none where patches do not fit.
    pub fn patches(&self) -> Option<usize> {
        let patch = self.patch.filter(|patch| (1..=self.window).contains(patch))?;
        let stride = self.stride.unwrap_or(patch);
        (stride > 0).then(|| (self.window - patch) / stride.max(1) + 1)
    }

    fn check(&self) -> std::result::Result<(), String> {
        if !(2..=MAX_WINDOW).contains(&self.window) {
            return Err(format!("`window` is {}; expected 2 to {MAX_WINDOW} samples", self.window));
        }
        if self.hop.is_some_and(|hop| hop == 0 || hop > self.window) {
            return Err(format!("`hop` is {}; expected 1 to {} samples, the window", self.hop.unwrap_or_default(), self.window));
        }
        if !(self.sample_rate_hz > 0.0 && self.sample_rate_hz <= 1e9) {
            return Err(format!("`sample_rate_hz` is {}; expected the rate of the signals it was trained on", self.sample_rate_hz));
        }
        match self.normalisation {
            Normalisation::Fixed { mean, deviation } if !(mean.is_finite() && deviation.is_finite() && deviation > 0.0) => {
                Err(format!("`normalisation` has the mean {mean} and the deviation {deviation}; expected numbers, the deviation above 0"))
            }
            _ => Ok(()),
        }
    }
}
