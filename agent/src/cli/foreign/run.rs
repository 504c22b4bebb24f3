//! `espalier run` with a graph of another program.

use std::path::Path;
use std::sync::Arc;

use espalier_models::foreign::ForeignModel;
use espalier_runtime::{Budget, PROCESS_BYTES, foreign_plan};

use super::{WHAT, open};
use crate::cli::run::{Args, Ending, source};
use crate::cli::{Context, tell};
use crate::diagnosis::foreign::signal;
use crate::diagnosis::{Diagnosis, JsonLines, Options, Pace, Sink};
use crate::engine::{Asked, EngineChoice, Engines};
use crate::error::{AgentError, Result};
use crate::node::{ForeignNode, LOOP_THREADS, open_foreign};
use crate::table;

/// Serves the graph: the same loop, verdicts and counts as an artifact has, without a store, since nothing takes its place.
pub(in crate::cli) fn run(context: &Context, args: &Args) -> Result<()> {
    if args.store.is_some() || args.data.data.is_some() || args.data.split.is_some() {
        let path = args.model.display();
        return Err(AgentError::Usage(format!(
            "{path} is an ONNX graph, which is never pruned: it needs neither --store nor --data and --split; leave them out"
        )));
    }
    let model = open::read(&args.model, args.sidecar.sidecar.as_deref())?;
    let hop = signal(&model)?.hop;
    let (source, source_bytes) = source(args)?;
    let planned = foreign_plan(&model.graph).total();
    let (goal, limit) = limits(args, &model, planned.saturating_add(source_bytes))?;
    tell(format_args!("{} is an ONNX graph of another program: it is served as it is, and never pruned", args.model.display()));
    let budget = Arc::new(Budget::new(limit, PROCESS_BYTES));
    budget.set_goal(goal);
    let asked = args.engine.asked()?;
    let device = Engines::new(asked).open_for((WHAT, &args.model), LOOP_THREADS, &budget)?;
    // No other engine runs a graph: ONNX Runtime is what is opened again, as if it had been asked for.
    let engines = Engines::new(Asked { engine: EngineChoice::Ort, ..asked });
    let engine = Box::new(open_foreign(&device, &budget, &model)?);
    // The first run has shown what the plan could not know.
    check_goal(goal, &model, budget.used().saturating_add(source_bytes))?;
    let sink: Box<dyn Sink> = Box::new(JsonLines::new(std::io::stdout(), Path::new("standard output"), model.classes()));
    let pace = args.pace.map_or(Pace::Unpaced, Pace::RealTime);
    let options = Options { hop, pace, stop: context.stop.clone(), ..Options::default() };
    let handle = Diagnosis::start(options, engine, source, vec![sink])?;
    let mut node = ForeignNode::new((engines, device), budget, handle, model);
    node.run(&context.stop);
    let snapshot = node.handle().wait()?;
    let unserved = node.unserved().map(str::to_string);
    Ending { log: &node.log, snapshot: &snapshot, unserved }.tell(context)
}

/// Goal and limit; an error where what is known before anything is loaded passes one of them.
fn limits(args: &Args, model: &ForeignModel, needed: u64) -> Result<(u64, u64)> {
    let goal = args.budget.unwrap_or(u64::MAX);
    let limit = args.limit.unwrap_or(goal);
    check_goal(goal, model, needed)?;
    if limit < needed {
        return Err(AgentError::LimitTooSmall { what: format!("serving {}", args.model.display()), needed, limit });
    }
    Ok((goal, limit))
}

/// An error where the goal cannot be reached: only pruning would.
fn check_goal(goal: u64, model: &ForeignModel, needed: u64) -> Result<()> {
    if needed <= goal {
        return Ok(());
    }
    let (path, needs, goal) = (model.graph.path().display(), table::bytes(needed), table::bytes(goal));
    Err(AgentError::Usage(format!(
        "serving {path} and its source holds {needs}, more than the budget of {goal}, and an ONNX graph of another program cannot be pruned; \
         give a budget of {needed} bytes or more"
    )))
}
