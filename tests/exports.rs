//! Exports for `scripts/check-exports.sh`, which loads them in transformers and llama.cpp: every fixture that can be exported, and three
//! that are pruned alike in every layer. Each folder under `target/exports` gets the checkpoint folder, the GGUF file where there can be
//! one, and `expected.safetensors` with what Espalier computes on the model: `input_ids [batch, sequence]`,
//! `logits [batch, sequence, vocabulary]`, `prompt [8]`, `greedy [32]`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use espalier_agent::prune::pack::{PackNote, pack};
use espalier_agent::prune::{LayerSelection, Selection};
use espalier_kernels::{CpuDevice, Device, Unlimited};
use espalier_models::checkpoint::{export_gguf, export_safetensors, import};
use espalier_models::{Artifact, Error, Units};
use espalier_runtime::{
    Budget, Continues, Generator, Input, Keep, LogitRows, Network, Pass, Residency, Sampling, Workspace, WorkspaceSize,
};
use safetensors::tensor::{Dtype, TensorView};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

const BATCH: usize = 2;
const SEQUENCE: usize = 17;
const PROMPT: usize = 8;
const GREEDY: usize = 32;

/// What is cut of a fixture before it is exported.
struct Cut {
    fixture: &'static str,
    /// The name of the folder.
    name: &'static str,
    /// The layer that goes.
    layer: Option<usize>,
    /// KV groups that stay in every layer, in another order than the source's; none for all.
    groups: Option<&'static [usize]>,
    /// One of this many channels goes.
    channels: usize,
}

/// GPT-2 stores no head size, so all its heads stay; transformers' Flax Llama ignores the stored one, so one Llama keeps them too.
const CUTS: [Cut; 3] = [
    Cut { fixture: "llama-mha", name: "llama-mha-pruned", layer: Some(1), groups: None, channels: 3 },
    Cut { fixture: "llama-mha", name: "llama-mha-fewer-heads", layer: Some(0), groups: Some(&[3, 0, 1]), channels: 3 },
    Cut { fixture: "gpt2", name: "gpt2-pruned", layer: Some(0), groups: None, channels: 4 },
];

#[test]
#[ignore = "writes target/exports for scripts/check-exports.sh"]
fn exports_for_other_programs() -> Fallible<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let exports = root.join("target/exports");
    if exports.exists() {
        std::fs::remove_dir_all(&exports)?;
    }
    let mut fixtures: Vec<PathBuf> = std::fs::read_dir(root.join("tests/parity"))?
        .filter_map(|entry| Some(entry.ok()?.path()).filter(|path| path.join("model.safetensors").is_file()))
        .collect();
    fixtures.sort();
    for fixture in &fixtures {
        let folder = exports.join(fixture.file_name().unwrap_or_default());
        export(&imported(fixture, &folder)?, &folder)?;
    }
    for cut in &CUTS {
        let folder = exports.join(cut.name);
        let dense = imported(&root.join("tests/parity").join(cut.fixture), &folder)?;
        let note = PackNote { history: "Cut alike in every layer.".to_string(), measured: None };
        let pruned = pack(&dense, &cut.selection(&dense), &[], &folder.join("pruned.esp"), note)?;
        export(&Arc::new(Artifact::open(&pruned)?), &folder)?;
    }
    println!("{} exports in {}", fixtures.len() + CUTS.len(), exports.display());
    Ok(())
}

impl Cut {
    fn selection(&self, artifact: &Artifact) -> Selection {
        let shape = artifact.manifest().shape();
        let mut selection = Selection::all(&shape);
        for (index, (layer, shape)) in selection.layers.iter_mut().zip(&shape.layers).enumerate() {
            *layer = match shape.units() {
                Some(units) if self.layer != Some(index) => Some(self.layer_selection(units)),
                _ => None,
            };
        }
        selection
    }

    fn layer_selection(&self, units: &Units) -> LayerSelection {
        let mut kept = LayerSelection::all(units);
        if let Some(groups) = self.groups {
            kept.keep_groups(units, groups.to_vec());
        }
        // Kept channels are stored in another order than the source's.
        kept.channels = (0..units.channels).rev().filter(|channel| channel % self.channels != 0).collect();
        kept
    }
}

