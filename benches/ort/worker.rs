//! One engine in a process of its own: it judges as many windows as it is told, and says how long each took, and in the end what it holds.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use espalier_agent::engine::{Asked, AskedOrt, EngineChoice, Engines};
use espalier_agent::sessions;
use espalier_agent::signals::normalise;
use espalier_models::Artifact;
use espalier_runtime::Budget;
use serde::{Deserialize, Serialize};

/// An engine, and how it is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Contender {
    Native,
    Ort,
    OrtPrepacked,
}

impl Contender {
    pub const ALL: [Self; 3] = [Self::Native, Self::Ort, Self::OrtPrepacked];

    /// Its name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Ort => "ort",
            Self::OrtPrepacked => "ort, `--ort-prepack`",
        }
    }

    /// Its name on the command line.
    fn word(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Ort => "ort",
            Self::OrtPrepacked => "ort-prepacked",
        }
    }

    fn asked(self) -> Asked {
        let engine = if self == Self::Native { EngineChoice::Cpu } else { EngineChoice::Ort };
        let ort = AskedOrt { prepack: self == Self::OrtPrepacked, ..AskedOrt::default() };
        Asked { engine, ort, ..Asked::default() }
    }
}

/// What a process holds, in bytes.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Memory {
    /// Its own memory.
    pub anonymous: u64,
    /// Mapped files, the program's code among them.
    pub file: u64,
    /// The most that both ever were.
    pub peak: u64,
}

impl Memory {
    fn now() -> Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status").context("/proc/self/status cannot be read")?;
        let bytes = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no line {name}"))?;
            Ok(line.split_whitespace().next().context("a line without a number")?.parse::<u64>()? << 10)
        };
        Ok(Self { anonymous: bytes("RssAnon:")?, file: bytes("RssFile:")?, peak: bytes("VmHWM:")? })
    }
}

/// What a process says in the end: what it holds, and the probabilities of the last window.
type Farewell = (Memory, Vec<f32>);

/// Windows that are judged before any is timed.
const WARM_UP: usize = 5;

/// Is the process of an engine: a line with a number of windows on standard input is answered by their times in milliseconds, the end of
/// standard input by what the process holds.
pub fn work(contender: Contender, path: &Path, threads: usize) -> Result<()> {
    let budget = Arc::new(Budget::unlimited());
    let device = Engines::new(contender.asked()).open(threads, &budget)?;
    let artifact = Arc::new(Artifact::open(path)?);
    let (length, _) = artifact.manifest().window().context("it judges no windows")?;
    let mut judge = sessions::classifier(&device, &budget, &artifact, 1)?;
    let mut window: Vec<f32> = (0..length).map(|index| ((index * 37) % 101) as f32).collect();
    let _ = normalise(&mut window);
    let mut probabilities = Vec::new();
    for _ in 0..WARM_UP {
        probabilities = judge.classify(&window)?.to_vec();
    }
    for line in std::io::stdin().lock().lines() {
        let windows: usize = line?.trim().parse()?;
        let mut times_ms = Vec::with_capacity(windows);
        for _ in 0..windows {
            let started = Instant::now();
            judge.classify(&window)?;
            times_ms.push(started.elapsed().as_secs_f64() * 1e3);
        }
        println!("{}", serde_json::to_string(&times_ms)?);
    }
    let farewell: Farewell = (Memory::now()?, probabilities);
    println!("{}", serde_json::to_string(&farewell)?);
    Ok(())
}

/// The process of an engine, from outside.
pub struct Worker {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts the process; its first answer comes when it is warm.
    pub fn start(contender: Contender, model: &Path, threads: u16) -> Result<Self> {
        let program = std::env::current_exe().context("this program's own file is not known")?;
        let mut command = Command::new(program);
        command.args(["--worker", contender.word(), "--threads", &threads.to_string(), "--model"]).arg(model);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("a worker cannot be started")?;
        let (input, output) = child.stdin.take().zip(child.stdout.take()).context("a worker has no pipes")?;
        let mut worker = Self { child, input, output: BufReader::new(output) };
        worker.burst(1)?;
        Ok(worker)
    }

    /// Has it judge windows; their times in milliseconds.
    pub fn burst(&mut self, windows: u32) -> Result<Vec<f64>> {
        writeln!(self.input, "{windows}")?;
        self.answer()
    }

    /// Ends it; what it held, and the probabilities of its last window.
    pub fn end(self) -> Result<Farewell> {
        let Self { mut child, input, output } = self;
        drop(input);
        let mut text = String::new();
        BufReader::new(output).read_line(&mut text)?;
        let status = child.wait()?;
        ensure!(status.success(), "a worker ended with {status}");
        Ok(serde_json::from_str(&text)?)
    }

    fn answer<T: serde::de::DeserializeOwned>(&mut self) -> Result<T> {
        let mut text = String::new();
        self.output.read_line(&mut text)?;
        ensure!(!text.is_empty(), "a worker has ended; what it said stands above");
        Ok(serde_json::from_str(&text)?)
    }
}
