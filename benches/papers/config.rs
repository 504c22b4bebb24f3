//! Which cells the tables have, and the name of each.
//!
//! A *cell* is one trained or pruned network of one protocol, training rotation and seed, with everything that is measured on it.

use espalier_agent::prune::{CascadeOptions, Split, Target};
use espalier_agent::signal_model::SignalSize;
use espalier_agent::signals::{Augment, Protocol};
use espalier_agent::train::{DenseOptions, Length, RecoveryOptions};
use espalier_runtime::AdapterOptions;
use serde_json::json;

/// Part of every key: a cell of another version is computed again.
const VERSION: u32 = 1;
/// The seeds of the cascade's paper.
const CWRU_SEEDS: [u64; 3] = [42, 123, 456];
const UESTC_SEED: u64 = 42;
/// Three ratios of the cascade's paper: a light, a middle and its strongest cut.
const RATIOS: [f64; 3] = [2.5, 5.8, 13.8];
/// The reference's other ratio, run on its protocol alone.
const REFERENCE_MIDDLE: f64 = 4.7;
/// The split of the PyTorch reference, at its ratio.
pub const REFERENCE: (f64, Split) = (13.8, Split { layers: 2, heads: 2, channels: 96 });
/// Recovery after layers, heads and channels, in epochs.
pub const RECOVERY_EPOCHS: [f64; 3] = [1.0, 1.0, 2.0];
/// Windows on which layers are scored and cuts are tried.
const TRIAL_WINDOWS: usize = 256;
/// The dense network of every protocol.
pub const SIZE: SignalSize = SignalSize::SMALL;
/// Windows of a step, of training and of recovery.
pub const BATCH: usize = 32;

/// The protocols of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Family {
    /// CWRU, across motor loads.
    CwruLoad,
    /// UESTC, from one speed to each other.
    UestcSpeed,
}

impl Family {
    /// In the order in which they are run.
    pub const ALL: [Self; 2] = [Self::CwruLoad, Self::UestcSpeed];

    /// The protocol's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::CwruLoad => "cwru-load",
            Self::UestcSpeed => "uestc-speed",
        }
    }

    /// The class whose windows are left out of a second accuracy.
    pub fn without(self) -> Option<&'static str> {
        match self {
            Self::CwruLoad => Some("N"),
            Self::UestcSpeed => None,
        }
    }

    /// Passes over the training windows: a rotation of `uestc-speed` has far fewer windows, so it gets more passes.
    pub fn epochs(self) -> f64 {
        match self {
            Self::CwruLoad => 6.0,
            Self::UestcSpeed => 12.0,
        }
    }

    /// Every cell, the dense network of a training before what is cut from it.
    pub fn cells(self) -> Vec<Cell> {
        let trainings: Vec<(Protocol, u64)> = match self {
            Self::CwruLoad => CWRU_SEEDS.iter().map(|seed| (Protocol::CwruLoad, *seed)).collect(),
            Self::UestcSpeed => [800, 1000, 1200, 1400].map(|train_rpm| (Protocol::UestcSpeed { train_rpm }, UESTC_SEED)).to_vec(),
        };
        let methods = self.methods();
        trainings
            .iter()
            .flat_map(|(protocol, seed)| {
                methods.iter().map(|method| Cell { family: self, protocol: *protocol, seed: *seed, method: *method })
            })
            .collect()
    }

    /// The rows of the protocol's table.
    pub fn methods(self) -> Vec<Method> {
        let mut methods = vec![Method::Dense];
        for recovered in [false, true] {
            methods.extend(RATIOS.map(|ratio| Method::Cascade { ratio, keep: None, recovered }));
            if self == Self::CwruLoad {
                methods.insert(methods.len() - 2, Method::Cascade { ratio: REFERENCE_MIDDLE, keep: None, recovered });
                methods.push(Method::Cascade { ratio: REFERENCE.0, keep: Some(REFERENCE.1), recovered });
            }
        }
        methods
    }
}

