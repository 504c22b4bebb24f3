//! A node that diagnoses around the clock must not allocate for a window: memory stays what it was, and no verdict waits for the allocator.
//!
//! The binary's allocator counts what every thread takes while windows are judged, except the test's own; so the source, which runs on a
//! thread of its own, is held to it too.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use espalier_agent::Result;
use espalier_agent::diagnosis::{CountingSink, Diagnosis, Event, Feed, JsonLines, NativeEngine, Options, Sink, Source, Verdict};
use espalier_agent::prune::pack::write_network;
use espalier_agent::signal_model::{SignalSize, dense_manifest};
use espalier_agent::signals::Rng;
use espalier_kernels::{CpuDevice, Device};
use espalier_models::Artifact;
use espalier_models::tensor::{DType, model_tensors};
use espalier_runtime::{Budget, DeviceTensors, Network};

/// Counts allocations while [`COUNTING`].
struct Counting;

static COUNTING: AtomicBool = AtomicBool::new(false);
static SWAPPED: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static EXEMPT: Cell<bool> = const { Cell::new(false) };
}

fn count() {
    // A thread that is ending has no cell any more, and judges no window.
    if COUNTING.load(Ordering::Relaxed) && !EXEMPT.try_with(Cell::get).unwrap_or(true) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call is the system allocator's, with the caller's own arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[cfg(feature = "cuda")]
#[path = "../kernels/tests/support/mod.rs"]
mod device;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const WARM_UP: u64 = 100;
const COUNTED: u64 = 500;
const SIZE: SignalSize = SignalSize { layers: 2, width: 64, heads: 2, channels: 256, window: 512, patch: 32, stride: 32 };

/// Writes a network with random weights.
fn write_model(path: &Path, seed: u64) -> Arc<Artifact> {
    let device = CpuDevice::new(1, Arc::new(Budget::unlimited())).unwrap();
    let architecture = SIZE.architecture(&["N", "B", "IR", "OR"].map(str::to_string), 12_000.0).unwrap();
    let mut rng = Rng::new(seed);
    let mut network = Network::initialise(device.clone(), architecture.clone(), SIZE.shape(), &mut || rng.normal() as f32).unwrap();
    let specs: HashMap<_, _> = model_tensors(&architecture, &SIZE.shape()).into_iter().map(|spec| (spec.key, spec.columns)).collect();
    let tensors = network.trainable().into_iter().map(|(key, buffer)| (key, &*buffer, specs[&key])).collect();
    let manifest = dense_manifest("a test model", architecture, &SIZE.shape(), "Made by a test.".to_string(), None);
    write_network(manifest, DType::F32, &DeviceTensors::new(&device, tensors), path).unwrap();
    Arc::new(Artifact::open(path).unwrap())
}

/// The same noise again and again.
struct Noise(Vec<f32>);

impl Source for Noise {
    fn run(&mut self, feed: &mut Feed) -> Result<()> {
        feed.begin(0, Some(0))?;
        for window in self.0.chunks(SIZE.window).cycle().take((WARM_UP + COUNTED + 1) as usize) {
            // However slow the machine is, the swap comes while windows are counted.
            while feed.windows() == WARM_UP + COUNTED * 3 / 4 && !SWAPPED.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(1));
            }
            if feed.samples(window).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// Switches the count on after the warm-up and off before the last window, after which threads end.
struct Switch;

impl Sink for Switch {
    fn verdict(&mut self, verdict: &Verdict) -> Result<()> {
        COUNTING.store((WARM_UP..WARM_UP + COUNTED).contains(&(verdict.sequence + 1)), Ordering::Relaxed);
        Ok(())
    }
}

/// The allocations of a run of two engines, each on its device.
fn serve<D: Device>(devices: [&D; 2], first: &Arc<Artifact>, second: &Arc<Artifact>) -> u64 {
    let budget = Arc::new(Budget::unlimited());
    let engine = || NativeEngine::open(devices[0], &budget, first).unwrap();
    let next = Box::new(NativeEngine::open(devices[1], &budget, second).unwrap());
    let classes = first.manifest().architecture.classes().to_vec();
    let counts = CountingSink::default();
    let sinks: Vec<Box<dyn Sink>> =
        vec![Box::new(Switch), Box::new(JsonLines::new(io::sink(), Path::new("nowhere"), &classes)), Box::new(counts.clone())];
    let mut rng = Rng::new(3);
    let noise = Noise((0..16 * SIZE.window).map(|_| rng.normal() as f32).collect());
    SWAPPED.store(false, Ordering::Release);
    ALLOCATIONS.store(0, Ordering::Relaxed);
    let mut handle = Diagnosis::start(Options::default(), Box::new(engine()), Box::new(noise), sinks).unwrap();
    while counts.judged() < WARM_UP + COUNTED / 2 {
        std::thread::yield_now();
    }
    assert!(handle.offer(next).unwrap().is_none());
    let Some(Event::Swapped { old: Some(old), model_id, from, .. }) = handle.events().next_within(Duration::from_secs(10)) else {
        panic!("no swap")
    };
    drop(old);
    SWAPPED.store(true, Ordering::Release);
    assert_eq!(model_id, second.id());
    assert!(from.is_some_and(|from| from < WARM_UP + COUNTED), "the swap came after the count: {from:?}");
    let snapshot = handle.wait().unwrap();
    assert!(snapshot.is_complete(), "{snapshot:?}");
    assert_eq!((snapshot.judged, snapshot.missing, snapshot.repeated, snapshot.swaps), (WARM_UP + COUNTED + 1, 0, 0, 1));
    ALLOCATIONS.load(Ordering::Relaxed)
}

/// Held by the test that runs: they count together.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn judging_windows_allocates_nothing_also_across_a_swap() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    EXEMPT.set(true);
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = [1, 2].map(|seed| write_model(&folder.path().join(format!("{seed}.esp")), seed));
    let device = |threads| CpuDevice::new(threads, Arc::new(Budget::unlimited())).unwrap();
    let allocations = [device(1), device(2)].map(|device| serve([&device; 2], &first, &second));
    assert_eq!(allocations, [0, 0], "allocations in {COUNTED} windows, with one thread and with two");
}

/// Neither the host allocates nor the device; every window is one start of a recorded graph, in the engine that is swapped in too.
#[cfg(feature = "cuda")]
#[test]
fn cuda_judging_windows_allocates_nothing_also_across_a_swap() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    EXEMPT.set(true);
    let Some((device, emulator)) = device::real_or_emulated("") else { return };
    let beside = espalier_kernels::CudaDevice::open(0, Arc::new(Budget::unlimited())).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = [1, 2].map(|seed| write_model(&folder.path().join(format!("{seed}.esp")), seed));
    assert_eq!(serve([&device, &beside], &first, &second), 0, "allocations in {COUNTED} windows");
    if let Some(emulator) = emulator {
        let (graphs, launches) = (emulator.counter("graphs"), emulator.counter("graph_launches"));
        assert_eq!(graphs, 2, "a graph for each engine");
        assert!(launches > WARM_UP + COUNTED, "{launches} starts of a graph");
    }
}
