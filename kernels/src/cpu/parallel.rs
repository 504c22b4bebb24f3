//! Splitting work over threads.
//!
//! Work is split into contiguous pieces, each of which writes its own output, and reductions follow a tree that depends on the length
//! alone: results do not depend on the timing of threads. Nothing here allocates: a fork is a `rayon::join`.

use std::ops::Range;
use std::sync::Arc;

use super::real;
use crate::error::{KernelError, Result};

/// Most threads that a device may be given.
const MOST_THREADS: usize = 1024;

/// Least work worth handing to another thread, in nanoseconds on one thread: waking a sleeping thread takes 5 to 10 µs, and a machine that
/// also serves other programs makes it wait longer.
const PIECE_NS: usize = 12_000;

/// Pieces for every thread, so that one that is held up by another program is helped out.
const PIECES_PER_THREAD: usize = 2;

/// Threads that work together. One thread means the caller's own, and no pool.
#[derive(Clone)]
pub struct Team {
    pool: Option<Arc<rayon::ThreadPool>>,
    threads: usize,
}

impl Team {
    /// Starts `threads` threads.
    pub fn new(threads: usize) -> Result<Self> {
        if threads == 0 || threads > MOST_THREADS {
            let detail = format!("{threads} threads were asked for; a CPU device takes 1 to {MOST_THREADS}");
            return Err(KernelError::Shape { operation: "CpuDevice::new", detail });
        }
        if threads == 1 {
            return Ok(Self { pool: None, threads });
        }
        let builder = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("espalier-cpu-{i}"));
        let pool = builder.build().map_err(|e| KernelError::OutOfMemory { purpose: "CPU threads", needed: 0, reason: e.to_string() })?;
        pool.broadcast(|_| real::warm_scratch());
        Ok(Self { pool: Some(Arc::new(pool)), threads })
    }

    /// How many threads work.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Runs `work` on a thread of the team, where forking starts fastest.
    pub fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.pool {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }

    /// Into how many pieces work of `ns` nanoseconds on `count` items is split.
    fn pieces(&self, count: usize, ns: usize) -> usize {
        if self.pool.is_none() {
            return 1;
        }
        (ns / PIECE_NS).min(count).clamp(1, self.threads * PIECES_PER_THREAD)
    }

    /// Covers `0..count` with ranges that start at multiples of `grain`, at once.
    pub fn ranges(&self, count: usize, grain: usize, ns: usize, work: impl Fn(Range<usize>) + Sync) {
        let grains = count.div_ceil(grain);
        let pieces = self.pieces(grains, ns);
        if pieces == 1 {
            return work(0..count);
        }
        let piece = |range: Range<usize>| work(range.start * grain..(range.end * grain).min(count));
        self.enter(|| fork(0..grains, pieces, &piece));
    }

    /// Splits `out`, rows of `width`, and calls `work(first row, rows)`.
    pub fn rows<T: Send>(&self, out: &mut [T], width: usize, ns: usize, work: impl Fn(usize, &mut [T]) + Sync) {
        if out.is_empty() {
            return;
        }
        let rows = out.len() / width;
        match self.pieces(rows, ns) {
            1 => work(0, out),
            pieces => self.enter(|| fork_rows(out, width, 0, pieces, &work)),
        }
    }

    /// As [`rows`](Team::rows), with a second output of the same rows.
    pub fn rows2<T: Send, U: Send>(
        &self,
        (a, a_width): (&mut [T], usize),
        (b, b_width): (&mut [U], usize),
        ns: usize,
        work: impl Fn(usize, &mut [T], &mut [U]) + Sync,
    ) {
        if a.is_empty() || b.is_empty() {
            return;
        }
        let rows = a.len() / a_width;
        match self.pieces(rows, ns) {
            1 => work(0, a, b),
            pieces => self.enter(|| fork_rows2((a, a_width), (b, b_width), 0, pieces, &work)),
        }
    }

    /// `Σ work(range)` over blocks of `block` items, by a tree that depends on `count` alone.
    pub fn reduce(&self, count: usize, block: usize, ns: usize, work: impl Fn(Range<usize>) -> [f64; 2] + Sync) -> [f64; 2] {
        if self.pieces(count.div_ceil(block), ns) == 1 {
            return tree(0..count, block, &work, false);
        }
        self.enter(|| tree(0..count, block, &work, true))
    }
}

fn fork(range: Range<usize>, pieces: usize, work: &(impl Fn(Range<usize>) + Sync)) {
    if pieces <= 1 || range.len() <= 1 {
        return work(range);
    }
    let left = pieces / 2;
    let middle = range.start + range.len() * left / pieces;
    rayon::join(|| fork(range.start..middle, left, work), || fork(middle..range.end, pieces - left, work));
}

fn fork_rows<T: Send>(out: &mut [T], width: usize, first: usize, pieces: usize, work: &(impl Fn(usize, &mut [T]) + Sync)) {
    let rows = out.len() / width;
    if pieces <= 1 || rows <= 1 {
        return work(first, out);
    }
    let left = pieces / 2;
    let middle = rows * left / pieces;
    let (low, high) = out.split_at_mut(middle * width);
    rayon::join(|| fork_rows(low, width, first, left, work), || fork_rows(high, width, first + middle, pieces - left, work));
}

fn fork_rows2<T: Send, U: Send>(
    (a, a_width): (&mut [T], usize),
    (b, b_width): (&mut [U], usize),
    first: usize,
    pieces: usize,
    work: &(impl Fn(usize, &mut [T], &mut [U]) + Sync),
) {
    let rows = a.len() / a_width;
    if pieces <= 1 || rows <= 1 {
        return work(first, a, b);
    }
    let left = pieces / 2;
    let middle = rows * left / pieces;
    let (a_low, a_high) = a.split_at_mut(middle * a_width);
    let (b_low, b_high) = b.split_at_mut(middle * b_width);
    rayon::join(
        || fork_rows2((a_low, a_width), (b_low, b_width), first, left, work),
        || fork_rows2((a_high, a_width), (b_high, b_width), first + middle, pieces - left, work),
    );
}

fn tree(range: Range<usize>, block: usize, work: &(impl Fn(Range<usize>) -> [f64; 2] + Sync), parallel: bool) -> [f64; 2] {
    if range.len() <= block {
        return work(range);
    }
    let middle = range.start + (range.len() / 2).next_multiple_of(block);
    let (low, high) = (range.start..middle, middle..range.end);
    let (a, b) = if parallel {
        rayon::join(|| tree(low, block, work, true), || tree(high, block, work, true))
    } else {
        (tree(low, block, work, false), tree(high, block, work, false))
    };
    [a[0] + b[0], a[1] + b[1]]
}

/// A slice that several threads write, each its own part.
pub struct Shared<T>(*mut T, usize);

// SAFETY: a `Shared` is only a place; who writes through it promises to stay in a part of their own.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// The place of `slice`, which must outlive the use.
    pub fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr(), slice.len())
    }
    /// The address of element `offset`, at most the length.
    pub fn at(&self, offset: usize) -> *mut T {
        assert!(offset <= self.1, "offset {offset} of {}", self.1);
        self.0.wrapping_add(offset)
    }
    /// The part `range`.
    /// # Safety
    /// No one else uses this part meanwhile, and the slice is alive.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.1, "{range:?} of {}", self.1);
        // SAFETY: in bounds by the assertion; alone by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(range.start), range.len()) }
    }
}
