//! Splits leak nothing, windows are counted, and streams are cut the same whatever the pieces.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use espalier_agent::signals::corpus::{BEARING_CLASSES, Corpus, CorpusKind, Entry, Role};
use espalier_agent::signals::store::StoreWriter;
use espalier_agent::signals::windows::{TRAINING_HOP, WINDOW};
use espalier_agent::signals::{BadWindow, Noise, Protocol, Segment, Sets, SignalError, Split, WindowSet, Windower, npy};
use proptest::prelude::*;

fn entry(name: String, class: &str, samples: usize) -> Entry {
    Entry {
        path: PathBuf::from(&name),
        name,
        class: class.to_string(),
        samples,
        sample_rate_hz: None,
        rpm: None,
        load_hp: None,
        size_mil: None,
        part: None,
        machine: None,
        role: None,
    }
}

/// A corpus shaped as the real one, its lengths taken in turn from `lengths`.
fn corpus(kind: CorpusKind, lengths: &[usize]) -> Corpus {
    let mut entries = Vec::new();
    let mut lengths = lengths.iter().copied().cycle();
    let mut push = |class: &str, change: &dyn Fn(&mut Entry)| {
        let mut entry = entry(format!("recording{}", entries.len()), class, lengths.next().unwrap());
        change(&mut entry);
        entries.push(entry);
    };
    for class in BEARING_CLASSES {
        match kind {
            CorpusKind::Cwru if class == "N" => push("N", &|entry| (entry.load_hp, entry.size_mil) = (Some(0), Some(0))),
            CorpusKind::Cwru => [7, 14, 21].into_iter().for_each(|size| {
                (0..4).for_each(|load| push(class, &|entry| (entry.load_hp, entry.size_mil) = (Some(load), Some(size))));
            }),
            CorpusKind::Uestc => [800.0, 1000.0, 1200.0, 1400.0].into_iter().for_each(|rpm| {
                (1..3).for_each(|part| push(class, &|entry| (entry.rpm, entry.part) = (Some(rpm), Some(part))));
            }),
            CorpusKind::Simulated => {
                [Role::Train, Role::Train, Role::Test].into_iter().for_each(|role| push(class, &|entry| entry.role = Some(role)))
            }
            CorpusKind::Generic => (0..5).for_each(|_| push(class, &|_| ())),
        }
    }
    Corpus::from_entries(Path::new("data"), kind, entries)
}

fn every_protocol() -> Vec<Protocol> {
    ["cwru-load", "cwru-size", "uestc-speed", "uestc-3to1", "simulated", "generic"]
        .into_iter()
        .flat_map(|name| Protocol::rotations(name).unwrap())
        .collect()
}

fn apart(a: &Segment, b: &Segment, gap: usize) -> bool {
    a.recording != b.recording || a.end + gap <= b.start || b.end + gap <= a.start
}

/// What leaks in a split; empty is good.
fn leaks(corpus: &Corpus, split: &Split) -> Vec<String> {
    let mut leaks = Vec::new();
    let training: Vec<&Segment> = split.train.iter().chain(&split.holdout).collect();
    for test in split.test.iter().flat_map(|set| &set.segments) {
        for other in &training {
            // Only normal of cwru-load may have both sides in one recording, and then far apart.
            let shared = split.name == "cwru-load" && split.classes[test.class] == "N";
            if !apart(test, other, split.window) || (test.recording == other.recording && !shared) {
                leaks.push(format!("{}: {test:?} {other:?}", split.name));
            }
        }
    }
    for train in &split.train {
        for holdout in split.holdout.iter().filter(|holdout| !apart(train, holdout, split.window)) {
            leaks.push(format!("{}: {train:?} {holdout:?}", split.name));
        }
    }
    for segment in split.segments() {
        let entry = &corpus.entries[segment.recording];
        if segment.end > entry.samples || segment.end - segment.start < split.window || split.classes[segment.class] != entry.class {
            leaks.push(format!("{}: {segment:?} of {entry:?}", split.name));
        }
    }
    leaks
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn no_split_leaks(window in 2usize..4096, extra in prop::collection::vec(0usize..100_000, 1..12)) {
        // Normal of cwru-load gives half its record to training, which must hold five windows.
        let lengths: Vec<usize> = extra.iter().map(|extra| 10 * window + 1 + extra).collect();
        for protocol in every_protocol() {
            let corpus = corpus(protocol.kind(), &lengths);
            let split = Split::new(&corpus, &protocol, window).unwrap();
            prop_assert_eq!(leaks(&corpus, &split), Vec::<String>::new());
            prop_assert_eq!(&split.name, &protocol.to_string());
        }
    }

    #[test]
    fn a_stream_is_cut_the_same_whatever_the_pieces(
        length in 2usize..40,
        hop_share in 0.0f64..1.0,
        pieces in prop::collection::vec(0usize..100, 0..20),
    ) {
        let hop = 1 + ((length - 1) as f64 * hop_share) as usize;
        let stream: Vec<f32> = (0..pieces.iter().sum::<usize>()).map(|i| i as f32).collect();
        let mut windower = Windower::new(length, hop).unwrap();
        let mut got = Vec::new();
        let mut rest = stream.as_slice();
        for piece in pieces {
            let (mut piece, after) = rest.split_at(piece);
            rest = after;
            while let Some(window) = windower.next_window(&mut piece) {
                prop_assert_eq!(window.sequence, got.len() as u64);
                prop_assert_eq!(window.start, (got.len() * hop) as u64);
                got.push(window.samples.to_vec());
            }
            prop_assert!(piece.is_empty());
        }
        let wanted: Vec<Vec<f32>> = (0..).map(|k| k * hop).take_while(|start| start + length <= stream.len()).map(|start| stream[start..start + length].to_vec()).collect();
        prop_assert_eq!(got, wanted);
    }
}

