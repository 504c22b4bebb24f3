//! What a user relies on: no window is lost, repeated or passed over in silence, whatever engine, source and supervisor do.

use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use crate::signals::{BadWindow, Rng};

const WINDOW: usize = 16;

/// Judges by the sign of the first sample.
struct FakeEngine {
    model_id: u64,
    classes: Vec<String>,
    takes: Duration,
    /// Fails from this call on.
    fails_from: u64,
    calls: u64,
    probabilities: [f32; 2],
}

impl FakeEngine {
    fn new(model_id: u64) -> Self {
        let classes = ["up".to_string(), "down".to_string()].to_vec();
        Self { model_id, classes, takes: Duration::ZERO, fails_from: u64::MAX, calls: 0, probabilities: [0.0; 2] }
    }
}

impl Engine for FakeEngine {
    fn classify(&mut self, window: &[f32]) -> Result<&[f32]> {
        assert_eq!(window.len(), WINDOW);
        self.calls += 1;
        if self.calls > self.fails_from {
            return Err(AgentError::Infeasible("the engine is broken".to_string()));
        }
        if !self.takes.is_zero() {
            thread::sleep(self.takes);
        }
        self.probabilities = if window[0] >= 0.0 { [0.75, 0.25] } else { [0.25, 0.75] };
        Ok(&self.probabilities)
    }
    fn model_id(&self) -> u64 {
        self.model_id
    }
    fn level(&self) -> u32 {
        0
    }
    fn classes(&self) -> &[String] {
        &self.classes
    }
    fn window(&self) -> usize {
        WINDOW
    }
    fn sample_rate_hz(&self) -> f64 {
        12_000.0
    }
}

fn noise(windows: usize) -> Vec<f32> {
    let mut rng = Rng::new(1);
    (0..windows * WINDOW).map(|_| rng.normal() as f32).collect()
}

fn memory(recordings: Vec<(Vec<f32>, Option<&str>)>) -> Box<MemorySource> {
    let recordings = recordings.into_iter().map(|(samples, class)| (samples, class.map(str::to_string))).collect();
    Box::new(MemorySource { recordings })
}

/// Runs to the end.
fn run(options: Options, engine: FakeEngine, source: Box<dyn Source>) -> (Snapshot, sink::Heard) {
    let sink = MemorySink::default();
    let mut handle = Diagnosis::start(options, Box::new(engine), source, vec![Box::new(sink.clone())]).unwrap();
    let snapshot = handle.wait().unwrap();
    (snapshot, sink.take())
}

fn numbers(heard: &sink::Heard) -> Vec<u64> {
    heard.verdicts.iter().map(|verdict| verdict.sequence).collect()
}

#[test]
fn a_blocking_source_loses_nothing_and_windows_do_not_span_recordings() {
    // Three and a half windows, then two: the half is left out.
    let mut first = noise(3);
    first.extend(&noise(1)[..WINDOW / 2]);
    let engine = FakeEngine { takes: Duration::from_millis(1), ..FakeEngine::new(5) };
    let options = Options { queue: 1, ..Options::default() };
    let (snapshot, heard) = run(options, engine, memory(vec![(first.clone(), Some("up")), (noise(2), None)]));
    assert_eq!(numbers(&heard), [0, 1, 2, 3, 4]);
    let places: Vec<_> = heard.verdicts.iter().map(|verdict| (verdict.recording, verdict.start)).collect();
    assert_eq!(places, [(0, 0), (0, 16), (0, 32), (1, 0), (1, 16)]);
    assert!(heard.gaps.is_empty());
    assert_eq!((snapshot.produced, snapshot.judged, snapshot.dropped, snapshot.missing), (5, 5, 0, 0));
    assert!(snapshot.is_complete());
    let right = heard.verdicts.iter().filter(|verdict| verdict.label.is_some() && verdict.label == verdict.class).count() as u64;
    assert_eq!((snapshot.labelled, snapshot.right), (3, right));
    assert_eq!(snapshot.rolling_accuracy, Some(right as f64 / 3.0));
    assert_eq!((snapshot.latency.count, snapshot.model_id), (5, 5));
    assert!(snapshot.compute.p50_us >= 1000 && heard.verdicts.iter().all(|verdict| verdict.latency_us >= verdict.compute_us));
}

