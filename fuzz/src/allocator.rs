//! Counts the bytes that a thread holds, so that a target can bound what a file makes the program allocate.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// What a reader may allocate beside the file's own size.
const ALLOWANCE_BYTES: usize = 64 << 20;

/// The system's allocator, counting.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    /// Bytes that this thread holds; what it frees for another thread is counted here, so it may be negative.
    static HELD: Cell<isize> = const { Cell::new(0) };
    /// The most since the last reset.
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that ends frees after its locals are gone: nothing to count there.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: every call is passed to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both are there while the bytes are copied.
        count(size as isize);
        // SAFETY: the caller's promise.
        let moved = unsafe { System.realloc(pointer, layout, size) };
        count(-(layout.size() as isize));
        moved
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Runs `read` on a file of `file_bytes` bytes.
///
/// # Panics
/// It allocated more than the file's own size and 64 MiB.
pub fn bounded<T>(file_bytes: usize, read: impl FnOnce() -> T) -> T {
    let before = HELD.get();
    PEAK.set(before);
    let result = read();
    let taken = usize::try_from(PEAK.get() - before).unwrap_or(0);
    assert!(taken <= file_bytes + ALLOWANCE_BYTES, "{taken} bytes were allocated for a file of {file_bytes}");
    result
}
