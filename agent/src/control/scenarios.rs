//! The controller in scripted and random worlds with a simulated clock.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

/// A node that carries actions out: a factory artifact of 150 MiB, jobs that take a minute, swaps that take a second.
struct World {
    hardware: Simulated,
    controller: Controller,
    goal_bytes: u64,
    factory_bytes: u64,
    committed_bytes: u64,
    running_bytes: u64,
    candidate_bytes: u64,
    levels: Vec<u64>,
    due: Vec<(Duration, Event)>,
    log: Vec<(u64, Action)>,
    states: Vec<State>,
    holdout_accepts: bool,
    swap_works: bool,
    healthy: bool,
}

impl World {
    fn new() -> Self {
        Self {
            hardware: Simulated { available_bytes: Some(10_000 * MIB), ..Simulated::default() },
            controller: Controller::new(Thresholds::default(), true, Vec::new()),
            goal_bytes: 200 * MIB,
            factory_bytes: 150 * MIB,
            committed_bytes: 150 * MIB,
            running_bytes: 150 * MIB,
            candidate_bytes: 0,
            levels: Vec::new(),
            due: Vec::new(),
            log: Vec::new(),
            states: vec![State::Serving],
            holdout_accepts: true,
            swap_works: true,
            healthy: true,
        }
    }

    fn with_levels(levels: &[u64]) -> Self {
        let levels: Vec<u64> = levels.iter().map(|level| level * MIB).collect();
        Self { controller: Controller::new(Thresholds::default(), true, levels.clone()), levels, ..Self::new() }
    }

    fn held_bytes(&self) -> u64 {
        self.levels.get(self.controller.level()).copied().unwrap_or(self.running_bytes)
    }

    /// Runs for some seconds; `script` changes the world at each.
    fn run(&mut self, seconds: u64, mut script: impl FnMut(&mut World, u64)) {
        for _ in 0..seconds {
            self.hardware.wait(Duration::from_secs(1));
            script(self, self.hardware.now().as_secs());
            self.tick();
        }
    }

    fn tick(&mut self) {
        let now = self.hardware.now();
        self.due.sort_by_key(|(due, _)| *due);
        let mut event = (self.due.first().is_some_and(|(due, _)| *due <= now)).then(|| self.due.remove(0).1);
        if event == Some(Event::Swapped) {
            self.controller.set_levels(self.levels.clone());
        }
        if event.is_none() && self.controller.state() == State::Probation {
            event = Some(Event::HealthWindow { ok: self.healthy });
        }
        let held_bytes = self.held_bytes();
        self.hardware.held = Held { held_bytes, working_set_bytes: held_bytes };
        let reading = self.hardware.read(self.goal_bytes, 10_000 * MIB, self.factory_bytes).unwrap();
        for action in self.controller.step(now, &reading, event) {
            self.log.push((now.as_secs(), action));
            self.carry_out(action, now);
        }
        if self.states.last() != Some(&self.controller.state()) {
            self.states.push(self.controller.state());
        }
    }

    fn carry_out(&mut self, action: Action, now: Duration) {
        let mut answer = |seconds, event| self.due.push((now + Duration::from_secs(seconds), event));
        match action {
            Action::StartCompression { fit_bytes } => {
                self.candidate_bytes = fit_bytes;
                answer(60, Event::CompressionDone);
            }
            Action::CancelCompression => {
                self.due.clear();
                self.due.push((now + Duration::from_secs(1), Event::CompressionCancelled));
            }
            Action::JudgeCandidate if self.holdout_accepts => answer(10, Event::HoldoutAccepted),
            Action::JudgeCandidate => answer(10, Event::HoldoutRefused("accuracy fell by 5 points".to_owned())),
            Action::Swap if !self.swap_works => answer(1, Event::SwapFailed("cannot map slot-a.esp".to_owned())),
            Action::Swap => {
                (self.running_bytes, self.levels) = (self.candidate_bytes, Vec::new());
                answer(1, Event::Swapped);
            }
            Action::RollBack => {
                self.running_bytes = self.committed_bytes;
                answer(1, Event::Swapped);
            }
            Action::RestoreFactory => {
                (self.running_bytes, self.committed_bytes) = (self.factory_bytes, self.factory_bytes);
                answer(1, Event::Swapped);
            }
            Action::Commit => {
                self.committed_bytes = self.running_bytes;
                answer(1, Event::Committed);
            }
            Action::DropLevel(_) | Action::ClimbLevel(_) => {}
        }
    }