#[test]
fn windows_overlap_where_the_hop_is_shorter() {
    let options = Options { hop: Some(WINDOW / 4), ..Options::default() };
    let (snapshot, heard) = run(options, FakeEngine::new(1), memory(vec![(noise(3), None)]));
    let starts: Vec<_> = heard.verdicts.iter().map(|verdict| verdict.start).collect();
    assert_eq!(starts, (0..=32).step_by(4).collect::<Vec<u64>>());
    assert_eq!(snapshot.produced, 9);
}

#[test]
fn a_paced_source_beyond_the_engines_speed_shows_exactly_what_was_dropped() {
    // A window every 1.33 ms; the engine takes 5 ms.
    let engine = FakeEngine { takes: Duration::from_millis(5), ..FakeEngine::new(1) };
    let options = Options { pace: Pace::RealTime(1.0), queue: 4, ..Options::default() };
    let (snapshot, heard) = run(options, engine, memory(vec![(noise(150), None)]));
    assert_eq!(snapshot.produced, 150);
    assert!(snapshot.dropped > 0, "{snapshot:?}");
    assert_eq!(snapshot.produced, snapshot.judged + snapshot.dropped);
    assert_eq!((snapshot.missing, snapshot.repeated, snapshot.in_flight), (snapshot.dropped, 0, 0));
    assert_eq!(snapshot.queue_high_water, 4);
    let judged = numbers(&heard);
    let missing: Vec<u64> = (0..150).filter(|number| !judged.contains(number)).collect();
    let dropped: Vec<u64> = heard.gaps.iter().flat_map(|gap| gap.first..=gap.last).collect();
    assert_eq!(missing, dropped);
    assert!(heard.gaps.iter().all(|gap| gap.count == gap.last - gap.first + 1));
    assert_eq!(judged.len() as u64, snapshot.judged);
    // The queue is full all the time, so verdicts come some windows late.
    assert!(snapshot.latency.p50_us >= 5000, "{snapshot:?}");
}

#[test]
fn a_paced_source_keeps_its_pace() {
    let options = Options { pace: Pace::RealTime(10.0), ..Options::default() };
    let started = Instant::now();
    let (snapshot, _) = run(options, FakeEngine::new(1), memory(vec![(noise(300), None), (noise(300), None)]));
    // 9600 samples at 120 kHz.
    assert!(started.elapsed() >= Duration::from_millis(80), "{:?}", started.elapsed());
    assert!(snapshot.is_complete() && snapshot.produced == 600);
}

#[test]
fn twenty_swaps_under_load_lose_and_repeat_no_window() {
    const WINDOWS: u64 = 10_000;
    const SWAPS: u64 = 20;
    let sink = MemorySink::default();
    let source = memory(vec![(noise(WINDOWS as usize), None)]);
    let mut handle = Diagnosis::start(Options::default(), Box::new(FakeEngine::new(0)), source, vec![Box::new(sink.clone())]).unwrap();
    let mut returned = Vec::new();
    for model_id in 1..=SWAPS {
        let due = (model_id - 1) * WINDOWS / (SWAPS + 1);
        while handle.snapshot().judged < due {
            thread::yield_now();
        }
        assert!(handle.offer(Box::new(FakeEngine::new(model_id))).unwrap().is_none());
        let event = handle.events().next_within(Duration::from_secs(10));
        let Some(Event::Swapped { old, model_id: now, from, .. }) = event else { panic!("no swap {model_id}") };
        assert_eq!(now, model_id);
        returned.push((old.model_id(), from));
    }
    let snapshot = handle.wait().unwrap();
    let heard = sink.take();
    assert_eq!(numbers(&heard), (0..WINDOWS).collect::<Vec<_>>());
    assert!(snapshot.is_complete());
    assert_eq!((snapshot.judged, snapshot.swaps, snapshot.model_id), (WINDOWS, SWAPS, SWAPS));
    assert_eq!(returned.iter().map(|(id, _)| *id).collect::<Vec<_>>(), (0..SWAPS).collect::<Vec<_>>());
    // Each model judged from its first window on, and no other.
    for (index, (_, from)) in returned.iter().enumerate() {
        if let Some(from) = *from {
            let first = heard.verdicts.iter().find(|verdict| verdict.model_id == index as u64 + 1).map(|verdict| verdict.sequence);
            assert_eq!(first, Some(from), "model {}", index + 1);
        }
    }
}

