//! The protocols: which stretches of which recordings are for training, holdout and test.
//!
//! Common to all: windows of one recording are never on both sides of a split (one exception, below); the **holdout** is the last fifth of
//! each training record after a gap of one window, the **calibration set** (`train`) the rest; test windows do not overlap.
//!
//! | protocol | train and holdout | test |
//! |--|--|--|
//! | `cwru-load` | loads 0, 1, 2 hp | 3 hp |
//! | `cwru-size:S` | B, IR, OR of the other sizes | B, IR, OR of size S |
//! | `uestc-speed:R` | part 1 at R rpm | part 2 at each other speed, a set each |
//! | `uestc-3to1:R` | part 1 at the other speeds | part 2 at R rpm |
//! | `simulated` | the training machines | the test machines |
//! | `generic` | see below | |
//!
//! The exception: in `cwru-load` a class without a record at 3 hp (normal, of which one record is public) gives the first half of its record
//! to training and holdout and the last third to test. `uestc-3to1` trains on part 1 alone, because part 2 continues it: the end of part 1
//! is its holdout, and the first windows of part 2 would neighbour it.
//!
//! `generic`: where the folder has `train/` and `test/`, these decide. Else whole recordings do: of each class, in the order of their names,
//! the last quarter (at least one) is for test; a class with a single recording is refused.

use std::fmt;
use std::str::FromStr;

use super::corpus::{Corpus, CorpusKind, Entry, Role};
use super::error::SignalError;
use super::windows::check_window;

/// How a corpus is split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// CWRU, across motor loads. The same physical bearings are on both sides.
    CwruLoad,
    /// CWRU, across fault sizes (other bearings): reported, never used to rank.
    CwruSize {
        /// The size left out, in thousandths of an inch.
        test_mil: u32,
    },
    /// UESTC, from one speed to the others.
    UestcSpeed {
        /// The speed trained on, in turns a minute.
        train_rpm: u32,
    },
    /// UESTC, from three speeds to the fourth: a check that the pipeline works.
    Uestc3to1 {
        /// The speed left out, in turns a minute.
        test_rpm: u32,
    },
    /// Simulated, to unseen machines.
    Simulated,
    /// Whole recordings of a folder per class.
    Generic,
}

const SIZES_MIL: [u32; 3] = [7, 14, 21];
const SPEEDS_RPM: [u32; 4] = [800, 1000, 1200, 1400];
const KNOWN: &str = "cwru-load, cwru-size:007|014|021, uestc-speed:800|1000|1200|1400, uestc-3to1:800|1000|1200|1400, simulated, generic";

impl Protocol {
    /// The kind of corpus it is for.
    pub fn kind(&self) -> CorpusKind {
        match self {
            Self::CwruLoad | Self::CwruSize { .. } => CorpusKind::Cwru,
            Self::UestcSpeed { .. } | Self::Uestc3to1 { .. } => CorpusKind::Uestc,
            Self::Simulated => CorpusKind::Simulated,
            Self::Generic => CorpusKind::Generic,
        }
    }

    /// The protocol that a kind of corpus is used with unless said otherwise.
    pub fn default_for(kind: CorpusKind) -> Self {
        match kind {
            CorpusKind::Cwru => Self::CwruLoad,
            CorpusKind::Uestc => Self::UestcSpeed { train_rpm: 1000 },
            CorpusKind::Simulated => Self::Simulated,
            CorpusKind::Generic => Self::Generic,
        }
    }

    /// The protocols of a name: one for a full name, every rotation for `cwru-size`, `uestc-speed` and `uestc-3to1` alone.
    pub fn rotations(name: &str) -> Result<Vec<Self>, SignalError> {
        match name {
            "cwru-size" => Ok(SIZES_MIL.map(|test_mil| Self::CwruSize { test_mil }).to_vec()),
            "uestc-speed" => Ok(SPEEDS_RPM.map(|train_rpm| Self::UestcSpeed { train_rpm }).to_vec()),
            "uestc-3to1" => Ok(SPEEDS_RPM.map(|test_rpm| Self::Uestc3to1 { test_rpm }).to_vec()),
            _ => Ok(vec![name.parse()?]),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CwruLoad => f.write_str("cwru-load"),
            Self::CwruSize { test_mil } => write!(f, "cwru-size:{test_mil:03}"),
            Self::UestcSpeed { train_rpm } => write!(f, "uestc-speed:{train_rpm}"),
            Self::Uestc3to1 { test_rpm } => write!(f, "uestc-3to1:{test_rpm}"),
            Self::Simulated => f.write_str("simulated"),
            Self::Generic => f.write_str("generic"),
        }
    }
}

impl FromStr for Protocol {
    type Err = SignalError;

