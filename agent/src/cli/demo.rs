//! `espalier demo`: the whole story on simulated or real recordings.
//!
//! Training and the measurements of single artifacts run as processes of their own, as they would on a node; so what this process holds is
//! what serving and pruning hold.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use espalier_models::Artifact;
use espalier_runtime::{AdapterOptions, Budget, PROCESS_BYTES};

use super::bar::Bar;
use super::data::DataArgs;
use super::demo_report::{Report, Row, Run, Served};
use super::{Context, EngineArgs};
use crate::control::{State, Thresholds};
use crate::data::Data;
use crate::diagnosis::{Clip, Diagnosis, Options, Pace, Recordings};
use crate::engine::Engines;
use crate::error::{AgentError, Result, file_error};
use crate::node::{LOOP_THREADS, Node, NodeOptions, NodeView, PruneSetup, artifact_id, open_engine, planned_bytes, stages_folder};
use crate::prune::{CascadeOptions, Target};
use crate::sampler::Sampler;
use crate::signals::{SimulationOptions, simulate_corpus};
use crate::store::{Active, Store};
use crate::table;
use crate::train::{Length, RecoveryOptions};

/// Options of `demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    data: DataArgs,
    /// Where everything goes; made anew each time.
    #[arg(long, default_value = "espalier-demo", value_name = "DIR")]
    output: PathBuf,
    /// The share of what dense serving holds that is left: a sixth by default.
    #[arg(long, default_value_t = 6.0, value_name = "N")]
    squeeze: f64,
    /// How many times faster than the sensor the recordings are played.
    #[arg(long, default_value_t = 20.0)]
    pace: f64,
    /// Optimizer steps of the training.
    #[arg(long, default_value_t = 240)]
    steps: usize,
    /// Layers of the dense network.
    #[arg(long, default_value_t = 6)]
    layers: usize,
    /// Its width.
    #[arg(long, default_value_t = 256)]
    width: usize,
    /// Its heads.
    #[arg(long, default_value_t = 8)]
    heads: usize,
    /// Its FFN channels.
    #[arg(long, default_value_t = 1024)]
    channels: usize,
    /// Seed of everything.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    #[command(flatten)]
    engine: EngineArgs,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Dense serving before the squeeze: long enough for a thousand verdicts at 20 × 12 kHz in windows of 2048.
const DENSE_SECONDS: f64 = 6.0;
/// Serving after the commit.
const FINAL_SECONDS: f64 = 4.0;
/// A compression that takes longer than this is not a demonstration any more.
const PATIENCE: Duration = Duration::from_secs(600);

pub fn run(context: &Context, args: &Args) -> Result<()> {
    if !(args.squeeze.is_finite() && args.squeeze > 1.0) {
        return Err(AgentError::Usage(format!("a squeeze by {} squeezes nothing; give more than 1, such as 6", args.squeeze)));
    }
    args.engine.check_ours()?;
    args.engine.asked()?;
    prepare(&args.output)?;
    let started = Instant::now();
    let data = recordings(args)?;
    let factory = args.output.join("factory.esp");
    say("2. training a dense signal transformer");
    train(context, args, &data, &factory)?;
    let run = serve(context, args, &data, &factory)?;
    say("5. measuring every stage");
    let rows = measure(context, args, &data, &factory, &run)?;
    let report = Report { simulated: args.data.data.is_none(), seconds: started.elapsed().as_secs_f64(), rows, run };
    report.write(&args.output)?;
    if args.json { super::print_json(&report) } else { super::print(&report.render(&args.output)) }
}

fn say(text: &str) {
    super::tell(format_args!("{text}"));
}

/// An empty folder for the results; a folder that is not a demo's is left alone.
fn prepare(folder: &Path) -> Result<()> {
    let marker = folder.join("demo");
    if folder.exists() {
        if !marker.exists() {
            return Err(AgentError::Usage(format!("{} exists and is no earlier demo's; give another --output", folder.display())));
        }
        std::fs::remove_dir_all(folder).map_err(|error| file_error("cannot empty", folder, &error))?;
    }
    std::fs::create_dir_all(folder).map_err(|error| file_error("cannot make the folder", folder, &error))?;
    std::fs::write(&marker, "").map_err(|error| file_error("cannot write", &marker, &error))
}

