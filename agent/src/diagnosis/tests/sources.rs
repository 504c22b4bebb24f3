//! Files, folders, pipes, and what is refused.

use std::io::Write;

use super::*;

/// A mono 16-bit WAV file of noise.
fn write_wav(path: &Path, rate_hz: u32, windows: usize) {
    let data: Vec<u8> = noise(windows).iter().flat_map(|sample| ((sample * 1000.0) as i16).to_le_bytes()).collect();
    let mut file = fs_file(path);
    let mut put = |bytes: &[u8]| file.write_all(bytes).unwrap();
    put(b"RIFF");
    put(&(36 + data.len() as u32).to_le_bytes());
    put(b"WAVEfmt \x10\0\0\0\x01\0\x01\0");
    put(&rate_hz.to_le_bytes());
    put(&(2 * rate_hz).to_le_bytes());
    put(b"\x02\0\x10\0data");
    put(&(data.len() as u32).to_le_bytes());
    put(&data);
}

fn fs_file(path: &Path) -> std::fs::File {
    std::fs::File::create(path).unwrap()
}

fn format() -> WindowFormat {
    WindowFormat { window: WINDOW, hop: WINDOW, sample_rate_hz: 12_000.0, classes: vec!["up".to_string()] }
}

#[test]
fn a_recording_at_another_rate_is_refused_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pump.wav");
    for (rate, accepted) in [(12_000, true), (11_900, true), (12_121, false), (48_000, false)] {
        write_wav(&path, rate, 3);
        let source = Box::new(Recordings::open(std::slice::from_ref(&path)).unwrap());
        let started = Diagnosis::start(Options::default(), Box::new(FakeEngine::new(1)), source, Vec::new());
        match started {
            Ok(mut handle) => assert!(accepted && handle.wait().unwrap().judged == 3, "{rate}"),
            Err(error) => {
                let text = error.to_string();
                assert!(!accepted, "{rate}: {text}");
                for part in ["pump.wav", &format!("{rate} Hz"), "expected 12000 Hz", "record at that rate, or train a model"] {
                    assert!(text.contains(part), "{rate}: {text}");
                }
            }
        }
    }
}

#[test]
fn only_recordings_that_are_read_whole_are_held() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs_file(&at("day.f32")).write_all(&[0; 1 << 20]).unwrap();
    let bytes = |names: &[&str]| Recordings::open(&names.iter().map(|name| at(name)).collect::<Vec<_>>()).unwrap().largest_bytes();
    assert_eq!(bytes(&["day.f32"]).unwrap(), 0);
    write_wav(&at("short.wav"), 12_000, 2);
    write_wav(&at("long.wav"), 12_000, 5);
    assert_eq!(bytes(&["short.wav", "day.f32", "long.wav"]).unwrap(), 4 * 5 * WINDOW as u64);
    fs_file(&at("table.csv")).write_all(b"1,2\nx").unwrap();
    fs_file(&at("cut.npy")).write_all(b"\x93NUMPY").unwrap();
    for broken in ["table.csv", "cut.npy"] {
        let error = bytes(&["short.wav", broken]).expect_err(broken).to_string();
        assert!(error.contains(broken), "{error}");
    }
}

#[test]
fn files_and_folders_are_read_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let raw = |name: &str, windows: usize| {
        let bytes: Vec<u8> = noise(windows).iter().flat_map(|sample| sample.to_le_bytes()).collect();
        fs_file(&folder.path().join(name)).write_all(&bytes).unwrap();
    };
    raw("b.f32", 700);
    raw("a.raw", 2);
    raw("notes.md", 1);
    let last = folder.path().join("b.f32");
    let recordings = Recordings::open(&[folder.path().to_path_buf(), last]).unwrap();
    let names: Vec<_> = recordings.clips().iter().map(|clip| clip.path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["a.raw", "b.f32", "b.f32"]);
    let (snapshot, heard) = run(Options::default(), FakeEngine::new(1), Box::new(recordings));
    assert_eq!(snapshot.judged, 2 + 700 + 700);
    let counts = [0, 1, 2].map(|recording| heard.verdicts.iter().filter(|verdict| verdict.recording == recording).count());
    assert_eq!(counts, [2, 700, 700]);
}