/// The fixture as an artifact, with a tokenizer: llama.cpp's server serves no model without one.
fn imported(fixture: &Path, folder: &Path) -> Fallible<Arc<Artifact>> {
    let source = folder.join("source");
    std::fs::create_dir_all(&source)?;
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture.join(file), source.join(file))?;
    }
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(fixture.join("config.json"))?)?;
    let sizes = ["vocab_size", "padded_vocab_size"].map(|name| config[name].as_u64());
    let vocabulary = sizes.into_iter().flatten().max().ok_or("a fixture has a vocabulary")?;
    std::fs::write(source.join("tokenizer.json"), tokenizer(vocabulary).to_string())?;
    let out = folder.join("model.esp");
    import(&source, &out, None, &mut |_, _| {})?;
    Ok(Arc::new(Artifact::open(&out)?))
}

/// A byte-level tokenizer of that many tokens: the letters that stand for bytes, in order, then words.
fn tokenizer(vocabulary: u64) -> serde_json::Value {
    let printable = (33..127u32).chain(161..173).chain(174..256);
    let letters: Vec<String> = printable.chain(256..324).filter_map(char::from_u32).map(String::from).collect();
    let token = |id: u64| letters.get(id as usize).cloned().unwrap_or_else(|| format!("t{id}"));
    let vocab: serde_json::Map<String, serde_json::Value> = (0..vocabulary).map(|id| (token(id), id.into())).collect();
    let bytes = serde_json::json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true });
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null, "post_processor": null,
        "pre_tokenizer": bytes, "decoder": bytes,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": [],
        },
    })
}

/// Writes all that there can be of one model.
fn export(artifact: &Arc<Artifact>, folder: &Path) -> Fallible<()> {
    let manifest = artifact.manifest();
    export_safetensors(artifact.as_ref(), manifest, &folder.join("checkpoint"), None)?;
    match export_gguf(artifact.as_ref(), manifest, &folder.join("model.gguf")) {
        // The reason is for the reader of the table.
        Err(error @ Error::Inexpressible { .. }) => std::fs::write(folder.join("gguf-refused.txt"), error.to_string())?,
        written => written?,
    }
    let vocabulary = manifest.architecture.output_width();
    let ids: Vec<u32> = (0..BATCH * SEQUENCE).map(|index| ((index * index * 7 + index * 3 + 1) % vocabulary) as u32).collect();
    let logits = logits(artifact, &ids)?;
    let greedy = greedy(artifact, &ids[..PROMPT])?;
    let int64 = |ids: &[u32]| ids.iter().flat_map(|&id| i64::from(id).to_le_bytes()).collect::<Vec<u8>>();
    let floats: Vec<u8> = logits.iter().flat_map(|logit| logit.to_le_bytes()).collect();
    let tensors: [(&str, Dtype, Vec<usize>, Vec<u8>); 4] = [
        ("input_ids", Dtype::I64, vec![BATCH, SEQUENCE], int64(&ids)),
        ("logits", Dtype::F32, vec![BATCH, SEQUENCE, vocabulary], floats),
        ("prompt", Dtype::I64, vec![PROMPT], int64(&ids[..PROMPT])),
        ("greedy", Dtype::I64, vec![GREEDY], int64(&greedy)),
    ];
    let views: BTreeMap<&str, TensorView<'_>> = tensors
        .iter()
        .map(|(name, dtype, shape, data)| Ok((*name, TensorView::new(*dtype, shape.clone(), data)?)))
        .collect::<Result<_, safetensors::SafeTensorError>>()?;
    safetensors::serialize_to_file(views, None, &folder.join("expected.safetensors"))?;
    Ok(())
}

fn logits(artifact: &Arc<Artifact>, ids: &[u32]) -> Fallible<Vec<f32>> {
    let network = Network::load(CpuDevice::new(1, Arc::new(Unlimited))?, artifact, Residency::Resident)?;
    let size = WorkspaceSize { batch: BATCH, sequence: SEQUENCE, keep: Keep::Nothing, logits: LogitRows::All, rank: 0, gates: false };
    let mut workspace = Workspace::new(&network.device, &network.architecture, &network.shape, size)?;
    Pass::of(&network).forward(&mut workspace, Input::Tokens { ids, sequence: SEQUENCE }, None)?;
    let mut logits = vec![0.0; BATCH * SEQUENCE * network.architecture.output_width()];
    network.device.read(workspace.logits(), 0, &mut logits)?;
    Ok(logits)
}

fn greedy(artifact: &Arc<Artifact>, prompt: &[u32]) -> Fallible<Vec<u32>> {
    let device = CpuDevice::new(1, Arc::new(Unlimited))?;
    let mut generator = Generator::open(&device, &Arc::new(Budget::unlimited()), artifact, prompt.len() + GREEDY)?;
    let mut found = Vec::new();
    generator.generate(prompt, GREEDY, Sampling::default(), &mut || 0.0, &mut |id| {
        found.push(id);
        true
    })?;
    Ok(found)
}