/// The recordings to use: those given, or simulated ones.
fn recordings(args: &Args) -> Result<DataArgs> {
    if args.data.data.is_some() {
        say("1. reading the recordings");
        return Ok(args.data.clone());
    }
    say("1. simulating bearing recordings (simulated: no real machine)");
    let folder = args.output.join("simulated");
    simulate_corpus(&folder, &SimulationOptions::default(), args.seed)?;
    Ok(DataArgs { data: Some(folder), split: None })
}

/// This program again, as a process of its own.
fn espalier(subcommand: &str, threads: usize, engine: EngineArgs, data: Option<&DataArgs>) -> Result<Command> {
    let program = std::env::current_exe().map_err(|error| file_error("cannot find", Path::new("this program"), &error))?;
    let mut command = Command::new(program);
    command.arg(subcommand).arg("--json").arg("--threads").arg(threads.to_string()).args(["--engine", engine.engine.name()]);
    command.args(engine.precision.iter().flat_map(|precision| ["--precision", precision.name()]));
    if let Some(DataArgs { data, split }) = data {
        command.args(data.iter().flat_map(|data| [Path::new("--data"), data.as_path()]));
        command.args(split.iter().flat_map(|split| ["--split", split]));
    }
    Ok(command)
}

/// Runs a command and returns its JSON.
fn json(mut command: Command) -> Result<serde_json::Value> {
    let program = PathBuf::from(command.get_program());
    let output = command.stderr(Stdio::inherit()).output().map_err(|error| file_error("cannot start", &program, &error))?;
    if !output.status.success() {
        return Err(AgentError::Training(format!("a part of the demo ended with {}", output.status)));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| AgentError::Training(format!("a part of the demo printed no JSON: {error}")))
}

fn train(context: &Context, args: &Args, data: &DataArgs, factory: &Path) -> Result<()> {
    let mut command = espalier("train", context.threads, args.engine, Some(data))?;
    command.arg("--output").arg(factory);
    let numbers = [
        ("--steps", args.steps),
        ("--layers", args.layers),
        ("--width", args.width),
        ("--heads", args.heads),
        ("--channels", args.channels),
    ];
    command.args(numbers.iter().flat_map(|(name, value)| [name.to_string(), value.to_string()])).arg("--seed").arg(args.seed.to_string());
    json(command).map(drop)
}

/// Serves, squeezes, waits for the swap, and serves on.
fn serve(context: &Context, args: &Args, data_args: &DataArgs, factory: &Path) -> Result<Run> {
    let data = data_args.open()?;
    let store = Store::create(&args.output.join("store"), factory, artifact_id)?;
    let planned = planned_bytes(&store.path(Active::Factory))?;
    let budget = Arc::new(Budget::new(u64::MAX, PROCESS_BYTES));
    let engines = Engines::new(args.engine.asked()?);
    let device = engines.open(LOOP_THREADS, &budget)?;
    // The story is about the model: what the engine takes is left to it.
    let engine_bytes = engines.beside_bytes(&device, &Artifact::open(&store.path(Active::Factory))?)?;
    let (limit, goal) = (planned + planned / 2 + engine_bytes, (planned as f64 / args.squeeze) as u64 + engine_bytes);
    budget.set_limit(limit);
    budget.set_goal(limit);
    let sampler = Sampler::start()?;
    let active = store.path(store.active());
    let (device, (engine, served)) = engines.use_or_next(device, LOOP_THREADS, &budget, |device| open_engine(device, &budget, &active))?;
    say(&format!(
        "3. diagnosing held-out recordings at {} × their real rate; dense serving holds {} (limit {})",
        args.pace,
        table::bytes(planned),
        table::bytes(limit)
    ));
    let source = Recordings::new(held_out(&data, &args.output.join("held-out"))?).repeated();
    // Half a second of windows may wait: pruning takes both cores for moments.
    let options = Options { pace: Pace::RealTime(args.pace), queue: 64, stop: context.stop.clone(), ..Options::default() };
    let handle = Diagnosis::start(options, engine, Box::new(source), Vec::new())?;
    let prune = PruneSetup {
        calibration: Arc::new(data.sets.train.clone()),
        holdout: Arc::new(data.sets.holdout.clone()),
        options: cascade_options(args),
        max_drop: 0.05,
        threads: context.threads,
        keep_stages: true,
        progress: Box::new(|| Box::new(Bar::new())),
    };
    let node_options = NodeOptions { thresholds: thresholds(), prune: Some(prune), limit_after_commit: true, source_bytes: 0 };
    let mut node = Node::new(store, (engines, device), budget.clone(), handle, served, node_options);
    let mut story = Story::new(goal, limit);
    let outcome = node.run(&context.stop, &mut |view| story.watch(view, &budget));
    node.handle().finish();
    let snapshot = node.handle().wait()?;
    outcome?;
    context.stop.check()?;
    let samples = sampler.stop();
    story.finish(node, snapshot, samples, planned)
}