#[test]
fn normal_of_cwru_load_is_halved_and_the_rest_is_by_load() {
    let corpus = corpus(CorpusKind::Cwru, &[120_000]);
    let split = Split::new(&corpus, &Protocol::CwruLoad, WINDOW).unwrap();
    let normal = |segments: &[Segment]| {
        segments.iter().filter(|segment| segment.class == 0).map(|segment| (segment.start, segment.end)).collect::<Vec<_>>()
    };
    assert_eq!(normal(&split.train), [(0, 48_000 - WINDOW)]);
    assert_eq!(normal(&split.holdout), [(48_000, 60_000)]);
    assert_eq!(normal(&split.test[0].segments), [(80_000, 120_000)]);
    assert_eq!((split.train.len(), split.holdout.len(), split.test[0].segments.len()), (28, 28, 10));
    assert_eq!((split.test[0].name.as_str(), split.test[0].without_class(0).segments.len()), ("3hp", 9));
    assert_eq!(split.classes, BEARING_CLASSES);
}

#[test]
fn each_target_speed_is_a_test_set() {
    let corpus = corpus(CorpusKind::Uestc, &[262_144]);
    let split = Split::new(&corpus, &Protocol::UestcSpeed { train_rpm: 800 }, WINDOW).unwrap();
    let names: Vec<&str> = split.test.iter().map(|set| set.name.as_str()).collect();
    assert_eq!(names, ["1000rpm", "1200rpm", "1400rpm"]);
    assert!(split.test.iter().all(|set| set.segments.len() == 4) && split.train.len() == 4);
    let split = Split::new(&corpus, &Protocol::Uestc3to1 { test_rpm: 1400 }, WINDOW).unwrap();
    assert_eq!((split.train.len(), split.test.len(), split.test[0].name.as_str()), (12, 1, "1400rpm"));
}

#[test]
fn what_a_protocol_lacks_is_named() {
    let refusal = |corpus: &Corpus, protocol: &str, window: usize| match protocol
        .parse::<Protocol>()
        .and_then(|protocol| Split::new(corpus, &protocol, window))
    {
        Ok(split) => format!("split without an error: {}", split.name),
        Err(error) => error.to_string(),
    };
    let full = corpus(CorpusKind::Cwru, &[120_000]);
    let without = |keep: &dyn Fn(&Entry) -> bool| {
        Corpus::from_entries(Path::new("data"), CorpusKind::Cwru, full.entries.iter().filter(|entry| keep(entry)).cloned().collect())
    };
    let single = Corpus::from_entries(
        Path::new("data"),
        CorpusKind::Generic,
        ["a", "a", "b"].map(|class| entry(class.into(), class, 50_000)).to_vec(),
    );
    let cases = [
        (refusal(&without(&|entry| entry.class != "N"), "cwru-load", 2048), "class N has no recording for training"),
        (
            refusal(&without(&|entry| entry.class != "B" || entry.size_mil != Some(14)), "cwru-size:014", 2048),
            "class B has no recording for 014",
        ),
        (
            refusal(&without(&|entry| entry.class != "OR" || entry.load_hp == Some(3)), "cwru-load", 2048),
            "class OR has no recording for training",
        ),
        (refusal(&Corpus::from_entries(Path::new("data"), CorpusKind::Cwru, Vec::new()), "cwru-load", 2048), "has no recording"),
        (refusal(&single, "generic", 2048), "class b has no recording for test"),
        (refusal(&full, "uestc-speed:800", 2048), "use one of: cwru-load"),
        (refusal(&full, "cwru-load", 30_000), "expected at least 150000 for five windows"),
        (refusal(&full, "cwru-load", 0), "the window is 0 samples"),
        (refusal(&full, "cwru-load", usize::MAX), "expected 2 to"),
        (refusal(&full, "cwru-size", 2048), "not known"),
        (refusal(&full, "cwru-size:008", 2048), "not known"),
        (refusal(&full, "simulated:3", 2048), "not known"),
    ];
    let failures: Vec<_> = cases.into_iter().filter(|(got, wanted)| !got.contains(wanted)).collect();
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn protocols_come_back_from_their_names() {
    let protocols = every_protocol();
    assert_eq!(protocols.len(), 1 + 3 + 4 + 4 + 1 + 1);
    for protocol in protocols {
        assert_eq!(protocol.to_string().parse::<Protocol>().unwrap(), protocol);
    }
}

fn write_npy(path: &Path, samples: &[f32]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    npy::write(std::fs::File::create(path).unwrap(), samples).unwrap();
}

#[test]
fn a_folder_per_class_is_a_corpus_and_its_windows_are_what_was_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let signal = |offset: usize| (0..1000).map(|i| (offset + i) as f32).collect::<Vec<f32>>();
    for (number, name) in ["fan/a", "fan/b", "pump/a", "pump/b"].into_iter().enumerate() {
        write_npy(&folder.path().join(format!("{name}.npy")), &signal(10_000 * number));
    }
    std::fs::write(folder.path().join("fan/notes.md"), "not a recording").unwrap();
    let corpus = Corpus::open(folder.path()).unwrap();
    assert_eq!(
        (corpus.kind, corpus.classes(), corpus.entries.len()),
        (CorpusKind::Generic, vec!["fan".to_string(), "pump".to_string()], 4)
    );
    let split = Split::new(&corpus, &Protocol::Generic, 64).unwrap();
    let sets = Sets::open(&corpus, &split, folder.path(), 16).unwrap();
    // Train is 800 − 64 samples of each first recording, holdout 200, test all 1000 of each second one.
    assert_eq!((sets.train.len(), sets.holdout.len(), sets.tests[0].len()), (2 * 43, 2 * 3, 2 * 15));
    assert_eq!(sets.train.class_counts(2), [43, 43]);
    let mut window = vec![0.0; 64];
    assert_eq!(sets.train.raw_window(44, &mut window), 1);
    assert_eq!((window[0], window[63]), (20_016.0, 20_079.0));
    assert_eq!(sets.tests[0].raw_window(1, &mut window), 0);
    assert_eq!(window[0], 10_064.0);
    sets.train.store().release().unwrap();
    assert_eq!(sets.tests[0].window(1, &mut window), Ok(0));
    assert!(window.iter().sum::<f32>().abs() < 1e-3);
}

