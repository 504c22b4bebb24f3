//! `espalier bench` with a graph of another program.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use espalier_kernels::{Purpose, Reservation};
use espalier_models::foreign::{ForeignModel, SidecarInput};
use espalier_runtime::{OrtForeign, foreign_plan, gauges};

use super::open;
use crate::cli::bench::Args;
use crate::cli::{Context, print, print_json};
use crate::error::{AgentError, Result};
use crate::signals::normalise_as;
use crate::table::{self, Table};

/// Tokens of the text that is timed, where the encoder takes as many: two sentences.
const TOKENS: usize = 32;

#[derive(serde::Serialize)]
struct Timing {
    /// Reading graph and sidecar.
    open_ms: f64,
    /// Reading, loading, and one window or text after a first run that measures memory.
    first_ms: f64,
    p50_ms: f64,
    p99_ms: f64,
    per_second: f64,
    held_bytes: u64,
    /// What is known before anything is loaded.
    planned_bytes: u64,
    /// What is booked now.
    booked_bytes: u64,
    /// Tokens of the text that was timed; none of windows.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<usize>,
    device: String,
}

/// What is run again and again.
enum Work {
    Window(Vec<f32>),
    Text(Vec<u32>),
}

impl Work {
    /// A ramp, which is as good as a signal, or tokens of nothing.
    fn new(model: &ForeignModel) -> Result<Self> {
        Ok(match &model.sidecar.input {
            SidecarInput::Tokens(tokens) => Self::Text(vec![0; tokens.max_tokens.min(TOKENS)]),
            SidecarInput::Window(signal) | SidecarInput::Patches(signal) => {
                let mut window: Vec<f32> = (0..signal.window).map(|index| ((index * 37) % 101) as f32).collect();
                normalise_as(&mut window, signal.normalisation)
                    .map_err(|bad| AgentError::Usage(format!("the window that is timed: {bad}")))?;
                Self::Window(window)
            }
        })
    }

    fn run(&self, runner: &mut OrtForeign) -> Result<()> {
        match self {
            Self::Window(window) => runner.classify(window).map(drop)?,
            Self::Text(ids) => runner.embed(ids).map(drop)?,
        }
        Ok(())
    }
}

/// Times the graph.
pub(in crate::cli) fn run(context: &Context, args: &Args) -> Result<()> {
    let started = Instant::now();
    let model = open::read(&args.model, args.sidecar.sidecar.as_deref())?;
    let milliseconds = |since: Instant| since.elapsed().as_secs_f64() * 1e3;
    let open_ms = milliseconds(started);
    let work = Work::new(&model)?;
    let opened = open::ort(context, args.engine, &args.model, None)?;
    let most = if let Work::Text(ids) = &work { ids.len() } else { 1 };
    let times = Reservation::new(opened.1.clone(), Purpose::Activations, 8 * args.count as u64)?;
    let mut runner = open::runner(&opened, &model, most)?;
    work.run(&mut runner)?;
    let first_ms = milliseconds(started);
    let mut times_ms = Vec::with_capacity(args.count);
    for index in 0..args.count + args.count.div_ceil(10) {
        context.stop.check()?;
        let started = Instant::now();
        work.run(&mut runner)?;
        // The first tenth warms up.
        if index >= args.count.div_ceil(10) {
            times_ms.push(milliseconds(started));
        }
    }
    times_ms.sort_by(f64::total_cmp);
    let at = |share: f64| times_ms[((times_ms.len() - 1) as f64 * share).round() as usize];
    let timing = Timing {
        open_ms,
        first_ms,
        p50_ms: at(0.5),
        p99_ms: at(0.99),
        per_second: 1e3 / at(0.5),
        held_bytes: held_bytes(&model)?,
        planned_bytes: foreign_plan(&model.graph).total(),
        booked_bytes: opened.1.used(),
        tokens: matches!(work, Work::Text(_)).then_some(most),
        device: format!("ONNX Runtime ({}), {} threads", opened.0.library.path().display(), opened.0.options.threads),
    };
    drop(times);
    if args.json { print_json(&timing) } else { print(&format!("{}\n", table_of(&timing))) }
}

/// Anonymous memory, and the resident pages of the graph and the files beside it.
fn held_bytes(model: &Arc<ForeignModel>) -> Result<u64> {
    let files = std::iter::once(model.graph.path()).chain(model.graph.external().iter().map(|file| file.path.as_path()));
    let files: Vec<_> = files.filter_map(|path| path.canonicalize().ok()).collect();
    let mapped = gauges::mapped_bytes(|name| files.iter().any(|file| file == Path::new(name)))?;
    Ok(gauges::anonymous_bytes()? + mapped)
}

fn table_of(timing: &Timing) -> Table {
    let what = timing.tokens.map_or("window".to_string(), |tokens| format!("text of {tokens} tokens"));
    let mut table = Table::new(["bench", ""]);
    table
        .row(["read graph and sidecar".to_string(), format!("{:.2} ms", timing.open_ms)])
        .row([format!("first {what}"), format!("{:.1} ms", timing.first_ms)])
        .row([format!("{what}, median"), format!("{:.3} ms", timing.p50_ms)])
        .row([format!("{what}, 99 %"), format!("{:.3} ms", timing.p99_ms)])
        .row(["a second".into(), format!("{:.0}", timing.per_second)])
        .row(["computed by".into(), timing.device.clone()])
        .row(["held now".into(), table::bytes(timing.held_bytes)])
        .row(["booked now".into(), table::bytes(timing.booked_bytes)])
        .row(["planned, but for runs".into(), table::bytes(timing.planned_bytes)]);
    table
}
