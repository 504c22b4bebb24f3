//! The functions of the driver library that this crate calls, as cuda.h of CUDA 12.6 declares them.
//!
//! Types and constants are cudarc's. Its functions answer with a Rust enum of the errors that one version of cuda.h knows; a newer driver
//! may answer with an error that it does not list, which would be undefined behaviour. Here an answer is the number that it is in C.

use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};
use std::sync::OnceLock;

pub use cudarc::driver::sys::*;

/// The driver's answer to a call.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CUresult(pub c_uint);

/// Those that are told apart; the driver has names and sentences for all.
impl CUresult {
    pub const CUDA_SUCCESS: Self = Self(0);
    pub const CUDA_ERROR_OUT_OF_MEMORY: Self = Self(2);
    pub const CUDA_ERROR_DEINITIALIZED: Self = Self(4);
    pub const CUDA_ERROR_STUB_LIBRARY: Self = Self(34);
    pub const CUDA_ERROR_DEVICE_UNAVAILABLE: Self = Self(46);
    pub const CUDA_ERROR_NO_DEVICE: Self = Self(100);
    pub const CUDA_ERROR_ECC_UNCORRECTABLE: Self = Self(214);
    pub const CUDA_ERROR_NVLINK_UNCORRECTABLE: Self = Self(220);
    pub const CUDA_ERROR_CONTAINED: Self = Self(226);
    pub const CUDA_ERROR_NOT_FOUND: Self = Self(500);
    pub const CUDA_ERROR_ILLEGAL_ADDRESS: Self = Self(700);
    pub const CUDA_ERROR_LAUNCH_TIMEOUT: Self = Self(702);
    pub const CUDA_ERROR_CONTEXT_IS_DESTROYED: Self = Self(709);
    pub const CUDA_ERROR_ASSERT: Self = Self(710);
    pub const CUDA_ERROR_HARDWARE_STACK_ERROR: Self = Self(714);
    pub const CUDA_ERROR_ILLEGAL_INSTRUCTION: Self = Self(715);
    pub const CUDA_ERROR_MISALIGNED_ADDRESS: Self = Self(716);
    pub const CUDA_ERROR_INVALID_ADDRESS_SPACE: Self = Self(717);
    pub const CUDA_ERROR_INVALID_PC: Self = Self(718);
    pub const CUDA_ERROR_LAUNCH_FAILED: Self = Self(719);
    pub const CUDA_ERROR_TENSOR_MEMORY_LEAK: Self = Self(721);
    pub const CUDA_ERROR_SYSTEM_NOT_READY: Self = Self(802);
    pub const CUDA_ERROR_MPS_RPC_FAILURE: Self = Self(806);
    pub const CUDA_ERROR_MPS_CLIENT_TERMINATED: Self = Self(810);
    pub const CUDA_ERROR_EXTERNAL_DEVICE: Self = Self(911);
    pub const CUDA_ERROR_UNKNOWN: Self = Self(999);
}

macro_rules! functions {
    ($(fn $name:ident($($argument:ident: $type:ty),* $(,)?);)*) => {
        /// The functions by name. They are looked up before the first of them is called, because a library that calls itself libcuda
        /// may lack one.
        pub const FUNCTIONS: &[&str] = &[$(stringify!($name)),*];

        $(
            #[allow(non_snake_case, clippy::too_many_arguments)]
            pub unsafe fn $name($($argument: $type),*) -> CUresult {
                type Function = unsafe extern "C" fn($($type),*) -> CUresult;
                static FUNCTION: OnceLock<Option<Function>> = OnceLock::new();
                // SAFETY: the type is that of cuda.h, with which `CUresult` shares its representation; the library stays loaded.
                let function = FUNCTION.get_or_init(|| unsafe { culib().get::<Function>(stringify!($name).as_bytes()).ok().map(|f| *f) });
                match function {
                    // SAFETY: the caller keeps to what cuda.h asks.
                    Some(function) => unsafe { function($($argument),*) },
                    None => CUresult::CUDA_ERROR_NOT_FOUND,
                }
            }
        )*
    };
}