/// Writes the test segments as raw samples, which the source then streams as a sensor would give them; nothing that was trained on is
/// among them.
fn held_out(data: &Data, folder: &Path) -> Result<Vec<Clip>> {
    std::fs::create_dir_all(folder).map_err(|error| file_error("cannot make the folder", folder, &error))?;
    let mut clips = Vec::new();
    for (set, windows) in data.split.test.iter().zip(&data.sets.tests) {
        for segment in &set.segments {
            let entry = &data.corpus.entries[segment.recording];
            let path = folder.join(format!("{}-{}-{}.f32", clips.len(), entry.name, set.name.replace(' ', "-")));
            let mut samples = vec![0.0; segment.end - segment.start];
            if !windows.store().read(segment.recording, segment.start, &mut samples) {
                return Err(AgentError::Training(format!("the samples of {} are not there", entry.path.display())));
            }
            let bytes: Vec<u8> = samples.iter().flat_map(|sample| sample.to_le_bytes()).collect();
            std::fs::write(&path, bytes).map_err(|error| file_error("cannot write", &path, &error))?;
            clips.push(Clip { path, class: Some(data.split.classes[segment.class].clone()), sample_rate_hz: Some(data.sample_rate_hz()?) });
        }
    }
    Ok(clips)
}

/// A demonstration waits less than a node, and says so: everything else is the node's.
fn thresholds() -> Thresholds {
    let short = Duration::from_millis(500);
    // The machine that the demo runs on is the user's own: what else runs there is none of the story's business.
    Thresholds { low_hold: short, settle: short, comfort_bytes: 0, release_bytes: 0, ..Thresholds::default() }
}

/// Adapters on all projections recover better than on attention alone when four fifths and more are gone (docs/results).
fn cascade_options(args: &Args) -> CascadeOptions {
    let adapters = AdapterOptions { rank: 4, alpha: 16.0, attention: true, ffn: true };
    CascadeOptions {
        // The controller sets the target.
        target: Target::Ratio(args.squeeze),
        split: None,
        lengths: [Length::Steps(40), Length::Steps(40), Length::Steps(80)],
        recovery: RecoveryOptions { adapters, seed: args.seed, ..RecoveryOptions::default() },
        trial_windows: 128,
        calibration_windows: 128,
    }
}

/// What happens when, and what is seen.
struct Story {
    started: Instant,
    goal: u64,
    run: Run,
    squeezed: bool,
    committed_at: Option<f64>,
    last_state: Option<State>,
}

impl Story {
    fn new(goal: u64, limit: u64) -> Self {
        let run = Run { goal_bytes: goal, limit_bytes: limit, limit_series: vec![(0.0, limit)], ..Run::default() };
        Self { started: Instant::now(), goal, run, squeezed: false, committed_at: None, last_state: None }
    }

    /// Sees a reading; squeezes when it is time, and says when the story is over.
    fn watch(&mut self, view: &NodeView<'_>, budget: &Budget) -> bool {
        let seconds = self.started.elapsed().as_secs_f64();
        let snapshot = view.handle.snapshot();
        self.run.accuracy_series.extend(snapshot.rolling_accuracy.map(|accuracy| (seconds, accuracy)));
        if self.last_state != Some(view.state) {
            if let Some(before) = self.last_state {
                say(&format!("   {seconds:5.1} s  {before} → {}", view.state));
                self.run.marks.push((seconds, view.state.to_string()));
            }
            self.last_state = Some(view.state);
        }
        if !self.squeezed {
            if seconds >= DENSE_SECONDS {
                self.squeezed = true;
                self.run.dense = Served {
                    held_bytes: view.reading.held_bytes,
                    p50_us: snapshot.compute.p50_us,
                    p99_us: snapshot.compute.p99_us,
                    windows: snapshot.judged,
                };
                say(&format!("4. {seconds:.1} s: memory runs short: the goal is now {}", table::bytes(self.goal)));
                budget.set_goal(self.goal);
                self.run.goal_series.push((seconds, self.goal));
                self.run.marks.push((seconds, "squeeze".into()));
            }
            return true;
        }
        if view.committed > 0 && self.committed_at.is_none() {
            self.committed_at = Some(seconds);
            self.run.limit_series.push((seconds, budget.limit()));
            self.run.marks.push((seconds, "committed".into()));
        }
        self.run.last_held_bytes = view.reading.held_bytes;
        match self.committed_at {
            Some(at) => seconds < at + FINAL_SECONDS,
            None => self.started.elapsed() < PATIENCE,
        }
    }

