//! `espalier export`

use std::path::PathBuf;

use espalier_models::checkpoint::export_safetensors;
use espalier_models::{Artifact, Dialect};

use super::print;
use crate::error::{AgentError, Result};

/// Options of `export`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The artifact.
    model: PathBuf,
    /// The folder to write config.json and model.safetensors into; it must not exist or be empty.
    #[arg(long, value_name = "DIR")]
    safetensors: PathBuf,
    /// Names and layouts: gpt2, llama or espalier [default: those it was imported from].
    #[arg(long)]
    dialect: Option<String>,
}

pub fn run(args: &Args) -> Result<()> {
    let artifact = Artifact::open(&args.model)?;
    let dialect = match &args.dialect {
        None => None,
        Some(name) => {
            Some(Dialect::parse(name).ok_or_else(|| AgentError::Usage(format!("{name} is no dialect; give gpt2, llama or espalier")))?)
        }
    };
    export_safetensors(&artifact, artifact.manifest(), &args.safetensors, dialect)?;
    print(&format!("{}\n", args.safetensors.display()))
}
