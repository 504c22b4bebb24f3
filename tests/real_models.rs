//! Published models, as `scripts/models.sh` brings them, against published numbers and the programs they were made with.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use espalier_agent::language::perplexity;
use espalier_agent::text::Tokenizer;
use espalier_agent::train::{Quiet, Stop};
use espalier_kernels::{CpuDevice, Device, NO_TARGET, Unlimited};
use espalier_models::checkpoint::import;
use espalier_models::{Artifact, DType};
use espalier_runtime::{
    Budget, Continues, Generator, Input, Keep, LogitRows, Network, Pass, Residency, Sampling, Scorer, Workspace, WorkspaceSize,
};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// The folder of a model that `scripts/models.sh` brings; none (with a line that says so) where it is absent, which on CI is a failure.
fn model(name: &str) -> Option<PathBuf> {
    model_file(name, "")
}

/// A file of such a model.
fn model_file(name: &str, file: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/models").join(name).join(file);
    there(&path, &format!("{} is absent; `scripts/models.sh {name}` brings it", path.display()))
}

/// A file of real data; none (with a line that says so) where it is absent, which on CI is a failure.
fn data(name: &str) -> Option<PathBuf> {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    let path = std::env::var_os("ESPALIER_DATA").map_or_else(default, PathBuf::from).join(name);
    there(&path, &format!("{} is absent; set ESPALIER_DATA to the folder of real data", path.display()))
}

fn there(path: &Path, absent: &str) -> Option<PathBuf> {
    if path.exists() {
        return Some(path.to_path_buf());
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{absent}");
    println!("skipped: {absent}");
    None
}

/// The variable domains of the heavy chains of two antibodies.
const TRASTUZUMAB: &str =
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCSRWGGDGFYAMDYWGQGTLVTVSS";
const ADALIMUMAB: &str =
    "EVQLVESGGGLVQPGRSLRLSCAASGFTFDDYAMHWVRQAPGKGLEWVSAITWNSGHIDYADSVEGRFTISRDNAKNSLYLQMNSLRAEDTAVYYCAKVSYLSTASSLDYWGQGTLVTVSS";

/// A model of antibodies, imported as it was published.
struct Antibodies {
    tokenizer: Tokenizer,
    network: Network<CpuDevice>,
}

impl Antibodies {
    fn open(folder: &Path) -> Fallible<Self> {
        let place = tempfile::tempdir()?;
        let path = place.path().join("model.esp");
        import(folder, &path, None, &mut |_, _| {})?;
        let artifact = Arc::new(Artifact::open(&path)?);
        let device = CpuDevice::new(1, Arc::new(Unlimited))?;
        let network = Network::load(device, &artifact, Residency::Resident)?;
        Ok(Self { tokenizer: Tokenizer::of(&artifact)?, network })
    }

    /// The mean cross entropy of a heavy chain in nats, as `IgLM.log_likelihood` has it: the tokens are `[HEAVY] [HUMAN]`, the residues
    /// and `[SEP]`; the targets are the residues and `[SEP]`, not the two that say what kind of chain it is.
    fn loss(&self, residues: &str) -> Fallible<f64> {
        let spaced: Vec<String> = residues.chars().map(String::from).collect();
        let ids = self.tokenizer.encode(&format!("[HEAVY] [HUMAN] {} [SEP]", spaced.join(" ")), true)?;
        assert_eq!(ids.len(), residues.len() + 3, "a residue is a token");
        let target = |at: usize| if at == 0 { NO_TARGET } else { ids.get(at + 1).copied().unwrap_or(NO_TARGET) };
        let targets: Vec<u32> = (0..ids.len()).map(target).collect();
        let size = WorkspaceSize { batch: 1, sequence: ids.len(), keep: Keep::Nothing, logits: LogitRows::All, rank: 0, gates: false };
        let device = &self.network.device;
        let mut workspace = Workspace::new(device, &self.network.architecture, &self.network.shape, size)?;
        let targets = device.indices(&targets)?;
        let input = Input::Tokens { ids: &ids, sequence: ids.len() };
        Ok(Pass::of(&self.network).loss(&mut workspace, input, &targets)?)
    }
}

/// The first 120 sequences that hold `TVSS`, the end of a heavy chain's variable domain.
fn heavy_chains(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).expect("the sequences can be read");
    let records = text.split('>').skip(1).filter_map(|record| record.split_once('\n'));
    let sequences = records.map(|(_, lines)| lines.split_whitespace().collect::<String>());
    sequences.filter(|sequence| sequence.contains("TVSS")).take(120).collect()
}

