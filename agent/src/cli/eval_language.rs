//! `espalier eval --text` and `espalier eval --task`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use espalier_models::Artifact;

use super::bar::Bar;
use super::{Context, EngineArgs, print, print_json};
use crate::error::{AgentError, Result};
use crate::language::check_language_model;
use crate::language::perplexity::{self, Sequence};
use crate::language::sequences::{fasta_sequences, is_fasta, read_text};
use crate::language::tasks::{Task, choice, files, solution};
use crate::sessions;
use crate::table::Table;
use crate::text::Tokenizer;

/// Options of the measurement on windows, which one on text does not read. Clap takes a requirement for met where something stands that
/// conflicts with what is required, so an option of a text names both.
const WINDOW_OPTIONS: [&str; 5] = ["snr", "holdout", "reference", "without", "seed"];

/// What a language model is measured on.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("language").args(["text", "task"])))]
pub struct LanguageArgs {
    /// A language model's perplexity on this text, line ends read as `\n`; of a FASTA file (.fa, .fasta, .faa) every record is a sequence of its own.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["data", "split"])]
    text: Option<PathBuf>,
    /// Tokens of a window; windows do not overlap, and each but its first token is scored [default: 2048, or the model's context where that is less].
    #[arg(long, value_name = "TOKENS", requires = "text", conflicts_with_all = ["lines", "data", "split"])]
    seq_len: Option<usize>,
    /// Score only this many windows, from the start.
    #[arg(long, value_name = "N", requires = "text", conflicts_with_all = ["lines", "data", "split"])]
    windows: Option<usize>,
    /// Take every line that is not empty as a sequence of its own: the mean of their perplexities is reported too.
    #[arg(long, requires = "text", conflicts_with_all = ["data", "split"])]
    lines: bool,
    /// Put this before every sequence, as context that is not scored.
    #[arg(long, value_name = "TEXT", requires = "text", conflicts_with_all = ["data", "split"], allow_hyphen_values = true)]
    prefix: Option<String>,
    /// Put this behind every sequence, scored with it.
    #[arg(long, value_name = "TEXT", requires = "text", conflicts_with_all = ["data", "split"], allow_hyphen_values = true)]
    suffix: Option<String>,
    /// Questions with answers, from the folder or file --data, in the prompt formats of lm-evaluation-harness.
    #[arg(long, value_enum, requires = "data", conflicts_with = "split")]
    task: Option<Task>,
    /// Only the first so many sequences or questions.
    #[arg(long, value_name = "N", requires = "language", conflicts_with_all = WINDOW_OPTIONS, value_parser = super::count(u32::MAX))]
    limit_examples: Option<usize>,
}

impl LanguageArgs {
    /// Whether a text or a task was given.
    pub fn is_asked(&self) -> bool {
        self.text.is_some() || self.task.is_some()
    }
}

/// On what a measurement computes, and how it prints.
#[derive(Clone, Copy)]
pub struct Computing {
    /// The engine.
    pub engine: EngineArgs,
    /// Memory limit in bytes.
    pub limit: Option<u64>,
    /// Print as JSON.
    pub json: bool,
}

/// Measures a language model.
pub fn run(context: &Context, artifact: &Arc<Artifact>, args: &LanguageArgs, data: Option<&Path>, computing: Computing) -> Result<()> {
    check_language_model(artifact)?;
    match (&args.text, args.task, data) {
        (Some(path), _, _) if args.lines || is_fasta(path) => sequences(context, artifact, args, path, computing),
        (Some(path), _, _) => windows(context, artifact, args, path, computing),
        (None, Some(task), Some(data)) => questions(context, artifact, args, task, data, computing),
        _ => Err(AgentError::Usage("nothing to measure on; give --text FILE, or --task NAME with --data DIR".into())),
    }
}

/// The window of a text where none is given: the longest that is usual to report.
const LONGEST_DEFAULT_WINDOW: usize = 2048;

fn windows(context: &Context, artifact: &Arc<Artifact>, args: &LanguageArgs, path: &Path, computing: Computing) -> Result<()> {
    if args.prefix.is_some() || args.suffix.is_some() || args.limit_examples.is_some() {
        return Err(AgentError::Usage("--prefix, --suffix and --limit-examples belong to sequences; add --lines".into()));
    }
    let most = artifact.manifest().architecture.context();
    let window = args.seq_len.unwrap_or(most.min(LONGEST_DEFAULT_WINDOW));
    if window > most {
        return Err(AgentError::Usage(format!(
            "a window of {window} tokens is more than the model's context of {most}; give --seq-len {most} or less"
        )));
    }
    let text = read_text(path)?;
    let ids = Tokenizer::of(artifact)?.encode(&text, true)?;
    let result = context.compute(context.any_device(computing.engine, computing.limit, artifact)?, |device, budget, _| {
        let mut scorer = sessions::scorer(device, budget, artifact, window)?;
        perplexity::of_text(scorer.as_mut(), &ids, text.len(), window, args.windows, &mut Bar::new(), &context.stop)
    })?;
    if computing.json {
        return print_json(&result);
    }
    let mut table = Table::new(["text", path.display().to_string().as_str()]);
    table
        .row(["perplexity".to_string(), format!("{:.3}", result.perplexity)])
        .row(["cross entropy".to_string(), format!("{:.4} nats a token", result.cross_entropy_nats)])
        .row(["bits a byte".to_string(), format!("{:.4}", result.bits_per_byte)])
        .row(["windows".to_string(), format!("{} of {} tokens", result.windows, result.window_tokens)])
        .row(["scored".to_string(), format!("{} of {} tokens", result.scored_tokens, result.text_tokens)])
        .row(["speed".to_string(), format!("{:.0} tokens/s", result.tokens_per_second)]);
    print(&format!("{table}\n"))
}

