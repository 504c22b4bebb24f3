//! What a user relies on when an engine fails: the candidate on probation is judged by its own windows only, memory is given back before it
//! is needed again, and no window goes without a verdict where any engine can give one.

#[cfg(all(feature = "ort", feature = "cuda"))]
#[path = "../../../kernels/tests/support/mod.rs"]
mod device;
#[cfg(feature = "ort")]
mod foreign;
#[cfg(feature = "ort")]
mod takeover;

use std::collections::BTreeMap;
use std::sync::Mutex;

use espalier_kernels::{CpuDevice, KernelError, Purpose, Reservation};
use tempfile::TempDir;

use super::background::tests::artifact;
use super::*;
use crate::control::Action;
use crate::diagnosis::{Diagnosis, Engine, Feed, MemorySink, Options, Source};
use crate::engine::{Asked, EngineChoice};

const WINDOW: usize = 16;
const CLASSES: [&str; 2] = ["up", "down"];

/// How an engine ends.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// It works.
    None,
    /// Not a number, from this window on.
    NotANumber(u64),
    /// An error of the model's, from this window on.
    Broken(u64),
    /// The device is lost, at this window.
    Lost(u64),
}

struct FakeEngine {
    model_id: u64,
    fault: Fault,
    classes: Vec<String>,
    calls: u64,
    answer: [f32; 2],
    _memory: Reservation,
}

impl Engine for FakeEngine {
    fn classify(&mut self, _: &[f32]) -> Result<&[f32]> {
        std::thread::sleep(Duration::from_micros(200));
        self.calls += 1;
        self.answer = [0.25, 0.75];
        match self.fault {
            Fault::NotANumber(from) if self.calls > from => self.answer[0] = f32::NAN,
            Fault::Broken(from) if self.calls > from => return Err(AgentError::Infeasible("it is broken".into())),
            Fault::Lost(from) if self.calls > from => {
                return Err(KernelError::Device { operation: "matmul", reason: "lost on purpose".into(), lost: true }.into());
            }
            _ => {}
        }
        Ok(&self.answer)
    }
    fn model_id(&self) -> u64 {
        self.model_id
    }
    fn level(&self) -> u32 {
        0
    }
    fn classes(&self) -> &[String] {
        &self.classes
    }
    fn window(&self) -> usize {
        WINDOW
    }
    fn sample_rate_hz(&self) -> f64 {
        1000.0
    }
}

/// Gives windows until the run is over.
struct Endless;

impl Source for Endless {
    fn run(&mut self, feed: &mut Feed) -> Result<()> {
        feed.begin(0, None)?;
        let samples: Vec<f32> = (0..WINDOW).map(|at| at as f32).collect();
        while feed.samples(&samples).is_continue() {}
        Ok(())
    }
}

/// What the next engines of a model do; without a word they work.
type Faults = Arc<Mutex<BTreeMap<u64, Vec<Fault>>>>;

/// Opens engines that book `bytes` each.
fn opens(faults: &Faults, bytes: u64) -> serving::Opener {
    let faults = faults.clone();
    Box::new(move |_, budget, path| {
        let artifact = Arc::new(Artifact::open(path)?);
        let memory = Reservation::new(budget.clone(), Purpose::Weights, bytes)?;
        let mut faults = faults.lock().unwrap();
        let fault = faults.get_mut(&artifact.id()).and_then(|faults| (!faults.is_empty()).then(|| faults.remove(0)));
        let classes = CLASSES.map(String::from).to_vec();
        let engine = FakeEngine {
            model_id: artifact.id(),
            fault: fault.unwrap_or(Fault::None),
            classes,
            calls: 0,
            answer: [0.0; 2],
            _memory: memory,
        };
        Ok((Box::new(engine) as Box<dyn Engine>, Arc::downgrade(&artifact)))
    })
}

struct World {
    node: Node,
    heard: MemorySink,
    factory: u64,
    candidate: u64,
    faults: Faults,
    _place: TempDir,
}