functions! {
    fn cuCtxGetStreamPriorityRange(lowest: *mut c_int, highest: *mut c_int);
    fn cuCtxSetCurrent(context: CUcontext);
    fn cuDeviceGet(device: *mut CUdevice, ordinal: c_int);
    fn cuDeviceGetAttribute(value: *mut c_int, attribute: CUdevice_attribute, device: CUdevice);
    fn cuDeviceGetCount(count: *mut c_int);
    fn cuDeviceGetName(name: *mut c_char, len: c_int, device: CUdevice);
    fn cuDevicePrimaryCtxRelease_v2(device: CUdevice);
    fn cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice);
    fn cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice);
    fn cuDriverGetVersion(version: *mut c_int);
    fn cuEventCreate(event: *mut CUevent, flags: c_uint);
    fn cuEventDestroy_v2(event: CUevent);
    fn cuEventElapsedTime(ms: *mut f32, start: CUevent, end: CUevent);
    fn cuEventRecord(event: CUevent, stream: CUstream);
    fn cuEventSynchronize(event: CUevent);
    fn cuFuncSetAttribute(function: CUfunction, attribute: CUfunction_attribute, value: c_int);
    fn cuGetErrorName(error: CUresult, text: *mut *const c_char);
    fn cuGetErrorString(error: CUresult, text: *mut *const c_char);
    fn cuGraphDestroy(graph: CUgraph);
    fn cuGraphExecDestroy(exec: CUgraphExec);
    fn cuGraphInstantiateWithFlags(exec: *mut CUgraphExec, graph: CUgraph, flags: c_ulonglong);
    fn cuGraphLaunch(exec: CUgraphExec, stream: CUstream);
    fn cuInit(flags: c_uint);
    fn cuLaunchHostFunc(stream: CUstream, function: CUhostFn, data: *mut c_void);
    fn cuLaunchKernel(
        function: CUfunction,
        grid_dim_x: c_uint,
        grid_dim_y: c_uint,
        grid_dim_z: c_uint,
        block_dim_x: c_uint,
        block_dim_y: c_uint,
        block_dim_z: c_uint,
        shared_bytes: c_uint,
        stream: CUstream,
        parameters: *mut *mut c_void,
        extra: *mut *mut c_void
    );
    fn cuMemAddressFree(address: CUdeviceptr, bytes: usize);
    fn cuMemAddressReserve(address: *mut CUdeviceptr, bytes: usize, alignment: usize, at: CUdeviceptr, flags: c_ulonglong);
    fn cuMemAllocHost_v2(address: *mut *mut c_void, bytes: usize);
    fn cuMemAlloc_v2(address: *mut CUdeviceptr, bytes: usize);
    fn cuMemCreate(handle: *mut CUmemGenericAllocationHandle, bytes: usize, properties: *const CUmemAllocationProp, flags: c_ulonglong);
    fn cuMemFreeHost(address: *mut c_void);
    fn cuMemFree_v2(address: CUdeviceptr);
    fn cuMemGetAllocationGranularity(
        granularity: *mut usize,
        properties: *const CUmemAllocationProp,
        option: CUmemAllocationGranularity_flags
    );
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
    fn cuMemHostGetDevicePointer_v2(device: *mut CUdeviceptr, address: *mut c_void, flags: c_uint);
    fn cuMemHostRegister_v2(address: *mut c_void, bytes: usize, flags: c_uint);
    fn cuMemHostUnregister(address: *mut c_void);
    fn cuMemMap(address: CUdeviceptr, bytes: usize, offset: usize, handle: CUmemGenericAllocationHandle, flags: c_ulonglong);
    fn cuMemRelease(handle: CUmemGenericAllocationHandle);
    fn cuMemSetAccess(address: CUdeviceptr, bytes: usize, access: *const CUmemAccessDesc, count: usize);
    fn cuMemUnmap(address: CUdeviceptr, bytes: usize);
    fn cuMemcpyDtoDAsync_v2(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream);
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream);
    fn cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream);
    fn cuMemsetD32Async(to: CUdeviceptr, value: c_uint, count: usize, stream: CUstream);
    fn cuModuleGetFunction(function: *mut CUfunction, module: CUmodule, name: *const c_char);
    fn cuModuleLoadData(module: *mut CUmodule, image: *const c_void);
    fn cuModuleUnload(module: CUmodule);
    fn cuStreamBeginCapture_v2(stream: CUstream, mode: CUstreamCaptureMode);
    fn cuStreamCreateWithPriority(stream: *mut CUstream, flags: c_uint, priority: c_int);
    fn cuStreamDestroy_v2(stream: CUstream);
    fn cuStreamEndCapture(stream: CUstream, graph: *mut CUgraph);
    fn cuStreamSynchronize(stream: CUstream);
    fn cuStreamWaitEvent(stream: CUstream, event: CUevent, flags: c_uint);
}
