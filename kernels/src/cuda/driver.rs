//! The driver's handles and errors.

use std::ffi::{CStr, c_void};
use std::ptr;

use cudarc::driver::sys::{self, CUresult};

use crate::error::{KernelError, Result};

/// The functions of the driver library that this crate calls. They are looked up before the first of them is called, because a library
/// that calls itself libcuda and lacks one would otherwise end the program.
pub(super) const FUNCTIONS: &[&str] = &[
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAddressFree",
    "cuMemAddressReserve",
    "cuMemAllocHost_v2",
    "cuMemAlloc_v2",
    "cuMemCreate",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetAllocationGranularity",
    "cuMemGetInfo_v2",
    "cuMemHostGetDevicePointer_v2",
    "cuMemHostRegister_v2",
    "cuMemHostUnregister",
    "cuMemMap",
    "cuMemRelease",
    "cuMemSetAccess",
    "cuMemUnmap",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD32Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

/// The first function that the loaded driver library lacks.
/// # Safety
/// A driver library has been found by [`is_culib_present`](sys::is_culib_present).
pub(super) unsafe fn missing_function() -> Option<&'static str> {
    // SAFETY: the library is present, by the caller's promise.
    let library = unsafe { sys::culib() };
    // SAFETY: the symbols are only looked up, never called through this type.
    FUNCTIONS.iter().copied().find(|name| unsafe { library.get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_err())
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
        _ => format!("{code:?}"),
    }
}

/// Whether an error stays: the context is broken, and every later call in this process returns an error too.
pub(super) fn is_sticky(code: CUresult) -> bool {
    use CUresult::*;
    matches!(
        code,
        CUDA_ERROR_DEINITIALIZED
            | CUDA_ERROR_DEVICE_UNAVAILABLE
            | CUDA_ERROR_NO_DEVICE
            | CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_SYSTEM_NOT_READY
            | CUDA_ERROR_MPS_RPC_FAILURE
            | CUDA_ERROR_MPS_CLIENT_TERMINATED
            | CUDA_ERROR_UNKNOWN
    )
}

/// The error of a driver's answer.
pub(super) fn check(operation: &'static str, code: CUresult) -> Result<()> {
    match code {
        CUresult::CUDA_SUCCESS => Ok(()),
        code => Err(KernelError::Device { operation, reason: describe(code), lost: is_sticky(code) }),
    }
}

/// A stream that runs beside the legacy default stream.
pub(super) struct Stream(sys::CUstream);

// SAFETY: the driver lets any thread use a stream in whose context it is.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A stream of the current context.
    pub fn new() -> Result<Self> {
        let mut stream = ptr::null_mut();
        // SAFETY: `stream` is a place for the handle.
        check("stream", unsafe { sys::cuStreamCreate(&mut stream, sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32) })?;
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
