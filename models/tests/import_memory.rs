//! How much memory an import takes, whatever its checkpoint's size and whatever its files claim.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicIsize, Ordering};

use espalier_models::checkpoint::import;
use espalier_models::{Artifact, DType, Error};

/// What an import may allocate beside the largest tensor, and a refused one beside the size of its files.
const ALLOWANCE_BYTES: usize = 64 << 20;

/// The system's allocator, counting the bytes that are held and the most that were.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;
static HELD: AtomicIsize = AtomicIsize::new(0);
static PEAK: AtomicIsize = AtomicIsize::new(0);
/// One measurement at a time: the counters are the whole process's.
static MEASURING: Mutex<()> = Mutex::new(());

fn count(bytes: isize) {
    let held = HELD.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(held, Ordering::Relaxed);
}

// SAFETY: every call is passed to the system's allocator as it is; `realloc` is the default, which is made of the two others.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// The most bytes that were held at once during `work`, beside those held before.
fn peak_bytes<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let result = work();
    (result, usize::try_from(PEAK.load(Ordering::Relaxed) - before).unwrap_or(0))
}

/// Writes a GPT-2 in f32 whose numbers are all zero, as a file with a hole: it takes no room on the disk. Returns the largest tensor's
/// bytes and the file's.
fn write_hole(folder: &Path, d_model: usize, layers: usize, vocabulary: usize) -> (usize, u64) {
    let (d, inner) = (d_model, 4 * d_model);
    let config = format!(
        r#"{{"model_type": "gpt2", "n_embd": {d}, "n_head": 16, "n_layer": {layers}, "n_positions": 128, "vocab_size": {vocabulary}}}"#
    );
    std::fs::write(folder.join("config.json"), config).unwrap();
    let mut shapes = BTreeMap::new();
    for layer in 0..layers {
        let matrices = [("attn.c_attn", d, 3 * d), ("attn.c_proj", d, d), ("mlp.c_fc", d, inner), ("mlp.c_proj", inner, d)];
        for (name, rows, columns) in matrices {
            shapes.insert(format!("h.{layer}.{name}.weight"), vec![rows, columns]);
            shapes.insert(format!("h.{layer}.{name}.bias"), vec![columns]);
        }
        for norm in ["ln_1", "ln_2"] {
            shapes.extend(["weight", "bias"].map(|part| (format!("h.{layer}.{norm}.{part}"), vec![d])));
        }
    }
    shapes.extend(["weight", "bias"].map(|part| (format!("ln_f.{part}"), vec![d])));
    shapes.insert("wte.weight".to_string(), vec![vocabulary, d]);
    shapes.insert("wpe.weight".to_string(), vec![128, d]);
    let (mut entries, mut end, mut largest) = (Vec::new(), 0, 0);
    for (name, shape) in &shapes {
        let bytes = 4 * shape.iter().product::<usize>();
        entries.push(format!(r#""{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{end},{}]}}"#, end + bytes));
        end += bytes;
        largest = largest.max(bytes);
    }
    let header = format!("{{{}}}", entries.join(","));
    let path = folder.join("model.safetensors");
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let length = (8 + header.len() + end) as u64;
    file.set_len(length).unwrap();
    (largest, length)
}

#[test]
fn a_large_checkpoint_takes_the_memory_of_its_largest_tensor_at_most() {
    let _alone = MEASURING.lock().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (largest, length) = write_hole(folder.path(), 1024, 2, 24_000);
    assert!(length > 190 << 20);
    let out = folder.path().join("model.esp");
    for dtype in [DType::F32, DType::Bf16] {
        let (imported, peak) = peak_bytes(|| import(folder.path(), &out, Some(dtype), &mut |_, _| {}));
        imported.unwrap();
        println!("{dtype:?}: {peak} bytes at most for a checkpoint of {length} bytes whose largest tensor has {largest}");
        assert!(peak <= largest + ALLOWANCE_BYTES, "{peak} bytes were held at once for a largest tensor of {largest}");
        // It is copied block by block: not even one tensor is held whole.
        assert!(peak < 32 << 20, "{peak} bytes were held at once");
        Artifact::open(&out).unwrap();
    }
}

#[test]
fn a_small_file_that_claims_a_large_model_takes_little_memory() {
    let _alone = MEASURING.lock().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (_, length) = write_hole(folder.path(), 64, 2, 100);
    let gguf = folder.path().join("model.gguf");
    std::fs::write(&gguf, include_bytes!("../../fuzz/corpus/gguf/seed-more-channels-than-bytes")).unwrap();
    let base = r#""model_type": "gpt2", "n_embd": 64, "n_positions": 128, "vocab_size": 100"#;
    let families = r#""hidden_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 128, "vocab_size": 100"#;
    let cases = [
        ("a GGUF file", None, "8388611 channels"),
        ("channels", Some(format!(r#"{{{base}, "n_head": 16, "n_layer": 2, "n_inner": 16777216}}"#)), "16777216 channels"),
        ("layers", Some(format!(r#"{{{base}, "n_head": 16, "n_layer": 1000000}}"#)), "fewer layers than"),
        (
            "heads",
            Some(format!(
                r#"{{"model_type": "llama", {families}, "num_attention_heads": 65536, "num_key_value_heads": 1, "head_dim": 2, "intermediate_size": 8}}"#
            )),
            "65536 heads",
        ),
        (
            "windows",
            Some(format!(
                r#"{{"model_type": "gemma3_text", {families}, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 16777216}}"#
            )),
            "16777216 channels",
        ),
    ];
    let mut wrong = Vec::new();
    for (what, config, expected) in cases {
        let source = match config {
            None => gguf.clone(),
            Some(config) => {
                std::fs::write(folder.path().join("config.json"), config).unwrap();
                folder.path().to_path_buf()
            }
        };
        let (imported, peak) = peak_bytes(|| import(&source, &folder.path().join("model.esp"), None, &mut |_, _| {}));
        match imported {
            Err(error @ Error::Checkpoint { .. }) if error.to_string().contains(expected) => {}
            other => wrong.push(format!("{what}: {other:?}, expected {expected}")),
        }
        if peak > 1 << 20 {
            wrong.push(format!("{what}: {peak} bytes were held at once for a file of {length}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