/// A node that serves the factory artifact with engines of 1 MB each, has room for `limit` bytes of them, and has a candidate in its other
/// slot. The first engine does `first`.
fn world(limit: u64, first: Fault) -> World {
    let place = tempfile::tempdir().unwrap();
    let unlimited = Arc::new(Budget::new(u64::MAX, 0));
    let factory = artifact(place.path(), "dense.esp", 1, &unlimited).unwrap();
    let store = Store::create(&place.path().join("store"), factory.path(), artifact_id).unwrap();
    let candidate = artifact(place.path(), "small.esp", 2, &unlimited).unwrap();
    std::fs::copy(candidate.path(), store.candidate_path()).unwrap();
    let budget = Arc::new(Budget::new(u64::MAX, 0));
    let engines = Engines::new(Asked { engine: EngineChoice::Cpu, ..Asked::default() });
    let device = OpenDevice::Cpu(CpuDevice::new(1, budget.clone()).unwrap());
    budget.set_limit(budget.used() + limit);
    let faults: Faults = Arc::new(Mutex::new(BTreeMap::from([(factory.id(), vec![first])])));
    let mut open = opens(&faults, 1_000_000);
    let (engine, served) = open(&device, &budget, factory.path()).unwrap();
    let heard = MemorySink::default();
    let options = Options { retry: Duration::from_secs(20), ..Options::default() };
    let handle = Diagnosis::start(options, engine, Box::new(Endless), vec![Box::new(heard.clone())]).unwrap();
    let options = NodeOptions { thresholds: Thresholds::default(), prune: None, limit_after_commit: false, source_bytes: 0 };
    let mut node = Node::new(store, (engines, device), budget, handle, served, options);
    node.serving.open = open;
    World { node, heard, factory: factory.id(), candidate: candidate.id(), faults, _place: place }
}

const ROOMY: Reading = Reading {
    held_bytes: 50,
    working_set_bytes: 0,
    goal_bytes: 100,
    limit_bytes: u64::MAX,
    available_bytes: None,
    factory_bytes: u64::MAX,
};

impl World {
    /// Asks for the candidate's swap, as if a compression had made it.
    fn accept_candidate(&mut self) {
        let low = Reading { held_bytes: 200, ..ROOMY };
        let controller = &mut self.node.controller;
        assert!(controller.step(Duration::ZERO, &low, None).is_empty());
        assert!(matches!(controller.step(Duration::from_secs(10), &low, None)[..], [Action::StartCompression { .. }]));
        assert_eq!(controller.step(Duration::from_secs(11), &ROOMY, Some(Event::CompressionDone)), [Action::JudgeCandidate]);
        self.node.step(Duration::from_secs(12), &ROOMY, Some(Event::HoldoutAccepted)).unwrap();
        assert_eq!(self.node.controller.state(), State::Swapping);
    }

    /// One reading, as [`Node::run`] does it.
    fn tick(&mut self) {
        std::thread::sleep(Duration::from_millis(5));
        let now = Duration::from_secs(13);
        for event in self.node.events() {
            let late = matches!(event, Event::HealthWindow { .. }) && self.node.controller.state() != State::Probation;
            if !late {
                self.node.step(now, &ROOMY, Some(event)).unwrap();
            }
        }
        self.node.step(now, &ROOMY, None).unwrap();
        self.node.replace_failed(now, &ROOMY).unwrap();
    }

    /// Readings until `done`, at most for ten seconds.
    fn until(&mut self, what: &str, done: impl FnMut(&Node) -> bool) {
        self.until_within(what, Duration::from_secs(10), done);
    }

    /// As [`until`](World::until), with another patience.
    fn until_within(&mut self, what: &str, patience: Duration, mut done: impl FnMut(&Node) -> bool) {
        let deadline = std::time::Instant::now() + patience;
        while !done(&self.node) {
            assert!(std::time::Instant::now() < deadline, "{what} did not come; {:?}", self.node.log);
            self.tick();
        }
    }