    fn from_str(name: &str) -> Result<Self, SignalError> {
        let unknown = || SignalError::UnknownProtocol { name: name.chars().take(60).collect(), known: KNOWN.to_string() };
        let (family, value) = name.split_once(':').map_or((name, None), |(family, value)| (family, Some(value)));
        let one_of = |known: &[u32]| value.and_then(|value| value.parse().ok()).filter(|value| known.contains(value)).ok_or_else(unknown);
        match family {
            "cwru-size" => Ok(Self::CwruSize { test_mil: one_of(&SIZES_MIL)? }),
            "uestc-speed" => Ok(Self::UestcSpeed { train_rpm: one_of(&SPEEDS_RPM)? }),
            "uestc-3to1" => Ok(Self::Uestc3to1 { test_rpm: one_of(&SPEEDS_RPM)? }),
            "cwru-load" if value.is_none() => Ok(Self::CwruLoad),
            "simulated" if value.is_none() => Ok(Self::Simulated),
            "generic" if value.is_none() => Ok(Self::Generic),
            _ => Err(unknown()),
        }
    }
}

/// A stretch of one recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Segment {
    /// Index into [`Corpus::entries`] (and the store made from it).
    pub recording: usize,
    /// Index into [`Split::classes`].
    pub class: usize,
    /// First sample.
    pub start: usize,
    /// One past the last sample.
    pub end: usize,
}

/// A named set of test segments, reported by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestSet {
    /// "3hp", "800rpm", "unseen machines".
    pub name: String,
    /// Its segments.
    pub segments: Vec<Segment>,
}

impl TestSet {
    /// The set without one class, such as `cwru-load` without N.
    pub fn without_class(&self, class: usize) -> Self {
        Self { name: self.name.clone(), segments: self.segments.iter().filter(|segment| segment.class != class).copied().collect() }
    }
}

/// What a protocol makes of a corpus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// The protocol's name; "simulated" is part of it for a simulated corpus.
    pub name: String,
    /// The window in samples that gaps and lengths were made for.
    pub window: usize,
    /// The classes by index.
    pub classes: Vec<String>,
    /// The calibration set: for training, importance and recovery.
    pub train: Vec<Segment>,
    /// Decides whether a cut is accepted and which setting is chosen.
    pub holdout: Vec<Segment>,
    /// Read once for a reported table.
    pub test: Vec<TestSet>,
}

impl Split {
    /// Splits `corpus` by `protocol` for windows of `window` samples.
    pub fn new(corpus: &Corpus, protocol: &Protocol, window: usize) -> Result<Self, SignalError> {
        check_window(window, window)?;
        if protocol.kind() != corpus.kind {
            let fitting = match corpus.kind {
                CorpusKind::Cwru => "cwru-load, cwru-size:007|014|021",
                CorpusKind::Uestc => "uestc-speed:800|1000|1200|1400, uestc-3to1:800|1000|1200|1400",
                CorpusKind::Simulated => "simulated",
                CorpusKind::Generic => "generic",
            };
            let (protocol, kind) = (protocol.to_string(), corpus.kind.to_string());
            return Err(SignalError::WrongProtocol { protocol, path: corpus.root.clone(), kind, fitting: fitting.to_string() });
        }
        let classes = match protocol {
            Protocol::CwruSize { .. } => ["B", "IR", "OR"].map(str::to_string).to_vec(),
            Protocol::CwruLoad | Protocol::UestcSpeed { .. } | Protocol::Uestc3to1 { .. } => {
                ["N", "B", "IR", "OR"].map(str::to_string).to_vec()
            }
            Protocol::Simulated | Protocol::Generic => corpus.classes(),
        };
        let name = protocol.to_string();
        let mut builder =
            Builder { corpus, split: Self { name, window, classes, train: Vec::new(), holdout: Vec::new(), test: Vec::new() } };
        match *protocol {
            Protocol::CwruLoad => builder.cwru_load()?,
            Protocol::CwruSize { test_mil } => builder.by_entry(&format!("{test_mil:03}"), |entry| {
                Some(if entry.size_mil == Some(test_mil) { Role::Test } else { Role::Train })
            })?,
            Protocol::UestcSpeed { train_rpm } => builder.uestc(|rpm| rpm == train_rpm)?,
            Protocol::Uestc3to1 { test_rpm } => builder.uestc(|rpm| rpm != test_rpm)?,
            Protocol::Simulated => builder.by_entry("unseen machines", |entry| entry.role)?,
            Protocol::Generic => builder.generic()?,
        }
        builder.checked()
    }

    /// All segments of all sides.
    pub fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.train.iter().chain(&self.holdout).chain(self.test.iter().flat_map(|set| &set.segments))
    }
}

struct Builder<'a> {
    corpus: &'a Corpus,
    split: Split,
}