#[test]
fn classes_of_a_simulated_corpus_score_the_verdicts() {
    let folder = tempfile::tempdir().unwrap();
    let few = crate::signals::SimulationOptions { training_machines: 1, test_machines: 1, training_seconds: 0.2, test_seconds: 0.2 };
    crate::signals::simulate_corpus(folder.path(), &few, 1).unwrap();
    let engine = FakeEngine { classes: ["N", "IR"].map(str::to_string).to_vec(), ..FakeEngine::new(1) };
    let recordings = Recordings::open(&[folder.path().to_path_buf()]).unwrap();
    let (snapshot, _) = run(Options::default(), engine, Box::new(recordings));
    // Two of four classes are the model's.
    assert_eq!((snapshot.judged, snapshot.labelled), (8 * 150, 4 * 150));
}

#[test]
fn a_file_that_cannot_be_read_ends_the_run_with_its_sentence_after_what_came_before() {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["a.f32", "b.f32"].map(|name| folder.path().join(name));
    fs_file(&paths[0]).write_all(&noise(2).iter().flat_map(|sample| sample.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
    fs_file(&paths[1]).write_all(&[0; 8]).unwrap();
    let source = Box::new(Recordings::open(&paths).unwrap());
    let mut handle = Diagnosis::start(Options::default(), Box::new(FakeEngine::new(1)), source, Vec::new()).unwrap();
    assert_eq!(handle.wait().unwrap().judged, 2, "a short file has no window and is no error");
    std::fs::write(&paths[1], [0; 7]).unwrap();
    let source = Box::new(Recordings::open(&paths).unwrap());
    let error = Diagnosis::start(Options::default(), Box::new(FakeEngine::new(1)), source, Vec::new()).err().unwrap().to_string();
    assert!(error.contains("b.f32") && error.contains("whole samples"), "{error}");
    let mut missing = Recordings::new(vec![Clip { path: folder.path().join("gone.csv"), class: None, sample_rate_hz: None }]);
    assert!(missing.prepare(&format()).is_ok(), "text tables tell no rate and are opened when their turn comes");
    let mut handle = Diagnosis::start(Options::default(), Box::new(FakeEngine::new(1)), Box::new(missing), Vec::new()).unwrap();
    let error = handle.wait().unwrap_err().to_string();
    assert!(error.contains("gone.csv") && handle.snapshot().is_complete(), "{error}");
}

#[test]
fn a_pipe_is_read_as_it_comes_and_a_stop_is_heard_while_nothing_comes() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let source = RawStream::polled(reader, Path::new("a pipe")).unwrap();
    let stop = Stop::new();
    let options = Options { stop: stop.clone(), ..Options::default() };
    let mut handle = Diagnosis::start(options, Box::new(FakeEngine::new(1)), Box::new(source), Vec::new()).unwrap();
    for sample in noise(3) {
        writer.write_all(&sample.to_le_bytes()).unwrap();
    }
    while handle.snapshot().judged < 3 {
        thread::sleep(Duration::from_millis(1));
    }
    let asked = Instant::now();
    stop.ask();
    let snapshot = handle.wait().unwrap();
    assert!(asked.elapsed() < Duration::from_millis(900), "{:?}", asked.elapsed());
    assert!(snapshot.is_complete() && snapshot.judged == 3);
}

#[test]
fn a_stream_that_ends_ends_the_run() {
    let bytes: Vec<u8> = noise(5).iter().flat_map(|sample| sample.to_le_bytes()).collect();
    let source = Box::new(RawStream::new(std::io::Cursor::new(bytes), Path::new("-")).live());
    let options = Options { queue: 8, ..Options::default() };
    let (snapshot, heard) = run(options, FakeEngine::new(1), source);
    assert_eq!((snapshot.produced, numbers(&heard)), (5, vec![0, 1, 2, 3, 4]));
}

#[test]
fn repeated_recordings_go_on_until_stopped_and_short_ones_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.f32");
    let bytes: Vec<u8> = noise(2).iter().flat_map(|sample| sample.to_le_bytes()).collect();
    std::fs::write(&path, &bytes).unwrap();
    let source = Recordings::open(std::slice::from_ref(&path)).unwrap().repeated();
    let mut handle = Diagnosis::start(Options::default(), Box::new(FakeEngine::new(1)), Box::new(source.clone()), Vec::new()).unwrap();
    while handle.snapshot().judged < 20 {
        thread::sleep(Duration::from_millis(1));
    }
    handle.stop();
    assert!(handle.wait().unwrap().is_complete());
    std::fs::write(&path, &bytes[..8]).unwrap();
    let (snapshot, _) = run(Options::default(), FakeEngine::new(1), Box::new(source));
    assert_eq!(snapshot.produced, 0);
}
