//! `espalier run`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use espalier_models::Artifact;
use espalier_runtime::{Budget, PROCESS_BYTES};

use super::data::DataArgs;
use super::foreign::{self, SidecarArgs};
use super::prune::RecoveryArgs;
use super::{Context, EngineArgs, tell};
use crate::control::Thresholds;
use crate::diagnosis::{Diagnosis, JsonLines, Options, Pace, RawStream, Recordings, Sink, Snapshot, Source};
use crate::engine::{Engines, OpenDevice};
use crate::error::{AgentError, Result, file_error};
use crate::evaluate::{check_classes, check_signal_model};
use crate::node::{LOOP_THREADS, Node, NodeOptions, PruneSetup, artifact_id, open_engine, planned_bytes};
use crate::prune::Target;
use crate::prune::split::smallest_of_all;
use crate::prune::target::too_few_bytes;
use crate::store::{Active, Store};
use crate::table;
use crate::train::Quiet;

/// Options of `run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The artifact to serve, which becomes the store's factory artifact; or an ONNX graph of another program, which is served as it is.
    pub(super) model: PathBuf,
    /// Recordings, folders of recordings, or `-` for raw little-endian f32 samples on standard input.
    #[arg(long, required = true, value_name = "FILE|DIR|-")]
    source: Vec<PathBuf>,
    /// Give samples by the clock, at this many times the sensor's rate; the oldest window is dropped where the engine is too slow [default: as fast as they are judged].
    #[arg(long, value_name = "FACTOR")]
    pub(super) pace: Option<f64>,
    /// Begin again after the last recording, until stopped.
    #[arg(long)]
    repeat: bool,
    /// Bytes that the program should hold, such as 64MiB: the goal. Where the model holds more, it is pruned (with --data) while it serves.
    #[arg(long, value_parser = super::size, value_name = "BYTES")]
    pub(super) budget: Option<u64>,
    /// Bytes that the program may never exceed [default: the budget, or 1.5 times what serving the model holds where that is more].
    #[arg(long, value_parser = super::size, value_name = "BYTES")]
    pub(super) limit: Option<u64>,
    /// The folder of slots and journal, which outlives a restart [default: beside the model].
    #[arg(long, value_name = "DIR")]
    pub(super) store: Option<PathBuf>,
    #[command(flatten)]
    pub(super) data: DataArgs,
    #[command(flatten)]
    recovery: RecoveryArgs,
    #[command(flatten)]
    pub(super) engine: EngineArgs,
    #[command(flatten)]
    pub(super) sidecar: SidecarArgs,
    /// The largest loss of holdout accuracy that is accepted, in points.
    #[arg(long, default_value_t = 5.0, value_parser = super::non_negative::<f64>)]
    max_drop: f64,
}

pub fn run(context: &Context, args: &Args) -> Result<()> {
    if foreign::is_onnx(&args.model) {
        return foreign::run(context, args);
    }
    args.sidecar.check_none(&args.model)?;
    check_signal_model(&Artifact::open(&args.model)?)?;
    let (source, source_bytes) = source(args)?;
    let (store, new) = open_store(args)?;
    let serving = planned_bytes(&store.path(Active::Factory))?;
    let goal = args.budget.unwrap_or(u64::MAX);
    let budget = Arc::new(Budget::new(u64::MAX, PROCESS_BYTES));
    let engines = Engines::new(args.engine.asked()?);
    let active = store.path(store.active());
    let planned = planned_bytes(&active)?;
    let artifact = Artifact::open(&active)?;
    let room = goal.min(args.limit.unwrap_or(u64::MAX));
    let device = open_device(&engines, &budget, &artifact, planned.saturating_add(source_bytes), room)?;
    // A driver that was opened in vain leaves some of its memory behind.
    let engine_bytes = engines.beside_bytes(&device, &artifact)?;
    drop(artifact);
    let serving = serving.saturating_add(engine_bytes);
    let room = Room { goal, source_bytes, engine_bytes, serving };
    let limit = args.limit.unwrap_or_else(|| if room.is_too_small() { goal.max(serving + serving / 2) } else { goal });
    let prune = prune_setup(context, args, &store, &room)?;
    let needed = planned.saturating_add(engine_bytes);
    if limit < needed {
        return Err(AgentError::LimitTooSmall { what: format!("serving {}", args.model.display()), needed, limit });
    }
    budget.set_limit(limit);
    budget.set_goal(goal);
    let (device, (engine, served)) = engines.use_or_next(device, LOOP_THREADS, &budget, |device| open_engine(device, &budget, &active))?;
    let sink: Box<dyn Sink> = Box::new(JsonLines::new(std::io::stdout(), Path::new("standard output"), engine.classes()));
    let pace = args.pace.map_or(Pace::Unpaced, Pace::RealTime);
    let options = Options { pace, stop: context.stop.clone(), ..Options::default() };
    let handle = Diagnosis::start(options, engine, source, vec![sink])?;
    new.keep();
    let node_options = NodeOptions { thresholds: Thresholds::default(), prune, limit_after_commit: goal < limit, source_bytes };
    let mut node = Node::new(store, (engines, device), budget, handle, served, node_options);
    node.run(&context.stop, &mut |_| true)?;
    let snapshot = node.handle().wait()?;
    let unserved = node.unserved().map(str::to_string);
    Ending { log: &node.log, snapshot: &snapshot, unserved }.tell(context)
}

