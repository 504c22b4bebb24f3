//! `espalier export`

use std::path::PathBuf;

use espalier_models::checkpoint::{OnnxExport, OnnxOptions, export_gguf, export_onnx, export_safetensors};
use espalier_models::{Artifact, Dialect};

use super::{foreign, print};
use crate::error::{AgentError, Result};
use crate::files::check_output;
use crate::table::bytes;

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
    /// The ONNX graph to write, for ONNX Runtime, TensorRT and others. Its weights stay in the artifact, in whose folder it must lie.
    #[arg(long, value_name = "FILE", group = "what", conflicts_with = "dialect")]
    onnx: Option<PathBuf>,
    /// Put the weights into the ONNX file, which may then lie anywhere.
    #[arg(long, conflicts_with_all = ["safetensors", "gguf"])]
    embed: bool,
    /// Give the ONNX graph inputs and outputs for the keys and values of earlier tokens.
    #[arg(long, conflicts_with_all = ["safetensors", "gguf"])]
    cache: bool,
    /// Names and layouts of a folder, such as gpt2, llama or espalier [default: those it was imported from].
    #[arg(long)]
    dialect: Option<String>,
}

pub fn run(args: &Args) -> Result<()> {
    foreign::refuse(&args.model, "exported")?;
    let artifact = Artifact::open(&args.model)?;
    if let Some(file) = &args.gguf {
        check_output(file)?;
        export_gguf(&artifact, artifact.manifest(), file)?;
        print(&format!("{}\n", file.display()))?;
    }
    if let Some(file) = &args.onnx {
        check_output(file)?;
        let written = export_onnx(&artifact, file, OnnxOptions { cache: args.cache, embed: args.embed })?;
        print(&format!("{}\n{}", file.display(), onnx_plan(&written)))?;
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

/// What the graph is, and what ONNX Runtime will hold of the weights.
fn onnx_plan(written: &OnnxExport) -> String {
    let mut text = format!("graph: {} nodes, {}\n", written.nodes, bytes(written.file_bytes));
    if written.external_bytes > 0 {
        text += &format!("weights that stay in the artifact: {}\n", bytes(written.external_bytes));
    }
    let held = match (written.external_bytes, written.copied_bytes) {
        (0, 0) => "all weights".to_string(),
        (0, copied) => {
            format!("all weights and {} of f32 ones, made from those in 16 bits and fewer when it loads the graph", bytes(copied))
        }
        (_, 0) => "none of the weights with its session option session.disable_prepacking at 1, else all matrices".to_string(),
        (_, copied) => format!("{} of f32 weights, made from those in 16 bits and fewer when it loads the graph", bytes(copied)),
    };
    text + &format!("copies that ONNX Runtime's CPU provider will hold in memory: {held}\n")
}
