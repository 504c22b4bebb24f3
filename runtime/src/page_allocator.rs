//! A global allocator whose large blocks are mappings of their own.
//!
//! The system's allocator raises its mapping threshold once a large block was freed, and keeps what later large blocks leave behind: a
//! process that has pruned would go on holding megabytes that nothing uses. Here every block of [`OWN_MAPPING`] bytes or more is mapped and
//! unmapped by itself, so that releasing it returns it to the system at once.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;

use rustix::mm::{MapFlags, MremapFlags, ProtFlags, mmap_anonymous, mremap, munmap};

/// Blocks of this many bytes or more are mappings of their own. 16 pages: the rounding up to whole pages wastes at most 6 %.
pub const OWN_MAPPING: usize = 64 << 10;

/// The alignment that every mapping has on every supported system.
const PAGE: usize = 4096;

/// The system's allocator for small blocks, the system's mappings for large ones.
#[derive(Debug, Default, Clone, Copy)]
pub struct PageAllocator;

fn is_mapped(layout: Layout) -> bool {
    layout.size() >= OWN_MAPPING && layout.align() <= PAGE
}

// SAFETY: every block comes either from `System` or from a private anonymous mapping of at least its size, aligned to a page; which of the
// two is a function of the layout alone, so a block is given back to where it came from.
unsafe impl GlobalAlloc for PageAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !is_mapped(layout) {
            // SAFETY: the caller's layout has a size above 0, as `System` asks.
            return unsafe { System.alloc(layout) };
        }
        // SAFETY: a new anonymous mapping at an address that the system chooses overlaps nothing.
        let mapped = unsafe { mmap_anonymous(ptr::null_mut(), layout.size(), ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) };
        mapped.map_or(ptr::null_mut(), <*mut _>::cast)
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_mapped(layout) {
            // SAFETY: as the caller's; a fresh mapping is zero.
            return unsafe { self.alloc(layout) };
        }
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if !is_mapped(layout) {
            // SAFETY: a block of this layout came from `System`.
            return unsafe { System.dealloc(block, layout) };
        }
        // SAFETY: a block of this layout is a mapping of this size that nobody uses any more. A failure would leak it; there is no one to tell.
        let _ = unsafe { munmap(block.cast(), layout.size()) };
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that `size`, rounded up to the alignment, is a valid size.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (is_mapped(layout), is_mapped(wanted)) {
            // SAFETY: a block of this layout came from `System`, and stays there.
            (false, false) => unsafe { System.realloc(block, layout, size) },
            (true, true) => {
                // SAFETY: the block is a mapping of this size; the system may move it, contents included.
                let moved = unsafe { mremap(block.cast(), layout.size(), size, MremapFlags::MAYMOVE) };
                moved.map_or(ptr::null_mut(), <*mut _>::cast)
            }
            _ => {
                // SAFETY: the new block is another one, both are at least as long as what is copied, and the old one came from here.
                unsafe {
                    let moved = self.alloc(wanted);
                    if !moved.is_null() {
                        ptr::copy_nonoverlapping(block, moved, layout.size().min(size));
                        self.dealloc(block, layout);
                    }
                    moved
                }
            }
        }
    }
}

/// Keeps the system's allocator small: one arena for all threads, since nothing here allocates often enough to compete for it and every
/// arena holds its own free pages. Called once, before the first thread.
pub fn tune_system_allocator() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const M_ARENA_MAX: std::ffi::c_int = -8;
        unsafe extern "C" {
            fn mallopt(parameter: std::ffi::c_int, value: std::ffi::c_int) -> std::ffi::c_int;
        }
        // SAFETY: a documented call of the C library with a documented parameter; it touches only the allocator's own state. Where it is
        // refused there are more arenas, which costs memory only.
        let _ = unsafe { mallopt(M_ARENA_MAX, 1) };
    }
}

/// Gives the free pages among the small blocks back to the system: after a large piece of work, which leaves many.
pub fn release_free_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: a documented call of the C library, safe beside other threads; it gives back only pages that hold no block.
        let _ = unsafe { malloc_trim(0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Grows and shrinks a block through all four ways of `realloc` and checks its contents at every step.
    #[test]
    fn contents_survive_every_way_of_growing_and_shrinking() {
        let sizes = [100, 5000, OWN_MAPPING, 10 * OWN_MAPPING + 7, 3 * OWN_MAPPING, OWN_MAPPING - 1, 64];
        let layout = |size| Layout::from_size_align(size, 16).unwrap_or(Layout::new::<u8>());
        let kept = |size: usize| size.min(64);
        // SAFETY: every block is used within its size and given back with the layout that it last had.
        unsafe {
            let mut block = PageAllocator.alloc(layout(sizes[0]));
            assert!(!block.is_null());
            (0..64).for_each(|i| block.add(i).write(i as u8));
            for pair in sizes.windows(2) {
                block = PageAllocator.realloc(block, layout(pair[0]), pair[1]);
                assert!(!block.is_null());
                (0..kept(pair[1])).for_each(|i| assert_eq!(block.add(i).read(), i as u8, "{pair:?}"));
                block.add(pair[1] - 1).write(block.add(pair[1] - 1).read());
            }
            PageAllocator.dealloc(block, layout(sizes[sizes.len() - 1]));
        }
    }
}
