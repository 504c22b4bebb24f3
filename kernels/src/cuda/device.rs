//! An open device: what its clones and all that lives on it share.

use std::collections::HashMap;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::arena::Arena;
use super::driver::{self, Event, Priority, Stream};
use super::gate::{Entered, Gate};
use super::images::Target;
use super::launch::Functions;
use super::memory::ScratchCache;
use super::probe::{self, Attributes, OLDEST_CAPABILITY, Unavailable};
use super::registration::RegisteredPages;
use super::staging::Staging;
use super::sys::{self, CUresult};
use crate::device::HostBytes;
use crate::error::{KernelError, Result};
use crate::memory::{Ledger, Purpose};

/// The primary context of a device, which every user of the device in this process shares.
struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
}

// SAFETY: the driver lets any thread make a context current.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    fn retain(device: sys::CUdevice) -> std::result::Result<Self, CUresult> {
        let mut context = ptr::null_mut();
        // SAFETY: `context` is a place for the handle.
        match unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) } {
            CUresult::CUDA_SUCCESS => Ok(Self { device, context }),
            code => Err(code),
        }
    }

    fn make_current(&self) -> CUresult {
        // SAFETY: the context is retained.
        unsafe { sys::cuCtxSetCurrent(self.context) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once, released once. An error would be that of a lost device.
        unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// What the clones of a device, and all that lives on it, share. Fields are dropped in this order: the context goes last.
pub(super) struct Core {
    functions: Functions,
    staging: Mutex<Staging>,
    scratch: ScratchCache,
    arenas: Mutex<HashMap<Purpose, Arc<Arena>>>,
    /// What was dropped while work was recorded, to be given back afterwards.
    deferred: Mutex<Vec<Held>>,
    gate: Gate,
    /// Counts what makes recorded graphs wrong: memory that they use has moved or gone.
    generation: AtomicU64,
    capture_spoilt: AtomicBool,
    lost: OnceLock<KernelError>,
    compute: Stream,
    copies: Stream,
    /// Orders one stream behind the other.
    order: Event,
    ledger: Arc<dyn Ledger>,
    attributes: Attributes,
    context: Context,
}

/// Memory that work on the device may use, and that nobody holds any more.
pub(super) enum Held {
    /// A block of an arena.
    Block(Arc<Arena>, u64),
    /// Pages of the host, read where they are.
    Pages(HostBytes),
    /// Registered pages.
    Registered(RegisteredPages),
}

impl Held {
    /// Gives it back. The context is current, and nothing is being recorded.
    fn release(self, core: &Core) {
        match self {
            Held::Block(arena, address) => arena.give_back(core, address),
            Held::Pages(host) => {
                // They may be unmapped next. An error is that of a lost device, which reads nothing any more.
                let _ = core.compute.synchronize("free");
                drop(host);
            }
            Held::Registered(pages) => {
                // As above.
                let _ = core.compute.synchronize("unregister");
                drop(pages);
            }
        }
    }
}

fn not_started(name: &str, error: KernelError) -> Unavailable {
    let name = name.to_string();
    match error {
        KernelError::OutOfMemory { .. } | KernelError::OutOfBudget { .. } => Unavailable::Full { name, reason: error.to_string() },
        error => Unavailable::DeviceFailed { name, reason: error.to_string() },
    }
}

impl Core {
    /// Opens device `ordinal`, whose streams have that priority, and loads the first image of the kernels that it takes.
    pub fn open(ordinal: usize, priority: Priority, ledger: Arc<dyn Ledger>) -> std::result::Result<Arc<Self>, Unavailable> {
        let driver = probe::start_driver()?;
        let device = probe::find_device(ordinal)?;
        let attributes = Attributes::of(device, driver);
        let (name, capability) = (attributes.name.clone(), attributes.capability);
        if capability < OLDEST_CAPABILITY {
            return Err(Unavailable::OldDevice { name, capability });
        }
        let failed = |code| match code {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Unavailable::Full { name: name.clone(), reason: driver::describe(code) },
            code => Unavailable::DeviceFailed { name: name.clone(), reason: driver::describe(code) },
        };
        let context = Context::retain(device).map_err(failed)?;
        match context.make_current() {
            CUresult::CUDA_SUCCESS => {}
            code => return Err(failed(code)),
        }
        let version = (driver as u32 / 1000, driver as u32 % 1000 / 10);
        let functions = Functions::load(Target { driver: version, capability }, &name)?;
        let handle = || Ok((Stream::new(priority)?, Stream::new(priority)?, Event::new(false)?));
        let (compute, copies, order) = handle().map_err(|error| not_started(&name, error))?;
        let staging = Staging::new(ledger.clone()).map_err(|error| not_started(&name, error))?;
        Ok(Arc::new(Self {
            functions,
            staging: Mutex::new(staging),
            scratch: ScratchCache::default(),
            arenas: Mutex::default(),
            deferred: Mutex::default(),
            gate: Gate::default(),
            generation: AtomicU64::new(0),
            capture_spoilt: AtomicBool::new(false),
            lost: OnceLock::new(),
            compute,
            copies,
            order,
            ledger,
            attributes,
            context,
        }))
    }

    pub fn attributes(&self) -> &Attributes {
        &self.attributes
    }
    pub fn handle(&self) -> sys::CUdevice {
        self.context.device
    }
    pub fn ledger(&self) -> &Arc<dyn Ledger> {
        &self.ledger
    }
    pub fn compute(&self) -> &Stream {
        &self.compute
    }
    pub fn copies(&self) -> &Stream {
        &self.copies
    }
    pub fn functions(&self) -> &Functions {
        &self.functions
    }
    pub fn scratch(&self) -> &ScratchCache {
        &self.scratch
    }
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Starts an operation: waits until no other thread is in one, makes the context current, and refuses on a lost device.
    pub fn enter(&self) -> Result<Entered<'_>> {
        if let Some(error) = self.lost.get() {
            return Err(error.clone());
        }
        let entered = self.gate.enter();
        self.check("context", self.context.make_current())?;
        Ok(entered)
    }

    /// The error of a driver's answer; remembers that the device is lost.
    pub fn check(&self, operation: &'static str, code: CUresult) -> Result<()> {
        driver::check(operation, code).map_err(|error| self.note(error))
    }

    /// Remembers an error after which the device is lost.
    pub fn note(&self, error: KernelError) -> KernelError {
        if error.is_lost() {
            let _ = self.lost.set(error.clone());
        }
        error
    }

    /// The error with which the device was lost.
    pub fn loss(&self) -> Option<KernelError> {
        self.lost.get().cloned()
    }

    /// Whether the device is lost.
    pub fn is_lost(&self) -> bool {
        self.lost.get().is_some()
    }

    /// The arena of a purpose.
    pub fn arena(&self, purpose: Purpose) -> Arc<Arena> {
        lock(&self.arenas).entry(purpose).or_insert_with(|| Arena::new(self, purpose)).clone()
    }

    /// Gives memory back; after the recording where this thread is in one.
    pub fn give_back(&self, held: Held) {
        let _entered = self.gate.enter();
        // The device may be lost: the ledger gets its bytes back all the same.
        self.context.make_current();
        if self.gate.is_capturing() {
            // The recorded work may use it, and nothing can be waited for or unmapped now.
            self.capture_spoilt.store(true, Ordering::Relaxed);
            lock(&self.deferred).push(held);
        } else {
            held.release(self);
        }
    }

    /// Whether memory was given back while work was recorded; gives it back now.
    pub fn take_spoilt(&self) -> bool {
        let deferred = std::mem::take(&mut *lock(&self.deferred));
        deferred.into_iter().for_each(|held| held.release(self));
        self.capture_spoilt.swap(false, Ordering::Relaxed)
    }

    /// Recorded graphs may not be run any more: memory that they use has moved or gone.
    pub fn forget_graphs(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
    }

    /// How often graphs were forgotten.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// What needs an answer from the device or changes its memory cannot be recorded.
    pub fn refuse_while_capturing(&self, operation: &'static str) -> Result<()> {
        if self.gate.is_capturing() {
            let reason = "work is being recorded for a graph, which may only launch kernels and copy on the device".to_string();
            return Err(KernelError::Device { operation, reason, lost: false });
        }
        Ok(())
    }

    /// The buffers through which the host's data pass.
    pub fn with_staging<R>(&self, work: impl FnOnce(&mut Staging) -> Result<R>) -> Result<R> {
        work(&mut lock(&self.staging))
    }

    /// Copies on the compute stream. The caller is inside [`enter`](Core::enter), and the ranges do not overlap.
    pub fn copy_on_device(&self, operation: &'static str, to: u64, from: u64, bytes: u64) -> Result<()> {
        // SAFETY: both ranges are the caller's, checked against their blocks; the stream keeps the order of all work on them.
        self.check(operation, unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes as usize, self.compute.handle()) })
    }

    /// Lets everything that comes later on `behind` wait for everything that is on `ahead`.
    pub fn order(&self, ahead: &Stream, behind: &Stream) -> Result<()> {
        self.order.record(ahead).and_then(|()| behind.wait(&self.order)).map_err(|error| self.note(error))
    }

    /// Waits for everything on the compute stream.
    pub fn wait(&self, operation: &'static str) -> Result<()> {
        self.refuse_while_capturing(operation)?;
        self.compute.synchronize(operation).map_err(|error| self.note(error))
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        // Streams, events and the module are given back to the context that they are of.
        self.context.make_current();
        self.scratch.clear(self);
        let _ = self.compute.synchronize("close");
        let _ = self.copies.synchronize("close");
    }
}

/// What a mutex holds; a panic elsewhere has left nothing half done in it.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
