//! The bounded queue between source and engine.
//!
//! All window buffers are made at the start: one for every place of the queue, one that the source fills and one that the engine reads.
//! Pushing and popping swap buffers, so a window's samples are copied once, from the windower into its buffer.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{AgentError, Result};
use crate::train::Stop;

/// Most windows that may wait.
pub const MAX_QUEUE: usize = 64;

/// How long a wait goes on before the stop flag is looked at again: short for a person, and 20 wake-ups a second cost nothing.
pub(super) const WAIT: Duration = Duration::from_millis(50);

/// What a full queue does with one more window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// The source waits: nothing is lost.
    Block,
    /// The oldest window makes room and is counted: the source never waits.
    DropOldest,
}

/// Where a window comes from.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    /// Counts the windows of a run from 0, across recordings.
    pub sequence: u64,
    /// The recording, counted from 0 in the order of the source.
    pub recording: u32,
    /// First sample, counted from the recording's start.
    pub start: u64,
    /// Class that the recording is known to have, an index into the model's classes.
    pub label: Option<usize>,
    /// When the window was due (a paced source) or whole (any other).
    pub due: Instant,
}

/// A window on its way.
#[derive(Debug)]
pub struct Slot {
    /// Where it comes from.
    pub header: Header,
    /// `[window]`.
    pub samples: Box<[f32]>,
}

impl Slot {
    /// An empty slot for windows of `window` samples.
    pub fn new(window: usize) -> Self {
        let header = Header { sequence: 0, recording: 0, start: 0, label: None, due: Instant::now() };
        Self { header, samples: vec![0.0; window].into_boxed_slice() }
    }
}

/// Windows that were dropped one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Gap {
    /// Sequence number of the first.
    pub first: u64,
    /// Sequence number of the last.
    pub last: u64,
    /// How many; a source that numbers without gaps makes this `last - first + 1`.
    pub count: u64,
}

/// Whether a window was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It is in the queue and counted as produced.
    Accepted,
    /// The queue is closed or stopped; the window is not counted.
    Refused,
}

/// What a pop found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Popped {
    /// What was dropped since the last pop, all of it older than the window.
    pub gap: Option<Gap>,
    /// What came.
    pub what: Found,
}

/// What came out of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// The oldest window.
    Window,
    /// Nothing came for 50 ms.
    Nothing,
    /// The queue was closed and is empty, or was stopped.
    End,
}

/// The queue.
#[derive(Debug)]
pub struct Queue {
    state: Mutex<State>,
    /// A window has come, or the end.
    ready: Condvar,
    /// A place has become free, or the end.
    room: Condvar,
    policy: Policy,
    produced: AtomicU64,
    dropped: AtomicU64,
    high_water: AtomicUsize,
}

#[derive(Debug)]
struct State {
    /// Together with `free` always as many slots as the queue has places.
    waiting: heapless::Deque<Slot, MAX_QUEUE>,
    free: heapless::Vec<Slot, MAX_QUEUE>,
    gap: Option<Gap>,
    closed: bool,
    stopped: bool,
}

impl Queue {
    /// A queue with `places`, 1 to [`MAX_QUEUE`], for windows of `window` samples.
    ///
    /// # Errors
    /// [`AgentError::Usage`] for another number of places.
    pub fn new(places: usize, window: usize, policy: Policy) -> Result<Self> {
        if !(1..=MAX_QUEUE).contains(&places) {
            return Err(AgentError::Usage(format!("a queue of {places} windows is not possible; give 1 to {MAX_QUEUE}")));
        }
        let free = (0..places).map(|_| Slot::new(window)).collect();
        Ok(Self {
            state: Mutex::new(State { waiting: heapless::Deque::new(), free, gap: None, closed: false, stopped: false }),
            ready: Condvar::new(),
            room: Condvar::new(),
            policy,
            produced: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            high_water: AtomicUsize::new(0),
        })
    }