/// What is told of a run at its end.
pub(super) struct Ending<'a> {
    /// What happened, with seconds since the start.
    pub log: &'a [(f64, String)],
    /// What became of every window.
    pub snapshot: &'a Snapshot,
    /// Why no engine serves any more, where none does.
    pub unserved: Option<String>,
}

impl Ending<'_> {
    /// Tells it; an error where windows have no verdict without a reason.
    pub fn tell(self, context: &Context) -> Result<()> {
        let Self { log, snapshot, unserved } = self;
        for (seconds, event) in log {
            tell(format_args!("{seconds:8.1} s  {event}"));
        }
        let mut gaps = format!("{} windows: {} judged", snapshot.produced, snapshot.judged);
        for (count, word) in [(snapshot.unusable, "unusable"), (snapshot.failed, "failed"), (snapshot.dropped, "dropped")] {
            if count > 0 {
                gaps += &format!(", {count} {word}");
            }
        }
        let accounted =
            if snapshot.is_complete() { "every sequence number accounted for" } else { "SEQUENCE NUMBERS ARE NOT ACCOUNTED FOR" };
        tell(format_args!(
            "{gaps}; {accounted}; missing {}, repeated {}; latency p50 {} µs, p99 {} µs; queue at most {}",
            snapshot.missing, snapshot.repeated, snapshot.latency.p50_us, snapshot.latency.p99_us, snapshot.queue_high_water
        ));
        if let Some(reason) = unserved.filter(|_| snapshot.failed > 0) {
            return Err(AgentError::Unserved { failed: snapshot.failed, windows: snapshot.produced, reason });
        }
        if context.stop.is_asked() || snapshot.is_complete() {
            Ok(())
        } else {
            Err(AgentError::Unaccounted { missing: snapshot.missing.abs_diff(snapshot.dropped), repeated: snapshot.repeated })
        }
    }
}

/// The device that serves: where engines may be chosen, one whose overhead fits into `room` bytes beside the `needed` ones of model and
/// source. A driver that takes more than the model would otherwise have the model pruned to make room for it.
fn open_device(engines: &Engines, budget: &Arc<Budget>, artifact: &Artifact, needed: u64, room: u64) -> Result<OpenDevice> {
    let device = engines.open(LOOP_THREADS, budget)?;
    let overhead = device.overhead_bytes(artifact)?;
    if overhead == 0 || needed.saturating_add(overhead) <= room {
        return Ok(device);
    }
    let reason = format!("it takes {} beside the model, more than the budget of {} leaves", table::bytes(overhead), table::bytes(room));
    match engines.after(&device, LOOP_THREADS, budget, &reason)? {
        Some(next) => {
            engines.close(device, budget);
            Ok(next)
        }
        None => Ok(device),
    }
}

/// The source, and the bytes that it holds at most beside the model.
pub(super) fn source(args: &Args) -> Result<(Box<dyn Source>, u64)> {
    let stdin = args.source.iter().any(|path| path == Path::new("-"));
    if stdin && args.source.len() > 1 {
        return Err(AgentError::Usage("`-` (standard input) cannot be mixed with files".into()));
    }
    if stdin {
        return Ok((Box::new(RawStream::stdin()?), 0));
    }
    let recordings = Recordings::open(&args.source)?;
    let source_bytes = recordings.largest_bytes()?;
    Ok((Box::new(if args.repeat { recordings.repeated() } else { recordings }), source_bytes))
}

/// A store that was made for this run. Unless it is kept it is taken away again: after a run that was refused, it would only stand in the
/// way of the next one with another model.
struct NewStore {
    folder: Option<PathBuf>,
    /// Whether the folder was there before, empty but for what an interrupted run has left.
    existed: bool,
}

impl NewStore {
    fn keep(mut self) {
        self.folder = None;
    }
}

impl Drop for NewStore {
    fn drop(&mut self) {
        let Some(folder) = &self.folder else { return };
        let removed = match (self.existed, std::fs::read_dir(folder)) {
            (false, _) => std::fs::remove_dir_all(folder),
            (true, Err(error)) => Err(error),
            (true, Ok(entries)) => entries.flatten().try_for_each(|entry| std::fs::remove_file(entry.path())),
        };
        // The disk may have refused the folder itself; then there is nothing to remove.
        if let Err(error) = removed.or_else(|error| if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }) {
            log::warn!("{} could not be removed: {error}", folder.display());
        }
    }
}