fn sequences(context: &Context, artifact: &Arc<Artifact>, args: &LanguageArgs, path: &Path, computing: Computing) -> Result<()> {
    if args.seq_len.is_some() || args.windows.is_some() {
        let path = path.display();
        return Err(AgentError::Usage(format!(
            "--seq-len and --windows belong to a running text, but {path} has sequences; leave them out"
        )));
    }
    let text = read_text(path)?;
    let lines = if is_fasta(path) && !args.lines {
        fasta_sequences(&text, path)?
    } else {
        text.lines().filter(|line| !line.trim().is_empty()).map(str::to_string).collect()
    };
    let tokenizer = Tokenizer::of(artifact)?;
    let context_ids = args.prefix.as_deref().map_or(Ok(Vec::new()), |prefix| tokenizer.encode(prefix, false))?;
    let suffix_ids = args.suffix.as_deref().map_or(Ok(Vec::new()), |suffix| tokenizer.encode(suffix, false))?;
    let most = artifact.manifest().architecture.context();
    let mut sequences = Vec::new();
    for (index, line) in lines.iter().take(args.limit_examples.unwrap_or(usize::MAX)).enumerate() {
        // Without a context of one's own, the tokens that the tokenizer puts before a text are that context.
        let own = tokenizer.encode(line, context_ids.is_empty())?;
        let ids = [context_ids.as_slice(), own.as_slice(), suffix_ids.as_slice()].concat();
        let first = context_ids.len().max(1);
        if first >= ids.len() || ids.len() > most {
            let (path, tokens) = (path.display(), ids.len());
            return Err(AgentError::Usage(format!(
                "{path}: sequence {} has {tokens} tokens; the model reads {most} at most, and one token needs another before it",
                index + 1
            )));
        }
        sequences.push(Sequence { ids, first });
    }
    let longest = sequences.iter().map(|sequence| sequence.ids.len()).max().unwrap_or(1);
    let result = context.compute(context.any_device(computing.engine, computing.limit, artifact)?, |device, budget, _| {
        let mut scorer = sessions::scorer(device, budget, artifact, longest)?;
        perplexity::of_sequences(scorer.as_mut(), &sequences, &mut Bar::new(), &context.stop)
    })?;
    if computing.json {
        return print_json(&result);
    }
    let interval = result.interval.map_or(String::new(), |half| format!(" ± {half:.3}"));
    let mut table = Table::new(["sequences", path.display().to_string().as_str()]);
    table
        .row(["mean perplexity".to_string(), format!("{:.3}{interval}", result.mean_perplexity)])
        .row(["perplexity of all tokens".to_string(), format!("{:.3}", result.perplexity)])
        .row(["cross entropy".to_string(), format!("{:.4} nats a token", result.cross_entropy_nats)])
        .row(["scored".to_string(), format!("{} tokens of {} sequences", result.scored_tokens, result.sequences)])
        .row(["speed".to_string(), format!("{:.0} tokens/s", result.tokens_per_second)]);
    print(&format!("{table}\n"))
}

#[derive(serde::Serialize)]
struct Named<T> {
    task: &'static str,
    #[serde(flatten)]
    scores: T,
}

fn questions(
    context: &Context,
    artifact: &Arc<Artifact>,
    args: &LanguageArgs,
    task: Task,
    data: &Path,
    computing: Computing,
) -> Result<()> {
    let file = task.file(data)?;
    let tokenizer = Tokenizer::of(artifact)?;
    let most = args.limit_examples.unwrap_or(usize::MAX);
    let opened = context.any_device(computing.engine, computing.limit, artifact)?;
    // Longer than any question of these sets with its solution, and a small KV cache.
    let capacity = artifact.manifest().architecture.context().min(1024);
    let mut table = Table::new(["task", task.name()]);
    if task == Task::Gsm8k {
        let mut questions = files::gsm8k(&file)?;
        questions.truncate(most);
        let scores = context.compute(opened, |device, budget, _| {
            let mut generator = sessions::generator(device, budget, artifact, capacity)?;
            solution::solve(generator.as_mut(), &tokenizer, capacity, &questions, &mut Bar::new(), &context.stop)
        })?;
        if computing.json {
            return print_json(&Named { task: task.name(), scores });
        }
        table.row(["exact match".to_string(), scores.exact_match.to_string()]).row(["questions".to_string(), scores.questions.to_string()]);
        return print(&format!("{table}\n"));
    }
    let mut questions = if task == Task::Piqa { files::piqa(&file)? } else { files::arc(&file)? };
    questions.truncate(most);
    let scores = context.compute(opened, |device, budget, _| {
        let mut scorer = sessions::scorer(device, budget, artifact, capacity)?;
        choice::ask(scorer.as_mut(), &tokenizer, &questions, &mut Bar::new(), &context.stop)
    })?;
    if computing.json {
        return print_json(&Named { task: task.name(), scores });
    }
    table
        .row(["acc".to_string(), scores.acc.to_string()])
        .row(["acc_norm".to_string(), scores.acc_norm.to_string()])
        .row(["questions".to_string(), scores.questions.to_string()]);
    print(&format!("{table}\n"))
}