    /// Puts the window in `slot` at the end and leaves an unused buffer in its place.
    pub fn push(&self, slot: &mut Slot, stop: &Stop) -> Pushed {
        let mut state = self.state();
        let unused = loop {
            if stop.is_asked() {
                self.discard(&mut state);
            }
            if state.stopped || state.closed {
                return Pushed::Refused;
            }
            if let Some(free) = state.free.pop() {
                break free;
            }
            match self.policy {
                Policy::Block => state = self.room.wait_timeout(state, WAIT).unwrap_or_else(PoisonError::into_inner).0,
                Policy::DropOldest => {
                    if let Some(oldest) = state.waiting.pop_front() {
                        self.note_dropped(&mut state, oldest.header.sequence);
                        break oldest;
                    }
                }
            }
        };
        let whole = std::mem::replace(slot, unused);
        // The slot that was just taken from `free` or `waiting` left a place.
        assert!(state.waiting.push_back(whole).is_ok(), "more slots than places");
        self.produced.fetch_add(1, Ordering::Release);
        self.high_water.fetch_max(state.waiting.len(), Ordering::Relaxed);
        drop(state);
        self.ready.notify_one();
        Pushed::Accepted
    }

    /// Swaps the oldest window into `slot`; waits up to 50 ms for one.
    pub fn pop(&self, slot: &mut Slot, stop: &Stop) -> Popped {
        let mut state = self.state();
        let end = |state: &State| state.stopped || (state.closed && state.waiting.is_empty());
        if stop.is_asked() {
            self.discard(&mut state);
        }
        if !end(&state) && state.waiting.is_empty() {
            state = self.ready.wait_timeout(state, WAIT).unwrap_or_else(PoisonError::into_inner).0;
        }
        let gap = state.gap.take();
        if end(&state) {
            return Popped { gap, what: Found::End };
        }
        let Some(oldest) = state.waiting.pop_front() else { return Popped { gap, what: Found::Nothing } };
        let used = std::mem::replace(slot, oldest);
        assert!(state.free.push(used).is_ok(), "more slots than places");
        drop(state);
        self.room.notify_one();
        Popped { gap, what: Found::Window }
    }

    /// Nothing more comes; what waits can still be taken.
    pub fn close(&self) {
        self.state().closed = true;
        self.ready.notify_all();
        self.room.notify_all();
    }

    /// Ends both sides at once; what waits is dropped and counted.
    pub fn stop(&self) {
        self.discard(&mut self.state());
    }

    /// Whether it was stopped.
    pub fn is_stopped(&self) -> bool {
        self.state().stopped
    }

    /// What was dropped since the last pop.
    pub fn take_gap(&self) -> Option<Gap> {
        self.state().gap.take()
    }

    /// Windows that were accepted.
    pub fn produced(&self) -> u64 {
        self.produced.load(Ordering::Acquire)
    }

