//! What a person asks for on the command line.

use std::path::Path;

#[cfg(feature = "ort")]
use espalier_runtime::OrtProviders;

/// The engine that a person asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum EngineChoice {
    /// The GPU where there is one that can be used, else the CPU; ONNX Runtime for an ONNX graph of another program, which neither runs.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// ONNX Runtime, for all that a model says; a node that prunes does that on the CPU.
    Ort,
}

impl EngineChoice {
    /// The word on the command line.
    pub fn name(self) -> &'static str {
        match self {
            EngineChoice::Auto => "auto",
            EngineChoice::Cpu => "cpu",
            EngineChoice::Cuda => "cuda",
            EngineChoice::Ort => "ort",
        }
    }
}

/// How exactly a GPU multiplies activations with weights that are stored in 16 bits. The CPU always computes in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Precision {
    /// As exactly as in f32.
    #[default]
    Exact,
    /// With activations rounded to the format of the weights, in half to a third of the time where more than 8 tokens are read at once.
    Fast,
}

impl Precision {
    /// The word on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Precision::Exact => "exact",
            Precision::Fast => "fast",
        }
    }
}

/// What a person asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Asked {
    /// The engine.
    pub engine: EngineChoice,
    /// The precision of a GPU.
    pub precision: Precision,
    /// What ONNX Runtime is told.
    pub ort: AskedOrt,
}

/// What ONNX Runtime is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AskedOrt {
    /// Its library; none for the first that is found.
    pub library: Option<&'static Path>,
    /// Whether it copies matrices into an order of its own, which is faster.
    pub prepack: bool,
    /// What is to compute beside the CPU, where the library has it and it starts.
    #[cfg(feature = "ort")]
    pub providers: OrtProviders,
}
