//! `espalier generate`

use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use espalier_models::Artifact;
use espalier_runtime::{Continues, GenerationSpeed, Sampling};

use super::{Context, EngineArgs, foreign, print_json, tell};
use crate::error::{AgentError, Result, file_error};
use crate::language::check_language_model;
use crate::sessions;
use crate::signals::Rng;
use crate::text::{ChatTemplate, Message, TextStream, Tokenizer};

/// The longest prompt on standard input: more than any context takes, and little memory.
const MAX_PROMPT_BYTES: u64 = 64 << 20;

/// Options of `generate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The artifact of a language model.
    model: PathBuf,
    /// The text to continue, or `-` for standard input (after `--`, where it begins with a hyphen); for a model without a tokenizer, token ids separated by spaces.
    prompt: String,
    /// Tokens to generate at most.
    #[arg(long, default_value_t = 64)]
    max_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Seed of the sampling.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// End before this text, which is not printed; may be given several times.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Take the prompt as what a user says, put into the model's chat template.
    #[arg(long)]
    chat: bool,
    /// What the system message says.
    #[arg(long, value_name = "TEXT", requires = "chat", allow_hyphen_values = true)]
    system: Option<String>,
    #[command(flatten)]
    engine: EngineArgs,
    /// Print text, token ids and speed as JSON when all is done.
    #[arg(long)]
    json: bool,
}

/// How tokens are drawn; filters act in this order, each on what the one before has left.
#[derive(Debug, clap::Args)]
struct SamplingArgs {
    /// Divide the logits of tokens that have occurred by this where positive, multiply where negative; 1 does nothing.
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR")]
    repetition_penalty: f32,
    /// 0 takes the most likely token; higher values are more random.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Draw among this many of the most likely tokens; 0 draws among all.
    #[arg(long, default_value_t = 0, value_name = "N")]
    top_k: usize,
    /// Draw among the fewest most likely tokens whose probabilities together reach this.
    #[arg(long, default_value_t = 1.0, value_name = "SHARE")]
    top_p: f32,
    /// Draw among tokens at least this likely, as a share of the most likely one.
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    min_p: f32,
}

impl SamplingArgs {
    fn sampling(&self) -> Result<Sampling> {
        let Self { repetition_penalty, temperature, top_k, top_p, min_p } = *self;
        let sampling = Sampling { temperature, top_k, top_p, min_p, repetition_penalty };
        sampling.check().map_err(|error| AgentError::Usage(error.to_string()))?;
        Ok(sampling)
    }
}

/// Why a continuation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
enum Finish {
    /// As many tokens as were asked for.
    Length,
    /// A token that ends a text.
    EndToken,
    /// A stop string.
    Stop,
    /// Ctrl-C, or a reader that has gone away.
    Interrupted,
}

#[derive(serde::Serialize)]
struct Generated<'a> {
    text: &'a str,
    ids: &'a [u32],
    finish: Finish,
    prompt_ids: &'a [u32],
    prompt_tokens: usize,
    prompt_tokens_per_second: f64,
    prompt_weights_gb_per_second: f64,
    generated_tokens: usize,
    generated_tokens_per_second: f64,
    generated_weights_gb_per_second: f64,
}

pub fn run(context: &Context, args: &Args) -> Result<()> {
    foreign::refuse(&args.model, "asked to continue a text")?;
    let sampling = args.sampling.sampling()?;
    let artifact = Arc::new(Artifact::open(&args.model)?);
    check_language_model(&artifact)?;
    let tokenizer = Tokenizer::of(&artifact)?;
    let prompt = prompt_ids(args, &artifact, &tokenizer)?;
    check_length(&artifact, prompt.len(), args.max_tokens)?;
    let capacity = prompt.len() + args.max_tokens;
    context.compute(context.any_device(args.engine, None, &artifact)?, |device, budget, shown| {
        let mut generator = sessions::generator(device, budget, &artifact, capacity)?;
        // From here on the continuation may be printed as it comes.
        shown.set(true);
        generate(context, args, &prompt, &tokenizer, sampling, generator.as_mut())
    })
}

/// Continues the prompt, and prints as it goes.
fn generate(
    context: &Context,
    args: &Args,
    prompt: &[u32],
    tokenizer: &Tokenizer,
    sampling: Sampling,
    generator: &mut dyn Continues,
) -> Result<()> {
    let mut rng = Rng::new(args.seed);
    let mut writer = Writer::new(tokenizer, prompt, args)?;
    let speed = generator
        .generate(prompt, args.max_tokens, sampling, &mut || rng.uniform(), &mut |id| !context.stop.is_asked() && writer.push(id))?;
    if context.stop.is_asked() {
        writer.finish = Finish::Interrupted;
    }
    let (text, ids, finish) = writer.end()?;
    if args.json {
        return print_json(&Generated {
            text: &text,
            ids: &ids,
            finish,
            prompt_ids: prompt,
            prompt_tokens: speed.prompt_tokens,
            prompt_tokens_per_second: rate(speed.prompt_tokens, speed.prompt_time),
            prompt_weights_gb_per_second: prompt_gb_per_second(&speed, generator.pass_bytes()),
            generated_tokens: ids.len(),
            generated_tokens_per_second: rate(speed.generated_passes, speed.generated_time),
            generated_weights_gb_per_second: generated_gb_per_second(&speed, generator.pass_bytes()),
        });
    }
    report(&speed, ids.len(), generator.pass_bytes());
    Ok(())
}

