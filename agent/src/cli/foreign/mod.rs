//! ONNX graphs of other programs on the command line: which commands take them, and which say why not.

use std::path::{Path, PathBuf};

pub(super) use espalier_models::foreign::is_onnx;

use super::EngineArgs;
use crate::engine::EngineChoice;
use crate::error::{AgentError, Result};

#[cfg(feature = "ort")]
mod bench;
#[cfg(feature = "ort")]
mod embed;
#[cfg(feature = "ort")]
mod eval;
mod inspect;
#[cfg(feature = "ort")]
mod open;
#[cfg(feature = "ort")]
mod run;

pub(super) use inspect::run as inspect;
#[cfg(feature = "ort")]
pub(super) use {bench::run as bench, embed::run as embed, eval::predictions, open::read, run::run};

/// Where the sidecar of a graph is.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct SidecarArgs {
    /// What an ONNX graph of another program reads and gives [default: the graph's name with .json behind it; `inspect` prints a draft].
    #[arg(long, value_name = "FILE.json")]
    pub sidecar: Option<PathBuf>,
}

impl SidecarArgs {
    /// Refuses a sidecar for what is no graph.
    pub fn check_none(&self, model: &Path) -> Result<()> {
        match self.sidecar {
            Some(_) => Err(AgentError::Usage(format!("--sidecar is of ONNX graphs, and {} is none; leave it out", model.display()))),
            None => Ok(()),
        }
    }
}

/// Refuses an ONNX graph, for a command that works on layers: `what` is done to them there.
pub(super) fn refuse(model: &Path, what: &str) -> Result<()> {
    if !is_onnx(model) {
        return Ok(());
    }
    Err(AgentError::Usage(format!(
        "{} is an ONNX graph, which cannot be {what}: its layers are not known as such; import the checkpoint that it was made of, or use \
         the graph as it is (inspect, run, eval, bench, embed)",
        model.display()
    )))
}

/// The engine for a graph: ONNX Runtime, unless another was asked for by name.
fn engine(args: EngineArgs, model: &Path) -> Result<EngineArgs> {
    match args.engine {
        EngineChoice::Ort => Ok(args),
        EngineChoice::Auto => {
            log::info!("engine ort: {} is an ONNX graph, which the native engines do not run", model.display());
            Ok(EngineArgs { engine: EngineChoice::Ort, ..args })
        }
        other => {
            let (path, name) = (model.display(), other.name());
            Err(AgentError::Usage(format!("{path} is an ONNX graph, which engine {name} does not run; give --engine ort, or leave it out")))
        }
    }
}

/// What every command with a graph says where this program has no ONNX Runtime.
#[cfg(not(feature = "ort"))]
mod absent {
    use super::*;

    fn refused<T>(model: &Path) -> Result<T> {
        Err(AgentError::Usage(format!("{} needs ONNX Runtime, and this program was built without the feature `ort`", model.display())))
    }

    pub fn run(_: &crate::cli::Context, args: &crate::cli::run::Args) -> Result<()> {
        engine(args.engine, &args.model).and_then(|_| refused(&args.model))
    }

    pub fn bench(_: &crate::cli::Context, args: &crate::cli::bench::Args) -> Result<()> {
        engine(args.engine, &args.model).and_then(|_| refused(&args.model))
    }

    pub fn eval<T>(model: &Path, _: Option<&Path>) -> Result<T> {
        refused(model)
    }

    pub fn embed(_: &crate::cli::Context, args: &crate::cli::embed::Args) -> Result<()> {
        engine(args.engine, &args.model).and_then(|_| refused(&args.model))
    }
}
#[cfg(not(feature = "ort"))]
pub(super) use absent::{bench, embed, eval, run};
