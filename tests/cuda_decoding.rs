//! Continuing text on the emulated CUDA device: one recording of a token serves many positions, and says what unrecorded work says.
#![cfg(feature = "cuda")]

#[path = "../kernels/tests/support/mod.rs"]
mod device;

use std::path::Path;
use std::sync::Arc;

use espalier_kernels::{CpuDevice, CudaDevice, Device};
use espalier_models::checkpoint::import;
use espalier_models::{Artifact, DType};
use espalier_runtime::{Budget, Continues, Generator, Sampling};

use device::Emulator;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

const PROMPT: [u32; 8] = [3, 14, 15, 92, 65, 35, 89, 79];

/// A parity checkpoint, imported; with a longer context where its positions are computed.
struct Model {
    artifact: Arc<Artifact>,
    _place: tempfile::TempDir,
}

impl Model {
    fn open(name: &str, context: Option<usize>, dtype: Option<DType>) -> Fallible<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(name);
        let place = tempfile::tempdir()?;
        let source = place.path().join("source");
        std::fs::create_dir(&source)?;
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(folder.join(file), source.join(file))?;
        }
        if let Some(context) = context {
            let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(source.join("config.json"))?)?;
            config["max_position_embeddings"] = context.into();
            std::fs::write(source.join("config.json"), config.to_string())?;
        }
        let path = place.path().join("model.esp");
        import(&source, &path, dtype, &mut |_, _| {})?;
        Ok(Self { artifact: Arc::new(Artifact::open(&path)?), _place: place })
    }

    fn generator(&self, device: &CudaDevice, capacity: usize) -> Fallible<Generator<CudaDevice>> {
        Ok(Generator::open(device, &Arc::new(Budget::unlimited()), &self.artifact, capacity)?)
    }

    /// `tokens` tokens after the prompt, and how many kernels ran for them.
    fn text(&self, device: &CudaDevice, tokens: usize, sampling: Sampling) -> Fallible<(Vec<u32>, u64)> {
        let mut generator = self.generator(device, PROMPT.len() + tokens)?;
        let before = launches(device);
        Ok((continued(&mut generator, tokens, sampling)?, launches(device) - before))
    }
}

fn continued<D: Device>(generator: &mut Generator<D>, tokens: usize, sampling: Sampling) -> Fallible<Vec<u32>> {
    let (mut found, mut state) = (Vec::new(), 12345_u64);
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 11) as f64 / (1_u64 << 53) as f64
    };
    generator.generate(&PROMPT, tokens, sampling, &mut uniform, &mut |id| {
        found.push(id);
        true
    })?;
    Ok(found)
}

fn launches(device: &CudaDevice) -> u64 {
    device.kernel_counts().iter().map(|count| count.launches).sum()
}

/// Every kind of position, norm, block and head; a window smaller than the text.
const FAMILIES: [&str; 7] = ["gpt2", "gpt_neox", "phi", "llama-gqa2", "mistral", "qwen3", "gemma3"];

