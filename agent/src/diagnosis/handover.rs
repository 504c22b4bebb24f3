//! What loop and supervisor hand to each other: engines one way, used engines and failures the other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::engine::Engine;
use super::queue::WAIT;
use crate::error::AgentError;

/// Events that may wait for the supervisor.
const MAX_EVENTS: usize = 32;
/// Of these, places that failures leave to swaps: a used engine must always find a place, or it would be dropped on the verdict path.
const KEPT_FOR_SWAPS: usize = 8;

/// How long a supervisor that says it is at work is believed. Images that are compiled on the device take about a minute, reading some
/// gigabytes from a slow card another; one that has got stuck must not hold windows back for ever.
const LONGEST_WORK: Duration = Duration::from_secs(180);

/// The next engine, on its way to the loop.
#[derive(Default)]
pub struct EngineCell {
    next: Mutex<Option<Box<dyn Engine>>>,
    offered: Condvar,
    /// Whether the supervisor is at work, so that an engine may still come.
    at_work: AtomicBool,
}

impl EngineCell {
    /// Puts the next engine in place. Gives back an earlier one that the loop has not taken.
    pub fn offer(&self, engine: Box<dyn Engine>) -> Option<Box<dyn Engine>> {
        let earlier = lock(&self.next).replace(engine);
        self.offered.notify_all();
        earlier
    }

    /// Takes back an engine that the loop has not taken.
    pub fn withdraw(&self) -> Option<Box<dyn Engine>> {
        lock(&self.next).take()
    }

    /// Says whether the supervisor is at work: a window that has no engine waits for it beyond its time.
    pub fn set_at_work(&self, at_work: bool) {
        self.at_work.store(at_work, Ordering::Release);
    }

    /// The next engine, if one is there; never waits.
    pub(super) fn try_take(&self) -> Option<Box<dyn Engine>> {
        match self.next.try_lock() {
            Ok(mut next) => next.take(),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().take(),
            // The supervisor is putting it there: the next window will find it.
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The next engine, waiting for it until `deadline`, beyond it while the supervisor is at work, or until `given_up`.
    pub(super) fn take_before(&self, deadline: Instant, given_up: impl Fn() -> bool) -> Option<Box<dyn Engine>> {
        let last = deadline + LONGEST_WORK;
        let mut next = lock(&self.next);
        loop {
            let now = Instant::now();
            let over = if self.at_work.load(Ordering::Acquire) { now >= last } else { now >= deadline };
            if next.is_some() || over || given_up() {
                return next.take();
            }
            next = self.offered.wait_timeout(next, WAIT).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// What the supervisor hears of the loop.
pub enum Event {
    /// The loop runs the offered engine; this one is no longer used, and dropping it is the supervisor's part.
    Swapped {
        /// The engine that was used before; none where it had failed and was handed over then.
        old: Option<Box<dyn Engine>>,
        /// Contents of the model that is run now.
        model_id: u64,
        /// Level of the model that is run now.
        level: u32,
        /// Windows from here on are judged by the new engine; none where it was taken while no window was there.
        from: Option<u64>,
    },
    /// The engine failed on a window. The loop has none now: what the engine holds is free for the next one once this one is dropped.
    Failed {
        /// The engine.
        engine: Box<dyn Engine>,
        /// The window.
        sequence: u64,
        /// Contents of the model.
        model_id: u64,
        /// What the engine said.
        error: AgentError,
    },
}

/// Events in their order.
#[derive(Default)]
pub struct Events {
    waiting: Mutex<heapless::Deque<Event, MAX_EVENTS>>,
    came: Condvar,
}

impl Events {
    /// The oldest event, if there is one.
    pub fn try_next(&self) -> Option<Event> {
        lock(&self.waiting).pop_front()
    }

    /// The oldest event; waits for one up to `timeout`.
    pub fn next_within(&self, timeout: Duration) -> Option<Event> {
        let deadline = Instant::now() + timeout;
        let mut waiting = lock(&self.waiting);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if !waiting.is_empty() || left.is_zero() {
                return waiting.pop_front();
            }
            waiting = self.came.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether a used engine finds a place. Only the loop adds events, so a place that it has seen stays.
    pub(super) fn has_room_for_swap(&self) -> bool {
        lock(&self.waiting).len() < MAX_EVENTS
    }

    /// Adds an event; gives it back where there is no place.
    pub(super) fn add(&self, event: Event) -> Option<Event> {
        let mut waiting = lock(&self.waiting);
        let places = if matches!(event, Event::Failed { .. }) { MAX_EVENTS - KEPT_FOR_SWAPS } else { MAX_EVENTS };
        if waiting.len() >= places {
            return Some(event);
        }
        let refused = waiting.push_back(event).err();
        drop(waiting);
        self.came.notify_all();
        refused
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is one assignment, so a panic elsewhere leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
