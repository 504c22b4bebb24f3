//! Engines that change, fail, answer nonsense or panic.

use std::sync::mpsc;

use super::*;

/// Gives windows until it is told, and no fewer than `windows`.
struct AtLeast {
    windows: u64,
    told: Arc<AtomicBool>,
}

impl Source for AtLeast {
    fn run(&mut self, feed: &mut Feed) -> Result<()> {
        let samples = noise(100);
        feed.begin(0, None)?;
        while feed.windows() < self.windows || !self.told.load(Ordering::Acquire) {
            if feed.samples(&samples).is_break() {
                break;
            }
        }
        Ok(())
    }
}

#[test]
fn twenty_swaps_under_load_lose_and_repeat_no_window() {
    const WINDOWS: u64 = 10_000;
    const SWAPS: u64 = 20;
    let sink = MemorySink::default();
    let all_swapped = Arc::new(AtomicBool::new(false));
    let source = Box::new(AtLeast { windows: WINDOWS, told: all_swapped.clone() });
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
        returned.push((old.expect("the used engine").model_id(), from));
    }
    all_swapped.store(true, Ordering::Release);
    let snapshot = handle.wait().unwrap();
    let heard = sink.take();
    assert_eq!(numbers(&heard), (0..snapshot.produced).collect::<Vec<_>>());
    assert!(snapshot.is_complete() && snapshot.produced >= WINDOWS);
    assert_eq!((snapshot.judged, snapshot.swaps, snapshot.model_id), (snapshot.produced, SWAPS, SWAPS));
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
    let Some(Event::Failed { engine, sequence, model_id, error }) = handle.events().next_within(Duration::from_secs(10)) else {
        panic!("no failure")
    };
    assert_eq!((sequence, model_id, error.to_string().as_str()), (50, 1, "the engine is broken"));
    assert_eq!(engine.model_id(), 1, "the engine comes out while the window waits, so that its memory is free for the next");
    // The first replacement is broken too.
    for (model_id, fails_from) in [(2, 0), (3, u64::MAX)] {
        handle.offer(Box::new(FakeEngine { fails_from, ..FakeEngine::new(model_id) })).unwrap();
        let event = handle.events().next_within(Duration::from_secs(10));
        assert!(matches!(event, Some(Event::Swapped { old: None, from: Some(50), .. })));
        if fails_from == 0 {
            assert!(matches!(handle.events().next_within(Duration::from_secs(10)), Some(Event::Failed { sequence: 50, .. })));
        }
    }
    let snapshot = handle.wait().unwrap();
    let heard = sink.take();
    assert_eq!(numbers(&heard), (0..100).collect::<Vec<_>>());
    assert!(
        heard
            .verdicts
            .iter()
            .all(|verdict| verdict.state == State::Verdict && verdict.model_id == if verdict.sequence < 50 { 1 } else { 3 })
    );
    assert_eq!((snapshot.judged, snapshot.failed, snapshot.engine_failures, snapshot.swaps), (100, 0, 2, 2));
}

#[test]
fn windows_that_no_engine_can_judge_are_reported_as_failed_and_waited_for_once() {
    let engine = FakeEngine { fails_from: 3, ..FakeEngine::new(1) };
    let retry = Duration::from_millis(60);
    let started = Instant::now();
    let (snapshot, heard) = run(Options { retry, ..Options::default() }, engine, memory(vec![(noise(200), None)]));
    assert!((retry..50 * retry).contains(&started.elapsed()), "{:?}", started.elapsed());
    assert_eq!((snapshot.judged, snapshot.failed, snapshot.engine_failures), (3, 197, 1));
    assert_eq!(numbers(&heard), (0..200).collect::<Vec<_>>());
    assert!(heard.verdicts[3..].iter().all(|verdict| verdict.state == State::Failed && verdict.class.is_none()));
}

