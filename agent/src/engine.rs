//! Which engine computes: what was asked for, what is there, and what takes over.
//!
//! Two engines run the same operations: `cuda` on an NVIDIA GPU, and `cpu`, which is always there. [`Engines`] opens the one that was asked
//! for; left the choice, it takes the GPU where one can be used, and says in one line why it was not taken. An engine that fails later is
//! replaced by the next one ([`Engines::after`]); one that was asked for by name is never replaced.
//!
//! A device has a type of its own and everything above it is generic, so [`OpenDevice`] names them all and
//! [`on_device!`](crate::on_device) runs one expression on whichever it is.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

#[cfg(feature = "cuda")]
use espalier_kernels::cuda::{CudaDevice, Unavailable};
use espalier_kernels::{CpuDevice, Device, KernelError, Reservation};
use espalier_runtime::{Budget, RuntimeError};

use crate::error::{AgentError, Result};

/// The engine that a person asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum EngineChoice {
    /// The GPU where there is one that can be used, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

impl EngineChoice {
    /// The word on the command line.
    pub fn name(self) -> &'static str {
        match self {
            EngineChoice::Auto => "auto",
            EngineChoice::Cpu => "cpu",
            EngineChoice::Cuda => "cuda",
        }
    }
}

/// An engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            EngineKind::Cpu => "cpu",
            EngineKind::Cuda => "cuda",
        })
    }
}

/// A device that was opened.
#[derive(Clone)]
pub enum OpenDevice {
    /// The CPU.
    Cpu(CpuDevice),
    /// An NVIDIA GPU, and what its driver took on the host.
    #[cfg(feature = "cuda")]
    Cuda(CudaDevice, DriverMemory),
}

/// What opening a GPU took of the host's memory, booked for as long as a device is open: context and code of the driver.
#[derive(Clone)]
pub struct DriverMemory {
    /// Bytes.
    pub bytes: u64,
    _booked: Arc<Reservation>,
}

/// Runs an expression with the device inside an [`OpenDevice`], of whichever type it is.
#[macro_export]
macro_rules! on_device {
    ($open:expr, $device:ident => $work:expr) => {
        match $open {
            $crate::engine::OpenDevice::Cpu($device) => $work,
            #[cfg(feature = "cuda")]
            $crate::engine::OpenDevice::Cuda($device, _) => $work,
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
        }
    }

    /// Its name for people.
    pub fn name(&self) -> String {
        on_device!(self, device => device.name())
    }

    /// Bytes on the host that its driver took; 0 for the CPU.
    pub fn driver_bytes(&self) -> u64 {
        match self {
            OpenDevice::Cpu(_) => 0,
            #[cfg(feature = "cuda")]
            OpenDevice::Cuda(_, driver) => driver.bytes,
        }
    }

    /// Another device of the same engine, to compute beside this one: its own `threads` on the CPU, its own streams on a GPU.
    pub fn beside(&self, threads: usize, budget: &Arc<Budget>) -> Result<Self> {
        Ok(match self {
            OpenDevice::Cpu(_) => OpenDevice::Cpu(CpuDevice::new(threads, budget.clone())?),
            #[cfg(feature = "cuda")]
            OpenDevice::Cuda(_, driver) => {
                let device = CudaDevice::open(0, budget.clone()).map_err(|reason| not_taken(&reason))?;
                OpenDevice::Cuda(device, driver.clone())
            }
        })
    }
}

/// Opens engines, and says once why one was not taken.
#[derive(Debug, Default)]
pub struct Engines {
    choice: EngineChoice,
    said: Mutex<BTreeSet<String>>,
}

impl Engines {
    /// Engines for what was asked.
    pub fn new(choice: EngineChoice) -> Self {
        Self { choice, said: Mutex::default() }
    }

    /// What was asked.
    pub fn choice(&self) -> EngineChoice {
        self.choice
    }