/// A quantised model says on the device what it says on the CPU.
#[test]
fn cuda_text_of_quantised_weights_is_that_of_the_cpu() -> Fallible<()> {
    let Some(emulator) = Emulator::start("") else { return Ok(()) };
    let (device, budget) = (emulator.device(), Arc::new(Budget::unlimited()));
    let cpu = CpuDevice::new(1, budget.clone())?;
    let mut faults = Vec::new();
    for name in ["gpt2", "llama-gqa2"] {
        for dtype in [DType::Q8, DType::Q4] {
            let model = Model::open(name, None, Some(dtype))?;
            let (found, _) = model.text(&device, 24, Sampling::default())?;
            let mut generator = Generator::open(&cpu, &budget, &model.artifact, PROMPT.len() + 24)?;
            let expected = continued(&mut generator, 24, Sampling::default())?;
            if found != expected {
                faults.push(format!("{name} in {dtype:?}: {found:?}, expected {expected:?}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

#[test]
fn cuda_text_is_the_same_with_and_without_graphs() -> Fallible<()> {
    let Some(emulator) = Emulator::start("") else { return Ok(()) };
    let device = emulator.device();
    let sampled = Sampling { temperature: 0.9, ..Sampling::default() };
    let mut faults = Vec::new();
    for name in FAMILIES {
        let model = Model::open(name, None, None)?;
        for (how, sampling) in [("greedy", Sampling::default()), ("sampled", sampled)] {
            let graphs = || emulator.counter("graph_launches");
            let before = graphs();
            let recorded = model.text(&device, 16, sampling)?;
            // 15 of the tokens are read, the first of them as it is.
            let replayed = graphs() - before;
            device.time_kernels(true);
            let plain = model.text(&device, 16, sampling)?;
            device.time_kernels(false);
            if recorded != plain || replayed != 14 || graphs() != before + 14 {
                faults.push(format!("{name}, {how}: {recorded:?} in {replayed} graphs, {plain:?} without"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

#[test]
fn a_cuda_step_is_recorded_again_where_the_keys_outgrow_it() -> Fallible<()> {
    let Some(emulator) = Emulator::start("") else { return Ok(()) };
    let device = emulator.device();
    let model = Model::open("llama-gqa2", Some(200), None)?;
    let mut generator = model.generator(&device, 150)?;
    let counters = || [emulator.counter("captures"), emulator.counter("graph_launches")];
    // 8 tokens of prompt and 129 that are read: 56 with up to 64 keys, 64 with up to 128, 9 with up to 150. The first of each as it is.
    let text = continued(&mut generator, 130, Sampling::default())?;
    assert_eq!(counters(), [3, 55 + 63 + 8]);
    // Another text uses the same recordings.
    generator.clear().expect("an empty cache");
    assert_eq!(continued(&mut generator, 130, Sampling::default())?, text);
    assert_eq!(counters(), [3, 55 + 63 + 8 + 129]);
    device.time_kernels(true);
    assert_eq!(model.text(&device, 130, Sampling::default())?.0, text);
    Ok(())
}

#[test]
fn a_cuda_step_is_recorded_again_when_memory_has_moved() -> Fallible<()> {
    let Some(emulator) = Emulator::start("") else { return Ok(()) };
    let device = emulator.device();
    let model = Model::open("gpt2", None, None)?;
    let expected = model.text(&device, 20, Sampling::default())?.0;
    let (mut generator, mut other) = (model.generator(&device, 40)?, model.generator(&device, 40)?);
    for session in [&mut generator, &mut other] {
        assert_eq!(continued(session, 20, Sampling::default())?, expected);
    }
    let counters = || [emulator.counter("captures"), emulator.counter("graph_launches")];
    let [captures, graph_launches] = counters();
    // Its recording is of buffers that are given back: graphs of the device are not run any more before they are recorded anew.
    drop(other);
    generator.clear().expect("an empty cache");
    assert_eq!(continued(&mut generator, 20, Sampling::default())?, expected);
    assert_eq!(counters(), [captures + 1, graph_launches + 18]);
    Ok(())
}

#[test]
fn a_cuda_token_takes_few_launches() -> Fallible<()> {
    let Some(emulator) = Emulator::start("") else { return Ok(()) };
    let device = emulator.device();
    // Layers, launches of a layer, and of all else: embedding (and positions, or the scale of embeddings), last norm, head. A layer: norm,
    // query with key and value, cache, attention, output, norm, up with gate, down; norms of queries and keys; post norms and their sums.
    let cases = [("gpt2", 3, 8, 4), ("llama-gqa2", 4, 8, 3), ("qwen3", 3, 10, 3), ("gemma3", 4, 14, 4), ("phi", 3, 7, 3)];
    let cases = cases.into_iter().flat_map(|case| [None, Some(DType::Bf16), Some(DType::Q8), Some(DType::Q4)].map(|dtype| (case, dtype)));
    let mut faults = Vec::new();
    for ((name, layers, each, besides), dtype) in cases {
        let model = Model::open(name, None, dtype)?;
        let mut generator = model.generator(&device, 40)?;
        generator.read(&PROMPT)?;
        generator.read(&[1])?;
        let before = launches(&device);
        generator.read(&[2])?;
        let found = launches(&device) - before;
        println!("{name}, {dtype:?}: {found} launches a token of {layers} layers");
        if found != layers * each + besides {
            faults.push(format!("{name}, {dtype:?}: {found} launches, expected {layers} · {each} + {besides}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}