#[test]
fn a_failing_engine_is_replaced_without_losing_a_window() {
    let sink = MemorySink::default();
    let engine = FakeEngine { fails_from: 50, ..FakeEngine::new(1) };
    let options = Options { retry: Duration::from_secs(20), ..Options::default() };
    let mut handle = Diagnosis::start(options, Box::new(engine), memory(vec![(noise(100), None)]), vec![Box::new(sink.clone())]).unwrap();
    let Some(Event::Failed { sequence, model_id, error }) = handle.events().next_within(Duration::from_secs(10)) else { panic!("no failure") };
    assert_eq!((sequence, model_id, error.to_string().as_str()), (50, 1, "the engine is broken"));
    // The first replacement is broken too.
    for (model_id, fails_from) in [(2, 0), (3, u64::MAX)] {
        handle.offer(Box::new(FakeEngine { fails_from, ..FakeEngine::new(model_id) })).unwrap();
        let event = handle.events().next_within(Duration::from_secs(10));
        assert!(matches!(event, Some(Event::Swapped { from: Some(50), .. })));
        if fails_from == 0 {
            assert!(matches!(handle.events().next_within(Duration::from_secs(10)), Some(Event::Failed { sequence: 50, .. })));
        }
    }
    let snapshot = handle.wait().unwrap();
    let heard = sink.take();
    assert_eq!(numbers(&heard), (0..100).collect::<Vec<_>>());
    assert!(heard.verdicts.iter().all(|verdict| verdict.state == State::Verdict && verdict.model_id == if verdict.sequence < 50 { 1 } else { 3 }));
    assert_eq!((snapshot.judged, snapshot.failed, snapshot.engine_failures, snapshot.swaps), (100, 0, 2, 2));
}

#[test]
fn windows_that_no_engine_can_judge_are_reported_as_failed_and_waited_for_once() {
    let engine = FakeEngine { fails_from: 3, ..FakeEngine::new(1) };
    let retry = Duration::from_millis(60);
    let started = Instant::now();
    let (snapshot, heard) = run(Options { retry, ..Options::default() }, engine, memory(vec![(noise(200), None)]));
    assert!((retry..10 * retry).contains(&started.elapsed()), "{:?}", started.elapsed());
    assert_eq!((snapshot.judged, snapshot.failed, snapshot.engine_failures), (3, 197, 197));
    assert_eq!(numbers(&heard), (0..200).collect::<Vec<_>>());
    assert!(heard.verdicts[3..].iter().all(|verdict| verdict.state == State::Failed && verdict.class.is_none()));
}

#[test]
fn an_answer_that_makes_no_sense_is_a_failure() {
    struct Odd(FakeEngine, Vec<f32>);
    impl Engine for Odd {
        fn classify(&mut self, _: &[f32]) -> Result<&[f32]> {
            Ok(&self.1)
        }
        fn model_id(&self) -> u64 {
            9
        }
        fn level(&self) -> u32 {
            0
        }
        fn classes(&self) -> &[String] {
            self.0.classes()
        }
        fn window(&self) -> usize {
            WINDOW
        }
        fn sample_rate_hz(&self) -> f64 {
            12_000.0
        }
    }
    for answer in [vec![f32::NAN, 1.0], vec![1.0], vec![0.0; 40]] {
        let options = Options { retry: Duration::ZERO, ..Options::default() };
        let engine = Box::new(Odd(FakeEngine::new(1), answer.clone()));
        let mut handle = Diagnosis::start(options, engine, memory(vec![(noise(2), None)]), Vec::new()).unwrap();
        let snapshot = handle.wait().unwrap();
        assert_eq!((snapshot.failed, snapshot.judged), (2, 0), "{answer:?}");
        assert!(matches!(handle.events().try_next(), Some(Event::Failed { sequence: 0, model_id: 9, .. })), "{answer:?}");
    }
}

