//! `espalier check`

use std::path::PathBuf;

use espalier_models::Artifact;

use super::{foreign, print, print_json};
use crate::check::StaticCheck;
use crate::error::Result;

/// Options of `check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The artifact.
    model: PathBuf,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    foreign::refuse(&args.model, "checked for pruning")?;
    let artifact = Artifact::open(&args.model)?;
    let report = StaticCheck::new(&artifact.manifest().architecture, &artifact.manifest().shape());
    if args.json { print_json(&report) } else { print(&format!("{report}\n")) }
}