#[test]
fn antibodies_are_as_likely_as_published() -> Fallible<()> {
    let (Some(iglm), Some(sequences)) = (model("iglm"), data("text/imgt_mab_db.fa")) else { return Ok(()) };
    let sequences = heavy_chains(&sequences);
    assert_eq!(sequences.len(), 120);
    // The two antibodies as PyTorch computes them, to four digits; the mean as published, to two.
    let cases = [("IgLM", 2.7893, 1.8905, 2.15), ("IgLM-S", 2.6045, 1.8679, 2.11)];
    let mut wrong = Vec::new();
    for (name, trastuzumab, adalimumab, mean) in cases {
        let model = Antibodies::open(&iglm.join(name))?;
        for (what, residues, expected) in [("trastuzumab", TRASTUZUMAB, trastuzumab), ("adalimumab", ADALIMUMAB, adalimumab)] {
            let perplexity = model.loss(residues)?.exp();
            println!("{name}, {what}: perplexity {perplexity:.4}, expected {expected}");
            if (perplexity - expected).abs() > 1e-4 * expected {
                wrong.push(format!("{name}, {what}: perplexity {perplexity}, expected {expected}"));
            }
        }
        let losses: Vec<f64> = sequences.iter().map(|residues| model.loss(residues)).collect::<Fallible<_>>()?;
        let perplexity = (losses.iter().sum::<f64>() / losses.len() as f64).exp();
        println!("{name}, {} sequences: perplexity {perplexity:.4}, expected {mean}", losses.len());
        if (perplexity - mean).abs() > 0.005 {
            wrong.push(format!("{name}, 120 sequences: perplexity {perplexity}, expected {mean}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

/// Ids of `BertTokenizerFast(vocab, do_lower_case=False, additional_special_tokens=[all in brackets])` of transformers 5, without special
/// tokens added around the text.
#[test]
fn a_plain_vocabulary_gives_the_ids_of_transformers() -> Fallible<()> {
    let Some(iglm) = model("iglm") else { return Ok(()) };
    let model = Antibodies::open(&iglm.join("IgLM-S"))?;
    let cases: &[(&str, &[u32])] = &[
        ("[HEAVY] [HUMAN] E V Q L [SEP]", &[31, 26, 8, 22, 18, 14, 3]),
        ("EVQLX", &[1]),
        ("e V", &[1, 22]),
        ("[heavy]", &[1, 1, 1]),
        ("A[SEP]C", &[5, 3, 6]),
        (">8659_seq1", &[1, 1, 1, 1]),
    ];
    let mut wrong = Vec::new();
    for (text, expected) in cases {
        let ids = model.tokenizer.encode(text, true)?;
        if ids != *expected {
            wrong.push(format!("{text}: {ids:?}, expected {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let Some(sequences) = data("text/imgt_mab_db.fa") else { return Ok(()) };
    // Every line as it is, and with a space after each letter: how many ids, and the sum of each id times its place.
    let (mut whole, mut spaced) = (Vec::new(), Vec::new());
    for line in std::fs::read_to_string(sequences)?.lines() {
        whole.extend(model.tokenizer.encode(line, true)?);
        let letters: Vec<String> = line.chars().map(String::from).collect();
        spaced.extend(model.tokenizer.encode(&letters.join(" "), true)?);
    }
    let sum = |ids: &[u32]| ids.iter().zip(1..).map(|(&id, place)| u64::from(id) * place).sum::<u64>();
    assert_eq!((whole.len(), sum(&whole)), (5740, 16_476_670));
    assert_eq!((spaced.len(), sum(&spaced)), (143_198, 146_287_994_277));
    Ok(())
}

/// What all of them continue, greedily.
const PROMPT: &str = "The bearing on the drive end of the motor has a fault in its outer race because the spectrum of the envelope shows";

/// A language model of a GGUF file, imported in f32: its dequantised weights as they are.
struct Language {
    artifact: Arc<Artifact>,
    tokenizer: Tokenizer,
    device: CpuDevice,
    budget: Arc<Budget>,
    _place: tempfile::TempDir,
}

impl Language {
    fn open(gguf: &Path) -> Fallible<Self> {
        let place = tempfile::tempdir()?;
        let path = place.path().join("model.esp");
        import(gguf, &path, Some(DType::F32), &mut |_, _| {})?;
        let artifact = Arc::new(Artifact::open(&path)?);
        let threads = std::thread::available_parallelism()?.get();
        Ok(Self {
            tokenizer: Tokenizer::of(&artifact)?,
            device: CpuDevice::new(threads, Arc::new(Unlimited))?,
            budget: Arc::new(Budget::unlimited()),
            artifact,
            _place: place,
        })
    }

    /// The most likely continuation of a text, `count` tokens.
    fn greedy(&self, prompt: &[u32], count: usize) -> Fallible<Vec<u32>> {
        let mut generator = Generator::open(&self.device, &self.budget, &self.artifact, prompt.len() + count)?;
        let mut ids = Vec::new();
        generator.generate(prompt, count, Sampling::default(), &mut || 0.0, &mut |id| {
            ids.push(id);
            true
        })?;
        Ok(ids)
    }
}

/// One perplexity: `windows` windows of `tokens` tokens from the start of WikiText-2's raw test split, `share` of it either way.
struct Expected {
    tokens: usize,
    windows: usize,
    perplexity: f64,
    share: f64,
}

/// Checks a model's ids of the prompt, its greedy continuation, its number of tokens of the text, and its perplexities.
fn check_language(name: &str, file: &str, ids: &[u32], continuation: &[u32], text_tokens: usize, expected: &[Expected]) -> Fallible<()> {
    let Some(gguf) = model_file(name, file) else { return Ok(()) };
    let model = Language::open(&gguf)?;
    let prompt = model.tokenizer.encode(PROMPT, true)?;
    assert_eq!(prompt, ids, "{name}: ids of the prompt");
    assert_eq!(model.greedy(&prompt, continuation.len())?, continuation, "{name}: the greedy continuation");
    let Some(text) = data("text/wiki.test.raw") else { return Ok(()) };
    // Line ends as Python reads them, with which the references were made.
    let text = std::fs::read_to_string(text)?.replace("\r\n", "\n").replace('\r', "\n");
    let ids = model.tokenizer.encode(&text, true)?;
    assert_eq!(ids.len(), text_tokens, "{name}: tokens of the text");
    let mut wrong = Vec::new();
    for &Expected { tokens, windows, perplexity, share } in expected {
        let mut scorer = Scorer::open(&model.device, &model.budget, &model.artifact, tokens)?;
        let found = perplexity::of_text(&mut scorer, &ids, text.len(), tokens, Some(windows), &mut Quiet, &Stop::default())?;
        let line = format!("{name}: perplexity {:.3} on {windows} windows of {tokens} tokens, expected {perplexity}", found.perplexity);
        println!("{line}; {:.0} tokens/s", found.tokens_per_second);
        if (found.perplexity - perplexity).abs() > share * perplexity {
            wrong.push(line);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

/// As transformers has it on the dequantised weights.
#[test]
fn smollm2_reads_and_writes_as_transformers_does() -> Fallible<()> {
    check_language(
        "smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        &[504, 12422, 335, 260, 4926, 1112, 282, 260, 5267, 553, 253, 8576, 281, 624, 8379, 4677, 975, 260, 8439, 282, 260, 21715, 2744],
        &[253, 8576, 281, 260, 8379, 4677, 30, 198, 198, 504, 4997, 282, 260, 8379, 4677, 314],
        301_948,
        &[
            Expected { tokens: 128, windows: 300, perplexity: 54.936, share: 1e-3 },
            Expected { tokens: 2048, windows: 20, perplexity: 20.971, share: 1e-3 },
        ],
    )
}

/// As transformers has it on the dequantised weights.
#[test]
fn qwen2_5_coder_reads_and_writes_as_transformers_does() -> Fallible<()> {
    check_language(
        "qwen2.5-coder",
        "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        &[
            785, 18043, 389, 279, 6541, 835, 315, 279, 8872, 702, 264, 14527, 304, 1181, 15955, 6957, 1576, 279, 19745, 315, 279, 34398,
            4933,
        ],
        &[
            264, 2518, 3100, 13, 576, 14527, 374, 7407, 304, 279, 15955, 6957, 315, 279, 8872, 13, 576, 14527, 374, 7407, 304, 279, 15955,
            6957, 315, 279, 8872, 13, 576, 14527, 374, 7407,
        ],
        298_938,
        &[Expected { tokens: 128, windows: 40, perplexity: 85.138, share: 5e-3 }],
    )
}

/// As transformers has it on the dequantised weights.
#[test]
fn gemma3_reads_and_writes_as_transformers_does() -> Fallible<()> {
    check_language(
        "gemma3",
        "gemma-3-270m-q4_k_m.gguf",
        &[
            2, 818, 18752, 580, 506, 5697, 1345, 529, 506, 6474, 815, 496, 12866, 528, 1061, 14611, 7547, 1547, 506, 11731, 529, 506,
            26035, 3831,
        ],
        &[
            496, 12866, 528, 506, 14611, 7547, 236761, 108, 818, 12866, 528, 506, 14611, 7547, 563, 506, 12866, 528, 506, 14611, 7547,
            236761, 108, 818, 12866, 528, 506, 14611, 7547, 563, 506, 12866,
        ],
        292_282,
        &[Expected { tokens: 128, windows: 10, perplexity: 282.551, share: 5e-3 }],
    )
}
