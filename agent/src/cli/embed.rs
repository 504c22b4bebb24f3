//! `espalier embed`

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::Arc;

use espalier_models::Artifact;
use espalier_runtime::Embeds;

use super::foreign::{self, SidecarArgs};
use super::{Context, EngineArgs, print_while_read};
use crate::error::{AgentError, Result};
use crate::language::check_language_model;
use crate::language::sequences::read_text;
use crate::sessions;
use crate::text::Tokenizer;

/// Options of `embed`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The artifact of a language model, or an ONNX encoder of another program.
    pub(super) model: PathBuf,
    /// Texts (after `--`, where one begins with a hyphen); for a model without a tokenizer, token ids separated by spaces.
    #[arg(required_unless_present = "file")]
    text: Vec<String>,
    /// A file of texts, one a line.
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    file: Option<PathBuf>,
    /// Divide every embedding by its length, so that dot products are cosines.
    #[arg(long)]
    normalize: bool,
    #[command(flatten)]
    pub(super) engine: EngineArgs,
    #[command(flatten)]
    pub(super) sidecar: SidecarArgs,
    /// Memory limit, such as 2GiB.
    #[arg(long, value_parser = super::size, value_name = "BYTES")]
    pub(super) limit: Option<u64>,
}

/// One line of the output.
#[derive(serde::Serialize)]
struct Line<'a> {
    index: usize,
    tokens: usize,
    embedding: &'a [f32],
}

pub fn run(context: &Context, args: &Args) -> Result<()> {
    if foreign::is_onnx(&args.model) {
        return foreign::embed(context, args);
    }
    args.sidecar.check_none(&args.model)?;
    let artifact = Arc::new(Artifact::open(&args.model)?);
    check_language_model(&artifact)?;
    let tokenizer = Tokenizer::of(&artifact)?;
    let sequences = texts(args)?.iter().map(|text| tokenizer.encode(text, true)).collect::<Result<Vec<_>>>()?;
    check_lengths(&sequences, artifact.manifest().architecture.context())?;
    let longest = sequences.iter().map(Vec::len).max().unwrap_or(1);
    context.compute(context.any_device(args.engine, args.limit, &artifact)?, |device, budget, shown| {
        embed(context, args, &sequences, sessions::embedder(device, budget, &artifact, longest)?.as_mut(), shown)
    })
}

/// The texts that are asked for.
pub(super) fn texts(args: &Args) -> Result<Vec<String>> {
    match &args.file {
        Some(path) => Ok(read_text(path)?.lines().map(str::to_string).collect()),
        None => Ok(args.text.clone()),
    }
}

/// An error where a text has no token, or more than the model's context.
pub(super) fn check_lengths(sequences: &[Vec<u32>], most: usize) -> Result<()> {
    match sequences.iter().position(|ids| ids.is_empty() || ids.len() > most) {
        Some(index) => {
            let (number, tokens) = (index + 1, sequences[index].len());
            Err(AgentError::Usage(format!("text {number} has {tokens} tokens; an embedding needs 1 to {most}, the model's context")))
        }
        None => Ok(()),
    }
}

/// Prints an embedding as the arguments say; false where the reader has gone away.
pub(super) fn print_embedding(args: &Args, index: usize, tokens: usize, embedding: &mut [f32]) -> Result<bool> {
    if args.normalize {
        normalize(embedding);
    }
    let line = serde_json::to_string(&Line { index, tokens, embedding });
    let line = line.map_err(|error| AgentError::Usage(format!("the embedding of text {} cannot be written: {error}", index + 1)))?;
    print_while_read(&(line + "\n"))
}

/// Prints the embedding of every sequence.
fn embed(context: &Context, args: &Args, sequences: &[Vec<u32>], embedder: &mut dyn Embeds, shown: &Cell<bool>) -> Result<()> {
    let mut embedding = vec![0.0; embedder.width()];
    for (index, ids) in sequences.iter().enumerate() {
        context.stop.check()?;
        embedder.mean_state(ids, &mut embedding)?;
        shown.set(true);
        if !print_embedding(args, index, ids.len(), &mut embedding)? {
            break;
        }
    }
    Ok(())
}

/// Divides by the Euclidean length, where there is one.
fn normalize(embedding: &mut [f32]) {
    let length = embedding.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        embedding.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
}
