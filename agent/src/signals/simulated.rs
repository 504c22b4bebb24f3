//! A simulated corpus: several machines, each with a bearing in every state, as NumPy files and a `corpus.json` that says what they are.
//!
//! Machines differ in resonances, paths, speed, load, noise and slip. The training machines cover each range evenly and independently, so that
//! no property tells the class; the test machines lie between them and just beyond, and none is ever trained on.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

use super::bearing::{Bearing, FaultOrders};
use super::corpus::{Entry, MAX_RECORDINGS, Role};
use super::error::SignalError;
use super::npy;
use super::recording::check_count;
use super::rng::Rng;
use super::simulator::{Condition, Fault, Machine, Mode};

/// The file that makes a folder a simulated corpus.
pub const MANIFEST: &str = "corpus.json";
/// Sampling rate of a simulated corpus, that of CWRU's recordings.
pub const RATE_HZ: f64 = 12_000.0;
const FORMAT: &str = "espalier-simulated-corpus";
const VERSION: u32 = 1;
const NOTICE: &str =
    "SIMULATED vibration of bearings that do not exist, made by espalier: for trying the program, never as evidence about real machines";
const MAX_MANIFEST_BYTES: u64 = 16 << 20;
const MAX_MACHINES: usize = 1000;
const MAX_SECONDS: f64 = 600.0;
/// Every file that a simulation writes, besides the manifest, starts so.
const PREFIX: &str = "sim-";

/// How much to simulate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SimulationOptions {
    /// Machines for training, calibration and holdout.
    pub training_machines: usize,
    /// Machines for test.
    pub test_machines: usize,
    /// Length of each training recording in seconds.
    pub training_seconds: f64,
    /// Length of each test recording in seconds.
    pub test_seconds: f64,
}

impl Default for SimulationOptions {
    fn default() -> Self {
        Self { training_machines: 8, test_machines: 3, training_seconds: 4.0, test_seconds: 2.0 }
    }
}