    fn finish(mut self, node: Node, snapshot: crate::diagnosis::Snapshot, samples: crate::sampler::Samples, planned: u64) -> Result<Run> {
        let Some(committed_at) = self.committed_at else {
            let log: Vec<&str> = node.log.iter().map(|(_, event)| event.as_str()).collect();
            return Err(AgentError::Training(format!("no smaller model was committed: {}", log.join("; "))));
        };
        let result = node.result().ok_or_else(|| AgentError::Training("the cascade left no result".into()))?;
        self.run.planned_bytes = planned;
        self.run.peak_held_bytes = samples.peak.total();
        self.run.final_held_bytes = self.run.last_held_bytes;
        self.run.squeeze_to_commit_seconds = committed_at - DENSE_SECONDS;
        self.run.cascade = Some(result.clone());
        self.run.stages_folder = stages_folder(node.store());
        self.run.held_series = samples.series.iter().map(|(seconds, held)| (*seconds, held.total())).collect();
        self.run.events = node.log.clone();
        self.run.complete = snapshot.is_complete() && snapshot.dropped == 0 && snapshot.repeated == 0;
        self.run.loop_totals = Some(snapshot);
        Ok(self.run)
    }
}

/// Dense, every stage and the result: each measured in a process of its own.
fn measure(context: &Context, args: &Args, data: &DataArgs, factory: &Path, run: &Run) -> Result<Vec<Row>> {
    let cascade = run.cascade.as_ref().ok_or_else(|| AgentError::Training("the cascade left no result".into()))?;
    let dense = Artifact::open(factory)?;
    let mut rows = vec![measure_one(context, args, data, "dense", factory, &dense)?];
    rows[0].holdout_accuracy = cascade.dense_accuracy;
    rows[0].holdout_loss = cascade.dense_loss;
    for stage in &cascade.stages {
        let artifact = Artifact::open(&stage.path)?;
        let mut row = measure_one(context, args, data, stage.stage, &stage.path, &artifact)?;
        (row.holdout_accuracy, row.holdout_loss) = (stage.accuracy, stage.loss);
        (row.steps, row.seconds, row.left) = (stage.steps, stage.seconds, stage.left.clone());
        rows.push(row);
    }
    let (p50, parameters) = (rows[0].p50_ms, rows[0].parameters);
    for row in rows.iter_mut().skip(1) {
        let ratio = parameters as f64 / row.parameters.max(1) as f64;
        row.compression_efficiency = Some(p50 / row.p50_ms / ratio);
    }
    Ok(rows)
}

fn measure_one(context: &Context, args: &Args, data: &DataArgs, name: &str, path: &Path, artifact: &Artifact) -> Result<Row> {
    context.stop.check()?;
    // One thread, as the loop judges.
    let mut bench = espalier("bench", 1, args.engine, None)?;
    bench.arg(path);
    let bench = json(bench)?;
    let mut eval = espalier("eval", context.threads, args.engine, Some(data))?;
    eval.arg(path).arg("--seed").arg(args.seed.to_string());
    let eval = json(eval)?;
    let number = |value: &serde_json::Value| value.as_f64().unwrap_or(f64::NAN);
    let sets = eval.as_array().map_or(&[][..], Vec::as_slice);
    let mean = |field: &str| sets.iter().map(|set| number(&set[field])).sum::<f64>() / sets.len().max(1) as f64;
    Ok(Row {
        stage: name.to_string(),
        left: String::new(),
        parameters: artifact.manifest().parameters(),
        compression_ratio: artifact.manifest().compression_ratio(),
        artifact_bytes: artifact.file_bytes(),
        held_bytes: bench["held_bytes"].as_u64().unwrap_or(0),
        p50_ms: number(&bench["p50_ms"]),
        p99_ms: number(&bench["p99_ms"]),
        compression_efficiency: None,
        holdout_accuracy: f64::NAN,
        holdout_loss: f64::NAN,
        test_accuracy: mean("accuracy"),
        test_loss: mean("cross_entropy_nats"),
        steps: 0,
        seconds: 0.0,
    })
}
