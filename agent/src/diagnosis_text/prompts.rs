//! Windows as tokens, for judging and for training.

use std::sync::{Arc, Mutex, PoisonError};

use espalier_kernels::{Device, NO_TARGET, Purpose, Reservation};
use espalier_models::Artifact;
use espalier_models::manifest::TextDiagnosis;
use espalier_runtime::{Budget, Input, Pass, RuntimeError, Workspace, release_free_memory, tokenizer_bytes};

use super::prompt::{PROMPT_END, write_prompt};
use super::statistics::StatisticsOf;
use super::token_limit;
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
    token_limit: usize,
    text: String,
    _booked: Option<Reservation>,
}

impl Prompts {
    /// For a model that makes this diagnosis; its tokenizer is booked in `budget`.
    pub fn open(budget: &Arc<Budget>, artifact: &Artifact, diagnosis: TextDiagnosis) -> Result<Self> {
        let in_file = |error| match error {
            AgentError::Usage(said) => AgentError::Usage(format!("{}: {said}", artifact.path().display())),
            other => other,
        };
        let limit = token_limit(&artifact.manifest().architecture);
        let booked = Reservation::new(budget.clone(), Purpose::Tokenizer, tokenizer_bytes(artifact.manifest()))?;
        let tokenizer = Tokenizer::of(artifact)?;
        // The library leaves more behind than it keeps.
        release_free_memory();
        let prompts = Self::with(tokenizer, diagnosis, limit).map_err(in_file)?;
        Ok(Self { _booked: Some(booked), ..prompts })
    }

    fn with(tokenizer: Tokenizer, diagnosis: TextDiagnosis, token_limit: usize) -> Result<Self> {
        if !tokenizer.has_vocabulary() {
            let problem = "the model has no tokenizer, so it reads no prompt; import the checkpoint with its tokenizer.json";
            return Err(AgentError::Usage(problem.into()));
        }
        let labels = label_tokens(&tokenizer, &diagnosis)?;
        let statistics = StatisticsOf::new(diagnosis.window, diagnosis.sample_rate_hz);
        Ok(Self { tokenizer, diagnosis, statistics, labels, token_limit, text: String::new(), _booked: None })
    }

    /// For training and judging at once.
    pub fn shared(self) -> SharedPrompts {
        Arc::new(Mutex::new(self))
    }

    /// The diagnosis that is made.
    pub fn diagnosis(&self) -> &TextDiagnosis {
        &self.diagnosis
    }

    /// Tokens of each class's label.
    pub fn labels(&self) -> &[Vec<u32>] {
        &self.labels
    }

    /// Tokens of the longest label.
    pub fn longest_label(&self) -> usize {
        self.labels.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// Tokens of a prompt with any of the labels at most.
    pub fn token_limit(&self) -> usize {
        self.token_limit
    }

    /// The prompt of a normalised window as tokens, which leave room for every label.
    pub fn prompt(&mut self, window: &[f32]) -> Result<Vec<u32>> {
        let none = || AgentError::Usage(format!("a window of {} samples without a varying signal has no statistics", window.len()));
        let statistics = self.statistics.of(window).ok_or_else(none)?;
        write_prompt(&mut self.text, &statistics, &self.diagnosis);
        let ids = self.tokenizer.encode(&self.text, true)?;
        let (prompt, label, most) = (ids.len(), self.longest_label(), self.token_limit);
        if prompt + label > most {
            return Err(AgentError::Usage(format!(
                "the prompt of a window has {prompt} tokens and a label up to {label}; a model of this context reads {most} in all: \
                 take one with a longer context, or with a vocabulary that needs fewer tokens"
            )));
        }
        Ok(ids)
    }
}

/// Prompts that two sets of windows are written with.
pub type SharedPrompts = Arc<Mutex<Prompts>>;

/// The tokens of each label as they follow a prompt. They are encoded together with the prompt's end, since a tokenizer may treat the
/// beginning of a text differently.
fn label_tokens(tokenizer: &Tokenizer, diagnosis: &TextDiagnosis) -> Result<Vec<Vec<u32>>> {
    let before = tokenizer.encode(PROMPT_END, false)?.len();
    let tokens = |label: &String| -> Result<Vec<u32>> {
        let ids = tokenizer.encode(&format!("{PROMPT_END} {label}"), false)?;
        Ok(ids.get(before..).unwrap_or_default().to_vec())
    };
    let labels = diagnosis.labels.iter().map(tokens).collect::<Result<Vec<_>>>()?;
    for (index, label) in labels.iter().enumerate() {
        // A label that begins another would always be the likelier of the two.
        let other = labels.iter().enumerate().find(|(other, tokens)| *other != index && tokens.starts_with(label));
        if label.is_empty() || other.is_some() {
            let (label, other) = (&diagnosis.labels[index], other.map_or("nothing", |(other, _)| &diagnosis.labels[other]));
            return Err(AgentError::Usage(format!("the label `{label}` cannot be told from {other}; rename the class")));
        }
    }
    Ok(labels)
}

/// Windows that a language model reads as prompts, each with the label of its class.
pub struct TextExamples<'a> {
    windows: &'a dyn Examples,
    prompts: SharedPrompts,
    labels: Vec<Vec<u32>>,
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
    /// The windows of a set. Prompts that leave no room for a label are refused.
    pub fn new(windows: &'a dyn Examples, prompts: SharedPrompts) -> Result<Self> {
        let mut examples = Self { windows, prompts, labels: Vec::new(), longest: 0 };
        let (mut window, mut longest) = (vec![0.0; windows.window()], 0);
        let step = windows.count().div_ceil(LOOKED_AT).max(1);
        for index in (0..windows.count()).step_by(step) {
            if windows.load(index, &mut window)?.is_some() {
                longest = longest.max(examples.prompt(&window)?.len());
            }
        }
        let (labels, label, most) = {
            let prompts = examples.prompts.lock().unwrap_or_else(PoisonError::into_inner);
            (prompts.labels().to_vec(), prompts.longest_label(), prompts.token_limit())
        };
        examples.labels = labels;
        examples.longest = (longest + longest.div_ceil(SPARE_SHARE) + label).min(most);
        Ok(examples)
    }