impl Builder<'_> {
    fn class(&self, entry: &Entry) -> Option<usize> {
        self.split.classes.iter().position(|class| *class == entry.class)
    }

    /// Gives `start..end` of a recording to training: the last fifth is holdout, one window before it is nobody's.
    fn train(&mut self, recording: usize, class: usize, start: usize, end: usize) -> Result<(), SignalError> {
        let window = self.split.window;
        // A fifth must hold one window; then the gap leaves three to calibration.
        let needed = 5 * window;
        if end - start < needed {
            let (path, purpose) = (self.corpus.entries[recording].path.clone(), "five windows, the last of which is the holdout");
            return Err(SignalError::TooShort { path, samples: end - start, needed, purpose });
        }
        let holdout = end - (end - start) / 5;
        self.split.train.push(Segment { recording, class, start, end: holdout - window });
        self.split.holdout.push(Segment { recording, class, start: holdout, end });
        Ok(())
    }

    fn test(&mut self, set: &str, recording: usize, class: usize, start: usize, end: usize) -> Result<(), SignalError> {
        if end - start < self.split.window {
            let path = self.corpus.entries[recording].path.clone();
            return Err(SignalError::TooShort { path, samples: end - start, needed: self.split.window, purpose: "one window of test" });
        }
        let segment = Segment { recording, class, start, end };
        match self.split.test.iter_mut().find(|test| test.name == set) {
            Some(test) => test.segments.push(segment),
            None => self.split.test.push(TestSet { name: set.to_string(), segments: vec![segment] }),
        }
        Ok(())
    }

    /// Whole recordings by their role; those without one, or of other classes, are left out.
    fn by_entry(&mut self, set: &str, role: impl Fn(&Entry) -> Option<Role>) -> Result<(), SignalError> {
        for (index, entry) in self.corpus.entries.iter().enumerate() {
            match (self.class(entry), role(entry)) {
                (Some(class), Some(Role::Train)) => self.train(index, class, 0, entry.samples)?,
                (Some(class), Some(Role::Test)) => self.test(set, index, class, 0, entry.samples)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn cwru_load(&mut self) -> Result<(), SignalError> {
        const TEST_HP: u32 = 3;
        for (index, entry) in self.corpus.entries.iter().enumerate() {
            let Some(class) = self.class(entry) else { continue };
            let has_test = self.corpus.entries.iter().any(|other| other.class == entry.class && other.load_hp == Some(TEST_HP));
            match entry.load_hp {
                Some(TEST_HP) => self.test("3hp", index, class, 0, entry.samples)?,
                Some(0..TEST_HP) if has_test => self.train(index, class, 0, entry.samples)?,
                // One record, normal at 0 hp: the exception of the protocol. A sixth of it lies between the two sides.
                Some(0) if entry.class == "N" => {
                    self.train(index, class, 0, entry.samples / 2)?;
                    self.test("3hp", index, class, entry.samples - entry.samples / 3, entry.samples)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn uestc(&mut self, trains: impl Fn(u32) -> bool) -> Result<(), SignalError> {
        for speed in SPEEDS_RPM {
            for (index, entry) in self.corpus.entries.iter().enumerate() {
                let Some(class) = self.class(entry).filter(|_| entry.rpm == Some(f64::from(speed))) else { continue };
                match (trains(speed), entry.part) {
                    (true, Some(1)) => self.train(index, class, 0, entry.samples)?,
                    (false, Some(2)) => self.test(&format!("{speed}rpm"), index, class, 0, entry.samples)?,
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn generic(&mut self) -> Result<(), SignalError> {
        if self.corpus.entries.iter().any(|entry| entry.role.is_some()) {
            return self.by_entry("test", |entry| entry.role);
        }
        for class in 0..self.split.classes.len() {
            let corpus = self.corpus;
            let of_class: Vec<usize> =
                (0..corpus.entries.len()).filter(|index| self.class(&corpus.entries[*index]) == Some(class)).collect();
            let tests = of_class.len().div_ceil(4).min(of_class.len().saturating_sub(1));
            for (position, &index) in of_class.iter().enumerate() {
                let samples = corpus.entries[index].samples;
                if position < of_class.len() - tests {
                    self.train(index, class, 0, samples)?;
                } else {
                    self.test("test", index, class, 0, samples)?;
                }
            }
        }
        Ok(())
    }

    /// Refuses a split in which a side lacks a class.
    fn checked(self) -> Result<Split, SignalError> {
        let split = self.split;
        let missing = |class: &str, side: &str| SignalError::MissingClass {
            protocol: split.name.clone(),
            class: class.to_string(),
            side: side.to_string(),
            path: self.corpus.root.clone(),
            remedy: "add recordings of it or choose another protocol",
        };
        if split.test.is_empty() {
            return Err(missing(split.classes.first().map_or("", String::as_str), "test"));
        }
        let sides = [("training", &split.train), ("holdout", &split.holdout)].into_iter();
        for (side, segments) in sides.chain(split.test.iter().map(|set| (set.name.as_str(), &set.segments))) {
            for (index, class) in split.classes.iter().enumerate() {
                if !segments.iter().any(|segment| segment.class == index) {
                    return Err(missing(class, side));
                }
            }
        }
        Ok(split)
    }
}
