//! `espalier embed` with an encoder of another program.

use std::io::Read;
use std::sync::Arc;

use espalier_kernels::{Purpose, Reservation};
use espalier_models::checkpoint::MAX_TOKENIZER_BYTES;
use espalier_models::foreign::{ForeignModel, SidecarInput, TokenInput};
use espalier_runtime::{Budget, tokenizer_memory};

use super::open;
use crate::cli::Context;
use crate::cli::embed::{Args, check_lengths, print_embedding, texts};
use crate::error::{AgentError, Result, file_error};
use crate::text::Tokenizer;

/// Prints the embedding of every text.
pub(in crate::cli) fn run(context: &Context, args: &Args) -> Result<()> {
    let model = open::read(&args.model, args.sidecar.sidecar.as_deref())?;
    let tokens = tokens(&model)?;
    let opened = open::ort(context, args.engine, &args.model, args.limit)?;
    let (tokenizer, reserved) = tokenizer(&model, &opened.1)?;
    let sequences = texts(args)?.iter().map(|text| tokenizer.encode(text, true)).collect::<Result<Vec<_>>>()?;
    check_lengths(&sequences, tokens.max_tokens)?;
    drop((tokenizer, reserved));
    let longest = sequences.iter().map(Vec::len).max().unwrap_or(1);
    let mut runner = open::runner(&opened, &model, longest)?;
    for (index, ids) in sequences.iter().enumerate() {
        context.stop.check()?;
        let mut embedding = runner.embed(ids)?.to_vec();
        if !print_embedding(args, index, ids.len(), &mut embedding)? {
            break;
        }
    }
    Ok(())
}

fn tokens(model: &ForeignModel) -> Result<&TokenInput> {
    match &model.sidecar.input {
        SidecarInput::Tokens(tokens) => Ok(tokens),
        _ => {
            let path = model.graph.path().display();
            Err(AgentError::Usage(format!("{path} reads signals by its sidecar; embed takes an encoder, whose input kind is tokens")))
        }
    }
}

/// The tokenizer of a sidecar, and what is booked for it.
fn tokenizer(model: &ForeignModel, budget: &Arc<Budget>) -> Result<(Tokenizer, Reservation)> {
    let path = model.tokenizer()?.unwrap_or_default();
    let failed = |error: std::io::Error| file_error("cannot read the tokenizer", &path, &error);
    let metadata = std::fs::metadata(&path).map_err(failed)?;
    let (name, length) = (path.display(), metadata.len());
    if !metadata.is_file() || length > MAX_TOKENIZER_BYTES {
        let sentence =
            format!("the tokenizer {name} is not a file of at most {MAX_TOKENIZER_BYTES} bytes; give the model's tokenizer.json");
        return Err(AgentError::Usage(sentence));
    }
    let reserved = Reservation::new(budget.clone(), Purpose::Tokenizer, tokenizer_memory(length))?;
    let mut json = Vec::new();
    // What is added to it meanwhile is not read.
    std::fs::File::open(&path).map_err(failed)?.take(length).read_to_end(&mut json).map_err(failed)?;
    Ok((Tokenizer::of_file(&name.to_string(), &json)?, reserved))
}