    fn times(&self, wanted: fn(&Action) -> bool) -> Vec<u64> {
        self.log.iter().filter(|(_, action)| wanted(action)).map(|(time, _)| *time).collect()
    }

    fn starts(&self) -> Vec<u64> {
        self.times(|action| matches!(action, Action::StartCompression { .. }))
    }
}

#[test]
fn a_sudden_fall_leads_through_every_state_to_a_smaller_artifact() {
    let mut world = World::new();
    world.run(60, |_, _| {});
    assert_eq!(world.states, [State::Serving]);
    world.run(300, |world, _| world.goal_bytes = 50 * MIB);
    let path = [State::Serving, State::Compressing, State::Verifying, State::Swapping, State::Probation, State::Serving];
    assert_eq!(world.states, path);
    assert_eq!(world.starts(), [66], "five seconds after the first reading below, at 61 s");
    assert!(world.committed_bytes < 50 * MIB && world.committed_bytes > 45 * MIB, "{}", world.committed_bytes);
    assert_eq!(world.controller.ignored_events(), 0);
}

#[test]
fn a_slow_fall_compresses_a_few_times_and_ends_below_the_goal() {
    let mut world = World::new();
    world.run(3600, |world, now| world.goal_bytes = (200 * MIB).saturating_sub(now * MIB / 20).max(80 * MIB));
    assert_eq!(world.controller.state(), State::Serving);
    assert!(world.held_bytes() <= 80 * MIB, "{}", world.held_bytes());
    assert!(world.starts().len() <= 25, "{:?}", world.starts());
}

#[test]
fn a_goal_that_swings_around_the_threshold_makes_no_flapping() {
    let mut world = World::new();
    world.run(4 * 3600, |world, now| world.goal_bytes = if now % 2 == 0 { 149 * MIB } else { 151 * MIB });
    assert!(world.log.len() <= 4, "{:?}", world.log);
    assert_eq!(world.controller.state(), State::Serving);
}

#[test]
fn a_short_burst_changes_nothing() {
    let mut world = World::new();
    world.run(3600, |world, now| world.goal_bytes = if now % 60 < 4 { 50 * MIB } else { 200 * MIB });
    assert_eq!(world.log, []);
}

#[test]
fn a_refusing_holdout_is_asked_ever_less_often() {
    let mut world = World::new();
    world.holdout_accepts = false;
    world.run(24 * 3600, |world, _| world.goal_bytes = 50 * MIB);
    let starts = world.starts();
    let gaps: Vec<u64> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.windows(2).all(|pair| pair[1] >= pair[0]), "{gaps:?}");
    assert!((130..150).contains(&gaps[0]) && *gaps.last().unwrap() >= 7200, "{gaps:?}");
    assert!(starts.len() < 22, "{starts:?}");
    assert_eq!(world.committed_bytes, world.factory_bytes);
    // More room is another question and does not wait for the answer to the old one.
    let now = world.hardware.now().as_secs();
    world.run(100, |world, _| world.goal_bytes = 90 * MIB);
    assert!(world.starts().last().is_some_and(|start| *start > now || world.controller.state() != State::Serving), "{:?}", world.starts());
}

