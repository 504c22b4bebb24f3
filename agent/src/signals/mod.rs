//! Signals: recordings and their formats, windows, corpora and their splits, noise, augmentation and the simulator.
//!
//! | module | concern |
//! |--|--|
//! | [`recording`], [`error`] | one recording; what can go wrong |
//! | [`read`], [`mat`], [`csv`](mod@csv), [`wav`], [`npy`], [`raw`] | a file of any format; one format each |
//! | [`naming`], [`corpus`], [`splits`] | a folder of recordings, its layout, the protocols |
//! | [`store`], [`windows`], [`window_set`] | samples outside the heap; windows of a stream; windows of a split |
//! | [`noise`], [`augment`], [`rng`] | what is added to a window, reproducibly |
//! | [`bearing`], [`simulator`], [`simulated`] | fault frequencies, simulated vibration, a simulated corpus |

pub mod augment;
pub mod bearing;
pub mod corpus;
pub mod csv;
pub mod error;
pub mod mat;
pub mod naming;
pub mod noise;
pub mod npy;
pub mod raw;
pub mod read;
pub mod recording;
pub mod rng;
pub mod simulated;
pub mod simulator;
pub mod splits;
pub mod store;
pub mod wav;
pub mod window_set;
pub mod windows;

pub use augment::Augment;
pub use corpus::{Corpus, CorpusKind};
pub use error::SignalError;
pub use noise::Noise;
pub use raw::RawSource;
pub use read::{Format, read_recording, read_recording_with, summarise};
pub use recording::{Column, ReadOptions, Recording, Summary};
pub use rng::{Rng, SplitMix64};
pub use simulated::{SimulationOptions, simulate_corpus};
pub use splits::{Protocol, Segment, Split, TestSet};
pub use store::SampleStore;
pub use window_set::{Sets, WindowSet};
pub use windows::{BadWindow, TRAINING_HOP, WINDOW, Windower, normalise, normalise_as};
