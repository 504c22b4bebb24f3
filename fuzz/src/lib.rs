//! What the fuzz targets do with bytes: hand them to a reader as a file, and demand that it ends in a value or in an error of one
//! sentence, without a panic and without allocating more than the file's own size and 64 MiB.
//!
//! `cargo +nightly fuzz run TARGET` runs one with libFuzzer; `cargo test --lib` here runs all of them on the seeds and on mutations of
//! them, the same ones every time.

use std::path::{Path, PathBuf};

use espalier_agent::signals::{ReadOptions, read_recording_with, summarise};
use espalier_agent::text::Tokenizer;
use espalier_models::artifact::FORMAT_VERSION;
use espalier_models::checkpoint::import;
use espalier_models::foreign::{ForeignGraph, ForeignModel, sidecar_beside, template};
use espalier_models::{Artifact, Manifest};

mod allocator;

use allocator::bounded;

#[cfg(test)]
mod tests;

/// A small GPT-2's `config.json`.
const CONFIG: &[u8] = include_bytes!("../../models/tests/pytorch/config.json");
/// Its tensors.
const SAFETENSORS: &[u8] = include_bytes!("../../models/tests/pytorch/model.safetensors");
/// A small ONNX graph.
const GRAPH: &[u8] = include_bytes!("../../tests/data/foreign/tiny.onnx");
/// Its sidecar.
const SIDECAR: &[u8] = include_bytes!("../../tests/data/foreign/tiny.onnx.json");
/// Names of files in a target's folder.
const CHECKPOINT_FILES: [&str; 5] = ["config.json", "model.safetensors", "pytorch_model.bin", "vocab.txt", "model.gguf"];

/// A folder for the files of this process.
fn folder() -> PathBuf {
    thread_local! {
        static FOLDER: tempfile::TempDir = tempfile::tempdir().expect("a folder for temporary files");
    }
    FOLDER.with(|folder| folder.path().to_path_buf())
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("a temporary file can be written");
}

/// Demands a sentence: one line that is not empty and not endless.
fn expect_sentence<T, E: std::fmt::Display>(result: Result<T, E>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            let text = error.to_string();
            assert!(!text.trim().is_empty() && text.len() < 16 << 10, "no sentence: {} bytes: {text:.200}", text.len());
            None
        }
    }
}

/// Imports a checkpoint of these files, `source` being one of them or "" for the folder, and reads the artifact through.
fn checkpoint(files: &[(&str, &[u8])], source: &str) {
    let folder = folder();
    for name in CHECKPOINT_FILES {
        let _ = std::fs::remove_file(folder.join(name));
    }
    files.iter().for_each(|(name, bytes)| write(&folder.join(name), bytes));
    let out = folder.join("model.esp");
    let size = files.iter().map(|(_, bytes)| bytes.len()).sum();
    let imported = bounded(size, || expect_sentence(import(&folder.join(source), &out, None, &mut |_, _| {})));
    assert_eq!(out.exists(), imported.is_some(), "an artifact is there if and only if the import succeeded");
    if imported.is_some() {
        let artifact = Artifact::open(&out).expect("what an import writes can be opened");
        artifact.verify().expect("what an import writes is sound");
        std::fs::remove_file(&out).expect("the artifact can be removed");
    }
}

/// An artifact whose checksums are made to fit, so that what is behind them is reached.
pub fn artifact(bytes: &[u8]) {
    let path = folder().join("given.esp");
    for bytes in [bytes.to_vec(), with_checksums(bytes.to_vec())] {
        write(&path, &bytes);
        bounded(bytes.len(), || {
            let Some(artifact) = expect_sentence(Artifact::open(&path)) else { return };
            expect_sentence(artifact.verify());
            for tensor in artifact.manifest().tensors.iter().take(64) {
                let mut row = vec![0.0; usize::try_from(tensor.columns).unwrap_or(0).min(1 << 16)];
                expect_sentence(artifact.read_rows(tensor.key, 0..1, &mut row));
            }
            std::hint::black_box((artifact.manifest().parameters(), artifact.manifest().compression_ratio()));
        });
    }
}

/// The artifact with the current format version, and with the checksums of its manifest, its chunk table and its header, and its length, set
/// to what they are.
fn with_checksums(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.len() < 64 {
        return bytes;
    }
    let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes")).min(1 << 30) as usize;
    let manifest = 64..64 + long(16);
    let table = manifest.end..manifest.end + long(24);
    let crcs = (bytes.get(manifest).map(crc32c::crc32c), bytes.get(table).map(crc32c::crc32c));
    let length = (bytes.len() as u64).to_le_bytes();
    bytes[..8].copy_from_slice(b"\x89ESP\r\n\x1a\n");
    bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&crcs.0.unwrap_or(0).to_le_bytes());
    bytes[40..48].copy_from_slice(&length);
    bytes[48..52].copy_from_slice(&crcs.1.unwrap_or(0).to_le_bytes());
    bytes[52..60].fill(0);
    let header = crc32c::crc32c(&bytes[..60]).to_le_bytes();
    bytes[60..64].copy_from_slice(&header);
    bytes
}

/// A safetensors file.
pub fn safetensors(bytes: &[u8]) {
    checkpoint(&[("config.json", CONFIG), ("model.safetensors", bytes)], "");
}

