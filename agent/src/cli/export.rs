//! `espalier export`

use std::path::PathBuf;

use espalier_models::checkpoint::{export_gguf, export_safetensors};
use espalier_models::{Artifact, Dialect};

use super::print;
use crate::error::{AgentError, Result};
use crate::files::check_output;

/// Options of `export`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(false))]
pub struct Args {
    /// The artifact.
    model: PathBuf,
    /// The folder to write config.json and model.safetensors into; it must not exist or be empty.
    #[arg(long, value_name = "DIR", group = "what")]
    safetensors: Option<PathBuf>,
    /// The GGUF file to write, for llama.cpp.
    #[arg(long, value_name = "FILE", group = "what", conflicts_with = "dialect")]
    gguf: Option<PathBuf>,
    /// Names and layouts of a folder, such as gpt2, llama or espalier [default: those it was imported from].
    #[arg(long)]
    dialect: Option<String>,
}

pub fn run(args: &Args) -> Result<()> {
    let artifact = Artifact::open(&args.model)?;
    if let Some(file) = &args.gguf {
        check_output(file)?;
        export_gguf(&artifact, artifact.manifest(), file)?;
        print(&format!("{}\n", file.display()))?;
    }
    if let Some(folder) = &args.safetensors {
        let known = || Dialect::ALL.map(Dialect::name).join(", ");
        let parse =
            |name: &String| Dialect::parse(name).ok_or_else(|| AgentError::Usage(format!("{name} is no dialect; give one of {}", known())));
        let dialect = args.dialect.as_ref().map(parse).transpose()?;
        export_safetensors(&artifact, artifact.manifest(), folder, dialect)?;
        print(&format!("{}\n", folder.display()))?;
    }
    Ok(())
}
