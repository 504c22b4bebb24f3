//! One engine after the other is killed while the loop serves: a GPU's, two of the CPU's, and at last ONNX Runtime judges.

use espalier_runtime::OrtLibrary;

use super::*;
use crate::diagnosis::Verdict;
use crate::engine::EngineKind;

/// Samples of a window of the artifact.
const SAMPLES: usize = 32;
/// Windows of a run, and those after which a CPU's engine dies.
const WINDOWS: u64 = 600;
const CPU_WINDOWS: u64 = 25;

/// Gives windows of noise, always the same.
struct Noise;

impl Source for Noise {
    fn run(&mut self, feed: &mut Feed) -> Result<()> {
        feed.begin(0, None)?;
        let mut state = 1_u32;
        for _ in 0..WINDOWS {
            let samples: Vec<f32> = (0..SAMPLES)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 8) as f32 / (1 << 24) as f32 - 0.5
                })
                .collect();
            if feed.samples(&samples).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// An engine that fails for good after so many windows.
struct Dying {
    engine: Box<dyn Engine>,
    left: u64,
}

impl Engine for Dying {
    fn classify(&mut self, window: &[f32]) -> Result<&[f32]> {
        let dead = || KernelError::Shape { operation: "matmul", detail: "killed on purpose".into() };
        self.left = self.left.checked_sub(1).ok_or_else(dead)?;
        self.engine.classify(window)
    }
    fn model_id(&self) -> u64 {
        self.engine.model_id()
    }
    fn level(&self) -> u32 {
        self.engine.level()
    }
    fn classes(&self) -> &[String] {
        self.engine.classes()
    }
    fn window(&self) -> usize {
        self.engine.window()
    }
    fn sample_rate_hz(&self) -> f64 {
        self.engine.sample_rate_hz()
    }
}

/// Which engines were opened, and how many bytes were booked before each.
type Opened = Arc<Mutex<Vec<(EngineKind, u64)>>>;

/// Opens real engines; those of the CPU die after `cpu_windows`.
fn dying(opened: &Opened, cpu_windows: u64) -> serving::Opener {
    let opened = opened.clone();
    Box::new(move |device, budget, path| {
        opened.lock().unwrap().push((device.kind(), budget.used()));
        let (engine, artifact) = open_engine(device, budget, path)?;
        let left = if device.kind() == EngineKind::Cpu { cpu_windows } else { u64::MAX };
        Ok((Box::new(Dying { engine, left }), artifact))
    })
}

/// Serves the noise with the engines of `choice`; the verdicts, the engines that were opened, and what was lost.
fn serve(choice: EngineChoice, cpu_windows: u64) -> (Vec<Verdict>, Vec<(EngineKind, u64)>, Option<String>) {
    let place = tempfile::tempdir().unwrap();
    let budget = Arc::new(Budget::new(u64::MAX, 0));
    let factory = artifact(place.path(), "dense.esp", 1, &budget).unwrap();
    let store = Store::create(&place.path().join("store"), factory.path(), artifact_id).unwrap();
    let engines = Engines::new(Asked { engine: choice, ..Asked::default() });
    let device = engines.open(LOOP_THREADS, &budget).unwrap();
    let opened = Opened::default();
    let mut open = dying(&opened, cpu_windows);
    let (engine, served) = open(&device, &budget, factory.path()).unwrap();
    let heard = MemorySink::default();
    let options = Options { retry: Duration::from_secs(60), ..Options::default() };
    let handle = Diagnosis::start(options, engine, Box::new(Noise), vec![Box::new(heard.clone())]).unwrap();
    let options = NodeOptions { thresholds: Thresholds::default(), prune: None, limit_after_commit: false, source_bytes: 0 };
    let mut node = Node::new(store, (engines, device), budget, handle, served, options);
    node.serving.open = open;
    let mut world = World { node, heard: heard.clone(), factory: factory.id(), candidate: 0, faults: Faults::default(), _place: place };
    world.until_within("the end", Duration::from_secs(60), |node| node.serving.handle.is_finished());
    let snapshot = world.node.handle().wait().unwrap();
    let verdicts = heard.take().verdicts;
    let numbers: Vec<u64> = verdicts.iter().map(|verdict| verdict.sequence).collect();
    let complete = snapshot.failed == 0 && snapshot.is_complete() && numbers == (0..WINDOWS).collect::<Vec<_>>();
    let opened = std::mem::take(&mut *opened.lock().unwrap());
    (verdicts, opened, (!complete).then(|| format!("{snapshot:?}, {:?}", world.node.log)))
}

/// What is wrong with a run on which engine after engine died.
fn faults(expected: &[Verdict], choice: EngineChoice, kinds: &[EngineKind]) -> Vec<String> {
    let (verdicts, opened, lost) = serve(choice, CPU_WINDOWS);
    let mut faults: Vec<String> = lost.into_iter().collect();
    let found: Vec<EngineKind> = opened.iter().map(|(kind, _)| *kind).collect();
    if found != kinds {
        faults.push(format!("engines {found:?}, expected {kinds:?}"));
    }
    // An engine on the CPU takes the same whichever it is, so that what the one before left behind would show.
    let cpus: Vec<u64> = opened.iter().filter(|(kind, _)| *kind == EngineKind::Cpu).map(|(_, booked)| *booked).collect();
    if cpus.windows(2).any(|pair| pair[0] != pair[1]) {
        faults.push(format!("bytes booked before the engines of the CPU: {cpus:?}; one has left some behind"));
    }
    for (verdict, expected) in verdicts.iter().zip(expected) {
        let off = verdict.probabilities.iter().zip(&expected.probabilities).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        if verdict.class != expected.class || off > 1e-3 {
            faults.push(format!("window {}: {:?}, expected {:?}", verdict.sequence, verdict.probabilities, expected.probabilities));
        }
    }
    faults
}

#[test]
fn no_window_is_lost_when_one_engine_after_the_other_is_killed() {
    if let Err(error) = OrtLibrary::open(None) {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{error}");
        eprintln!("SKIPPED: {error}");
        return;
    }
    let (expected, opened, lost) = serve(EngineChoice::Cpu, u64::MAX);
    assert_eq!((opened.len(), lost), (1, None));
    let after_cpu = [EngineKind::Cpu, EngineKind::Cpu, EngineKind::Ort];
    #[cfg(feature = "cuda")]
    if let Some(emulator) = device::Emulator::start("lose_device=600") {
        let kinds = [&[EngineKind::Cuda], &after_cpu[..]].concat();
        assert_eq!(faults(&expected, EngineChoice::Auto, &kinds), Vec::<String>::new());
        assert!(emulator.counter("kernels") >= 500, "the GPU has judged windows before it was lost");
        // From now on the process has a driver, which a device is not found behind.
        emulator.configure("devices=0");
        assert_eq!(faults(&expected, EngineChoice::Auto, &after_cpu), Vec::<String>::new());
        return;
    }
    assert_eq!(faults(&expected, EngineChoice::Auto, &after_cpu), Vec::<String>::new());
}