    /// The best device that can be had, which books its memory in `budget`; on the CPU, with `threads` threads.
    ///
    /// # Errors
    /// [`AgentError::Engine`] where an engine was asked for by name that cannot be used; [`AgentError::Kernel`] where the CPU's threads are
    /// refused.
    pub fn open(&self, threads: usize, budget: &Arc<Budget>) -> Result<OpenDevice> {
        if self.choice != EngineChoice::Cpu {
            match open_cuda(budget) {
                Ok(device) => {
                    self.say(log::Level::Info, format!("engine cuda: {}", device.name()));
                    return Ok(device);
                }
                Err(passed) if self.choice == EngineChoice::Cuda => return Err(AgentError::Engine(passed.reason)),
                // Most machines have no such GPU; that one which is there cannot be used is worth a line.
                Err(passed) => {
                    let level = if passed.expected { log::Level::Info } else { log::Level::Warn };
                    self.say(level, format!("engine cuda not taken: {}; engine cpu computes", passed.reason));
                }
            }
        }
        Ok(OpenDevice::Cpu(CpuDevice::new(threads, budget.clone())?))
    }

    /// The device that takes over from one that failed for `reason`; none where no engine is left.
    pub fn after(
        &self,
        failed: &OpenDevice,
        threads: usize,
        budget: &Arc<Budget>,
        reason: &dyn fmt::Display,
    ) -> Result<Option<OpenDevice>> {
        if failed.kind() == EngineKind::Cpu || self.choice != EngineChoice::Auto {
            return Ok(None);
        }
        self.say(log::Level::Warn, format!("engine {} failed: {reason}; engine cpu takes over", failed.kind()));
        Ok(Some(OpenDevice::Cpu(CpuDevice::new(threads, budget.clone())?)))
    }

    /// Opens something on the best device, and where that device refuses or fails, on the next one.
    pub fn open_on_best<T>(
        &self,
        threads: usize,
        budget: &Arc<Budget>,
        mut open: impl FnMut(&OpenDevice) -> Result<T>,
    ) -> Result<(OpenDevice, T)> {
        let device = self.open(threads, budget)?;
        match open(&device) {
            Ok(opened) => Ok((device, opened)),
            Err(error) if is_device_failure(&error) => match self.after(&device, threads, budget, &error)? {
                Some(next) => {
                    drop(device);
                    let opened = open(&next)?;
                    Ok((next, opened))
                }
                None => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// Says a line unless it was said before: a command may open a device several times.
    fn say(&self, level: log::Level, line: String) {
        if !self.said.lock().unwrap_or_else(PoisonError::into_inner).contains(&line) {
            log::log!(level, "{line}");
            self.said.lock().unwrap_or_else(PoisonError::into_inner).insert(line);
        }
    }
}

/// Whether the device or its memory failed, rather than the model or the input: then another engine may do.
pub fn is_device_failure(error: &AgentError) -> bool {
    match error {
        AgentError::Engine(_) => true,
        AgentError::Kernel(error) | AgentError::Runtime(RuntimeError::Kernel(error)) => !matches!(error, KernelError::Shape { .. }),
        _ => false,
    }
}

/// Why an engine was passed over.
struct Passed {
    reason: String,
    /// Whether that is how most machines are.
    expected: bool,
}

#[cfg(feature = "cuda")]
fn not_taken(reason: &Unavailable) -> AgentError {
    AgentError::Engine(reason.to_string())
}

#[cfg(feature = "cuda")]
fn open_cuda(budget: &Arc<Budget>) -> std::result::Result<OpenDevice, Passed> {
    use espalier_kernels::Purpose;
    use espalier_runtime::gauges;

    let failed = |reason: String| Passed { reason, expected: false };
    let before = gauges::anonymous_bytes().map_err(|error| failed(error.to_string()))?;
    let device = CudaDevice::open(0, budget.clone()).map_err(|reason| Passed {
        reason: reason.to_string(),
        expected: matches!(reason, Unavailable::NoDriver | Unavailable::NoDevice { .. }),
    })?;
    let after = gauges::anonymous_bytes().map_err(|error| failed(error.to_string()))?;
    let bytes = after.saturating_sub(before);
    let booked = Reservation::new(budget.clone(), Purpose::Driver, bytes).map_err(|error| failed(error.to_string()))?;
    Ok(OpenDevice::Cuda(device, DriverMemory { bytes, _booked: Arc::new(booked) }))
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_: &Arc<Budget>) -> std::result::Result<OpenDevice, Passed> {
    Err(Passed { reason: "this program was built without the feature `cuda`".into(), expected: true })
}