/// Whether a folder has nothing but what is there before a store is whole.
fn is_unfinished_store(folder: &Path) -> Result<bool> {
    let failed = |error: &std::io::Error| file_error("cannot list the folder", folder, error);
    for entry in std::fs::read_dir(folder).map_err(|error| failed(&error))? {
        let name = entry.map_err(|error| failed(&error))?.file_name();
        if !["journal", "journal.tmp", "factory.esp.tmp"].iter().any(|known| name == *known) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Opens the store beside the model, or makes it.
fn open_store(args: &Args) -> Result<(Store, NewStore)> {
    let folder = args.store.clone().unwrap_or_else(|| args.model.with_extension("store"));
    let existed = folder.exists();
    if !existed || is_unfinished_store(&folder)? {
        let new = NewStore { folder: Some(folder.clone()), existed };
        return Ok((Store::create(&folder, &args.model, artifact_id)?, new));
    }
    let (store, recovery) = Store::open(&folder, artifact_id)?;
    for note in &recovery.notes {
        log::warn!("{note}");
    }
    let given = artifact_id(&args.model).map_err(AgentError::Usage)?;
    let factory = artifact_id(&store.path(Active::Factory)).map_err(AgentError::Usage)?;
    if given != factory {
        return Err(AgentError::Usage(format!(
            "{} is another model than the factory artifact of {}; give --store for a new store, or remove that folder",
            args.model.display(),
            folder.display()
        )));
    }
    Ok((store, NewStore { folder: None, existed }))
}

/// What the budget leaves for a model.
struct Room {
    /// The budget.
    goal: u64,
    /// Of it for the source.
    source_bytes: u64,
    /// Of it for the engine, beside what a model is planned to hold.
    engine_bytes: u64,
    /// What serving the factory artifact holds, with the engine.
    serving: u64,
}

impl Room {
    /// Bytes for everything but the model.
    fn beside_bytes(&self) -> u64 {
        self.source_bytes.saturating_add(self.engine_bytes)
    }

    /// Bytes for a model, as the node counts when it prunes.
    fn model_bytes(&self) -> u64 {
        self.goal.saturating_sub(self.beside_bytes())
    }

    /// Whether the factory artifact has to be pruned.
    fn is_too_small(&self) -> bool {
        self.goal.saturating_sub(self.source_bytes) < self.serving
    }

    /// Why it has to be, and what would do, around `reason`.
    fn refusal(&self, model: &Path, reason: &str, remedy: &str) -> AgentError {
        let source = match self.source_bytes {
            0 => String::new(),
            bytes => format!(" and its longest recording {}", table::bytes(bytes)),
        };
        AgentError::Usage(format!(
            "serving {} holds {}{source}, more than the budget of {}, and {reason}; {remedy} a budget of {} bytes",
            model.display(),
            table::bytes(self.serving),
            table::bytes(self.goal),
            self.serving.saturating_add(self.source_bytes)
        ))
    }
}

/// What the node prunes with; nothing where the budget never asks for it. A budget that no pruning can reach is refused now.
fn prune_setup(context: &Context, args: &Args, store: &Store, room: &Room) -> Result<Option<PruneSetup>> {
    let has_data = args.data.data.is_some() || std::env::var_os("ESPALIER_DATA").is_some();
    let artifact = Artifact::open(&store.path(Active::Factory))?;
    if artifact.manifest().diagnosis.is_some() {
        if room.is_too_small() {
            let reason = "a model that makes its diagnosis by text cannot be pruned while it serves";
            return Err(room.refusal(&args.model, reason, "give"));
        }
        return Ok(None);
    }
    let target = Target::Serving(room.model_bytes());
    if room.is_too_small() {
        let smallest = smallest_of_all(artifact.manifest());
        if !target.fits(artifact.manifest(), &smallest)? {
            return Err(too_few_bytes(room.goal, [room.source_bytes, room.engine_bytes], artifact.manifest(), &smallest));
        }
        if !has_data {
            let reason = "there are no recordings to recover a pruned model with";
            return Err(room.refusal(&args.model, reason, "give --data DIR, or"));
        }
    }
    if args.budget.is_none() || !has_data {
        return Ok(None);
    }
    let data = args.data.open()?;
    check_classes(&artifact, &data.split.classes)?;
    // A node that starts again unattended must serve even where a recording has gone bad.
    if let Err(error) = data.check() {
        log::warn!("{error}; calibration passes over windows without a finite, varying signal");
    }
    Ok(Some(PruneSetup {
        calibration: Arc::new(data.sets.train.clone()),
        holdout: Arc::new(data.sets.holdout.clone()),
        options: args.recovery.options(target, None)?,
        max_drop: args.max_drop / 100.0,
        threads: context.threads,
        keep_stages: false,
        progress: Box::new(|| Box::new(Quiet)),
    }))
}