#[test]
fn unusable_windows_are_reported_and_the_rest_judged() {
    let mut samples = noise(4);
    samples[WINDOW..2 * WINDOW].fill(2.5);
    samples[2 * WINDOW + 3] = f32::NAN;
    let (snapshot, heard) = run(Options::default(), FakeEngine::new(1), memory(vec![(samples, None)]));
    let states: Vec<_> = heard.verdicts.iter().map(|verdict| verdict.state).collect();
    let constant = State::Unusable(BadWindow::Constant);
    assert_eq!(states, [State::Verdict, constant, State::Unusable(BadWindow::NotFinite { index: 3 }), State::Verdict]);
    assert_eq!((snapshot.judged, snapshot.unusable, snapshot.compute.count), (2, 2, 2));
    assert!(snapshot.is_complete());
}

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

fn format() -> WindowFormat {
    WindowFormat { window: WINDOW, hop: WINDOW, sample_rate_hz: 12_000.0, classes: vec!["up".to_string()] }
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
fn a_stop_counts_what_was_left_in_the_queue() {
    let engine = FakeEngine { takes: Duration::from_millis(2), ..FakeEngine::new(1) };
    let sink = MemorySink::default();
    let source = memory(vec![(noise(5000), None)]);
    let mut handle = Diagnosis::start(Options::default(), Box::new(engine), source, vec![Box::new(sink.clone())]).unwrap();
    while handle.snapshot().judged < 5 {
        thread::sleep(Duration::from_millis(1));
    }
    handle.stop();
    let snapshot = handle.wait().unwrap();
    assert!(snapshot.judged >= 5 && snapshot.produced < 5000, "{snapshot:?}");
    assert_eq!(snapshot.produced, snapshot.judged + snapshot.dropped);
    let heard = sink.take();
    let dropped: Vec<u64> = heard.gaps.iter().flat_map(|gap| gap.first..=gap.last).collect();
    assert_eq!(dropped, (snapshot.judged..snapshot.produced).collect::<Vec<_>>());
    assert!(snapshot.is_complete());
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

/// Gives up after some verdicts.
struct Leaves(u64, fn() -> AgentError);

impl Sink for Leaves {
    fn verdict(&mut self, verdict: &Verdict) -> Result<()> {
        if verdict.sequence + 1 == self.0 { Err(self.1()) } else { Ok(()) }
    }
}

#[test]
fn a_reader_that_has_gone_ends_the_run_quietly_and_a_full_disk_with_an_error() {
    let full: fn() -> AgentError = || AgentError::File { what: "cannot write", path: "out".to_string(), reason: "no space".to_string() };
    for (error, quiet) in [((|| AgentError::Cancelled) as fn() -> AgentError, true), (full, false)] {
        let sinks: Vec<Box<dyn Sink>> = vec![Box::new(Leaves(10, error))];
        let mut handle = Diagnosis::start(Options::default(), Box::new(FakeEngine::new(1)), memory(vec![(noise(5000), None)]), sinks).unwrap();
        assert_eq!(handle.wait().is_ok(), quiet);
        let snapshot = handle.snapshot();
        assert_eq!((snapshot.judged, snapshot.missing), (10, snapshot.dropped));
        assert!(snapshot.produced < 5000 && snapshot.is_complete());
    }
}

#[test]
fn json_lines_of_a_broken_pipe_end_the_run() {
    let (reader, writer) = std::io::pipe().unwrap();
    let classes = FakeEngine::new(1).classes;
    let sink = JsonLines::new(writer, Path::new("standard output"), &classes);
    drop(reader);
    let sinks: Vec<Box<dyn Sink>> = vec![Box::new(sink)];
    let mut handle = Diagnosis::start(Options::default(), Box::new(FakeEngine::new(1)), memory(vec![(noise(50), None)]), sinks).unwrap();
    assert!(handle.wait().is_ok());
}

#[test]
fn an_engine_for_another_task_is_not_taken_and_an_earlier_offer_comes_back() {
    static GO_ON: AtomicBool = AtomicBool::new(false);
    struct Held(FakeEngine);
    impl Engine for Held {
        fn classify(&mut self, window: &[f32]) -> Result<&[f32]> {
            while !GO_ON.load(Ordering::Acquire) {
                thread::yield_now();
            }
            self.0.classify(window)
        }
        fn model_id(&self) -> u64 {
            0
        }
        fn level(&self) -> u32 {
            0
        }
        fn classes(&self) -> &[String] {
            self.0.classes()
        }
        fn window(&self) -> usize {
            WINDOW
        }
        fn sample_rate_hz(&self) -> f64 {
            12_000.0
        }
    }
    let held = Box::new(Held(FakeEngine::new(0)));
    let mut handle = Diagnosis::start(Options::default(), held, memory(vec![(noise(3), None)]), Vec::new()).unwrap();
    let other = FakeEngine { classes: vec!["up".to_string(), "sideways".to_string()], ..FakeEngine::new(7) };
    let error = handle.offer(Box::new(other)).err().unwrap().to_string();
    assert!(error.contains("sideways") && error.contains("give a model for the same task"), "{error}");
    // Whatever the loop takes before its first window, it is held in that window from then on.
    while handle.snapshot().produced == 0 {
        thread::yield_now();
    }
    thread::sleep(Duration::from_millis(100));
    assert!(handle.offer(Box::new(FakeEngine::new(1))).unwrap().is_none());
    assert_eq!(handle.offer(Box::new(FakeEngine::new(2))).unwrap().map(|engine| engine.model_id()), Some(1));
    assert_eq!(handle.withdraw().map(|engine| engine.model_id()), Some(2));
    GO_ON.store(true, Ordering::Release);
    assert_eq!(handle.wait().unwrap().swaps, 0);
}

#[test]
fn impossible_options_are_refused_with_a_sentence() {
    let fine = Options::default;
    let cases = [
        ("no room", Options { queue: 0, ..fine() }, "1 to 64"),
        ("hop", Options { hop: Some(WINDOW + 1), ..fine() }, "the hop"),
        ("no hop", Options { hop: Some(0), ..fine() }, "the hop"),
        ("still", Options { pace: Pace::RealTime(0.0), ..fine() }, "pace"),
        ("not a number", Options { pace: Pace::RealTime(f64::NAN), ..fine() }, "pace"),
        ("backwards", Options { pace: Pace::RealTime(-1.0), ..fine() }, "pace"),
    ];
    let mut wrong = Vec::new();
    for (name, options, part) in cases {
        let started = Diagnosis::start(options, Box::new(FakeEngine::new(1)), memory(vec![(noise(1), None)]), Vec::new());
        match started.err().map(|error| error.to_string()) {
            Some(text) if text.contains(part) => {}
            other => wrong.push((name, other)),
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
    let many = FakeEngine { classes: (0..=MAX_CLASSES).map(|class| class.to_string()).collect(), ..FakeEngine::new(1) };
    let error = Diagnosis::start(fine(), Box::new(many), memory(vec![]), Vec::new()).err().unwrap().to_string();
    assert!(error.contains("33 classes"), "{error}");
}

#[test]
fn an_engine_that_panics_does_not_leave_the_source_waiting() {
    struct Source300(std::sync::Arc<AtomicU64>);
    impl Source for Source300 {
        fn run(&mut self, feed: &mut Feed) -> Result<()> {
            feed.begin(0, None)?;
            let stopped = feed.samples(&noise(300)).is_break();
            self.0.store(if stopped { 1 } else { 2 }, Ordering::Release);
            Ok(())
        }
    }
    let ended = std::sync::Arc::new(AtomicU64::new(0));
    let mut engine = FakeEngine::new(1);
    engine.classes.truncate(1);
    struct Panics(FakeEngine);
    impl Engine for Panics {
        fn classify(&mut self, _: &[f32]) -> Result<&[f32]> {
            panic!("on purpose");
        }
        fn model_id(&self) -> u64 {
            0
        }
        fn level(&self) -> u32 {
            0
        }
        fn classes(&self) -> &[String] {
            self.0.classes()
        }
        fn window(&self) -> usize {
            WINDOW
        }
        fn sample_rate_hz(&self) -> f64 {
            12_000.0
        }
    }
    let source = Box::new(Source300(ended.clone()));
    let mut handle = Diagnosis::start(Options::default(), Box::new(Panics(engine)), source, Vec::new()).unwrap();
    assert!(panic::catch_unwind(panic::AssertUnwindSafe(|| handle.wait())).is_err());
    let deadline = Instant::now() + Duration::from_secs(10);
    while ended.load(Ordering::Acquire) == 0 && Instant::now() < deadline {
        thread::yield_now();
    }
    assert_eq!(ended.load(Ordering::Acquire), 1);
}