/// How a network was made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// Trained from scratch.
    Dense,
    /// Cut from the dense network of the same training by the cascade.
    Cascade {
        /// Dense over kept parameters.
        ratio: f64,
        /// What is kept, where it is not measured.
        keep: Option<Split>,
        /// Whether every stage is recovered.
        recovered: bool,
    },
}

impl Method {
    /// For the tables.
    pub fn label(&self) -> String {
        match self {
            Self::Dense => "dense".into(),
            Self::Cascade { ratio, keep: None, .. } => format!("cascade {ratio}×"),
            Self::Cascade { keep: Some(Split { layers, heads, channels }), .. } => {
                format!("cascade, split {layers}/{heads}/{channels} given")
            }
        }
    }

    /// For the tables: whether the network was recovered.
    pub fn recovery(&self) -> &'static str {
        match self {
            Self::Dense => "",
            Self::Cascade { recovered: true, .. } => "LoRA r 4",
            Self::Cascade { recovered: false, .. } => "none",
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Dense => "dense".into(),
            Self::Cascade { ratio, keep, recovered } => {
                let keep = keep.map_or(String::new(), |split| format!("-keep-{}-{}-{}", split.layers, split.heads, split.channels));
                format!("cascade-{ratio}x{keep}-{}", if *recovered { "recovered" } else { "cut" })
            }
        }
    }
}

/// One network and what is measured on it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cell {
    /// Which table it is in.
    pub family: Family,
    /// Which recordings train and test.
    pub protocol: Protocol,
    /// Seed of weights, adapters, order and augmentation.
    pub seed: u64,
    /// How the network is made.
    pub method: Method,
}

impl Cell {
    /// The dense network of the same training.
    pub fn dense(&self) -> Self {
        Self { method: Method::Dense, ..*self }
    }

    /// A readable name: `cwru-load.seed-42.cascade-13.8x-recovered`.
    pub fn name(&self) -> String {
        format!("{}.seed-{}.{}", self.protocol.to_string().replace(':', "-"), self.seed, self.method.name())
    }

    /// The name with a hash of all settings; the stem of the cell's files.
    pub fn key(&self) -> String {
        format!("{}-{:08x}", self.name(), crc32c::crc32c(self.settings().to_string().as_bytes()))
    }

    /// How its dense network is trained, in `steps` steps.
    pub fn training(&self, steps: usize) -> DenseOptions {
        DenseOptions { batch: BATCH, steps, learning_rate: 1e-3, weight_decay: 0.05, augment: Augment::default(), seed: self.seed }
    }

    /// How it is pruned.
    pub fn pruning(&self, ratio: f64, keep: Option<Split>, recovered: bool) -> CascadeOptions {
        let adapters = AdapterOptions { rank: 4, alpha: 16.0, attention: true, ffn: false };
        CascadeOptions {
            target: Target::Ratio(ratio),
            split: keep,
            lengths: RECOVERY_EPOCHS.map(|epochs| Length::Epochs(if recovered { epochs } else { 0.0 })),
            recovery: RecoveryOptions { adapters, batch: BATCH, learning_rate: 3e-3, augment: Augment::default(), seed: self.seed },
            trial_windows: TRIAL_WINDOWS,
            calibration_windows: TRIAL_WINDOWS,
        }
    }

    /// Everything that decides the cell's numbers beside the data and the code.
    pub fn settings(&self) -> serde_json::Value {
        let pruning = match self.method {
            Method::Dense => None,
            Method::Cascade { ratio, keep, recovered } => Some(format!("{:?}", self.pruning(ratio, keep, recovered))),
        };
        json!({
            "version": VERSION,
            "protocol": self.protocol.to_string(),
            "size": format!("{SIZE:?}"),
            "epochs": self.family.epochs(),
            "training": format!("{:?}", self.training(0)),
            "pruning": pruning,
            "noise_seed": crate::cells::NOISE_SEED,
        })
    }
}
