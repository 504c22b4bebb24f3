//! Windows as tokens, for judging and for training.

use std::sync::{Mutex, PoisonError};

use espalier_kernels::{Device, NO_TARGET};
use espalier_models::Artifact;
use espalier_models::manifest::TextDiagnosis;
use espalier_runtime::{Input, Pass, RuntimeError, Workspace};

use super::prompt::write_prompt;
use super::statistics::StatisticsOf;
use crate::error::{AgentError, Result};
use crate::text::Tokenizer;
use crate::train::Examples;

/// Turns windows into prompts and labels into tokens, for judging and for training.
pub struct Prompts {
    tokenizer: Tokenizer,
    diagnosis: TextDiagnosis,
    statistics: StatisticsOf,
    /// What follows a prompt for each class.
    labels: Vec<Vec<u32>>,
    text: String,
}

impl Prompts {
    /// For a model that makes this diagnosis.
    pub fn new(artifact: &Artifact, diagnosis: TextDiagnosis) -> Result<Self> {
        let path = artifact.path().display();
        let tokenizer = Tokenizer::of(artifact)?;
        if !tokenizer.has_vocabulary() {
            return Err(AgentError::Usage(format!(
                "{path} has no tokenizer, so it reads no prompt; import the checkpoint with its tokenizer.json"
            )));
        }
        let labels = diagnosis.labels.iter().map(|label| tokenizer.encode(&format!(" {label}"), false)).collect::<Result<Vec<_>>>()?;
        for (index, label) in labels.iter().enumerate() {
            // A label that begins another would always be the likelier of the two.
            let other = labels.iter().enumerate().find(|(other, tokens)| *other != index && tokens.starts_with(label));
            if label.is_empty() || other.is_some() {
                let (label, other) = (&diagnosis.labels[index], other.map_or("nothing", |(other, _)| &diagnosis.labels[other]));
                return Err(AgentError::Usage(format!("{path}: the label `{label}` cannot be told from {other}; rename the class")));
            }
        }
        let statistics = StatisticsOf::new(diagnosis.window, diagnosis.sample_rate_hz);
        Ok(Self { tokenizer, diagnosis, statistics, labels, text: String::new() })
    }

    /// The diagnosis that is made.
    pub fn diagnosis(&self) -> &TextDiagnosis {
        &self.diagnosis
    }

    /// Tokens of each class's label.
    pub fn labels(&self) -> &[Vec<u32>] {
        &self.labels
    }

    /// The prompt of a normalised window as tokens.
    pub fn prompt(&mut self, window: &[f32]) -> Result<Vec<u32>> {
        let none = || AgentError::Usage(format!("a window of {} samples without a varying signal has no statistics", window.len()));
        let statistics = self.statistics.of(window).ok_or_else(none)?;
        write_prompt(&mut self.text, &statistics, &self.diagnosis);
        self.tokenizer.encode(&self.text, true)
    }
}

/// Windows that a language model reads as prompts, each with the label of its class.
pub struct TextExamples<'a> {
    windows: &'a dyn Examples,
    prompts: Mutex<Prompts>,
    longest: usize,
}

/// The tokens of a prompt with a label, but for the label's last token, and what is to follow at each position.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sequence {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// The tokens.
    pub ids: Vec<u32>,
    /// One a token: the label's tokens at the positions before them, [`NO_TARGET`] elsewhere.
    pub targets: Vec<u32>,
}

/// The share by which a prompt may be longer than the longest that was looked at: an eighth more digits and signs, and as much again.
const SPARE_SHARE: usize = 4;

/// Prompts that are looked at for their length.
const LOOKED_AT: usize = 64;