    /// Tokens that room must be made for.
    pub fn longest(&self) -> usize {
        self.longest
    }

    fn prompt(&self, window: &[f32]) -> Result<Vec<u32>> {
        // A prompt is written over the last one, so a panic elsewhere leaves nothing half done.
        self.prompts.lock().unwrap_or_else(PoisonError::into_inner).prompt(window)
    }

    /// The sequence of a normalised window with the label of `class`.
    pub fn sequence(&self, window: &[f32], class: usize) -> Result<Sequence> {
        self.labelled(&self.prompt(window)?, class)
    }

    /// A prompt with the label of `class`.
    fn labelled(&self, prompt: &[u32], class: usize) -> Result<Sequence> {
        let unknown = || AgentError::Training(format!("class {class} has no label"));
        let label = self.labels.get(class).ok_or_else(unknown)?;
        let mut targets = vec![NO_TARGET; prompt.len().saturating_sub(1)];
        targets.extend_from_slice(label);
        let ids = [prompt, &label[..label.len() - 1]].concat();
        if ids.len() > self.longest {
            let (tokens, longest) = (ids.len(), self.longest);
            return Err(AgentError::Training(format!("a prompt has {tokens} tokens, more than the {longest} that room was made for")));
        }
        Ok(Sequence { prompt_tokens: prompt.len(), ids, targets })
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
        let prompt = self.prompt(window)?;
        let mut loss_of = |class: usize, workspace: &mut Workspace<D>| -> Result<f64> {
            let sequence = self.labelled(&prompt, class)?;
            device.write_indices(targets, &sequence.targets)?;
            let input = Input::Tokens { ids: &sequence.ids, sequence: sequence.ids.len() };
            Ok(device.enter(|| pass.loss(workspace, input, targets))?)
        };
        let own = loss_of(class, workspace)?;
        let losses: Vec<f64> = if self.labels.iter().all(|label| label.len() == 1) {
            // All labels compete for the one position after the prompt.
            let width = pass.network.architecture.output_width();
            let mut logits = vec![0.0; width];
            device.read(workspace.logits(), (prompt.len() - 1) * width, &mut logits).map_err(RuntimeError::from)?;
            self.labels.iter().map(|label| -f64::from(logits.get(label[0] as usize).copied().unwrap_or(f32::NEG_INFINITY))).collect()
        } else {
            let total = |(other, label): (usize, &Vec<u32>)| {
                let mean = if other == class { own } else { loss_of(other, workspace)? };
                Ok(mean * label.len() as f64)
            };
            self.labels.iter().enumerate().map(total).collect::<Result<_>>()?
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

#[cfg(all(test, feature = "text"))]
mod tests {
    use super::*;
    use crate::diagnosis_text::for_classes;
    use crate::text::samples::{byte_fallback, byte_level};

    fn diagnosis(classes: &[&str]) -> TextDiagnosis {
        for_classes(&classes.iter().map(|class| class.to_string()).collect::<Vec<_>>(), 64, 1000.0)
    }

    fn window() -> Vec<f32> {
        (0..64).map(|index| (index as f32 * 0.7).sin() * 1.4).collect()
    }

    #[test]
    fn labels_are_the_tokens_that_follow_the_prompt_in_one_text() -> Result<()> {
        for tokenizer in [byte_fallback(), byte_level()] {
            let diagnosis = diagnosis(&["a", "b", "N"]);
            let labels = label_tokens(&tokenizer, &diagnosis)?;
            let prompt = tokenizer.encode("statistics\nCondition:", true)?;
            for (label, tokens) in diagnosis.labels.iter().zip(&labels) {
                let together = tokenizer.encode(&format!("statistics\nCondition: {label}"), true)?;
                assert_eq!([&prompt[..], tokens].concat(), together, "{label}");
            }
        }
        // A tokenizer that puts a space before a text would put another before a label by itself.
        let labels = label_tokens(&byte_fallback(), &diagnosis(&["a", "b"]))?;
        let names: Vec<_> = labels.iter().flatten().map(|id| byte_fallback().token(*id).unwrap_or_default()).collect();
        assert_eq!(names, ["▁a", "▁b"]);
        Ok(())
    }

    #[test]
    fn labels_that_cannot_be_told_apart_are_refused() {
        let error = label_tokens(&byte_fallback(), &diagnosis(&["b", "ab ab", "ab"])).expect_err("a label that begins another");
        assert!(error.to_string().contains("`ab` cannot be told from ab ab"), "{error}");
    }

    #[test]
    fn a_prompt_leaves_room_for_the_longest_label() -> Result<()> {
        let of = |limit| Prompts::with(byte_level(), diagnosis(&["N", "a longer name"]), limit);
        let mut prompts = of(1024)?;
        let needed = prompts.prompt(&window())?.len() + prompts.longest_label();
        assert!(prompts.longest_label() > 1);
        assert!(of(needed)?.prompt(&window()).is_ok());
        let error = of(needed - 1)?.prompt(&window()).expect_err("no room for the label");
        assert!(error.to_string().contains(&format!("reads {} in all", needed - 1)), "{error}");
        Ok(())
    }
}
