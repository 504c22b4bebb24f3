//! ONNX graphs of other programs: what PyTorch computes with them, on the command line and in the engine, and what is refused.
//!
//! The fixtures are in tests/data/foreign, compared with PyTorch itself by `scripts/check-foreign.sh`, which makes them anew with `--train`.
//! ONNX Runtime's library comes by `scripts/onnxruntime.sh`. Where it, recordings or a checkpoint is missing, what needs them is passed over,
//! but not with `CI=true`.
#![cfg(feature = "ort")]

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;

#[path = "foreign/commands.rs"]
mod commands;
#[path = "foreign/encoder.rs"]
mod encoder;
#[path = "foreign/engine.rs"]
mod engine;
#[path = "ort/library.rs"]
mod library;
#[path = "foreign/refusals.rs"]
mod refusals;
#[allow(dead_code, reason = "signals and restarts are not used here")]
mod support;

/// Largest difference of a logit from PyTorch's.
const TOLERANCE: f32 = 1e-4;

/// A file of the fixture.
fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/foreign").join(name)
}

/// The numbers of a tensor of a fixture, and its dimensions.
fn tensor(file: &str, name: &str) -> (Vec<f32>, Vec<usize>) {
    let bytes = std::fs::read(data(file)).expect("a fixture");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let tensor = tensors.tensor(name).expect("the tensor");
    let numbers = tensor.data().chunks_exact(4).map(|bytes| [bytes[0], bytes[1], bytes[2], bytes[3]]);
    let numbers = match tensor.dtype() {
        safetensors::Dtype::I32 => numbers.map(|bytes| i32::from_le_bytes(bytes) as f32).collect(),
        _ => numbers.map(f32::from_le_bytes).collect(),
    };
    (numbers, tensor.shape().to_vec())
}

/// The largest difference; infinite where counts differ or a number is not finite.
fn off(found: &[f32], expected: &[f32]) -> f32 {
    if found.len() != expected.len() {
        return f32::INFINITY;
    }
    found.iter().zip(expected).map(|(a, b)| if a.is_finite() { (a - b).abs() } else { f32::INFINITY }).fold(0.0, f32::max)
}

/// The folder of recordings that `ESPALIER_DATA` names, with `uestc/` in it; none where it is missing, which is said, and which with
/// `CI=true` is a failure.
fn recordings() -> Option<PathBuf> {
    let folder = std::env::var_os("ESPALIER_DATA").map(PathBuf::from).filter(|folder| folder.join("uestc").is_dir());
    let missing = "not compared on recordings: ESPALIER_DATA names no folder with uestc/ in it (docs/data.md)";
    assert!(folder.is_some() || std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{missing}");
    if folder.is_none() {
        eprintln!("{missing}");
    }
    folder
}
