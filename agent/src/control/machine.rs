//! The controller: which action follows from which reading and event.
//!
//! The [`State`] is not stored. It follows from four facts: whether headroom is critical, which job the caller was given and has not
//! reported on, what is running, and at which level. So there is no combination that has to be kept consistent.

use std::time::Duration;

use super::hardware::{Reading, difference};
use super::hold::{Backoff, Hold};
use super::state::{Action, Event, State};
use super::thresholds::Thresholds;

/// The job that the caller was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Job {
    Compression { fit_bytes: u64, cancelled: bool },
    Judgement { cancelled: bool },
    Swap(Target),
    Commit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Candidate,
    Committed,
    Factory,
}

/// What answers windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Running {
    Committed,
    /// Not committed. Condemned: it must go, but could not be replaced yet.
    Candidate {
        good: u32,
        bad: u32,
        condemned: bool,
    },
}

/// The agent's decisions.
#[derive(Debug, Clone)]
pub struct Controller {
    thresholds: Thresholds,
    now: Duration,
    critical: bool,
    job: Option<Job>,
    running: Running,
    factory_committed: bool,
    /// Working set of every level of what answers, largest first; empty for an artifact of one level.
    levels: Vec<u64>,
    level: usize,
    shrink: Hold,
    low: Hold,
    below_reserve: Hold,
    above_reserve: Hold,
    climb: Hold,
    plenty: Hold,
    tighter: Hold,
    regained: Hold,
    backoff: Backoff,
    /// What the last failed compression was to fit into.
    failed_fit_bytes: u64,
    /// What the candidate was made to fit into.
    fit_bytes: u64,
    ignored: u64,
}

impl Controller {
    /// A controller of a program that has just started to serve its committed artifact, which is the factory's or not, with the working
    /// set of each of its levels in bytes, largest first (empty for an artifact of one level).
    pub fn new(thresholds: Thresholds, factory_committed: bool, levels: Vec<u64>) -> Self {
        Self {
            thresholds,
            now: Duration::ZERO,
            critical: false,
            job: None,
            running: Running::Committed,
            factory_committed,
            levels,
            level: 0,
            shrink: Hold::default(),
            low: Hold::default(),
            below_reserve: Hold::default(),
            above_reserve: Hold::default(),
            climb: Hold::default(),
            plenty: Hold::default(),
            tighter: Hold::default(),
            regained: Hold::default(),
            backoff: Backoff::default(),
            failed_fit_bytes: 0,
            fit_bytes: 0,
            ignored: 0,
        }
    }

    /// The levels of what answers from now on, served at its largest. Call it before the step that reports `Swapped`.
    pub fn set_levels(&mut self, levels: Vec<u64>) {
        (self.levels, self.level) = (levels, 0);
    }

    /// What the agent is doing.
    pub fn state(&self) -> State {
        match (self.critical, self.job, self.running) {
            (true, ..) => State::Critical,
            (_, Some(Job::Compression { .. }), _) => State::Compressing,
            (_, Some(Job::Judgement { .. }), _) => State::Verifying,
            (_, Some(Job::Swap(_)), _) => State::Swapping,
            (_, Some(Job::Commit), _) | (_, None, Running::Candidate { .. }) => State::Probation,
            (_, None, Running::Committed) if self.level > 0 => State::Shrunk,
            (_, None, Running::Committed) => State::Serving,
        }
    }

    /// Whether the candidate answers windows, and its probation goes on.
    pub fn serves_candidate(&self) -> bool {
        matches!(self.running, Running::Candidate { condemned: false, .. })
    }

    /// The level that answers; 0 is the largest.
    pub fn level(&self) -> usize {
        self.level
    }

    /// When the wait after a failure or a swap is over, on the clock of [`Controller::step`].
    pub fn backed_off_until(&self) -> Duration {
        self.backoff.until()
    }

    /// Events that made no sense when they came and were ignored.
    pub fn ignored_events(&self) -> u64 {
        self.ignored
    }

