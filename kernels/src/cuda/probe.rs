//! Looking for a driver and a device, and what the device can do.

use std::ffi::c_char;

use super::arena::granularity;
use super::driver;
use super::sys::{self, CUdevice_attribute as Attribute, CUresult};

/// The oldest driver that is used, as `cuDriverGetVersion` counts: CUDA 12.6, of which the images and the calls are.
const OLDEST_DRIVER: i32 = 12_060;

/// The oldest compute capability: from 8.0 on there are asynchronous copies to shared memory and bf16 matrix instructions.
pub(super) const OLDEST_CAPABILITY: (u32, u32) = (8, 0);

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
    /// The driver is older than CUDA 12.6; what it supports, as `cuDriverGetVersion` counts (12040 is 12.4).
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
    /// The device has a compute capability below 8.0.
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
    /// Peak clock of the multiprocessors; 0 where the driver does not say.
    pub clock_hz: f64,
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
    /// Whether mapped weights are read where the host has them, through its page tables.
    pub fn reads_in_place(&self) -> bool {
        self.integrated && self.pageable
    }

    /// Those of a device under a driver of version `driver`.
    pub(super) fn of(device: sys::CUdevice, driver: i32) -> Self {
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
            clock_hz: f64::from(attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)) * 1e3,
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

/// The newest CUDA version of the installed driver, once it is known to be one.
pub(super) fn start_driver() -> std::result::Result<i32, Unavailable> {
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

/// The device of a number, from 0.
pub(super) fn find_device(ordinal: usize) -> std::result::Result<sys::CUdevice, Unavailable> {
    let (mut count, mut device) = (0, 0);
    // SAFETY: `count` is a place for the count, and stays 0 where the driver fails.
    unsafe { sys::cuDeviceGetCount(&mut count) };
    let count = usize::try_from(count).unwrap_or(0);
    let absent = Unavailable::NoDevice { ordinal, count };
    match i32::try_from(ordinal) {
        // SAFETY: `device` is a place for the handle.
        Ok(number) if ordinal < count => match unsafe { sys::cuDeviceGet(&mut device, number) } {
            CUresult::CUDA_SUCCESS => Ok(device),
            code => Err(Unavailable::DriverFailed(driver::describe(code))),
        },
        _ => Err(absent),
    }
}