    /// Windows that were dropped.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Acquire)
    }

    /// Most windows that ever waited.
    pub fn high_water(&self) -> usize {
        self.high_water.load(Ordering::Relaxed)
    }

    fn discard(&self, state: &mut State) {
        state.stopped = true;
        while let Some(slot) = state.waiting.pop_front() {
            self.note_dropped(state, slot.header.sequence);
            assert!(state.free.push(slot).is_ok(), "more slots than places");
        }
        self.ready.notify_all();
        self.room.notify_all();
    }

    fn note_dropped(&self, state: &mut State, sequence: u64) {
        self.dropped.fetch_add(1, Ordering::Release);
        let gap = state.gap.get_or_insert(Gap { first: sequence, last: sequence, count: 0 });
        gap.last = sequence;
        gap.count += 1;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is complete before the lock is given back, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Operation {
        Push,
        Pop,
        Close,
        Stop,
    }

    fn operation() -> impl Strategy<Value = Operation> {
        prop_oneof![
            40 => Just(Operation::Push),
            30 => Just(Operation::Pop),
            1 => Just(Operation::Close),
            1 => Just(Operation::Stop),
        ]
    }

    /// A window whose samples tell its number, so that mixed-up buffers show.
    fn fill(slot: &mut Slot, sequence: u64) {
        slot.header.sequence = sequence;
        slot.samples.fill(sequence as f32);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn behaves_like_a_list_that_forgets_its_front(places in 1usize..6, operations in prop::collection::vec(operation(), 0..60)) {
            let queue = Queue::new(places, 2, Policy::DropOldest).unwrap();
            let (mut source, mut engine, stop) = (Slot::new(2), Slot::new(2), Stop::new());
            let (mut model, mut dropped, mut produced, mut highest) = (VecDeque::new(), Vec::new(), 0u64, 0);
            let (mut closed, mut stopped, mut all_dropped) = (false, false, 0);
            for operation in operations {
                match operation {
                    Operation::Push => {
                        fill(&mut source, produced);
                        let pushed = queue.push(&mut source, &stop);
                        prop_assert_eq!(pushed == Pushed::Refused, closed || stopped);
                        if pushed == Pushed::Accepted {
                            if model.len() == places {
                                dropped.extend(model.pop_front());
                            }
                            model.push_back(produced);
                            produced += 1;
                            highest = highest.max(model.len());
                        }
                    }
                    // An empty queue that is open would only wait.
                    Operation::Pop if model.is_empty() && !closed && !stopped => {}
                    Operation::Pop => {
                        let popped = queue.pop(&mut engine, &stop);
                        let gap = dropped.first().map(|first| Gap { first: *first, last: dropped[dropped.len() - 1], count: dropped.len() as u64 });
                        prop_assert_eq!(popped.gap, gap);
                        all_dropped += dropped.len();
                        dropped.clear();
                        match model.pop_front() {
                            Some(sequence) => {
                                prop_assert_eq!(popped.what, Found::Window);
                                prop_assert_eq!(engine.header.sequence, sequence);
                                prop_assert!(engine.samples.iter().all(|sample| *sample == sequence as f32));
                            }
                            None => prop_assert_eq!(popped.what, Found::End),
                        }
                    }
                    Operation::Close => {
                        queue.close();
                        closed = true;
                    }
                    Operation::Stop => {
                        queue.stop();
                        stopped = true;
                        dropped.extend(model.drain(..));
                    }
                }
                let state = queue.state();
                prop_assert_eq!((state.waiting.len(), state.free.len()), (model.len(), places - model.len()));
            }
            let expected = (produced, (all_dropped + dropped.len()) as u64, highest);
            prop_assert_eq!((queue.produced(), queue.dropped(), queue.high_water()), expected);
        }
    }

    #[test]
    fn a_full_blocking_queue_waits_until_there_is_room() {
        let queue = Queue::new(2, 1, Policy::Block).unwrap();
        let stop = Stop::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut slot = Slot::new(1);
                for sequence in 0..1000 {
                    fill(&mut slot, sequence);
                    assert_eq!(queue.push(&mut slot, &stop), Pushed::Accepted);
                }
                queue.close();
            });
            let (mut slot, mut next) = (Slot::new(1), 0);
            loop {
                let popped = queue.pop(&mut slot, &stop);
                assert_eq!(popped.gap, None);
                match popped.what {
                    Found::Window => assert_eq!(slot.header.sequence, next),
                    Found::Nothing => continue,
                    Found::End => break,
                }
                next += 1;
            }
            assert_eq!((next, queue.produced(), queue.dropped()), (1000, 1000, 0));
            assert!(queue.high_water() <= 2);
        });
    }

    #[test]
    fn a_stop_flag_frees_a_waiting_source() {
        let queue = Queue::new(1, 1, Policy::Block).unwrap();
        let (stop, mut slot) = (Stop::new(), Slot::new(1));
        assert_eq!(queue.push(&mut slot, &stop), Pushed::Accepted);
        std::thread::scope(|scope| {
            let blocked = scope.spawn(|| queue.push(&mut Slot::new(1), &stop));
            std::thread::sleep(Duration::from_millis(5));
            stop.ask();
            assert_eq!(blocked.join().unwrap(), Pushed::Refused);
        });
        assert_eq!(queue.take_gap(), Some(Gap { first: 0, last: 0, count: 1 }));
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for places in [0, MAX_QUEUE + 1] {
            assert!(Queue::new(places, 4, Policy::Block).is_err_and(|error| error.is_usage()), "{places}");
        }
    }
}