    /// What is wrong where every window should have its verdict, in order.
    fn lost(&mut self) -> Option<String> {
        self.node.handle().stop();
        let snapshot = self.node.handle().wait().unwrap();
        let numbers: Vec<u64> = self.heard.take().verdicts.iter().map(|verdict| verdict.sequence).collect();
        let in_order = numbers == (0..numbers.len() as u64).collect::<Vec<_>>();
        (snapshot.failed > 0 || !in_order || !snapshot.is_complete()).then(|| format!("{snapshot:?}"))
    }
}

#[test]
fn a_candidate_that_fails_is_rolled_back_and_never_committed() {
    let mut failures = Vec::new();
    for (name, fault) in [
        ("not a number", Fault::NotANumber(20)),
        ("broken", Fault::Broken(20)),
        ("broken from the start", Fault::Broken(0)),
        ("lost without another engine", Fault::Lost(20)),
    ] {
        let mut world = world(3_000_000, Fault::None);
        world.faults.lock().unwrap().insert(world.candidate, vec![fault; 9]);
        world.accept_candidate();
        world.until("the end of the swap", |node| node.controller.state() != State::Swapping);
        let factory = world.factory;
        world
            .until("the old model", |node| node.controller.state() == State::Serving && node.serving.handle.snapshot().model_id == factory);
        // As many windows of the old model as would commit the candidate.
        let judged = world.node.handle().snapshot().judged;
        world.until("more windows", |node| node.serving.handle.snapshot().judged > judged + 200);
        let found = (world.node.committed, world.node.store.active(), world.node.controller.state());
        if found != (0, Active::Factory, State::Serving) {
            failures.push(format!("{name}: {found:?}, {:?}", world.node.log));
        }
        failures.extend(world.lost().map(|lost| format!("{name}: {lost}")));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_candidate_is_committed_on_its_own_windows_even_where_the_old_engine_fails_before_the_swap() {
    // It fails about when the candidate is opened: the candidate takes its place, or follows what does.
    let mut world = world(3_000_000, Fault::Broken(30));
    world.accept_candidate();
    let candidate = world.candidate;
    world.until("the commit", |node| node.committed == 1);
    assert_eq!(world.node.handle().snapshot().model_id, candidate);
    assert_eq!(world.node.store.active_id(), candidate);
    assert_eq!(world.lost(), None);
}

#[test]
fn an_engine_that_fails_leaves_its_memory_to_the_next() {
    let mut failures = Vec::new();
    // Two engines of 1 MB do not fit.
    for (name, fault) in [("broken", Fault::Broken(30)), ("lost", Fault::Lost(30)), ("not a number", Fault::NotANumber(30))] {
        let mut world = world(1_500_000, fault);
        world.until("another engine", |node| node.serving.handle.snapshot().judged > 100);
        if world.node.unserved().is_some() || world.node.handle().snapshot().engine_failures != 1 {
            failures.push(format!("{name}: {:?}", world.node.log));
        }
        failures.extend(world.lost().map(|lost| format!("{name}: {lost}")));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_failure_that_comes_again_is_noted_once_and_tried_again_at_longer_intervals() {
    let mut world = world(1_500_000, Fault::Broken(5));
    let factory = world.factory;
    world.faults.lock().unwrap().insert(factory, vec![Fault::Broken(0); 1000]);
    let started = std::time::Instant::now();
    while started.elapsed() < Duration::from_millis(1500) {
        world.tick();
    }
    let opened = 1000 - world.faults.lock().unwrap()[&factory].len();
    assert!((2..=4).contains(&opened), "{opened} engines were opened in 1.5 s");
    assert_eq!(world.node.log.len(), 1, "{:?}", world.node.log);
    assert!(world.node.unserved().is_some_and(|reason| reason == "it is broken"));
}