#[test]
fn train_and_test_folders_decide_where_they_exist() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["train/x/1", "train/y/1", "test/x/2", "test/y/2"] {
        write_npy(&folder.path().join(format!("{name}.npy")), &[0.5; 600]);
    }
    let corpus = Corpus::open(folder.path()).unwrap();
    let split = Split::new(&corpus, &Protocol::Generic, 100).unwrap();
    let in_test = |segment: &Segment| corpus.entries[segment.recording].path.components().any(|part| part.as_os_str() == "test");
    assert!(split.test[0].segments.iter().all(in_test) && !split.train.iter().any(in_test));
}

#[test]
fn folders_that_are_no_corpus_say_what_is_expected() {
    let folder = tempfile::tempdir().unwrap();
    let sentence = |result: Result<Corpus, SignalError>| result.map(|corpus| corpus.kind).unwrap_err().to_string();
    assert!(sentence(Corpus::open(folder.path())).contains("one folder per class"));
    write_npy(&folder.path().join("only/a.npy"), &[0.5; 600]);
    assert!(sentence(Corpus::open(folder.path())).contains("one class only"));
    std::fs::write(folder.path().join("corpus.json"), "{").unwrap();
    assert!(sentence(Corpus::open(folder.path())).contains("line 1, column"));
    assert!(sentence(Corpus::open(&folder.path().join("none"))).contains("cannot list"));
}

#[test]
fn bad_windows_are_values_and_noise_follows_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = StoreWriter::new(folder.path()).unwrap();
    let mut samples: Vec<f32> = (0..400).map(|i| (i as f32 * 0.3).sin()).collect();
    samples[100..200].fill(1.0);
    samples[250] = f32::NAN;
    writer.push(&samples).unwrap();
    let store = Arc::new(writer.finish().unwrap());
    let all = [Segment { recording: 0, class: 3, start: 0, end: 400 }];
    let noise = Some(Noise { snr_db: 0.0, seed: 1 });
    let clean = WindowSet::new(store.clone(), &all, 100, 100).unwrap();
    let noisy = clean.clone().with_noise(noise);
    let late = WindowSet::new(store.clone(), &[Segment { start: 300, ..all[0] }], 100, 100).unwrap().with_noise(noise);
    let (mut a, mut b) = (vec![0.0; 100], vec![0.0; 100]);
    for set in [&clean, &noisy] {
        let got: Vec<_> = (0..4).map(|index| set.window(index, &mut a)).collect();
        assert_eq!(got, [Ok(3), Err(BadWindow::Constant), Err(BadWindow::NotFinite { index: 50 }), Ok(3)]);
    }
    assert!(clean.check(&|recording| format!("recording {recording}")).unwrap_err().to_string().contains("at sample 100"));
    noisy.window(3, &mut a).unwrap();
    late.window(0, &mut b).unwrap();
    assert_eq!(a, b);
    clean.window(3, &mut b).unwrap();
    assert_ne!(a, b);
    let outside = WindowSet::new(store, &[Segment { end: 401, ..all[0] }], 100, TRAINING_HOP.min(100));
    assert!(outside.is_err());
}
