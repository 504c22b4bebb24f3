//! An engine that is open, of whichever kind it is.

use std::fmt;
use std::sync::Arc;

#[cfg(feature = "cuda")]
use super::driver::{DriverGauge, DriverMemory};
#[cfg(feature = "cuda")]
use espalier_kernels::cuda::CudaDevice;
use espalier_kernels::{CpuDevice, Device};
use espalier_models::Artifact;
use espalier_runtime::Budget;
#[cfg(feature = "ort")]
use espalier_runtime::{OrtLibrary, OrtOptions, ort_overhead_bytes};

#[cfg(feature = "cuda")]
use crate::error::AgentError;
use crate::error::Result;

/// ONNX Runtime, and how it runs a graph.
#[cfg(feature = "ort")]
#[derive(Clone, Copy)]
pub struct Ort {
    /// The library, loaded.
    pub library: &'static OrtLibrary,
    /// How it runs a graph.
    pub options: OrtOptions,
}

/// An engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// ONNX Runtime.
    Ort,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            EngineKind::Cpu => "cpu",
            EngineKind::Cuda => "cuda",
            EngineKind::Ort => "ort",
        })
    }
}

/// A device that was opened.
#[derive(Clone)]
pub enum OpenDevice {
    /// The CPU.
    Cpu(CpuDevice),
    /// An NVIDIA GPU, and what opening it took.
    #[cfg(feature = "cuda")]
    Cuda(CudaDevice, Opened),
    /// ONNX Runtime for what it runs, and the CPU for all else.
    #[cfg(feature = "ort")]
    Ort(CpuDevice, Ort),
}

/// What opening a GPU took: what the device books itself, and on the host context and code of the driver, booked for as long as a device is
/// open.
#[cfg(feature = "cuda")]
#[derive(Clone)]
pub struct Opened {
    /// Bytes.
    pub bytes: u64,
    pub(super) driver: Arc<DriverMemory>,
}

/// Runs an expression with the device inside an [`OpenDevice`], of whichever type it is.
#[macro_export]
macro_rules! on_device {
    ($open:expr, $device:ident => $work:expr) => {
        match $open {
            $crate::engine::OpenDevice::Cpu($device) => $work,
            #[cfg(feature = "cuda")]
            $crate::engine::OpenDevice::Cuda($device, _) => $work,
            #[cfg(feature = "ort")]
            $crate::engine::OpenDevice::Ort($device, _) => $work,
        }
    };
}

impl OpenDevice {
    /// Which engine it belongs to.
    pub fn kind(&self) -> EngineKind {
        match self {
            OpenDevice::Cpu(_) => EngineKind::Cpu,
            #[cfg(feature = "cuda")]
            OpenDevice::Cuda(..) => EngineKind::Cuda,
            #[cfg(feature = "ort")]
            OpenDevice::Ort(..) => EngineKind::Ort,
        }
    }

    /// Its name for people.
    pub fn name(&self) -> String {
        match self {
            #[cfg(feature = "ort")]
            OpenDevice::Ort(device, _) => format!("ONNX Runtime, {}", device.name()),
            device => on_device!(device, device => device.name()),
        }
    }

    /// Bytes that serving `artifact` on it takes beside what is planned for the CPU: what its driver and the device took when it was opened,
    /// and a granule each for matrices, vectors and activations, which fill their last one in part; what ONNX Runtime holds of its own and
    /// makes of the graph. 0 for the CPU.
    ///
    /// # Errors
    /// [`AgentError::Runtime`] where ONNX Runtime is to run an artifact that has no graph.
    pub fn overhead_bytes(&self, artifact: &Artifact) -> Result<u64> {
        // Only what ONNX Runtime takes depends on the artifact.
        let _ = artifact;
        Ok(match self {
            OpenDevice::Cpu(_) => 0,
            #[cfg(feature = "cuda")]
            OpenDevice::Cuda(device, opened) => opened.bytes + 3 * device.attributes().granularity.unwrap_or(0),
            #[cfg(feature = "ort")]
            OpenDevice::Ort(_, ort) => ort_overhead_bytes(artifact, ort.options)?,
        })
    }

    /// Another device of the same engine, to compute beside this one: its own `threads` on the CPU, its own streams on a GPU.
    pub fn beside(&self, threads: usize, budget: &Arc<Budget>) -> Result<Self> {
        Ok(match self {
            OpenDevice::Cpu(_) => OpenDevice::Cpu(CpuDevice::new(threads, budget.clone())?),
            #[cfg(feature = "ort")]
            OpenDevice::Ort(_, ort) => OpenDevice::Ort(CpuDevice::new(threads, budget.clone())?, *ort),
            #[cfg(feature = "cuda")]
            OpenDevice::Cuda(device, opened) => {
                let beside = CudaDevice::open(0, budget.clone()).map_err(|reason| AgentError::Engine(reason.to_string()))?;
                OpenDevice::Cuda(beside.with_plan(device.plan()), opened.clone())
            }
        })
    }

    /// As [`beside`](OpenDevice::beside), for work that this device's goes before: where kernels of both wait, a GPU starts this one's first.
    pub fn behind(&self, threads: usize, budget: &Arc<Budget>) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if let OpenDevice::Cuda(device, opened) = self {
            let behind = CudaDevice::open_beside(0, budget.clone()).map_err(|reason| AgentError::Engine(reason.to_string()))?;
            return Ok(OpenDevice::Cuda(behind.with_plan(device.plan()), opened.clone()));
        }
        self.beside(threads, budget)
    }
}

/// Drops a device, and tells how many bytes of the host its driver keeps. Only the last of its clones closes it.
#[cfg(feature = "cuda")]
pub(super) fn closed(device: OpenDevice) -> u64 {
    let OpenDevice::Cuda(device, opened) = device else { return 0 };
    let Some(driver) = Arc::into_inner(opened.driver).and_then(DriverMemory::take) else { return 0 };
    let booked = opened.bytes.saturating_sub(driver.bytes());
    // Memory of the device's own, which an integrated one has of the host, is not the driver's.
    device.release_scratch();
    let before = DriverGauge::read();
    drop(device);
    // Without a gauge all of it counts as kept.
    let freed = before.and_then(|before| Ok(before.since(DriverGauge::settled()?).bytes())).unwrap_or(0);
    driver.bytes().saturating_sub(freed.saturating_sub(booked))
}

#[cfg(not(feature = "cuda"))]
pub(super) fn closed(_: OpenDevice) -> u64 {
    0
}
