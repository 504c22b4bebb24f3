//! Recorded work: a pass of many small kernels that the driver starts as one.

use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUresult};

use super::counters::Work;
use super::device::Core;
use super::driver;
use crate::error::{KernelError, Result};

/// Work that [`replay`](crate::Device::replay) has recorded; dropped, it is forgotten.
#[derive(Default)]
pub struct Graph {
    state: State,
}

#[derive(Default)]
enum State {
    #[default]
    New,
    /// The work has run once since something that it uses was moved or dropped.
    Warm,
    Recorded(Recorded),
}

impl Graph {
    /// Whether the next call starts a recording rather than its work (unless memory has moved).
    pub fn is_recorded(&self) -> bool {
        matches!(self.state, State::Recorded(_))
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
    work: impl FnOnce() -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    // Held throughout, so that no other thread's work gets into the recording.
    let _entered = core.enter()?;
    if core.functions().is_timed() || core.gate().is_capturing() {
        return work();
    }
    match &graph.state {
        State::Recorded(recorded) if recorded.generation == core.generation() && Arc::ptr_eq(&recorded.core, core) => {
            return Ok(recorded.run()?);
        }
        State::Warm => {}
        State::New | State::Recorded(_) => {
            graph.state = State::New;
            work()?;
            graph.state = State::Warm;
            return Ok(());
        }
    }
    // Until the recording is there: what fails is tried from the start.
    graph.state = State::New;
    let recorded = record(core, work)?;
    recorded.run()?;
    graph.state = State::Recorded(recorded);
    Ok(())
}

fn record<E: From<KernelError>>(core: &Arc<Core>, work: impl FnOnce() -> std::result::Result<(), E>) -> std::result::Result<Recorded, E> {
    let before: Vec<_> = core.functions().all().map(|(name, function)| (name, function.counter().so_far())).collect();
    let generation = core.generation();
    let recording = Recording::start(core)?;
    let result = work();
    let template = recording.end();
    let (spoilt, moved) = (core.take_spoilt(), core.generation() != generation);
    result?;
    let template = template?;
    if spoilt || moved {
        let reason = "memory was given back while the work was recorded".to_string();
        return Err(KernelError::Device { operation: "graph", reason, lost: false }.into());
    }
    let mut handle = ptr::null_mut();
    // SAFETY: `handle` is a place for the handle; the template is alive.
    core.check("graph", unsafe { sys::cuGraphInstantiateWithFlags(&mut handle, template.0, 0) })?;
    let mut counts = Vec::new();
    for (name, (launches, work)) in before {
        let Some(function) = core.functions().get(name) else { continue };
        let (launches_now, now) = function.counter().so_far();
        if launches_now > launches {
            let work = Work { bytes: now.bytes - work.bytes, flops: now.flops - work.flops };
            function.counter().take_back(launches_now - launches, work);
            counts.push((name, launches_now - launches, work));
        }
    }
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