impl SimulationOptions {
    fn check(&self) -> Result<(), SignalError> {
        for (option, given) in
            [("the number of training machines", self.training_machines), ("the number of test machines", self.test_machines)]
        {
            if !(1..=MAX_MACHINES).contains(&given) {
                return Err(SignalError::BadOption { option, given: given.to_string(), expected: format!("1 to {MAX_MACHINES}") });
            }
        }
        for (option, given) in
            [("the length of training recordings", self.training_seconds), ("the length of test recordings", self.test_seconds)]
        {
            if !(0.2..=MAX_SECONDS).contains(&given) {
                return Err(SignalError::BadOption { option, given: format!("{given} s"), expected: format!("0.2 to {MAX_SECONDS} s") });
            }
        }
        Ok(())
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: String,
    version: u32,
    simulated: bool,
    notice: String,
    seed: u64,
    sample_rate_hz: f64,
    fault_orders: FaultOrders,
    machines: Vec<Machine>,
    recordings: Vec<RecordingEntry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct RecordingEntry {
    file: String,
    machine: String,
    role: Role,
    class: String,
    rpm: f64,
    load: f64,
    snr_db: f64,
    samples: usize,
}

/// Simulates a corpus into `dir`, which must be new, empty, or hold an earlier simulation. The same options and seed give the same bytes.
/// `corpus.json` is written last, so that a folder of an interrupted simulation is not taken for a corpus.
pub fn simulate_corpus(dir: &Path, options: &SimulationOptions, seed: u64) -> Result<(), SignalError> {
    options.check()?;
    prepare(dir)?;
    let mut rng = Rng::for_stream(seed, 0);
    let training = draw_machines("train", options.training_machines, (0.0, 1.0), &mut rng);
    let test = draw_machines("test", options.test_machines, (-0.08, 1.08), &mut rng);
    let (mut machines, mut recordings) = (Vec::new(), Vec::new());
    let sides = [(Role::Train, training, options.training_seconds), (Role::Test, test, options.test_seconds)];
    for (role, drawn, seconds) in sides {
        for Drawn { machine, rpm, load, snr_db } in drawn {
            for (number, fault) in Fault::ALL.into_iter().enumerate() {
                // A stream for each recording: its samples do not depend on how many there are.
                let stream = 1 + 2 * (machines.len() * Fault::ALL.len() + number) as u64 + u64::from(role == Role::Test);
                let mut rng = Rng::for_stream(seed, stream);
                let condition = Condition {
                    fault,
                    rpm: rpm * rng.between(0.995, 1.005),
                    load: (load + rng.between(-0.1, 0.1)).clamp(0.0, 1.0),
                    snr_db: snr_db + rng.between(-1.0, 1.0),
                };
                let samples = machine.record(&condition, RATE_HZ, (seconds * RATE_HZ) as usize, &mut rng);
                let file = format!("{PREFIX}{}-{}.npy", machine.id, fault.class());
                write_samples(&dir.join(&file), &samples)?;
                let (machine, class) = (machine.id.clone(), fault.class().to_string());
                let Condition { rpm, load, snr_db, .. } = condition;
                recordings.push(RecordingEntry { file, machine, role, class, rpm, load, snr_db, samples: samples.len() });
            }
            machines.push(machine);
        }
    }
    let manifest = Manifest {
        format: FORMAT.to_string(),
        version: VERSION,
        simulated: true,
        notice: NOTICE.to_string(),
        seed,
        sample_rate_hz: RATE_HZ,
        fault_orders: Bearing::SKF_6205.orders(),
        machines,
        recordings,
    };
    let path = dir.join(MANIFEST);
    let file = File::create(&path).map_err(SignalError::io(&path, "create"))?;
    let mut writer = BufWriter::new(file);
    serde_json::to_writer_pretty(&mut writer, &manifest).map_err(|error| SignalError::io(&path, "write")(error.into()))?;
    writer.flush().map_err(SignalError::io(&path, "write"))
}

/// Makes the folder and takes an earlier manifest away; refuses a folder with anything else in it.
fn prepare(dir: &Path) -> Result<(), SignalError> {
    fs::create_dir_all(dir).map_err(SignalError::io(dir, "make the folder"))?;
    for entry in fs::read_dir(dir).map_err(SignalError::io(dir, "list the folder"))? {
        let name = entry.map_err(SignalError::io(dir, "list the folder"))?.file_name();
        let name = name.to_string_lossy();
        if name != MANIFEST && !name.starts_with(PREFIX) {
            let given = format!("{}, which holds {name}", dir.display());
            let expected = "a new or empty folder, or one of an earlier simulation".to_string();
            return Err(SignalError::BadOption { option: "the folder to simulate into", given, expected });
        }
    }
    let manifest = dir.join(MANIFEST);
    if manifest.exists() {
        // Only a manifest that can be read as one of ours may be replaced.
        read_manifest(&manifest)?;
        fs::remove_file(&manifest).map_err(SignalError::io(&manifest, "remove"))?;
    }
    Ok(())
}

fn write_samples(path: &Path, samples: &[f32]) -> Result<(), SignalError> {
    let file = File::create(path).map_err(SignalError::io(path, "create"))?;
    npy::write(file, samples).map_err(SignalError::io(path, "write"))
}

/// A machine and the middle of its conditions.
struct Drawn {
    machine: Machine,
    rpm: f64,
    load: f64,
    snr_db: f64,
}

/// `count` machines whose properties each cover `range` (0 to 1 is what training sees) evenly, in an order of their own.
fn draw_machines(side: &str, count: usize, range: (f64, f64), rng: &mut Rng) -> Vec<Drawn> {
    let mut spread = |low: f64, high: f64| -> Vec<f64> {
        let mut places: Vec<usize> = (0..count).collect();
        rng.shuffle(&mut places);
        let place = |place: usize, within: f64| range.0 + (range.1 - range.0) * (place as f64 + within) / count as f64;
        places.into_iter().map(|index| low + (high - low) * place(index, rng.between(0.2, 0.8))).collect()
    };
    let rpm = spread(1500.0, 1800.0);
    let load = spread(0.1, 0.9);
    let snr_db = spread(4.0, 10.0);
    let frequencies = [spread(1150.0, 1550.0), spread(2500.0, 3200.0), spread(4200.0, 5000.0)];
    let dampings = [spread(0.035, 0.07), spread(0.03, 0.06), spread(0.03, 0.06)];
    let (colour, slip) = (spread(0.3, 0.8), spread(0.01, 0.02));
    let harmonics = [spread(0.2, 0.6), spread(0.1, 0.4), spread(0.05, 0.25)];
    // Rows: outer, inner, ball. The way from the outer race is the stiffest, that from a ball passes two contacts.
    let means = [[1.0, 0.4, 0.2], [0.35, 1.0, 0.35], [0.2, 0.4, 1.0]];
    let spreads: Vec<Vec<f64>> = (0..9).map(|_| spread(0.8, 1.25)).collect();
    (0..count)
        .map(|k| Drawn {
            machine: Machine {
                id: format!("{side}{:02}", k + 1),
                bearing: Bearing::SKF_6205,
                modes: std::array::from_fn(|mode| Mode { frequency_hz: frequencies[mode][k], damping: dampings[mode][k] }),
                paths: std::array::from_fn(|row| std::array::from_fn(|mode| means[row][mode] * spreads[3 * row + mode][k])),
                shaft_harmonics: std::array::from_fn(|harmonic| harmonics[harmonic][k]),
                noise_colour: colour[k],
                slip: slip[k],
            },
            rpm: rpm[k],
            load: load[k],
            snr_db: snr_db[k],
        })
        .collect()
}

fn read_manifest(path: &Path) -> Result<Manifest, SignalError> {
    const REMEDY: &str = "make the corpus again with the simulator";
    let file = File::open(path).map_err(SignalError::io(path, "open"))?;
    let bytes = file.metadata().map_err(SignalError::io(path, "measure"))?.len();
    if bytes > MAX_MANIFEST_BYTES {
        let (found, limit) = (format!("{bytes} bytes"), format!("{MAX_MANIFEST_BYTES} bytes"));
        return Err(SignalError::TooLarge { path: path.to_path_buf(), what: "the manifest", found, limit });
    }
    let manifest: Manifest = serde_json::from_reader(BufReader::new(file.take(MAX_MANIFEST_BYTES))).map_err(|error| {
        let place = format!("line {}, column {}", error.line(), error.column());
        SignalError::malformed(path, place, error.to_string(), "the manifest of a simulated corpus", REMEDY)
    })?;
    let bad = |problem: String, expected: &str| Err(SignalError::malformed(path, "manifest", problem, expected, REMEDY));
    if manifest.format != FORMAT || manifest.version != VERSION || !manifest.simulated {
        return bad(
            format!("format `{}`, version {}", manifest.format, manifest.version),
            "espalier-simulated-corpus, version 1, simulated",
        );
    }
    if manifest.recordings.is_empty() || manifest.recordings.len() > MAX_RECORDINGS {
        return bad(format!("{} recordings", manifest.recordings.len()), "1 to 100000 recordings");
    }
    if !(manifest.sample_rate_hz.is_finite() && manifest.sample_rate_hz > 0.0) {
        return bad(format!("a sampling rate of {} Hz", manifest.sample_rate_hz), "a positive one");
    }
    for recording in &manifest.recordings {
        let mut parts = Path::new(&recording.file).components();
        // A manifest from elsewhere must not make the program read outside its folder.
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            return bad(format!("the file `{}`", recording.file), "a plain file name in the corpus's folder");
        }
        check_count(path, recording.samples as u64)?;
    }
    Ok(manifest)
}

/// The recordings of the simulated corpus in `root`, in the order of the manifest.
pub(crate) fn entries(root: &Path) -> Result<Vec<Entry>, SignalError> {
    let manifest = read_manifest(&root.join(MANIFEST))?;
    let rate = manifest.sample_rate_hz;
    let entry = |recording: RecordingEntry| Entry {
        path: root.join(&recording.file),
        name: recording.file.trim_end_matches(".npy").to_string(),
        class: recording.class,
        samples: recording.samples,
        sample_rate_hz: Some(rate),
        rpm: Some(recording.rpm),
        load_hp: None,
        size_mil: None,
        part: None,
        machine: Some(recording.machine),
        role: Some(recording.role),
    };
    Ok(manifest.recordings.into_iter().map(entry).collect())
}