#[test]
fn a_window_waits_for_a_supervisor_that_is_at_work() {
    let options = Options { retry: Duration::from_millis(20), ..Options::default() };
    let engine = Box::new(FakeEngine { fails_from: 5, ..FakeEngine::new(1) });
    let mut handle = Diagnosis::start(options, engine, memory(vec![(noise(20), None)]), Vec::new()).unwrap();
    handle.set_at_work(true);
    assert!(matches!(handle.events().next_within(Duration::from_secs(10)), Some(Event::Failed { sequence: 5, .. })));
    thread::sleep(Duration::from_millis(200));
    assert_eq!(handle.snapshot().failed, 0);
    handle.offer(Box::new(FakeEngine::new(2))).unwrap();
    let snapshot = handle.wait().unwrap();
    assert_eq!((snapshot.judged, snapshot.failed, snapshot.swaps), (20, 0, 1));
}

#[test]
fn an_answer_that_makes_no_sense_is_a_failure() {
    for answer in [vec![f32::NAN, 1.0], vec![1.0], vec![0.0; 40]] {
        let options = Options { retry: Duration::ZERO, ..Options::default() };
        let engine = Box::new(FakeEngine { answer: Some(answer.clone()), ..FakeEngine::new(9) });
        let mut handle = Diagnosis::start(options, engine, memory(vec![(noise(2), None)]), Vec::new()).unwrap();
        let snapshot = handle.wait().unwrap();
        assert_eq!((snapshot.failed, snapshot.judged), (2, 0), "{answer:?}");
        assert!(matches!(handle.events().try_next(), Some(Event::Failed { sequence: 0, model_id: 9, .. })), "{answer:?}");
    }
}

#[test]
fn an_engine_for_another_task_is_not_taken_and_an_earlier_offer_comes_back() {
    let gate = Arc::new(AtomicBool::new(false));
    let held = Box::new(FakeEngine { gate: gate.clone(), ..FakeEngine::new(0) });
    let mut handle =
        Diagnosis::start(Options { queue: 1, ..Options::default() }, held, memory(vec![(noise(3), None)]), Vec::new()).unwrap();
    let other = FakeEngine { classes: vec!["up".to_string(), "sideways".to_string()], ..FakeEngine::new(7) };
    let error = handle.offer(Box::new(other)).err().unwrap().to_string();
    assert!(error.contains("sideways") && error.contains("give a model for the same task"), "{error}");
    // With one place, a second window is accepted only when the loop has taken the first, in which it is held; the offer is then looked at
    // once more, in that step, at the latest.
    while handle.snapshot().produced < 2 {
        thread::yield_now();
    }
    thread::sleep(Duration::from_millis(50));
    assert!(handle.offer(Box::new(FakeEngine::new(1))).unwrap().is_none());
    assert_eq!(handle.offer(Box::new(FakeEngine::new(2))).unwrap().map(|engine| engine.model_id()), Some(1));
    assert_eq!(handle.withdraw().map(|engine| engine.model_id()), Some(2));
    gate.store(true, Ordering::Release);
    assert_eq!(handle.wait().unwrap().swaps, 0);
}

#[test]
fn an_engine_that_panics_does_not_leave_the_source_waiting() {
    struct Told(mpsc::Sender<bool>);
    impl Source for Told {
        fn run(&mut self, feed: &mut Feed) -> Result<()> {
            feed.begin(0, None)?;
            self.0.send(feed.samples(&noise(300)).is_break()).unwrap();
            Ok(())
        }
    }
    let (sender, receiver) = mpsc::channel();
    let engine = Box::new(FakeEngine { panics: true, ..FakeEngine::new(1) });
    let mut handle = Diagnosis::start(Options::default(), engine, Box::new(Told(sender)), Vec::new()).unwrap();
    assert!(panic::catch_unwind(panic::AssertUnwindSafe(|| handle.wait())).is_err());
    assert_eq!(receiver.recv_timeout(Duration::from_secs(10)), Ok(true));
}
