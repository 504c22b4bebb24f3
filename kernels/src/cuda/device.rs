//! The device: found, opened, and what its parts share.

use std::collections::HashMap;
use std::ffi::c_char;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};

use super::arena::{Arena, granularity};
use super::driver::{self, Event, Stream};
use super::gate::{Entered, Gate};
use super::images::Target;
use super::launch::Functions;
use super::memory::ScratchCache;
use super::staging::Staging;
use crate::error::{KernelError, Result};
use crate::memory::{Ledger, Purpose};

/// The oldest driver that is used, as `cuDriverGetVersion` counts: CUDA 12.6, of which the images and the calls are.
const OLDEST_DRIVER: i32 = 12_060;

/// The oldest compute capability: from 8.0 on there are asynchronous copies to shared memory and bf16 matrix instructions.
const OLDEST_CAPABILITY: (u32, u32) = (8, 0);

/// Why there is no CUDA device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// The driver's library is not installed.
    #[error("no NVIDIA driver: libcuda.so is not installed")]
    NoDriver,
    /// A library of that name which cannot be a driver's.
    #[error("libcuda.so lacks {0}, so it is not a driver of CUDA 12.6 or later")]
    NotADriver(&'static str),
    /// The library that comes with the toolkit for linking.
    #[error("libcuda.so is the stub for linking, not a driver; take its folder out of LD_LIBRARY_PATH")]
    StubDriver,
    /// The driver does not start.
    #[error("the NVIDIA driver does not start: {0}")]
    DriverFailed(String),
    /// The driver is older than [`OLDEST_DRIVER`].
    #[error("the NVIDIA driver supports CUDA {}.{}, but 12.6 or later is needed", .0 / 1000, .0 % 1000 / 10)]
    OldDriver(i32),
    /// There is no device, or none of that number.
    #[error("no CUDA device {ordinal}: the driver knows {count}")]
    NoDevice {
        /// The device asked for.
        ordinal: usize,
        /// Devices that the driver knows.
        count: usize,
    },
    /// The device is older than [`OLDEST_CAPABILITY`].
    #[error("{name} has compute capability {}.{}, but 8.0 or later is needed", capability.0, capability.1)]
    OldDevice {
        /// The device.
        name: String,
        /// Its compute capability.
        capability: (u32, u32),
    },
    /// No image of the kernels runs on the device.
    #[error("none of the kernels' images loads on {name}: {reasons}")]
    NoImage {
        /// The device.
        name: String,
        /// Each image and what the driver said of it.
        reasons: String,
    },
    /// The device has no memory left for a start.
    #[error("{name} has no memory left to start: {reason}")]
    Full {
        /// The device.
        name: String,
        /// What was refused.
        reason: String,
    },
    /// The device does not start.
    #[error("{name} does not start: {reason}")]
    DeviceFailed {
        /// The device.
        name: String,
        /// What failed.
        reason: String,
    },
}

/// What a device can do.
#[derive(Debug, Clone, PartialEq)]
pub struct Attributes {
    /// Its name.
    pub name: String,
    /// The newest CUDA version of the driver: 12060 is 12.6.
    pub driver: i32,
    /// Compute capability.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Memory.
    pub total_bytes: u64,
    /// Whether the memory is the host's.
    pub integrated: bool,
    /// Whether the device reads any host memory at the host's addresses, through the host's page tables.
    pub pageable: bool,
    /// Whether registered host memory can be read at the host's addresses.
    pub registers: bool,
    /// Whether host memory that the program may not write can be registered.
    pub registers_read_only: bool,
    /// The granule of virtual memory management; none where there is none.
    pub granularity: Option<u64>,
    /// The most shared memory that a block may have.
    pub shared_bytes: u32,
    /// Peak bytes that the memory moves in a second. None where it is not known: the clock that an integrated device reports is not that of
    /// the host's memory, and some drivers report none.
    pub memory_bytes_per_s: Option<f64>,
}

fn attribute(device: sys::CUdevice, attribute: Attribute) -> u32 {
    let mut value = 0;
    // SAFETY: `value` is a place for the value.
    let code = unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) };
    // A driver that does not know an attribute has not got what it tells about.
    if code == CUresult::CUDA_SUCCESS { u32::try_from(value).unwrap_or(0) } else { 0 }
}

impl Attributes {
    fn of(device: sys::CUdevice, driver: i32) -> Self {
        let is = |name| attribute(device, name) != 0;
        let mut total_bytes = 0;
        // SAFETY: `total_bytes` is a place for the value, and stays 0 where the driver fails.
        unsafe { sys::cuDeviceTotalMem_v2(&mut total_bytes, device) };
        let integrated = is(Attribute::CU_DEVICE_ATTRIBUTE_INTEGRATED);
        // kHz, and two transfers a cycle of a bus of so many bits.
        let clock = f64::from(attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)) * 1e3;
        let bandwidth = 2.0 * clock * f64::from(attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)) / 8.0;
        Self {
            name: name(device),
            driver,
            capability: (
                attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
                attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
            ),
            multiprocessors: attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT),
            total_bytes: total_bytes as u64,
            integrated,
            pageable: is(Attribute::CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS)
                && is(Attribute::CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES),
            registers: is(Attribute::CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED)
                && is(Attribute::CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM),
            registers_read_only: is(Attribute::CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED),
            granularity: is(Attribute::CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED).then(|| granularity(device)).flatten(),
            shared_bytes: attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN),
            memory_bytes_per_s: (!integrated && bandwidth > 0.0).then_some(bandwidth as u64 as f64),
        }
    }
}