    /// Takes a reading, and what has happened since the last one, and says what to do now, in order. `now` is a clock that never goes back
    /// (a step back counts as standing still). Call it about once a second, and at once with every event.
    pub fn step(&mut self, now: Duration, reading: &Reading, event: Option<Event>) -> Vec<Action> {
        self.now = self.now.max(now);
        let before = self.state();
        self.observe(reading);
        let mut actions = Vec::new();
        // Critical first, so that an event of this moment starts nothing.
        self.settle_critical();
        // A window that was answered in Critical was answered by the smallest level: it says nothing about the candidate.
        let in_critical = self.critical || before == State::Critical;
        let telling = |event: &Event| !(matches!(event, Event::HealthWindow { .. }) && in_critical);
        if let Some(event) = event.filter(telling) {
            self.handle(event, reading, &mut actions);
        }
        if self.critical {
            self.let_go(&mut actions);
        } else {
            self.decide(reading, &mut actions);
        }
        let after = self.state();
        if before != after {
            log::info!("{before} → {after} (headroom {} bytes)", reading.headroom_bytes());
        }
        actions
    }

    /// Updates how long each condition has held.
    fn observe(&mut self, reading: &Reading) {
        let (now, thresholds) = (self.now, self.thresholds);
        let deficit = self.deficit(reading);
        let share = |of: u64| i64::try_from(reading.goal_bytes / of.max(1)).unwrap_or(i64::MAX);
        let (low, still_low) = (deficit > 0, deficit > -share(thresholds.calm_share));
        self.shrink.observe(now, low, still_low);
        self.low.observe(now, low, still_low);
        let below = reading.host_headroom_bytes() < 0 || reading.held_bytes > reading.limit_bytes;
        self.below_reserve.observe(now, below, below);
        let above = !below && reading.host_headroom_bytes() >= bytes(thresholds.release_bytes);
        self.above_reserve.observe(now, above, above);
        let climb = self.climbable(reading).is_some();
        self.climb.observe(now, climb, climb);
        let plenty = deficit <= -share(thresholds.plenty_share);
        self.plenty.observe(now, plenty, plenty);
        let tighter = matches!(self.job, Some(Job::Compression { fit_bytes, .. }) if self.aim(reading) < fit_bytes - fit_bytes / thresholds.fit_share.max(1));
        self.tighter.observe(now, tighter, tighter);
        let regained = self.factory_fits(reading);
        self.regained.observe(now, regained, regained);
    }

    /// Bytes by which held must fall; negative where there is room.
    fn deficit(&self, reading: &Reading) -> i64 {
        let over_goal = difference(reading.held_bytes, reading.goal_bytes.min(reading.limit_bytes));
        over_goal.max(bytes(self.thresholds.comfort_bytes).saturating_sub(reading.host_headroom_bytes()))
    }

    /// What a compression should fit into: what may be held now, less a margin.
    fn aim(&self, reading: &Reading) -> u64 {
        let may_hold = reading.held_bytes.saturating_add_signed(self.deficit(reading).saturating_neg());
        may_hold - may_hold / self.thresholds.fit_share.max(1)
    }

    fn factory_fits(&self, reading: &Reading) -> bool {
        let ceiling = reading.goal_bytes.min(reading.limit_bytes);
        let with_margin = ceiling - ceiling / self.thresholds.plenty_share.max(1);
        let more = difference(reading.factory_bytes, reading.held_bytes).max(0);
        // Twice the comfort: the swap holds both artifacts for a moment, and "low" must not follow from it.
        let host_left = reading.host_headroom_bytes().saturating_sub(more);
        reading.factory_bytes <= with_margin && host_left >= bytes(self.thresholds.comfort_bytes).saturating_mul(2)
    }

    /// The largest level above the present one that fits with a margin.
    fn climbable(&self, reading: &Reading) -> Option<usize> {
        let present = *self.levels.get(self.level)?;
        let margin = bytes(reading.goal_bytes / self.thresholds.fit_share.max(1));
        let room = self.deficit(reading).saturating_neg().saturating_sub(margin);
        (0..self.level).find(|&level| difference(self.levels[level], present) <= room)
    }

    fn settle_critical(&mut self) {
        if self.below_reserve.lasted(self.now, self.thresholds.critical_hold) {
            self.critical = true;
        } else if self.critical && self.above_reserve.lasted(self.now, self.thresholds.critical_release_hold) {
            self.critical = false;
        }
    }

    /// In Critical: the smallest level, and no background work.
    fn let_go(&mut self, actions: &mut Vec<Action>) {
        let smallest = self.levels.len().saturating_sub(1);
        // A swap under way exchanges the levels; the step after it drops those of the new artifact.
        if self.level < smallest && !matches!(self.job, Some(Job::Swap(_))) {
            self.level = smallest;
            actions.push(Action::DropLevel(smallest));
        }
        self.cancel(actions);
    }