#[test]
fn a_failed_swap_and_a_bad_probation_go_back_and_wait() {
    let mut world = World::new();
    world.swap_works = false;
    world.run(80, |world, _| world.goal_bytes = 50 * MIB);
    assert_eq!((world.controller.state(), world.running_bytes), (State::Serving, world.factory_bytes));
    (world.swap_works, world.healthy) = (true, false);
    world.run(150, |_, _| {});
    assert!(world.log.iter().any(|(_, action)| *action == Action::RollBack), "{:?}", world.log);
    assert_eq!((world.controller.state(), world.running_bytes), (State::Serving, world.factory_bytes));
    assert!(world.times(|action| *action == Action::Commit).is_empty());
    world.healthy = true;
    world.run(600, |_, _| {});
    assert_eq!(world.times(|action| *action == Action::Commit).len(), 1);
}

#[test]
fn a_goal_that_is_back_for_long_enough_restores_the_factory_artifact_once() {
    let mut world = World::new();
    world.run(400, |world, _| world.goal_bytes = 50 * MIB);
    world.run(3600, |world, now| world.goal_bytes = if now == 700 { 50 * MIB } else { 200 * MIB });
    assert_eq!(world.times(|action| *action == Action::RestoreFactory), [1301], "ten minutes after the last low reading");
    assert_eq!((world.running_bytes, world.controller.state()), (world.factory_bytes, State::Serving));
    assert_eq!(world.starts().len(), 1);
}

#[test]
fn a_tighter_goal_restarts_the_compression_and_a_wide_one_cancels_it() {
    let mut world = World::new();
    world.run(20, |world, _| world.goal_bytes = 100 * MIB);
    world.run(30, |world, _| world.goal_bytes = 50 * MIB);
    assert_eq!(world.starts().len(), 2, "{:?}", world.log);
    assert_eq!(world.times(|action| *action == Action::CancelCompression).len(), 1);
    world.run(40, |world, _| world.goal_bytes = 200 * MIB);
    assert_eq!(world.times(|action| *action == Action::CancelCompression).len(), 2);
    world.run(300, |_, _| {});
    assert_eq!((world.controller.state(), world.starts().len()), (State::Serving, 2));
    assert_eq!(world.running_bytes, world.factory_bytes);
}

#[test]
fn critical_headroom_stops_background_work_until_it_is_back() {
    let mut world = World::new();
    world.run(20, |world, _| world.goal_bytes = 50 * MIB);
    assert_eq!(world.controller.state(), State::Compressing);
    world.run(100, |world, _| world.hardware.available_bytes = Some(100 * MIB));
    assert_eq!(world.times(|action| *action == Action::CancelCompression), [22], "one second after the first reading, at 21 s");
    assert_eq!((world.controller.state(), world.starts().len()), (State::Critical, 1));
    world.run(400, |world, _| world.hardware.available_bytes = Some(10_000 * MIB));
    assert_eq!((world.controller.state(), world.committed_bytes < 50 * MIB), (State::Serving, true));
}

#[test]
fn a_candidate_on_probation_stays_on_it_through_critical() {
    let mut world = World::new();
    world.run(100, |world, _| world.goal_bytes = 50 * MIB);
    assert_eq!(world.controller.state(), State::Probation);
    world.run(10, |world, _| world.hardware.available_bytes = Some(0));
    world.run(15, |world, _| world.hardware.available_bytes = Some(10_000 * MIB));
    assert_eq!(&world.states[5..], [State::Critical, State::Probation]);
    world.run(100, |_, _| {});
    assert_eq!((world.controller.state(), world.times(|action| *action == Action::Commit).len()), (State::Serving, 1));
}

#[test]
fn a_host_short_of_memory_is_low_before_it_is_critical() {
    let mut world = World::new();
    world.run(300, |world, _| world.hardware.available_bytes = Some(180 * MIB));
    assert!(!world.states.contains(&State::Critical), "{:?}", world.states);
    assert!(world.committed_bytes <= 116 * MIB, "30 MiB of headroom are 34 MiB short of comfort: {}", world.committed_bytes);
}

