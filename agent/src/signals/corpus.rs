//! A folder of recordings: which layout it has, and what is known of each recording before any sample is read.
//!
//! Four layouts are known:
//! * **CWRU**: files `{class}{size}_{load}hp_{record}.mat`, 12 kHz, in the folder or in its folder `cwru/`;
//! * **UESTC**: files `{class}_{rpm}_{part}.mat`, 20 kHz, in the folder or in its folder `uestc/`;
//! * **simulated**: a `corpus.json` written by [`simulate_corpus`](super::simulate_corpus);
//! * **generic**: one folder per class with recordings of any format in it, or the folders `train/` and `test/` with such folders in each.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use super::error::SignalError;
use super::naming::{CwruName, UestcName};
use super::read::{EXTENSIONS, read_recording_with, summarise};
use super::recording::{ReadOptions, Recording, stem};
use super::simulated;
use super::splits::{Protocol, Split};
use super::store::{SampleStore, StoreWriter};

/// Most recordings of a corpus.
pub const MAX_RECORDINGS: usize = 100_000;
/// The classes of the bearing corpora, in the order of their indices.
pub const BEARING_CLASSES: [&str; 4] = ["N", "B", "IR", "OR"];

/// The layout of a corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CorpusKind {
    /// Case Western Reserve University, Bearing Data Center.
    Cwru,
    /// University of Electronic Science and Technology of China.
    Uestc,
    /// Written by this program's simulator. Everything that shows results on it must say so.
    Simulated,
    /// A folder per class.
    Generic,
}

impl fmt::Display for CorpusKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cwru => "CWRU bearing data",
            Self::Uestc => "UESTC bearing data",
            Self::Simulated => "SIMULATED bearing data",
            Self::Generic => "a folder per class",
        })
    }
}

/// The side that a corpus itself gives a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// For training, calibration and holdout.
    Train,
    /// For test only.
    Test,
}

/// One recording of a corpus, without its samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The file.
    pub path: PathBuf,
    /// The file's name without extension.
    pub name: String,
    /// Its class.
    pub class: String,
    /// How many samples it has.
    pub samples: usize,
    /// Samples a second, where known.
    pub sample_rate_hz: Option<f64>,
    /// Shaft turns a minute, where known; for UESTC the nominal speed that the protocols name.
    pub rpm: Option<f64>,
    /// CWRU: motor load in horsepower.
    pub load_hp: Option<u32>,
    /// CWRU: fault diameter in thousandths of an inch.
    pub size_mil: Option<u32>,
    /// UESTC: part of the continuous recording.
    pub part: Option<u32>,
    /// Simulated: the machine.
    pub machine: Option<String>,
    /// Simulated and generic with `train/` and `test/`: the side it belongs to.
    pub role: Option<Role>,
}

/// A recognised folder of recordings.
#[derive(Debug, Clone)]
pub struct Corpus {
    /// The folder that holds the recordings.
    pub root: PathBuf,
    /// Its layout.
    pub kind: CorpusKind,
    /// Its recordings, sorted by path.
    pub entries: Vec<Entry>,
    options: ReadOptions,
}

impl Corpus {
    /// Recognises `root` and reads the headers of its recordings.
    pub fn open(root: &Path) -> Result<Self, SignalError> {
        Self::open_with(root, None, &ReadOptions::default())
    }

