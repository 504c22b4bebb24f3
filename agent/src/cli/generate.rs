//! `espalier generate`

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use espalier_models::Artifact;
use espalier_runtime::{Generator, Sampling};

use super::Context;
use crate::error::{AgentError, Result};
use crate::signals::Rng;
use crate::text::Tokenizer;

/// Options of `generate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The artifact of a language model.
    model: PathBuf,
    /// The text to continue; for a model without a tokenizer, token ids separated by spaces.
    prompt: String,
    /// Tokens to generate at most.
    #[arg(long, default_value_t = 64)]
    max_tokens: usize,
    /// 0 takes the most likely token; higher values are more random.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Seed of the sampling.
    #[arg(long, default_value_t = 42)]
    seed: u64,
}

pub fn run(context: &Context, args: &Args) -> Result<()> {
    if !(args.temperature.is_finite() && args.temperature >= 0.0) {
        return Err(AgentError::Usage(format!("a temperature of {} is not possible; give 0 or more", args.temperature)));
    }
    let artifact = Arc::new(Artifact::open(&args.model)?);
    let tokenizer = Tokenizer::of(artifact.manifest())?;
    let prompt = tokenizer.encode(&args.prompt)?;
    let (device, budget) = context.device(None)?;
    let mut generator = Generator::open(&device, &budget, &artifact, prompt.len().saturating_add(args.max_tokens))?;
    let mut rng = Rng::new(args.seed);
    let mut generated = Vec::new();
    let mut shown = 0;
    let started = Instant::now();
    let mut out = std::io::stdout().lock();
    let mut failed = None;
    let sampling = Sampling { temperature: args.temperature };
    generator.generate(&prompt, args.max_tokens, sampling, &mut || rng.uniform(), &mut |id| {
        generated.push(id);
        match tokenizer.decode(&generated) {
            // A token may end inside a character: what is not whole yet waits for the next.
            Ok(text) if !text.ends_with('\u{fffd}') => {
                let written = out.write_all(&text.as_bytes()[shown.min(text.len())..]).and_then(|()| out.flush());
                shown = text.len();
                written.is_ok() && !context.stop.is_asked() && !tokenizer.is_end(id)
            }
            Ok(_) => !context.stop.is_asked(),
            Err(error) => {
                failed = Some(error);
                false
            }
        }
    })?;
    let _ = writeln!(out);
    if let Some(error) = failed {
        return Err(error);
    }
    let seconds = started.elapsed().as_secs_f64();
    eprintln!("{} tokens in {seconds:.2} s, {:.1} tokens/s", generated.len(), generated.len() as f64 / seconds);
    Ok(())
}