fn name(device: sys::CUdevice) -> String {
    let mut name = [0_u8; 256];
    // SAFETY: the driver writes at most so many bytes; the last one stays 0.
    let code = unsafe { sys::cuDeviceGetName(name.as_mut_ptr().cast::<c_char>(), name.len() as i32 - 1, device) };
    let text = name.split(|byte| *byte == 0).next().unwrap_or_default();
    if code != CUresult::CUDA_SUCCESS || text.is_empty() { "a CUDA device".into() } else { String::from_utf8_lossy(text).into_owned() }
}

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
    staging: Mutex<Option<Staging>>,
    scratch: ScratchCache,
    arenas: Mutex<HashMap<Purpose, Arc<Arena>>>,
    /// Blocks that were dropped while work was recorded, to be given back afterwards.
    deferred: Mutex<Vec<(Arc<Arena>, u64)>>,
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

/// The newest CUDA version of the installed driver, once it is known to be one.
fn start_driver() -> std::result::Result<i32, Unavailable> {
    // SAFETY: loading the driver's library runs its initialisers, nothing else of ours.
    if !unsafe { sys::is_culib_present() } {
        return Err(Unavailable::NoDriver);
    }
    // SAFETY: the library is present.
    if let Some(function) = unsafe { driver::missing_function() } {
        return Err(Unavailable::NotADriver(function));
    }
    let mut version = 0;
    // SAFETY: `version` is a place for the version; the call needs no initialised driver.
    unsafe { sys::cuDriverGetVersion(&mut version) };
    // SAFETY: no flags.
    match unsafe { sys::cuInit(0) } {
        CUresult::CUDA_SUCCESS if version < OLDEST_DRIVER => Err(Unavailable::OldDriver(version)),
        CUresult::CUDA_SUCCESS => Ok(version),
        CUresult::CUDA_ERROR_STUB_LIBRARY => Err(Unavailable::StubDriver),
        CUresult::CUDA_ERROR_NO_DEVICE => Err(Unavailable::NoDevice { ordinal: 0, count: 0 }),
        code => Err(Unavailable::DriverFailed(driver::describe(code))),
    }
}

fn find_device(ordinal: usize) -> std::result::Result<sys::CUdevice, Unavailable> {
    let (mut count, mut device) = (0, 0);
    // SAFETY: `count` is a place for the count, and stays 0 where the driver fails.
    unsafe { sys::cuDeviceGetCount(&mut count) };
    let count = usize::try_from(count).unwrap_or(0);
    let absent = Unavailable::NoDevice { ordinal, count };
    match i32::try_from(ordinal) {
        Ok(number) if ordinal < count => {
            // SAFETY: `device` is a place for the handle.
            let code = unsafe { sys::cuDeviceGet(&mut device, number) };
            if code == CUresult::CUDA_SUCCESS { Ok(device) } else { Err(absent) }
        }
        _ => Err(absent),
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
    /// Opens device `ordinal` and loads the first image of the kernels that it takes.
    pub fn open(ordinal: usize, ledger: Arc<dyn Ledger>) -> std::result::Result<Arc<Self>, Unavailable> {
        let driver = start_driver()?;
        let device = find_device(ordinal)?;
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
        let handle = || Ok((Stream::new()?, Stream::new()?, Event::new(false)?));
        let (compute, copies, order) = handle().map_err(|error| not_started(&name, error))?;
        let core = Arc::new(Self {
            functions,
            staging: Mutex::new(None),
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
        });
        let staging = Staging::new(&core).map_err(|error| not_started(&name, error))?;
        *lock(&core.staging) = Some(staging);
        Ok(core)
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

    /// Whether the device is lost.
    pub fn is_lost(&self) -> bool {
        self.lost.get().is_some()
    }

    /// The arena of a purpose.
    pub fn arena(&self, purpose: Purpose) -> Arc<Arena> {
        lock(&self.arenas).entry(purpose).or_insert_with(|| Arena::new(self, purpose)).clone()
    }

    /// Gives a block back; after the recording where one is going on.
    pub fn give_back(&self, arena: &Arc<Arena>, address: u64) {
        let _entered = self.gate.enter();
        // The device may be lost: the ledger gets its bytes back all the same.
        self.context.make_current();
        if self.gate.is_capturing() {
            // The recorded work may use it, and nothing can be unmapped now.
            self.capture_spoilt.store(true, Ordering::Relaxed);
            lock(&self.deferred).push((arena.clone(), address));
        } else {
            arena.give_back(self, address);
        }
    }

    /// Whether memory was given back while work was recorded; gives it back now.
    pub fn take_spoilt(&self) -> bool {
        for (arena, address) in std::mem::take(&mut *lock(&self.deferred)) {
            arena.give_back(self, address);
        }
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
        match &mut *lock(&self.staging) {
            Some(staging) => work(staging),
            None => Err(KernelError::Device { operation: "staging", reason: "the device is being opened".into(), lost: false }),
        }
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
