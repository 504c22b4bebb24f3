//! `espalier import`

use std::ops::ControlFlow;
use std::path::PathBuf;

use espalier_models::checkpoint::{ImportReport, import_until};
use espalier_models::{Artifact, DType};
use indicatif::{ProgressBar, ProgressStyle};

use super::inspect::describe_model;
use super::{Context, foreign, print};
use crate::error::{AgentError, Result};
use crate::files::check_output;

/// Options of `import`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The checkpoint: a folder with config.json and safetensors or PyTorch files (model.safetensors or pytorch_model.bin, whole or in shards with an index); one PyTorch file (.bin, .pt, .pth) with config.json beside it; or a GGUF file (.gguf).
    source: PathBuf,
    /// Where the artifact is written.
    #[arg(short, long, value_name = "FILE.esp")]
    output: PathBuf,
    /// Number format of the matrices, token table and output matrix included [default: the checkpoint's; bf16 where it is quantised]. q8: 8 bits in blocks of 32 with a scale; q4: 4 bits with a scale and a minimum. Norms and biases are f32 always.
    #[arg(long, value_enum)]
    dtype: Option<Format>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Format {
    F32,
    F16,
    Bf16,
    Q8,
    Q4,
}

pub fn run(context: &Context, args: &Args) -> Result<()> {
    foreign::refuse(&args.source, "imported")?;
    check_output(&args.output)?;
    let dtype = args.dtype.map(|format| match format {
        Format::F32 => DType::F32,
        Format::F16 => DType::F16,
        Format::Bf16 => DType::Bf16,
        Format::Q8 => DType::Q8,
        Format::Q4 => DType::Q4,
    });
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("import {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left") {
        bar.set_style(style);
    }
    let imported = import_until(&args.source, &args.output, dtype, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        if context.stop.is_asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    let report = imported.map_err(|error| match error {
        espalier_models::Error::Stopped { .. } => AgentError::Cancelled,
        error => error.into(),
    })?;
    print(&(describe_model(&Artifact::open(&args.output)?) + &describe_report(&report)))
}

/// What the import changed, in lines for a person.
fn describe_report(report: &ImportReport) -> String {
    let mut text = String::new();
    if report.quantised > 0 {
        text += &format!("{} quantised matrices were dequantised exactly.\n", report.quantised);
    }
    match report.rounding {
        Some(error) if error.changed > 0 => {
            text += &format!(
                "Rounding to the stored format changed {:.1} % of the numbers: relative error largest {:.2e}, mean {:.2e},\n\
                 root mean square {:.2e} (|stored - exact| / |exact| over all {} numbers of matrices that are not zero; the root mean\n\
                 square is ‖stored - exact‖ / ‖exact‖; --dtype f32 stores them exactly).\n",
                error.changed as f64 / error.numbers as f64 * 100.0,
                error.largest,
                error.mean(),
                error.root_mean_square(),
                error.numbers,
            );
        }
        _ => {}
    }
    text
}
