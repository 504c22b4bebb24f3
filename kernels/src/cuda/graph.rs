//! Recorded work: a pass of many small kernels that the driver starts as one.

use std::ptr;
use std::sync::Arc;

use super::counters::Work;
use super::device::Core;
use super::driver;
use super::sys::{self, CUresult};
use crate::error::{KernelError, Result};

/// After how many failures the time to the next attempt grows no more: every 1024th call is one then, which costs nothing beside the
/// others.
const MOST_DOUBLINGS: u32 = 10;

/// Work that [`replay`](crate::Device::replay) has recorded; dropped, it is forgotten.
#[derive(Default)]
pub struct Graph {
    state: State,
    /// Attempts to record since the last that succeeded.
    failures: u32,
    /// Calls that run the work as it is before the next attempt.
    wait: u32,
}

#[derive(Default)]
enum State {
    #[default]
    New,
    /// The work has run, and at its start graphs had been forgotten so often. Until that changes, all that it allocates once is there.
    Warm(u64),
    Recorded(Recorded),
}

impl Graph {
    /// Whether the next call starts a recording rather than its work (unless memory has moved).
    pub fn is_recorded(&self) -> bool {
        matches!(self.state, State::Recorded(_))
    }

    /// Runs the recording, or makes it where it is time to; false where the work has to run as it is, since there is none. Nothing has run
    /// after an error.
    fn run<E: From<KernelError>>(&mut self, core: &Arc<Core>, work: impl FnMut() -> std::result::Result<(), E>) -> Result<bool> {
        match &self.state {
            State::Recorded(recorded) if recorded.generation == core.generation() && Arc::ptr_eq(&recorded.core, core) => {
                recorded.run().map(|()| true)
            }
            State::Warm(generation) if *generation == core.generation() && self.wait == 0 => {
                let recorded = record(core, work)?;
                recorded.run()?;
                (self.state, self.failures) = (State::Recorded(recorded), 0);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Puts the next attempt off, the longer the more have failed: what is in the way may go, or be the work's own nature.
    fn note_failure(&mut self, error: &KernelError) {
        self.wait = 1 << self.failures.min(MOST_DOUBLINGS);
        let level = if self.failures == 0 { log::Level::Warn } else { log::Level::Debug };
        log::log!(level, "no CUDA graph this time, and the next attempt at call {} from here: {error}", self.wait);
        self.failures = self.failures.saturating_add(1);
    }
}

/// A recording that the driver has prepared.
struct Recorded {
    core: Arc<Core>,
    handle: sys::CUgraphExec,
    generation: u64,
    /// What a run adds to the counters: kernel, launches, their work.
    counts: Vec<(&'static str, u64, Work)>,
}

// SAFETY: the driver lets any thread start a graph in whose context it is, one at a time; it is started through `&mut`.
unsafe impl Send for Recorded {}
// SAFETY: as above.
unsafe impl Sync for Recorded {}

impl Recorded {
    fn run(&self) -> Result<()> {
        // SAFETY: the handle is alive, and so is all memory that the work uses: the generation has not changed since.
        self.core.check("graph", unsafe { sys::cuGraphLaunch(self.handle, self.core.compute().handle()) })?;
        for (function, launches, work) in self.counts.iter().filter_map(|(name, n, work)| Some((self.core.functions().get(name)?, n, work)))
        {
            function.counter().add(*launches, *work);
        }
        Ok(())
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        let entered = self.core.enter();
        // SAFETY: the driver keeps what is on a stream until it has run. An error would be that of a lost device.
        unsafe { sys::cuGraphExecDestroy(self.handle) };
        drop(entered);
    }
}

/// Runs `work`, its recording, or records it: see [`Device::replay`](crate::Device::replay).
pub(super) fn replay<E: From<KernelError>>(
    core: &Arc<Core>,
    graph: &mut Graph,
    mut work: impl FnMut() -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    // Held throughout, so that no other thread's work gets into the recording.
    let _entered = core.enter()?;
    if core.functions().is_timed() || core.gate().is_capturing() {
        return work();
    }
    match graph.run(core, &mut work) {
        Ok(true) => return Ok(()),
        Ok(false) => {}
        Err(error) if error.is_lost() || core.is_lost() => return Err(error.into()),
        // Other work took memory, or the driver refused the graph; an error of the work itself will show again.
        Err(error) => graph.note_failure(&error),
    }
    graph.state = State::New;
    graph.wait = graph.wait.saturating_sub(1);
    let generation = core.generation();
    let result = work();
    match &result {
        Ok(()) => graph.state = State::Warm(generation),
        // The work's own error says nothing of recordings.
        Err(_) => (graph.failures, graph.wait) = (0, 0),
    }
    result
}

/// The work of every kernel so far.
fn counts(core: &Core) -> Vec<(&'static str, (u64, Work))> {
    core.functions().all().map(|(name, function)| (name, function.counter().so_far())).collect()
}

/// Takes back what was counted since `before`, for it was recorded and has not run; what that was.
fn take_back(core: &Core, before: &[(&'static str, (u64, Work))]) -> Vec<(&'static str, u64, Work)> {
    let mut counts = Vec::new();
    for (name, (launches, work)) in before {
        let Some(function) = core.functions().get(name) else { continue };
        let (launches_now, now) = function.counter().so_far();
        if launches_now > *launches {
            let work = Work { bytes: now.bytes - work.bytes, flops: now.flops - work.flops };
            function.counter().take_back(launches_now - launches, work);
            counts.push((*name, launches_now - launches, work));
        }
    }
    counts
}

fn record<E: From<KernelError>>(core: &Arc<Core>, work: impl FnOnce() -> std::result::Result<(), E>) -> Result<Recorded> {
    let refuse = |reason: &str| Err(KernelError::Device { operation: "graph", reason: reason.to_string(), lost: false });
    let before = counts(core);
    let generation = core.generation();
    let recording = Recording::start(core)?;
    let result = work();
    let template = recording.end();
    let (spoilt, moved) = (core.take_spoilt(), core.generation() != generation);
    let template = template.map_err(|error| core.note(error));
    let counts = take_back(core, &before);
    if let Some(error) = core.loss() {
        return Err(error);
    }
    if result.is_err() {
        return refuse("the work failed while it was recorded, when it may neither allocate nor read nor write");
    }
    let template = template?;
    if spoilt || moved {
        return refuse("memory was given back while the work was recorded");
    }
    let mut handle = ptr::null_mut();
    // SAFETY: `handle` is a place for the handle; the template is alive.
    core.check("graph", unsafe { sys::cuGraphInstantiateWithFlags(&mut handle, template.0, 0) })?;
    Ok(Recorded { core: core.clone(), handle, generation, counts })
}

/// A recorded graph that was not prepared.
struct Template(sys::CUgraph);

impl Drop for Template {
    fn drop(&mut self) {
        // SAFETY: given out by the driver once, destroyed once. An error would be that of a lost device.
        unsafe { sys::cuGraphDestroy(self.0) };
    }
}

/// The time in which the compute stream is recorded.
struct Recording<'a> {
    core: &'a Core,
}

impl<'a> Recording<'a> {
    fn start(core: &'a Core) -> Result<Self> {
        // Other threads, which use other streams or wait at the gate, may go on to call the driver.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive and not being recorded.
        core.check("graph", unsafe { sys::cuStreamBeginCapture_v2(core.compute().handle(), mode) })?;
        core.gate().set_capturing(true);
        Ok(Self { core })
    }

    fn stop(&self) -> (CUresult, sys::CUgraph) {
        self.core.gate().set_capturing(false);
        let mut graph = ptr::null_mut();
        // SAFETY: `graph` is a place for the handle; the stream is alive.
        (unsafe { sys::cuStreamEndCapture(self.core.compute().handle(), &mut graph) }, graph)
    }

    fn end(self) -> Result<Template> {
        let (code, graph) = self.stop();
        std::mem::forget(self);
        let template = (!graph.is_null()).then_some(Template(graph));
        driver::check("graph", code)?;
        template.ok_or_else(|| KernelError::Device { operation: "graph", reason: "the driver recorded nothing".to_string(), lost: false })
    }
}

impl Drop for Recording<'_> {
    /// After a panic in the work.
    fn drop(&mut self) {
        let (_, graph) = self.stop();
        drop((!graph.is_null()).then_some(Template(graph)));
        self.core.take_spoilt();
    }
}
