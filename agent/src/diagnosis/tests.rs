//! What a user relies on: no window is lost, repeated or passed over in silence, whatever engine, source and supervisor do.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::signals::{BadWindow, Rng};

mod engines;
mod sources;

const WINDOW: usize = 16;

/// Judges by the sign of the first sample.
struct FakeEngine {
    model_id: u64,
    classes: Vec<String>,
    takes: Duration,
    /// Fails from this call on.
    fails_from: u64,
    /// Refuses this call's window.
    refuses: Option<u64>,
    /// Gives this instead.
    answer: Option<Vec<f32>>,
    /// Does not answer before it is set.
    gate: Arc<AtomicBool>,
    panics: bool,
    calls: u64,
    probabilities: [f32; 2],
}

impl FakeEngine {
    fn new(model_id: u64) -> Self {
        Self {
            model_id,
            classes: ["up".to_string(), "down".to_string()].to_vec(),
            takes: Duration::ZERO,
            fails_from: u64::MAX,
            refuses: None,
            answer: None,
            gate: Arc::new(AtomicBool::new(true)),
            panics: false,
            calls: 0,
            probabilities: [0.0; 2],
        }
    }
}

impl Engine for FakeEngine {
    fn classify(&mut self, window: &[f32]) -> Result<&[f32]> {
        assert!(!self.panics, "on purpose");
        assert_eq!(window.len(), WINDOW);
        self.calls += 1;
        if self.calls > self.fails_from {
            return Err(AgentError::Infeasible("the engine is broken".to_string()));
        }
        if self.refuses == Some(self.calls) {
            return Err(AgentError::Usage("the window has no words".to_string()));
        }
        if !self.takes.is_zero() {
            thread::sleep(self.takes);
        }
        while !self.gate.load(Ordering::Acquire) {
            thread::yield_now();
        }
        self.probabilities = if window[0] >= 0.0 { [0.75, 0.25] } else { [0.25, 0.75] };
        Ok(self.answer.as_deref().unwrap_or(&self.probabilities))
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
fn windows_that_wait_when_a_run_is_finished_are_still_judged() {
    let gate = Arc::new(AtomicBool::new(false));
    let engine = FakeEngine { gate: gate.clone(), ..FakeEngine::new(5) };
    let options = Options { queue: 4, ..Options::default() };
    let mut handle = Diagnosis::start(options, Box::new(engine), memory(vec![(noise(1000), None)]), Vec::new()).unwrap();
    // One is with the engine, four wait.
    while handle.snapshot().produced < 5 {
        thread::sleep(Duration::from_millis(1));
    }
    handle.finish();
    gate.store(true, Ordering::Release);
    let snapshot = handle.wait().unwrap();
    assert!(snapshot.is_complete() && snapshot.dropped == 0, "{snapshot:?}");
    assert!((5..1000).contains(&snapshot.judged), "{snapshot:?}");
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

#[test]
fn a_window_that_the_engine_refuses_has_failed_and_the_engine_serves_on() {
    let engine = FakeEngine { refuses: Some(2), ..FakeEngine::new(1) };
    let (snapshot, heard) = run(Options::default(), engine, memory(vec![(noise(4), None)]));
    let states: Vec<_> = heard.verdicts.iter().map(|verdict| verdict.state).collect();
    assert_eq!(states, [State::Verdict, State::Failed, State::Verdict, State::Verdict]);
    assert_eq!((snapshot.judged, snapshot.failed, snapshot.engine_failures), (3, 1, 0));
    assert!(snapshot.is_complete());
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
        let mut handle =
            Diagnosis::start(Options::default(), Box::new(FakeEngine::new(1)), memory(vec![(noise(5000), None)]), sinks).unwrap();
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
