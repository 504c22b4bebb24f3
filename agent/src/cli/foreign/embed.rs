//! `espalier embed` with an encoder of another program.

use std::io::Read;
use std::path::{Component, Path, PathBuf};

use espalier_kernels::{Purpose, Reservation};
use espalier_models::foreign::{ForeignModel, SidecarInput, TokenInput};
use espalier_runtime::tokenizer_memory;

use super::open;
use crate::cli::Context;
use crate::cli::embed::{Args, check_lengths, print_embedding, texts};
use crate::error::{AgentError, Result, file_error};
use crate::files::folder_of;
use crate::text::Tokenizer;

/// The longest `tokenizer.json`: the largest vocabularies have a tenth of it.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;

/// Prints the embedding of every text.
pub(in crate::cli) fn run(context: &Context, args: &Args) -> Result<()> {
    let model = open::read(&args.model, args.sidecar.sidecar.as_deref())?;
    let tokens = tokens(&model)?;
    let opened = open::ort(context, args.engine, &args.model, args.limit)?;
    let (json, path) = tokenizer_file(&model, &tokens.tokenizer)?;
    let reserved = Reservation::new(opened.1.clone(), Purpose::Tokenizer, tokenizer_memory(json.len() as u64))?;
    let tokenizer = Tokenizer::of_file(&path.display().to_string(), &json)?;
    drop(json);
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

/// The tokenizer of a sidecar: a file of the graph's folder.
fn tokenizer_file(model: &ForeignModel, name: &str) -> Result<(Vec<u8>, PathBuf)> {
    let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if name.is_empty() || !inside {
        let sidecar = model.sidecar_path().display();
        return Err(AgentError::Usage(format!("{sidecar}: the tokenizer `{name:.80}` is not in the graph's folder; put it there")));
    }
    let path = folder_of(model.graph.path()).join(name);
    let failed = |error: std::io::Error| file_error("cannot read the tokenizer", &path, &error);
    if !std::fs::metadata(&path).map_err(failed)?.is_file() {
        return Err(AgentError::Usage(format!("the tokenizer {} is not a file", path.display())));
    }
    let mut json = Vec::new();
    let file = std::fs::File::open(&path).map_err(failed)?;
    file.take(MAX_TOKENIZER_BYTES + 1).read_to_end(&mut json).map_err(failed)?;
    if json.len() as u64 > MAX_TOKENIZER_BYTES {
        return Err(AgentError::Usage(format!("the tokenizer {} is longer than {MAX_TOKENIZER_BYTES} bytes", path.display())));
    }
    Ok((json, path))
}