/// A `config.json`.
pub fn config(bytes: &[u8]) {
    checkpoint(&[("config.json", bytes), ("model.safetensors", SAFETENSORS)], "");
}

/// A PyTorch checkpoint.
pub fn pytorch(bytes: &[u8]) {
    checkpoint(&[("config.json", CONFIG), ("pytorch_model.bin", bytes)], "");
}

/// The pickle of a PyTorch checkpoint: the archive around it is sound and has storages `0` to `15` of 64 bytes.
pub fn pickle(bytes: &[u8]) {
    let storages: Vec<String> = (0..16).map(|key| format!("a/data/{key}")).collect();
    let mut files = vec![("a/data.pkl", bytes)];
    files.extend(storages.iter().map(|name| (name.as_str(), &[0; 64][..])));
    pytorch(&archive(&files));
}

/// A ZIP archive that stores `files` as they are.
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in files {
        let size = (data.len() as u32).to_le_bytes();
        let common = [&[0; 12][..], &size, &size, &(name.len() as u16).to_le_bytes(), &[0, 0]].concat();
        directory.extend([&b"PK\x01\x02\0\0\0\0"[..], &common, &[0; 10], &(bytes.len() as u32).to_le_bytes(), name.as_bytes()].concat());
        bytes.extend([&b"PK\x03\x04\0\0"[..], &common, name.as_bytes(), data].concat());
    }
    let (start, length, count) = (bytes.len() as u32, directory.len() as u32, files.len() as u16);
    bytes.extend(directory);
    bytes.extend(
        [&b"PK\x05\x06\0\0\0\0"[..], &count.to_le_bytes(), &count.to_le_bytes(), &length.to_le_bytes(), &start.to_le_bytes(), &[0; 2]]
            .concat(),
    );
    bytes
}

/// A GGUF file.
pub fn gguf(bytes: &[u8]) {
    checkpoint(&[("model.gguf", bytes)], "model.gguf");
}

/// An ONNX graph of another program beside a sidecar.
fn foreign(graph: &[u8], sidecar: &[u8]) {
    let path = folder().join("other.onnx");
    write(&path, graph);
    write(&sidecar_beside(&path), sidecar);
    bounded(graph.len() + sidecar.len(), || {
        if let Some(graph) = expect_sentence(ForeignGraph::open(&path)) {
            std::hint::black_box((template(&graph), graph.parameters(), graph.weights().count()));
            expect_sentence(graph.light());
        }
        if let Some(model) = expect_sentence(ForeignModel::open(&path, None)) {
            std::hint::black_box(model.id());
        }
    });
}

/// An ONNX graph.
pub fn onnx(bytes: &[u8]) {
    foreign(bytes, SIDECAR);
}

/// A graph's sidecar.
pub fn sidecar(bytes: &[u8]) {
    foreign(GRAPH, bytes);
}

/// A recording in a file of that extension.
fn recording(extension: &str, bytes: &[u8]) {
    let path = folder().join(format!("recording.{extension}"));
    write(&path, bytes);
    let options = ReadOptions::default();
    bounded(bytes.len(), || {
        let summary = expect_sentence(summarise(&path, &options));
        let read = expect_sentence(read_recording_with(&path, &options));
        if let (Some(summary), Some(read)) = (summary, read) {
            assert_eq!(summary.samples, read.samples.len(), "a summary counts the samples that are read");
        }
    });
}

/// A MATLAB file.
pub fn mat(bytes: &[u8]) {
    recording("mat", bytes);
}

/// A WAV file.
pub fn wav(bytes: &[u8]) {
    recording("wav", bytes);
}

/// A NumPy file.
pub fn npy(bytes: &[u8]) {
    recording("npy", bytes);
}

/// A text table.
pub fn csv(bytes: &[u8]) {
    recording("csv", bytes);
}

/// The small GPT-2's manifest.
fn manifest() -> Manifest {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    write(&folder.path().join("config.json"), CONFIG);
    write(&folder.path().join("model.safetensors"), SAFETENSORS);
    let out = folder.path().join("model.esp");
    import(folder.path(), &out, None, &mut |_, _| {}).expect("the small model can be imported");
    Artifact::open(&out).expect("the small model can be opened").manifest().clone()
}

/// A `tokenizer.json`, and the ids of some text.
pub fn tokenizer(bytes: &[u8]) {
    thread_local! {
        static MANIFEST: Manifest = manifest();
    }
    let manifest = MANIFEST.with(Manifest::clone);
    bounded(bytes.len(), || {
        let Some(tokenizer) = expect_sentence(Tokenizer::new(&manifest, Some(bytes))) else { return };
        for text in ["", "[HEAVY] E V Q L", "The spectrum's envelope, 3.5 kHz: \u{e9}\u{4e2d}\u{1f600}\n\n  x"] {
            if let Some(ids) = expect_sentence(tokenizer.encode(text, true)) {
                expect_sentence(tokenizer.decode(&ids));
            }
        }
        expect_sentence(tokenizer.decode(&[0, 1, 2, 3, u32::MAX]));
    });
}

/// A `vocab.txt`.
pub fn vocabulary(bytes: &[u8]) {
    checkpoint(&[("config.json", CONFIG), ("model.safetensors", SAFETENSORS), ("vocab.txt", bytes)], "");
}