/// The tokens of the prompt, with the chat template around them where it is asked for.
fn prompt_ids(args: &Args, artifact: &Artifact, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let text = if args.prompt == "-" { read_stdin()? } else { args.prompt.clone() };
    if !args.chat {
        return match tokenizer.encode(&text, true)? {
            ids if ids.is_empty() => Err(AgentError::Usage("the prompt has no tokens; give some text to continue".into())),
            ids => Ok(ids),
        };
    }
    let mut messages: Vec<Message> = args.system.iter().map(|system| Message::new("system", system)).collect();
    messages.push(Message::new("user", &text));
    tokenizer.encode(&ChatTemplate::of(artifact.manifest(), tokenizer)?.render(&messages)?, false)
}

fn read_stdin() -> Result<String> {
    let path = std::path::Path::new("standard input");
    let mut bytes = Vec::new();
    std::io::stdin().lock().take(MAX_PROMPT_BYTES + 1).read_to_end(&mut bytes).map_err(|error| file_error("cannot read", path, &error))?;
    if bytes.len() as u64 > MAX_PROMPT_BYTES {
        return Err(AgentError::Usage(format!("the prompt on standard input is longer than {MAX_PROMPT_BYTES} bytes; give a shorter one")));
    }
    let mut text =
        String::from_utf8(bytes).map_err(|error| AgentError::Usage(format!("the prompt on standard input is not UTF-8 text: {error}")))?;
    // The line end that a shell puts behind a text is no part of the prompt.
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

fn check_length(artifact: &Artifact, prompt: usize, max_tokens: usize) -> Result<()> {
    let context = artifact.manifest().architecture.context();
    if prompt.saturating_add(max_tokens) <= context {
        return Ok(());
    }
    let path = artifact.path().display();
    Err(AgentError::Usage(format!(
        "the prompt has {prompt} tokens and {max_tokens} more were asked for, but {path} reads {context} at most; shorten the prompt or give a smaller --max-tokens"
    )))
}

/// Prints text as it comes, or keeps it for the JSON.
struct Writer<'a> {
    tokenizer: &'a Tokenizer,
    stream: TextStream<'a>,
    out: Option<std::io::StdoutLock<'static>>,
    text: String,
    /// Bytes of the text that are printed.
    shown: usize,
    ids: Vec<u32>,
    finish: Finish,
    failed: Option<AgentError>,
}

impl<'a> Writer<'a> {
    fn new(tokenizer: &'a Tokenizer, prompt: &[u32], args: &Args) -> Result<Self> {
        Ok(Self {
            tokenizer,
            stream: TextStream::new(tokenizer, prompt, &args.stop)?,
            out: (!args.json).then(|| std::io::stdout().lock()),
            text: String::new(),
            shown: 0,
            ids: Vec::with_capacity(args.max_tokens),
            finish: Finish::Length,
            failed: None,
        })
    }

    /// Takes a token; false ends the continuation.
    fn push(&mut self, id: u32) -> bool {
        self.ids.push(id);
        let pushed = self.stream.push(id, &mut self.text);
        let written = self.show();
        match pushed {
            Err(error) => {
                self.failed = Some(error);
                return false;
            }
            Ok(true) => self.finish = Finish::Stop,
            Ok(false) if !written => self.finish = Finish::Interrupted,
            Ok(false) if self.tokenizer.is_end(id) => self.finish = Finish::EndToken,
            Ok(false) => return true,
        }
        false
    }

    /// Prints what is new; false where the reader has gone away.
    fn show(&mut self) -> bool {
        let new = &self.text.as_bytes()[self.shown..];
        let Some(out) = &mut self.out else { return true };
        self.shown += new.len();
        new.is_empty() || out.write_all(new).and_then(|()| out.flush()).is_ok()
    }

    /// Prints what was held back; the text, its tokens, and why it ended.
    fn end(mut self) -> Result<(String, Vec<u32>, Finish)> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        if self.finish != Finish::Stop {
            let empty = TextStream::new(self.tokenizer, &[], &[])?;
            if std::mem::replace(&mut self.stream, empty).finish(&mut self.text)? {
                self.finish = Finish::Stop;
            }
        }
        self.show();
        if let Some(out) = &mut self.out {
            // A reader that has gone away is no failure.
            let _ = writeln!(out);
        }
        Ok((self.text, self.ids, self.finish))
    }
}

fn rate(count: usize, time: std::time::Duration) -> f64 {
    if count == 0 { 0.0 } else { count as f64 / time.as_secs_f64().max(1e-9) }
}

fn prompt_gb_per_second(speed: &GenerationSpeed, pass_bytes: u64) -> f64 {
    rate(speed.prompt_passes, speed.prompt_time) * pass_bytes as f64 / 1e9
}

fn generated_gb_per_second(speed: &GenerationSpeed, pass_bytes: u64) -> f64 {
    rate(speed.generated_passes, speed.generated_time) * pass_bytes as f64 / 1e9
}

/// The speed, on standard error.
fn report(speed: &GenerationSpeed, generated: usize, pass_bytes: u64) {
    tell(format_args!(
        "prompt: {} tokens in {:.2} s, {:.1} tokens/s, weights read at {:.1} GB/s",
        speed.prompt_tokens,
        speed.prompt_time.as_secs_f64(),
        rate(speed.prompt_tokens, speed.prompt_time),
        prompt_gb_per_second(speed, pass_bytes)
    ));
    tell(format_args!(
        "generated: {generated} tokens in {:.2} s, {:.1} tokens/s, weights read at {:.1} GB/s",
        speed.generated_time.as_secs_f64(),
        rate(speed.generated_passes, speed.generated_time),
        generated_gb_per_second(speed, pass_bytes)
    ));
}
