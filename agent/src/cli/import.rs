//! `espalier import`

use std::path::PathBuf;

use espalier_models::{Artifact, DType};
use indicatif::{ProgressBar, ProgressStyle};

use super::inspect::describe_model;
use super::print;
use crate::error::Result;
use crate::files::check_output;

/// Options of `import`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The checkpoint: a folder with config.json and safetensors files.
    source: PathBuf,
    /// Where the artifact is written.
    #[arg(short, long, value_name = "FILE.esp")]
    output: PathBuf,
    /// Number format of the matrices [default: the checkpoint's].
    #[arg(long, value_enum)]
    dtype: Option<Format>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Format {
    F32,
    F16,
    Bf16,
}

pub fn run(args: &Args) -> Result<()> {
    check_output(&args.output)?;
    let dtype = args.dtype.map(|format| match format {
        Format::F32 => DType::F32,
        Format::F16 => DType::F16,
        Format::Bf16 => DType::Bf16,
    });
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("import {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left") {
        bar.set_style(style);
    }
    espalier_models::checkpoint::import(&args.source, &args.output, dtype, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    print(&describe_model(&Artifact::open(&args.output)?))
}