    /// The same, choosing signals by `options`; where `root` holds both `cwru/` and `uestc/`, `protocol` decides.
    pub fn open_with(root: &Path, protocol: Option<&Protocol>, options: &ReadOptions) -> Result<Self, SignalError> {
        let (folders, files) = list(root)?;
        if files.iter().any(|file| file.file_name().is_some_and(|name| name == simulated::MANIFEST)) {
            return Ok(Self {
                root: root.to_path_buf(),
                kind: CorpusKind::Simulated,
                entries: simulated::entries(root)?,
                options: options.clone(),
            });
        }
        let is_cwru = |files: &[PathBuf]| files.iter().any(|file| CwruName::parse(&stem(file)).is_some());
        let is_uestc = |files: &[PathBuf]| files.iter().any(|file| UestcName::parse(&stem(file)).is_some());
        let named = |name: &str| folders.iter().find(|folder| folder.file_name().is_some_and(|found| found == name)).cloned();
        let below = |name: &str, test: &dyn Fn(&[PathBuf]) -> bool| -> Result<Option<(PathBuf, Vec<PathBuf>)>, SignalError> {
            let Some(folder) = named(name) else { return Ok(None) };
            let files = list(&folder)?.1;
            Ok(test(&files).then_some((folder, files)))
        };
        let here = (root.to_path_buf(), files);
        let cwru = if is_cwru(&here.1) { Some(here.clone()) } else { below("cwru", &is_cwru)? };
        let uestc = if is_uestc(&here.1) { Some(here) } else { below("uestc", &is_uestc)? };
        let wanted = protocol.map(Protocol::kind);
        let (kind, root, entries) = match (cwru, uestc) {
            (Some(_), Some(_)) if !matches!(wanted, Some(CorpusKind::Cwru | CorpusKind::Uestc)) => {
                let detail =
                    "it holds both CWRU and UESTC recordings: give one of the two folders, or a protocol of one of them".to_string();
                return Err(SignalError::UnknownLayout { path: root.to_path_buf(), detail });
            }
            (Some((root, files)), uestc) if uestc.is_none() || wanted == Some(CorpusKind::Cwru) => {
                let entries = files.iter().filter_map(|file| cwru_entry(file, options)).collect::<Result<_, _>>()?;
                (CorpusKind::Cwru, root, entries)
            }
            (_, Some((root, files))) => {
                let entries = files.iter().filter_map(|file| uestc_entry(file, options)).collect::<Result<_, _>>()?;
                (CorpusKind::Uestc, root, entries)
            }
            _ => (CorpusKind::Generic, root.to_path_buf(), generic_entries(root, &folders, options)?),
        };
        Ok(Self { root, kind, entries, options: options.clone() })
    }

    /// A corpus of entries that are known already; nothing is read.
    pub fn from_entries(root: &Path, kind: CorpusKind, entries: Vec<Entry>) -> Self {
        Self { root: root.to_path_buf(), kind, entries, options: ReadOptions::default() }
    }

    /// The classes that occur: those of a bearing corpus in the order of [`BEARING_CLASSES`], others by name.
    pub fn classes(&self) -> Vec<String> {
        let mut classes: Vec<String> = self.entries.iter().map(|entry| entry.class.clone()).collect();
        classes.sort_by_key(|class| (BEARING_CLASSES.iter().position(|known| known == class).unwrap_or(usize::MAX), class.clone()));
        classes.dedup();
        classes
    }

    /// Reads the samples of the recording at `index` of [`Self::entries`].
    pub fn read(&self, index: usize) -> Result<Recording, SignalError> {
        let Some(entry) = self.entries.get(index) else {
            let expected = format!("a recording from 0 to {}", self.entries.len().saturating_sub(1));
            return Err(SignalError::BadOption { option: "the recording", given: index.to_string(), expected });
        };
        let mut recording = read_recording_with(&entry.path, &self.options)?;
        if recording.samples.len() != entry.samples {
            let problem = format!("{} samples", recording.samples.len());
            let expected = format!("{} samples, as the corpus says", entry.samples);
            return Err(SignalError::malformed(
                &entry.path,
                "the end",
                problem,
                expected,
                "the file or corpus.json was changed: make the corpus again",
            ));
        }
        recording.class = Some(entry.class.clone());
        (recording.sample_rate_hz, recording.rpm) = (entry.sample_rate_hz, entry.rpm);
        Ok(recording)
    }

    /// Reads the recordings that `split` uses, one at a time, into a store in `folder`. Recordings keep their numbers; unused ones are empty.
    pub fn store(&self, split: &Split, folder: &Path) -> Result<SampleStore, SignalError> {
        let mut used = vec![false; self.entries.len()];
        for segment in split.segments() {
            if let Some(used) = used.get_mut(segment.recording) {
                *used = true;
            }
        }
        let mut writer = StoreWriter::new(folder)?;
        for (index, used) in used.into_iter().enumerate() {
            if used {
                writer.push(&self.read(index)?.samples)?;
            } else {
                writer.push(&[])?;
            }
        }
        writer.finish()
    }
}