    /// Cancels the background job, where there is one that was not cancelled before.
    fn cancel(&mut self, actions: &mut Vec<Action>) {
        if let Some(Job::Compression { cancelled, .. } | Job::Judgement { cancelled }) = &mut self.job
            && !*cancelled
        {
            *cancelled = true;
            actions.push(Action::CancelCompression);
        }
    }

    /// What follows from an event; most follow only where the job that it answers is the one under way.
    fn handle(&mut self, event: Event, reading: &Reading, actions: &mut Vec<Action>) {
        match (self.job, event) {
            (Some(Job::Compression { cancelled, fit_bytes }), Event::CompressionDone) => {
                self.job = None;
                if cancelled || self.critical {
                    log::info!("a compression ended after it was cancelled; its candidate is dropped");
                } else {
                    self.fit_bytes = fit_bytes;
                    self.give(Job::Judgement { cancelled: false }, Action::JudgeCandidate, actions);
                }
            }
            (Some(Job::Compression { cancelled, fit_bytes }), Event::CompressionFailed(reason)) => {
                self.job = None;
                if !cancelled {
                    self.fit_bytes = fit_bytes;
                    self.fail("the compression failed", &reason);
                }
            }
            (Some(Job::Compression { cancelled, .. } | Job::Judgement { cancelled }), Event::CompressionCancelled) => {
                self.job = None;
                if !cancelled {
                    self.fail("the background job stopped", "someone else cancelled it");
                }
            }
            (Some(Job::Judgement { cancelled }), Event::HoldoutAccepted) => {
                self.job = None;
                if !cancelled && !self.critical {
                    self.give(Job::Swap(Target::Candidate), Action::Swap, actions);
                }
            }
            (Some(Job::Judgement { cancelled }), Event::HoldoutRefused(reason)) => {
                self.job = None;
                if !cancelled {
                    self.fail("the holdout refused the candidate", &reason);
                }
            }
            (Some(Job::Swap(target)), Event::Swapped) => self.swapped(target),
            (Some(Job::Swap(target)), Event::SwapFailed(reason)) => self.swap_failed(target, &reason, actions),
            (Some(Job::Commit), Event::Committed) => self.committed(reading),
            (Some(Job::Commit), Event::CommitFailed(reason)) => {
                self.job = None;
                self.condemn("the candidate could not be committed", &reason, actions);
            }
            (None, Event::HealthWindow { ok }) if self.serves_candidate() => self.health(ok, actions),
            (None, Event::EngineFailed(reason)) if self.serves_candidate() => {
                self.condemn("the candidate failed on probation", &reason, actions)
            }
            // Windows go on while the commit is written, and while a condemned candidate waits to be replaced.
            (_, Event::HealthWindow { .. } | Event::EngineFailed(_)) if matches!(self.running, Running::Candidate { .. }) => {}
            (_, event) => {
                self.ignored += 1;
                log::warn!("{event:?} came in state {}, where it has no meaning; it is ignored", self.state());
            }
        }
    }

    fn give(&mut self, job: Job, action: Action, actions: &mut Vec<Action>) {
        self.job = Some(job);
        actions.push(action);
    }

    fn fail(&mut self, what: &str, reason: &str) {
        let wait = self.backoff.fail(self.now, self.thresholds.backoff_first, self.thresholds.backoff_longest);
        self.failed_fit_bytes = self.fit_bytes;
        log::warn!("{what}: {reason}; the next attempt is in {} s at the earliest", wait.as_secs());
    }

    fn swapped(&mut self, target: Target) {
        self.job = None;
        self.running = match target {
            Target::Candidate => Running::Candidate { good: 0, bad: 0, condemned: false },
            Target::Committed => Running::Committed,
            Target::Factory => {
                self.factory_committed = true;
                Running::Committed
            }
        };
        if target == Target::Factory && !self.backoff.failed() {
            self.backoff.succeed(self.now, self.thresholds.settle);
        }
    }

    fn swap_failed(&mut self, target: Target, reason: &str, actions: &mut Vec<Action>) {
        self.job = None;
        match target {
            Target::Candidate => self.fail("the candidate could not be loaded", reason),
            Target::Committed if !self.critical => {
                log::warn!("the committed artifact could not be loaded: {reason}; the factory artifact is restored");
                self.give(Job::Swap(Target::Factory), Action::RestoreFactory, actions);
            }
            Target::Committed | Target::Factory => self.fail("the former artifact could not be loaded", reason),
        }
    }

