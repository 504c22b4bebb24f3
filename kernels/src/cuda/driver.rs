//! The driver's handles and errors.

use std::ffi::{CStr, c_void};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::sys::{self, CUresult};
use crate::error::{KernelError, Result};

/// The first function that the loaded driver library lacks.
/// # Safety
/// A driver library has been found by [`is_culib_present`](sys::is_culib_present).
pub(super) unsafe fn missing_function() -> Option<&'static str> {
    // SAFETY: the library is present, by the caller's promise.
    let library = unsafe { sys::culib() };
    // SAFETY: the symbols are only looked up, never called through this type.
    sys::FUNCTIONS.iter().copied().find(|name| unsafe { library.get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_err())
}

/// `CUDA_ERROR_NAME: text` of a driver's error.
pub(super) fn describe(code: CUresult) -> String {
    let text = |ask: unsafe fn(CUresult, *mut *const std::ffi::c_char) -> CUresult| {
        let mut text = ptr::null();
        // SAFETY: the driver stores a pointer to a static string, or null for a code that it does not know.
        unsafe {
            if ask(code, &mut text) != CUresult::CUDA_SUCCESS || text.is_null() {
                return None;
            }
            Some(CStr::from_ptr(text).to_string_lossy().into_owned())
        }
    };
    match (text(sys::cuGetErrorName), text(sys::cuGetErrorString)) {
        (Some(name), Some(text)) => format!("{name}: {text}"),
        (Some(name), None) => name,
        _ => format!("CUDA error {}, which the driver has no name for", code.0),
    }
}

/// Whether an error stays: the context is broken, and every later call in this process returns an error too.
pub(super) fn is_sticky(code: CUresult) -> bool {
    matches!(
        code,
        CUresult::CUDA_ERROR_DEINITIALIZED
            | CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE
            | CUresult::CUDA_ERROR_NO_DEVICE
            | CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
            | CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
            | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
            | CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUresult::CUDA_ERROR_ASSERT
            | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
            | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUresult::CUDA_ERROR_INVALID_PC
            | CUresult::CUDA_ERROR_LAUNCH_FAILED
            | CUresult::CUDA_ERROR_TENSOR_MEMORY_LEAK
            | CUresult::CUDA_ERROR_CONTAINED
            | CUresult::CUDA_ERROR_EXTERNAL_DEVICE
            | CUresult::CUDA_ERROR_SYSTEM_NOT_READY
            | CUresult::CUDA_ERROR_MPS_RPC_FAILURE
            | CUresult::CUDA_ERROR_MPS_CLIENT_TERMINATED
            | CUresult::CUDA_ERROR_UNKNOWN
    )
}

/// The error of a driver's answer.
pub(super) fn check(operation: &'static str, code: CUresult) -> Result<()> {
    match code {
        CUresult::CUDA_SUCCESS => Ok(()),
        code => Err(KernelError::Device { operation, reason: describe(code), lost: is_sticky(code) }),
    }
}

/// Whose blocks the device starts first where several streams have some that wait. Blocks that run are not stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Priority {
    Highest,
    Lowest,
}

/// A stream that runs beside the legacy default stream.
pub(super) struct Stream(sys::CUstream);

