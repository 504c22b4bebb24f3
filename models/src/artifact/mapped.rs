//! A file in memory of which a page may turn out not to be readable.
//!
//! When the storage fails, or somebody shortens the file, the system sends SIGBUS to the thread that touches the page, which would end the
//! program without a word. A program that calls [`replace_page`] from a handler of that signal goes on instead: a page of zeros takes the
//! place of the lost one, the map counts it, and whoever computes with the map asks [`MappedFile::lost_pages`] afterwards.

use std::ffi::c_void;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use memmap2::Mmap;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

/// Files that are watched at a time; a program has a handful open. Pages of further ones are not replaced.
const MOST: usize = 64;

/// A range of addresses that is watched. Read by a handler of signals, so there is nothing to lock.
struct Watch {
    /// 0: free; 1: taken, and not there yet.
    start: AtomicUsize,
    end: AtomicUsize,
    lost: AtomicU64,
}

static WATCHES: [Watch; MOST] = [const { Watch { start: AtomicUsize::new(0), end: AtomicUsize::new(0), lost: AtomicU64::new(0) } }; MOST];

/// Pages that were replaced since the program started.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Puts a page of zeros at `address`, where a file that is watched has one that could not be read; false where none has. For handlers of
/// SIGBUS: it calls the system and touches atomics, nothing else.
pub fn replace_page(address: usize) -> bool {
    let found = WATCHES.iter().find(|watch| {
        let start = watch.start.load(Ordering::Acquire);
        // Another file may have taken the place meanwhile: then the end is not of this start.
        let inside = start > 1 && address >= start && address < watch.end.load(Ordering::Acquire);
        inside && watch.start.load(Ordering::Relaxed) == start
    });
    let Some(watch) = found else { return false };
    let page = rustix::param::page_size();
    // Before the thread goes on, so that whoever asks after having read a zero is told.
    watch.lost.fetch_add(1, Ordering::Release);
    LOST.fetch_add(1, Ordering::Release);
    let start = (address / page * page) as *mut c_void;
    // SAFETY: the page lies in a map that its owner keeps while it is watched, and that is read only. A page that was read, taken back by the
    // system and is lost now becomes zeros under its readers, as it would for anyone who shortens the file; numbers have no invalid values,
    // and text is checked when it is read. The map's owner unmaps the new page with the others.
    unsafe { mmap_anonymous(start, page, ProtFlags::READ, MapFlags::PRIVATE | MapFlags::FIXED) }.is_ok()
}

/// How often a page of any file was replaced since the program started.
pub fn lost_pages() -> u64 {
    LOST.load(Ordering::Acquire)
}

/// A file's bytes.
pub struct MappedFile {
    map: Mmap,
    watch: Option<&'static Watch>,
}

impl MappedFile {
    pub(crate) fn new(map: Mmap) -> Self {
        let free = |watch: &&Watch| watch.start.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok();
        let watch = WATCHES.iter().find(free);
        if let Some(watch) = watch {
            let start = map.as_ptr() as usize;
            // The last page may have bytes behind the file's end.
            watch.lost.store(0, Ordering::Relaxed);
            watch.end.store((start + map.len()).next_multiple_of(rustix::param::page_size()), Ordering::Release);
            watch.start.store(start, Ordering::Release);
        }
        Self { map, watch }
    }

    /// How often a page of this file could not be read since it was mapped; zeros stand in its place.
    pub fn lost_pages(&self) -> u64 {
        self.watch.map_or(0, |watch| watch.lost.load(Ordering::Acquire))
    }

    pub(crate) fn map(&self) -> &Mmap {
        &self.map
    }
}

impl Drop for MappedFile {
    /// The watch ends before the map does, which is dropped after this.
    fn drop(&mut self) {
        if let Some(watch) = self.watch {
            watch.start.store(0, Ordering::Release);
        }
    }
}

impl Deref for MappedFile {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_lost_page_is_zeros_and_is_counted_where_it_was_lost() {
        let page = rustix::param::page_size();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; 2 * page + 100]).unwrap();
        // SAFETY: nobody else has the file.
        let map = || MappedFile::new(unsafe { Mmap::map(&file) }.unwrap());
        let (lost, other) = (map(), map());
        let start = lost.as_ptr() as usize;
        let elsewhere = vec![7; 3 * page];
        assert!(!replace_page(elsewhere.as_ptr() as usize + page), "only files that are watched lose pages");
        assert_eq!((lost.lost_pages(), other.lost_pages()), (0, 0));
        assert!(replace_page(start + page + 5));
        let expected: Vec<u8> = [vec![7; page], vec![0; page], vec![7; 100]].concat();
        assert!(*lost == expected[..] && other.iter().all(|byte| *byte == 7));
        // The last page has bytes behind the end of the file, which no reader of the file touches.
        assert!(replace_page(start + 2 * page + 99) && lost[2 * page..].iter().all(|byte| *byte == 0));
        assert_eq!((lost.lost_pages(), other.lost_pages()), (2, 0));
        assert!(lost_pages() >= 2);
    }
}