impl<'a> TextExamples<'a> {
    /// The windows of a set, for a model of this context.
    pub fn new(windows: &'a dyn Examples, prompts: Prompts, context: usize) -> Result<Self> {
        let mut examples = Self { windows, prompts: Mutex::new(prompts), longest: 0 };
        let (mut window, mut longest) = (vec![0.0; windows.window()], 0);
        let step = windows.count().div_ceil(LOOKED_AT).max(1);
        for index in (0..windows.count()).step_by(step) {
            if let Some(class) = windows.load(index, &mut window)? {
                longest = longest.max(examples.sequence(&window, class as usize)?.ids.len());
            }
        }
        if longest > context {
            return Err(AgentError::Usage(format!("prompts have {longest} tokens; the model reads {context} at most")));
        }
        examples.longest = (longest + longest.div_ceil(SPARE_SHARE)).min(context);
        Ok(examples)
    }

    /// Tokens that room must be made for.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// The sequence of a normalised window with the label of `class`.
    pub fn sequence(&self, window: &[f32], class: usize) -> Result<Sequence> {
        // A prompt is written over the last one, so a panic elsewhere leaves nothing half done.
        let mut prompts = self.prompts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ids = prompts.prompt(window)?;
        let unknown = || AgentError::Training(format!("class {class} has no label"));
        let label = prompts.labels().get(class).ok_or_else(unknown)?;
        let prompt_tokens = ids.len();
        let mut targets = vec![NO_TARGET; prompt_tokens.saturating_sub(1)];
        targets.extend_from_slice(label);
        ids.extend_from_slice(&label[..label.len() - 1]);
        if self.longest > 0 && ids.len() > self.longest {
            let (tokens, longest) = (ids.len(), self.longest);
            return Err(AgentError::Training(format!("a prompt has {tokens} tokens, more than the {longest} that room was made for")));
        }
        Ok(Sequence { prompt_tokens, ids, targets })
    }

    /// Mean loss of the label's tokens, and whether its class is the likeliest of all, in a workspace with the logits of every position.
    pub fn judge<D: Device>(
        &self,
        pass: &Pass<'_, D>,
        workspace: &mut Workspace<D>,
        targets: &mut D::Indices,
        window: &[f32],
        class: usize,
    ) -> Result<(f64, bool)> {
        let device = &pass.network.device;
        let mut loss_of = |sequence: &Sequence, workspace: &mut Workspace<D>| -> Result<f64> {
            device.write_indices(targets, &sequence.targets)?;
            let input = Input::Tokens { ids: &sequence.ids, sequence: sequence.ids.len() };
            Ok(device.enter(|| pass.loss(workspace, input, targets))?)
        };
        let sequence = self.sequence(window, class)?;
        let own = loss_of(&sequence, workspace)?;
        let labels = self.prompts.lock().unwrap_or_else(PoisonError::into_inner).labels().to_vec();
        let losses: Vec<f64> = if labels.iter().all(|label| label.len() == 1) {
            // All labels compete for the one position after the prompt.
            let width = pass.network.architecture.output_width();
            let mut logits = vec![0.0; width];
            device.read(workspace.logits(), (sequence.prompt_tokens - 1) * width, &mut logits).map_err(RuntimeError::from)?;
            labels.iter().map(|label| -f64::from(logits.get(label[0] as usize).copied().unwrap_or(f32::NEG_INFINITY))).collect()
        } else {
            let total = |(other, label): (usize, &Vec<u32>)| {
                let mean = if other == class { own } else { loss_of(&self.sequence(window, other)?, workspace)? };
                Ok(mean * label.len() as f64)
            };
            labels.iter().enumerate().map(total).collect::<Result<_>>()?
        };
        let likeliest = losses.iter().enumerate().min_by(|a, b| a.1.total_cmp(b.1)).map(|(index, _)| index);
        Ok((own, likeliest == Some(class)))
    }
}

impl Examples for TextExamples<'_> {
    fn count(&self) -> usize {
        self.windows.count()
    }

    fn window(&self) -> usize {
        self.windows.window()
    }

    fn load(&self, index: usize, out: &mut [f32]) -> Result<Option<u32>> {
        self.windows.load(index, out)
    }

    fn by_text(&self) -> Option<&TextExamples<'_>> {
        Some(self)
    }
}