#[test]
fn levels_are_dropped_at_once_and_climbed_slowly() {
    let mut world = World::with_levels(&[150, 100, 60]);
    world.run(10, |_, _| {});
    world.run(600, |world, _| world.goal_bytes = 110 * MIB);
    assert_eq!(world.log, [(12, Action::DropLevel(1))]);
    assert_eq!(world.controller.state(), State::Shrunk);
    world.run(60, |world, _| world.goal_bytes = 200 * MIB);
    assert_eq!(world.log[1..], [(641, Action::ClimbLevel(0))]);
    assert_eq!(world.controller.state(), State::Serving);
    world.run(300, |world, _| world.goal_bytes = 50 * MIB);
    assert_eq!(world.log[2].1, Action::DropLevel(2));
    assert!(matches!(world.log[3].1, Action::StartCompression { fit_bytes } if fit_bytes < 50 * MIB), "{:?}", world.log);
    assert_eq!(world.controller.state(), State::Serving);
}

#[test]
fn critical_serves_the_smallest_level() {
    let mut world = World::with_levels(&[150, 100, 60]);
    world.run(10, |world, _| world.hardware.available_bytes = Some(20 * MIB));
    assert_eq!((world.controller.level(), world.controller.state()), (2, State::Critical));
    world.run(120, |world, _| world.hardware.available_bytes = Some(10_000 * MIB));
    assert_eq!((world.controller.level(), world.controller.state()), (0, State::Serving));
}

#[test]
fn an_event_out_of_place_is_ignored_and_counted() {
    let events = [
        Event::CompressionDone,
        Event::CompressionFailed("x".to_owned()),
        Event::CompressionCancelled,
        Event::HoldoutAccepted,
        Event::HoldoutRefused("x".to_owned()),
        Event::Swapped,
        Event::SwapFailed("x".to_owned()),
        Event::HealthWindow { ok: false },
        Event::EngineFailed("x".to_owned()),
        Event::Committed,
        Event::CommitFailed("x".to_owned()),
    ];
    let mut controller = Controller::new(Thresholds::default(), true, Vec::new());
    let reading =
        Reading { held_bytes: 1, working_set_bytes: 1, goal_bytes: 100, limit_bytes: 100, available_bytes: None, factory_bytes: 1 };
    let count = events.len() as u64;
    for event in events {
        assert_eq!(controller.step(Duration::ZERO, &reading, Some(event)), []);
    }
    assert_eq!((controller.state(), controller.ignored_events()), (State::Serving, count));
}

fn any_bytes() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..300 * MIB, 1 => Just(0), 1 => any::<u64>()]
}

fn any_reading() -> impl Strategy<Value = Reading> {
    let limit = prop_oneof![Just(400 * MIB), any_bytes()];
    (any_bytes(), any_bytes(), any_bytes(), limit, proptest::option::of(any_bytes()), any_bytes()).prop_map(
        |(held_bytes, working_set_bytes, goal_bytes, limit_bytes, available_bytes, factory_bytes)| Reading {
            held_bytes,
            working_set_bytes,
            goal_bytes,
            limit_bytes,
            available_bytes,
            factory_bytes,
        },
    )
}

fn any_event() -> impl Strategy<Value = Event> {
    let reason = || "reason".to_owned();
    prop_oneof![
        2 => Just(Event::CompressionDone),
        1 => Just(Event::CompressionFailed(reason())),
        1 => Just(Event::CompressionCancelled),
        2 => Just(Event::HoldoutAccepted),
        1 => Just(Event::HoldoutRefused(reason())),
        4 => Just(Event::Swapped),
        1 => Just(Event::SwapFailed(reason())),
        1 => Just(Event::EngineFailed(reason())),
        8 => Just(Event::HealthWindow { ok: true }),
        1 => Just(Event::HealthWindow { ok: false }),
        4 => Just(Event::Committed),
        1 => Just(Event::CommitFailed(reason())),
    ]
}

/// What a caller sees: a job under way and what has been shown of the candidate.
#[derive(Default)]
struct Watcher {
    compressing: bool,
    judging: bool,
    foreground: bool,
    accepted: bool,
    swapping_in: bool,
    swapped_in: bool,
    good: u32,
    critical_since: Option<Duration>,
}