// SAFETY: the driver lets any thread use a stream in whose context it is.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A stream of the current context.
    pub fn new(priority: Priority) -> Result<Self> {
        let (mut lowest, mut highest, mut stream) = (0, 0, ptr::null_mut());
        // SAFETY: both are places for the numbers, which are 0 where the device has no priorities.
        check("stream", unsafe { sys::cuCtxGetStreamPriorityRange(&mut lowest, &mut highest) })?;
        let level = match priority {
            Priority::Highest => highest,
            Priority::Lowest => lowest,
        };
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: `stream` is a place for the handle.
        check("stream", unsafe { sys::cuStreamCreateWithPriority(&mut stream, flags, level) })?;
        Ok(Self(stream))
    }

    /// The driver's handle.
    pub fn handle(&self) -> sys::CUstream {
        self.0
    }

    /// Waits for everything on it.
    pub fn synchronize(&self, operation: &'static str) -> Result<()> {
        // SAFETY: the handle is alive.
        check(operation, unsafe { sys::cuStreamSynchronize(self.0) })
    }

    /// Lets what comes later on this stream wait for `event`.
    pub fn wait(&self, event: &Event) -> Result<()> {
        // SAFETY: both handles are alive.
        check("stream wait", unsafe { sys::cuStreamWaitEvent(self.0, event.0, 0) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: nobody uses the handle afterwards. An error would be that of a lost device.
        unsafe { sys::cuStreamDestroy_v2(self.0) };
    }
}

/// A point in a stream.
pub(super) struct Event(sys::CUevent);

// SAFETY: the driver lets any thread use an event in whose context it is.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// An event of the current context; `timed` for [`elapsed_ms`](Event::elapsed_ms).
    pub fn new(timed: bool) -> Result<Self> {
        let flags = if timed { sys::CUevent_flags::CU_EVENT_DEFAULT } else { sys::CUevent_flags::CU_EVENT_DISABLE_TIMING };
        let mut event = ptr::null_mut();
        // SAFETY: `event` is a place for the handle.
        check("event", unsafe { sys::cuEventCreate(&mut event, flags as u32) })?;
        Ok(Self(event))
    }

    /// Puts the event behind everything that is on `stream`.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both handles are alive.
        check("event record", unsafe { sys::cuEventRecord(self.0, stream.0) })
    }

    /// Waits until the event is reached.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the handle is alive.
        check("event wait", unsafe { sys::cuEventSynchronize(self.0) })
    }

    /// Milliseconds from this event to `end`, both of which were reached.
    pub fn elapsed_ms(&self, end: &Event) -> Result<f32> {
        let mut ms = 0.0;
        // SAFETY: both handles are alive.
        check("event time", unsafe { sys::cuEventElapsedTime(&mut ms, self.0, end.0) })?;
        Ok(ms)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: nobody uses the handle afterwards; the driver keeps it until it is reached. An error would be that of a lost device.
        unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}

/// How long a stream is held at most. Far longer than starting a kernel takes, and bearable where work runs when it is given to a stream.
const LONGEST_HOLD: Duration = Duration::from_millis(1);

/// Keeps a stream from going on until dropped, or for [`LONGEST_HOLD`], so that what is put on it meanwhile runs without gaps.
pub(super) struct Hold(Arc<AtomicBool>);

impl Hold {
    /// Holds whatever comes later on `stream`.
    pub fn start(stream: &Stream) -> Result<Self> {
        unsafe extern "C" fn wait(released: *mut c_void) {
            // SAFETY: the count of the reference was raised for this call, which takes it over.
            let released = unsafe { Arc::from_raw(released.cast::<AtomicBool>().cast_const()) };
            let start = Instant::now();
            while !released.load(Ordering::Acquire) && start.elapsed() < LONGEST_HOLD {
                std::hint::spin_loop();
            }
        }
        let released = Arc::new(AtomicBool::new(false));
        let given = Arc::into_raw(released.clone());
        // SAFETY: the stream is alive; the function calls nothing of the driver, does not unwind, and is called at most once.
        let code = unsafe { sys::cuLaunchHostFunc(stream.0, Some(wait), given.cast_mut().cast()) };
        if code != CUresult::CUDA_SUCCESS {
            // SAFETY: the driver does not call what it refused, so the reference is still this function's.
            drop(unsafe { Arc::from_raw(given) });
        }
        check("stream hold", code)?;
        Ok(Self(released))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Page-locked host memory, which the device copies from and to without a copy by the driver.
pub(super) struct Pinned {
    address: *mut u8,
    len: usize,
}

// SAFETY: it is plain memory, owned by this value.
unsafe impl Send for Pinned {}
// SAFETY: it is written through `&mut` alone.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// `len` bytes, at least 1, of whatever content.
    pub fn new(len: usize) -> std::result::Result<Self, CUresult> {
        let mut address: *mut c_void = ptr::null_mut();
        // SAFETY: `address` is a place for the address.
        match unsafe { sys::cuMemAllocHost_v2(&mut address, len) } {
            CUresult::CUDA_SUCCESS => Ok(Self { address: address.cast(), len }),
            code => Err(code),
        }
    }

    /// The bytes `offset..offset + len`, which no copy may be using. Shorter where they end sooner.
    pub fn part(&mut self, offset: usize, len: usize) -> &mut [u8] {
        let offset = offset.min(self.len);
        // SAFETY: in bounds, alive as long as this value, and borrowed from it alone.
        unsafe { std::slice::from_raw_parts_mut(self.address.add(offset), len.min(self.len - offset)) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: the address came from the driver and is freed once; its owner waits for the copies before. An error would be that of
        // a lost device.
        unsafe { sys::cuMemFreeHost(self.address.cast()) };
    }
}
