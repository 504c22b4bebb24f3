//! One thread at a time.
//!
//! All work of a device is on one compute stream, and the driver records whatever is put on a stream while it is recorded. So a thread that
//! records has the stream for itself, and every operation passes this gate. A thread that is inside may enter again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

#[derive(Default)]
struct Holder {
    /// The thread that is inside; 0 for none.
    thread: usize,
    depth: usize,
}

/// A mutex that its holder may take again.
#[derive(Default)]
pub(super) struct Gate {
    holder: Mutex<Holder>,
    left: Condvar,
    /// Whether the holder records; written by the holder alone.
    capturing: AtomicBool,
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
        while holder.depth > 0 && holder.thread != this {
            holder = self.left.wait(holder).unwrap_or_else(PoisonError::into_inner);
        }
        (holder.thread, holder.depth) = (this, holder.depth + 1);
        Entered { gate: self, _thread: std::marker::PhantomData }
    }

    /// Whether the thread that is inside records. Asked from inside.
    pub fn is_capturing(&self) -> bool {
        self.capturing.load(Ordering::Relaxed)
    }

    /// Says whether the thread that is inside records. Called from inside.
    pub fn set_capturing(&self, capturing: bool) {
        self.capturing.store(capturing, Ordering::Relaxed);
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut holder = self.gate.holder.lock().unwrap_or_else(PoisonError::into_inner);
        holder.depth -= 1;
        if holder.depth == 0 {
            drop(holder);
            self.gate.left.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