    fn committed(&mut self, reading: &Reading) {
        self.job = None;
        (self.running, self.factory_committed) = (Running::Committed, false);
        if self.deficit(reading) > 0 {
            self.fail("the new artifact still does not fit", "it holds more than it was made for, or the goal has fallen since");
        } else {
            self.backoff.succeed(self.now, self.thresholds.settle);
        }
    }

    fn health(&mut self, ok: bool, actions: &mut Vec<Action>) {
        let Running::Candidate { good, bad, .. } = &mut self.running else { return };
        *(if ok { &mut *good } else { &mut *bad }) += 1;
        let (good, bad) = (*good, *bad);
        if bad >= self.thresholds.probation_bad {
            self.condemn("the candidate did badly on probation", &format!("{bad} bad windows, {good} good ones"), actions);
        } else if good >= self.thresholds.probation_windows {
            self.give(Job::Commit, Action::Commit, actions);
        }
    }

    /// The candidate must go: now, or once headroom is back where that is critical, because the former artifact may be larger.
    fn condemn(&mut self, what: &str, reason: &str, actions: &mut Vec<Action>) {
        self.fail(what, reason);
        if let Running::Candidate { condemned, .. } = &mut self.running {
            *condemned = true;
        }
        if !self.critical {
            self.give(Job::Swap(Target::Committed), Action::RollBack, actions);
        }
    }

    /// What follows from the conditions alone.
    fn decide(&mut self, reading: &Reading, actions: &mut Vec<Action>) {
        if !matches!(self.job, Some(Job::Swap(_))) {
            self.drop_level(reading, actions);
        }
        match (self.job, self.running) {
            (Some(Job::Compression { cancelled: false, .. }), _) => {
                let hold = self.thresholds.cancel_hold;
                if self.plenty.lasted(self.now, hold) || self.tighter.lasted(self.now, hold) {
                    self.cancel(actions);
                }
            }
            (None, Running::Candidate { condemned: true, .. }) if self.backoff.over(self.now) => {
                self.give(Job::Swap(Target::Committed), Action::RollBack, actions);
            }
            (None, Running::Committed) => self.decide_idle(reading, actions),
            _ => {}
        }
    }

    fn drop_level(&mut self, reading: &Reading, actions: &mut Vec<Action>) {
        let deficit = self.deficit(reading);
        let smallest = self.levels.len().saturating_sub(1);
        if self.level >= smallest || deficit <= 0 || !self.shrink.lasted(self.now, self.thresholds.shrink_hold) {
            return;
        }
        let present = self.levels[self.level];
        let wanted = deficit.saturating_add(bytes(reading.goal_bytes / self.thresholds.fit_share.max(1)));
        let fits = |level: &usize| difference(present, self.levels[*level]) >= wanted;
        self.level = (self.level + 1..=smallest).find(fits).unwrap_or(smallest);
        actions.push(Action::DropLevel(self.level));
        // The gauges need a reading to show it.
        self.shrink.restart(self.now);
        self.low.restart(self.now);
    }

    fn decide_idle(&mut self, reading: &Reading, actions: &mut Vec<Action>) {
        let deficit = self.deficit(reading);
        let smallest = self.level + 1 >= self.levels.len();
        if deficit > 0 {
            let fit_bytes = self.aim(reading);
            // A wait is for what has failed: an eighth more room is another question.
            let easier = self.backoff.failed() && fit_bytes > self.failed_fit_bytes.saturating_add(self.failed_fit_bytes / 8);
            if smallest && self.low.lasted(self.now, self.thresholds.low_hold) && (self.backoff.over(self.now) || easier) {
                self.plenty = Hold::default();
                self.tighter = Hold::default();
                self.give(Job::Compression { fit_bytes, cancelled: false }, Action::StartCompression { fit_bytes }, actions);
            }
        } else if self.level > 0 {
            if let Some(level) = self.climbable(reading).filter(|_| self.climb.lasted(self.now, self.thresholds.climb_hold)) {
                self.level = level;
                self.climb.restart(self.now);
                actions.push(Action::ClimbLevel(level));
            }
        } else if !self.factory_committed && self.backoff.over(self.now) && self.regained.lasted(self.now, self.thresholds.regain_hold) {
            self.give(Job::Swap(Target::Factory), Action::RestoreFactory, actions);
        }
    }
}

fn bytes(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
