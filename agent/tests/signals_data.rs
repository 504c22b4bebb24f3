//! The public bearing corpora read in full. They are not part of this repository: set `ESPALIER_DATA` to the folder that holds them.

use std::path::PathBuf;

use espalier_agent::signals::corpus::CorpusKind;
use espalier_agent::signals::windows::WINDOW;
use espalier_agent::signals::{Corpus, Protocol, ReadOptions, Sets, Split, TRAINING_HOP};

/// The folder of real data; none (with a line that says so) where it is absent, which on CI is a failure.
fn data() -> Option<PathBuf> {
    let folder = std::env::var_os("ESPALIER_DATA").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data")));
    if folder.join("cwru").is_dir() && folder.join("uestc").is_dir() {
        return Some(folder);
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{} lacks cwru/ and uestc/: set ESPALIER_DATA", folder.display());
    println!("skipped: no bearing data in {}; set ESPALIER_DATA", folder.display());
    None
}

#[test]
fn every_recording_reads_with_its_length_rate_and_speed() {
    let Some(data) = data() else { return };
    let mut failures = Vec::new();
    for (name, kind, count) in [("cwru", CorpusKind::Cwru, 37), ("uestc", CorpusKind::Uestc, 32)] {
        let corpus = Corpus::open(&data.join(name)).unwrap();
        assert_eq!((corpus.kind, corpus.entries.len()), (kind, count));
        assert_eq!(corpus.classes(), ["N", "B", "IR", "OR"]);
        for (index, entry) in corpus.entries.iter().enumerate() {
            let recording = match corpus.read(index) {
                Ok(recording) => recording,
                Err(error) => {
                    failures.push(error.to_string());
                    continue;
                }
            };
            let samples = recording.samples.len();
            let right = match kind {
                CorpusKind::Cwru => {
                    let length = if entry.class == "N" { samples == 243_938 } else { (121_000..123_000).contains(&samples) };
                    let rpm = recording.rpm.is_some_and(|rpm| (1700.0..1800.0).contains(&rpm));
                    length && rpm && entry.sample_rate_hz == Some(12_000.0) && recording.load_hp == entry.load_hp
                }
                _ => {
                    samples == 262_144
                        && entry.sample_rate_hz == Some(20_000.0)
                        && [800.0, 1000.0, 1200.0, 1400.0].map(Some).contains(&recording.rpm)
                }
            };
            let finite = recording.samples.iter().all(|sample| sample.is_finite() && sample.abs() < 100.0);
            if !right || !finite || entry.samples != samples {
                failures.push(format!("{}: {samples} samples, {:?} rpm, finite {finite}", entry.name, recording.rpm));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// Windows by class in training (hop 512), holdout, and each test set.
#[test]
fn windows_of_every_split_are_counted() {
    let Some(data) = data() else { return };
    let scratch = tempfile::tempdir().unwrap();
    let mut failures = Vec::new();
    let cases: [(&str, [usize; 3]); 12] = [
        ("cwru-load", [5123, 308, 571]),
        ("cwru-size:007", [4393, 264, 709]),
        ("cwru-size:014", [4393, 265, 708]),
        ("cwru-size:021", [4392, 265, 708]),
        ("uestc-speed:800", [1608, 100, 1536]),
        ("uestc-speed:1000", [1608, 100, 1536]),
        ("uestc-speed:1200", [1608, 100, 1536]),
        ("uestc-speed:1400", [1608, 100, 1536]),
        ("uestc-3to1:800", [4824, 300, 512]),
        ("uestc-3to1:1000", [4824, 300, 512]),
        ("uestc-3to1:1200", [4824, 300, 512]),
        ("uestc-3to1:1400", [4824, 300, 512]),
    ];
    for (name, wanted) in cases {
        let protocol: Protocol = name.parse().unwrap();
        // The folder holds both corpora: the protocol says which.
        let corpus = Corpus::open_with(&data, Some(&protocol), &ReadOptions::default()).unwrap();
        let split = Split::new(&corpus, &protocol, WINDOW).unwrap();
        let sets = Sets::open(&corpus, &split, scratch.path(), TRAINING_HOP).unwrap();
        for set in [&sets.train, &sets.holdout].into_iter().chain(&sets.tests) {
            if let Err(error) = set.check(&|recording| format!("recording {recording}")) {
                failures.push(format!("{name}: {error}"));
            }
        }
        let got = [sets.train.len(), sets.holdout.len(), sets.tests.iter().map(|set| set.len()).sum()];
        println!(
            "{name}: {got:?} by class {:?} {:?} {:?}",
            sets.train.class_counts(4),
            sets.holdout.class_counts(4),
            sets.tests.iter().map(|set| set.class_counts(4)).collect::<Vec<_>>()
        );
        if got != wanted {
            failures.push(format!("{name}: {got:?}, expected {wanted:?}"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
