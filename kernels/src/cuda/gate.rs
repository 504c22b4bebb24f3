//! One thread at a time.
//!
//! All work of a device is on one compute stream, and the driver records whatever is put on a stream while it is recorded. So a thread that
//! records has the stream for itself, and every operation passes this gate. A thread that is inside may enter again; the others come in as
//! they arrived, so that one that trains does not keep one that serves out.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

#[derive(Default)]
struct Holder {
    /// The thread that is inside; 0 for none.
    thread: usize,
    depth: usize,
    /// Threads that have arrived, and those that have been inside.
    arrived: u64,
    left: u64,
}

/// A mutex that its holder may take again.
#[derive(Default)]
pub(super) struct Gate {
    holder: Mutex<Holder>,
    left: Condvar,
    /// The thread that records; 0 for none. Written by the holder alone.
    capturing: AtomicUsize,
}

/// The time between entering and leaving.
pub(super) struct Entered<'a> {
    gate: &'a Gate,
    /// Threads leave where they entered.
    _thread: std::marker::PhantomData<*const ()>,
}

fn this_thread() -> usize {
    thread_local!(static PLACE: u8 = const { 0 });
    PLACE.with(|place| std::ptr::from_ref(place) as usize)
}

impl Gate {
    /// Waits until no other thread is inside.
    pub fn enter(&self) -> Entered<'_> {
        let this = this_thread();
        let mut holder = self.holder.lock().unwrap_or_else(PoisonError::into_inner);
        if holder.depth == 0 || holder.thread != this {
            let ticket = holder.arrived;
            holder.arrived += 1;
            while holder.left != ticket {
                holder = self.left.wait(holder).unwrap_or_else(PoisonError::into_inner);
            }
        }
        (holder.thread, holder.depth) = (this, holder.depth + 1);
        Entered { gate: self, _thread: std::marker::PhantomData }
    }

    /// Whether this thread records.
    pub fn is_capturing(&self) -> bool {
        self.capturing.load(Ordering::Relaxed) == this_thread()
    }

    /// Says whether this thread, which is inside, records.
    pub fn set_capturing(&self, capturing: bool) {
        self.capturing.store(if capturing { this_thread() } else { 0 }, Ordering::Relaxed);
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut holder = self.gate.holder.lock().unwrap_or_else(PoisonError::into_inner);
        holder.depth -= 1;
        if holder.depth == 0 {
            holder.left += 1;
            if holder.left != holder.arrived {
                self.gate.left.notify_all();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn what_a_thread_records_is_no_other_threads_recording() {
        let gate = Gate::default();
        let _entered = gate.enter();
        gate.set_capturing(true);
        assert!(gate.is_capturing());
        assert!(!std::thread::scope(|scope| scope.spawn(|| gate.is_capturing()).join().unwrap()));
        gate.set_capturing(false);
        assert!(!gate.is_capturing());
    }

    #[test]
    fn a_thread_may_enter_twice_and_others_wait() {
        let gate = Gate::default();
        let inside = AtomicBool::new(false);
        let first = gate.enter();
        let second = gate.enter();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                let _entered = gate.enter();
                inside.store(true, Ordering::SeqCst);
            });
            drop(second);
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(!inside.load(Ordering::SeqCst), "the other thread did not wait");
            drop(first);
            other.join().unwrap();
        });
        assert!(inside.load(Ordering::SeqCst));
    }

    #[test]
    fn a_thread_that_waits_comes_in_before_one_that_comes_back() {
        let gate = Gate::default();
        let (inside, waiting) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let first = gate.enter();
            scope.spawn(|| {
                waiting.store(true, Ordering::SeqCst);
                let _entered = gate.enter();
                inside.store(true, Ordering::SeqCst);
            });
            while !waiting.load(Ordering::SeqCst) || gate.holder.lock().unwrap().arrived < 2 {
                std::thread::yield_now();
            }
            drop(first);
            let _again = gate.enter();
            assert!(inside.load(Ordering::SeqCst));
        });
    }
}