impl Watcher {
    fn hear(&mut self, event: &Event, state: State) {
        match event {
            Event::CompressionDone | Event::CompressionFailed(_) => self.compressing = false,
            Event::CompressionCancelled => (self.compressing, self.judging) = (false, false),
            Event::HoldoutAccepted => {
                self.accepted |= self.judging;
                self.judging = false;
            }
            Event::HoldoutRefused(_) => self.judging = false,
            Event::Swapped => {
                self.swapped_in |= self.foreground && self.swapping_in;
                (self.foreground, self.swapping_in) = (false, false);
            }
            Event::SwapFailed(_) => (self.foreground, self.swapping_in) = (false, false),
            Event::HealthWindow { ok: true } if self.swapped_in && state == State::Probation => self.good += 1,
            _ => {}
        }
    }

    fn check(&mut self, action: Action, thresholds: &Thresholds) -> Result<(), String> {
        let background = self.compressing || self.judging;
        match action {
            Action::CancelCompression if !background => return Err("nothing to cancel".to_owned()),
            Action::CancelCompression | Action::DropLevel(_) | Action::ClimbLevel(_) => return Ok(()),
            _ if background || self.foreground => return Err(format!("{action:?} while a job is under way")),
            Action::Swap if !self.accepted => return Err("a swap without the holdout's yes".to_owned()),
            Action::Commit if !self.swapped_in || self.good < thresholds.probation_windows => {
                return Err(format!("a commit after {} good windows (swapped in: {})", self.good, self.swapped_in));
            }
            _ => {}
        }
        match action {
            Action::StartCompression { .. } => {
                self.compressing = true;
                (self.accepted, self.swapped_in, self.good) = (false, false, 0);
            }
            Action::JudgeCandidate => self.judging = true,
            Action::Swap => (self.foreground, self.swapping_in) = (true, true),
            Action::RollBack | Action::RestoreFactory => (self.foreground, self.swapped_in) = (true, false),
            // The world answers a commit with an event that is heard only where it is one, so that it does not count as busy here.
            _ => {}
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_sequence_of_readings_and_events_breaks_the_rules(
        // Readings stay for some steps, as conditions must hold to lead anywhere.
        phases in proptest::collection::vec((any_reading(), proptest::collection::vec((0u64..8000, proptest::option::of(any_event())), 1..60)), 1..12),
        levels in prop_oneof![Just(Vec::new()), proptest::collection::vec(any_bytes(), 1..4)],
        factory: bool,
    ) {
        let thresholds = Thresholds { probation_windows: 3, probation_bad: 2, regain_hold: Duration::from_secs(40), backoff_first: Duration::from_secs(5), ..Thresholds::default() };
        let mut levels = levels;
        levels.sort_unstable_by(|a, b| b.cmp(a));
        let mut controller = Controller::new(thresholds, factory, levels.clone());
        let (mut now, mut watcher) = (Duration::ZERO, Watcher::default());
        for (reading, steps) in phases {
            for (milliseconds, event) in steps {
                now += Duration::from_millis(milliseconds);
                let before = controller.state();
                if let Some(event) = &event { watcher.hear(event, before) }
                let actions = controller.step(now, &reading, event);
                for action in &actions {
                    prop_assert_eq!(watcher.check(*action, &thresholds), Ok(()), "{:?} at {:?} in {:?}", actions, now, before);
                }
                let below = reading.host_headroom_bytes() < 0 || reading.held_bytes > reading.limit_bytes;
                watcher.critical_since = below.then(|| watcher.critical_since.unwrap_or(now));
                if watcher.critical_since.is_some_and(|since| now - since >= thresholds.critical_hold) {
                    prop_assert_eq!(controller.state(), State::Critical);
                }
                if controller.state() == State::Critical {
                    let starts = |action: &Action| !matches!(action, Action::CancelCompression | Action::DropLevel(_));
                    prop_assert!(!actions.iter().any(starts), "{:?} in Critical", actions);
                }
                prop_assert!(controller.level() < levels.len().max(1));
            }
        }
    }
}