/// Folders and files of a folder, each sorted by name; hidden ones are passed over.
fn list(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), SignalError> {
    let (mut folders, mut files) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(folder).map_err(SignalError::io(folder, "list the folder"))? {
        let entry = entry.map_err(SignalError::io(folder, "list the folder"))?;
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let path = entry.path();
        // Follows links, so that a corpus may be made of links into a data disk.
        let kind = fs::metadata(&path).map_err(SignalError::io(&path, "look at"))?;
        if kind.is_dir() {
            folders.push(path)
        } else {
            files.push(path)
        }
        if files.len() > MAX_RECORDINGS || folders.len() > MAX_RECORDINGS {
            let (found, limit) = (format!("over {MAX_RECORDINGS}"), format!("{MAX_RECORDINGS} files"));
            return Err(SignalError::TooLarge { path: folder.to_path_buf(), what: "the number of files in the folder", found, limit });
        }
    }
    folders.sort();
    files.sort();
    Ok((folders, files))
}

fn entry(path: &Path, class: &str, options: &ReadOptions) -> Result<Entry, SignalError> {
    let summary = summarise(path, options)?;
    Ok(Entry {
        path: path.to_path_buf(),
        name: stem(path),
        class: class.to_string(),
        samples: summary.samples,
        sample_rate_hz: summary.sample_rate_hz,
        rpm: summary.rpm,
        load_hp: None,
        size_mil: None,
        part: None,
        machine: None,
        role: None,
    })
}

fn cwru_entry(path: &Path, options: &ReadOptions) -> Option<Result<Entry, SignalError>> {
    let name = CwruName::parse(&stem(path)).filter(|_| path.extension().is_some_and(|extension| extension == "mat"))?;
    let known = |entry| Entry { load_hp: Some(name.load_hp), size_mil: Some(name.size_mil), ..entry };
    Some(entry(path, name.class, options).map(known))
}

fn uestc_entry(path: &Path, options: &ReadOptions) -> Option<Result<Entry, SignalError>> {
    let name = UestcName::parse(&stem(path)).filter(|_| path.extension().is_some_and(|extension| extension == "mat"))?;
    Some(entry(path, name.class, options).map(|entry| Entry { rpm: Some(f64::from(name.rpm)), part: Some(name.part), ..entry }))
}

fn generic_entries(root: &Path, folders: &[PathBuf], options: &ReadOptions) -> Result<Vec<Entry>, SignalError> {
    let named = |name: &str| folders.iter().find(|folder| folder.file_name().is_some_and(|found| found == name));
    let mut entries = Vec::new();
    match (named("train"), named("test")) {
        (Some(train), Some(test)) => {
            for (side, role) in [(train, Role::Train), (test, Role::Test)] {
                class_folders(&list(side)?.0, Some(role), options, &mut entries)?;
            }
        }
        _ => class_folders(folders, None, options, &mut entries)?,
    }
    let detail = match entries.iter().map(|entry| &entry.class).collect::<std::collections::BTreeSet<_>>().len() {
        0 => "no recording was found in any folder below it",
        1 => "recordings of one class only were found, and telling classes apart takes two",
        _ => return Ok(entries),
    };
    Err(SignalError::UnknownLayout { path: root.to_path_buf(), detail: detail.to_string() })
}

fn class_folders(folders: &[PathBuf], role: Option<Role>, options: &ReadOptions, entries: &mut Vec<Entry>) -> Result<(), SignalError> {
    for folder in folders {
        let class = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        for file in list(folder)?.1 {
            let extension = file.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
            if EXTENSIONS.contains(&extension.as_str()) {
                entries.push(Entry { role, ..entry(&file, &class, options)? });
            }
        }
    }
    Ok(())
}
