//! Which engine computes: what was asked for, what is there, and what takes over.
//!
//! Two engines run the same operations: `cuda` on an NVIDIA GPU, and `cpu`, which is always there. A third, `ort`, runs an artifact's
//! exported graph, and graphs of other programs, in ONNX Runtime. [`Engines`] opens the one that was asked for; left the choice, it takes
//! the GPU where one can be used, and says in one line why it was not taken, and ONNX Runtime for what the first two do not run
//! ([`Engines::open_for`]). An engine that fails later is replaced by the next one ([`Engines::after`]), in the diagnosis loop at last by
//! ONNX Runtime ([`Engines::after_in_loop`]); one that was asked for by name is never replaced.
//!
//! What a GPU takes is booked in the same [`Budget`] as the rest:
//!
//! | what | booked as | until |
//! |--|--|--|
//! | context and code of the driver, in the host's memory, in this process and outside of it | the device's driver | the device is closed; what the driver keeps then, the program's end |
//! | page-locked staging, 5 MiB of the host | activations | the device is closed |
//! | weights, copied to device memory | weights, in whole granules (2 MiB) | the session ends |
//! | weights, read in the mapped artifact (integrated) | weights, the file's bytes, as for the CPU | the session ends |
//! | weights, mapped pages that are registered (integrated) | weights, whole pages, once | the session ends |
//! | activations, KV cache, adapters, gradients, moments | their purpose, in whole granules | the buffer goes |
//!
//! Mapped pages that were copied leave the process as soon as they are; the largest tensor is booked beside the copy until all are. What a
//! driver takes of the host is measured: what this process and what no process has more than before
//! ([`unaccounted_bytes`](espalier_runtime::gauges::unaccounted_bytes); the context of an integrated GPU is there). What it keeps in a
//! discrete GPU's own memory for its context is not the program's, and not counted; nor is what it takes for recorded graphs.
//!
//! A device has a type of its own and everything above it is generic, so [`OpenDevice`] names them all and
//! [`on_device!`](crate::on_device) runs one expression on whichever it is.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

#[cfg(feature = "cuda")]
use espalier_kernels::cuda::{CudaDevice, Unavailable};
use espalier_kernels::{CpuDevice, Purpose, Reservation};
use espalier_models::Artifact;
use espalier_runtime::{Budget, RuntimeError};
#[cfg(feature = "ort")]
use espalier_runtime::{OrtLibrary, OrtOptions, OrtProviders};

use crate::error::{AgentError, Result};

mod asked;
mod device;
#[cfg(feature = "cuda")]
mod driver;
mod failure;

pub use asked::{Asked, AskedOrt, EngineChoice, Precision};
#[cfg(feature = "cuda")]
pub use device::Opened;
#[cfg(feature = "ort")]
pub use device::Ort;
use device::closed;
pub use device::{EngineKind, OpenDevice};
#[cfg(feature = "cuda")]
use driver::{DriverGauge, DriverMemory};
pub use failure::{another_may_do, is_device_failure, is_lost};

/// Opens engines, and says once why one was not taken.
#[derive(Default)]
pub struct Engines {
    asked: Asked,
    said: Mutex<BTreeSet<String>>,
    left: Left,
}

/// Books what drivers keep of the host's memory after their device was closed.
type Left = Arc<Mutex<Vec<Reservation>>>;

impl Engines {
    /// Engines for what was asked.
    pub fn new(asked: Asked) -> Self {
        Self { asked, ..Self::default() }
    }

    /// Whether another engine may take over: none was asked for by name.
    pub fn may_move(&self) -> bool {
        self.asked.engine == EngineChoice::Auto
    }

    /// The best device that can be had, which books its memory in `budget`; on the CPU, with `threads` threads.
    ///
    /// # Errors
    /// [`AgentError::Engine`] where an engine was asked for by name that cannot be used, [`AgentError::Runtime`] where that is ONNX Runtime;
    /// [`AgentError::Kernel`] where the CPU's threads are refused.
    pub fn open(&self, threads: usize, budget: &Arc<Budget>) -> Result<OpenDevice> {
        if self.asked.engine == EngineChoice::Ort {
            return self.open_ort(threads, budget);
        }
        if self.asked.ort != AskedOrt::default() {
            let line = "--ort-lib, --ort-prepack and --ort-provider wait for ONNX Runtime, which takes over where the CPU fails in `run`";
            self.say(log::Level::Warn, line.into());
        }
        if self.asked.engine != EngineChoice::Cpu {
            match open_cuda(self.asked.precision, budget, &self.left) {
                Ok((device, driver)) => {
                    let line = format!("engine cuda: {}; its driver takes {driver} bytes of the host's memory", device.name());
                    self.say(log::Level::Info, line);
                    return Ok(device);
                }
                Err(passed) => {
                    self.keep(passed.kept, budget);
                    if !self.may_move() {
                        return Err(AgentError::Engine(passed.reason));
                    }
                    // Most machines have no such GPU; that one which is there cannot be used is worth a line.
                    let level = if passed.expected { log::Level::Info } else { log::Level::Warn };
                    self.say(level, format!("engine cuda not taken: {}; engine cpu computes", passed.reason));
                }
            }
        }
        Ok(OpenDevice::Cpu(CpuDevice::new(threads, budget.clone())?))
    }

    /// As [`open`](Engines::open), for the model at `path`, which is `what`, and which the native engines therefore do not run: ONNX Runtime,
    /// unless another engine was asked for.
    ///
    /// # Errors
    /// [`AgentError::Usage`] where a native engine was asked for by name, [`AgentError::Runtime`] where ONNX Runtime is not there.
    pub fn open_for(&self, (what, path): (&str, &Path), threads: usize, budget: &Arc<Budget>) -> Result<OpenDevice> {
        let path = path.display();
        match self.asked.engine {
            EngineChoice::Ort => self.open(threads, budget),
            EngineChoice::Cpu | EngineChoice::Cuda => {
                let name = self.asked.engine.name();
                Err(AgentError::Usage(format!("{path} is {what}, which engine {name} does not run; give --engine ort, or leave it out")))
            }
            EngineChoice::Auto => {
                let why = format!("{path} is {what}, which the engines cpu and cuda do not run");
                let refused = |error| RuntimeError::Ort(format!("{why}, and engine ort cannot be taken: {error}"));
                let device = self.open_ort(threads, budget).map_err(refused)?;
                self.say(log::Level::Warn, format!("engine ort: {why}"));
                Ok(device)
            }
        }
    }

    /// The device that takes over from a GPU that failed for `reason`; none where no engine is left.
    pub fn after(
        &self,
        failed: &OpenDevice,
        threads: usize,
        budget: &Arc<Budget>,
        reason: &dyn fmt::Display,
    ) -> Result<Option<OpenDevice>> {
        if failed.kind() != EngineKind::Cuda || !self.may_move() {
            return Ok(None);
        }
        self.take_over(failed.kind(), threads, budget, reason).map(Some)
    }

    /// As [`after`](Engines::after), and from the CPU ONNX Runtime, whose library is looked for now; from that the CPU again, which may have
    /// got over what it failed of. One line says why ONNX Runtime is not taken.
    pub fn after_in_loop(
        &self,
        failed: &OpenDevice,
        threads: usize,
        budget: &Arc<Budget>,
        reason: &dyn fmt::Display,
    ) -> Result<Option<OpenDevice>> {
        if !self.may_move() {
            return Ok(None);
        }
        match failed.kind() {
            EngineKind::Cuda | EngineKind::Ort => self.take_over(failed.kind(), threads, budget, reason).map(Some),
            EngineKind::Cpu => match self.open_ort(threads, budget) {
                Ok(device) => {
                    self.say(log::Level::Warn, format!("engine cpu: {reason}; engine ort takes over"));
                    Ok(Some(device))
                }
                Err(why) => {
                    self.say(log::Level::Warn, format!("engine cpu: {reason}; engine ort not taken: {why}"));
                    Ok(None)
                }
            },
        }
    }

    /// The CPU, in place of an engine that failed.
    fn take_over(&self, failed: EngineKind, threads: usize, budget: &Arc<Budget>, reason: &dyn fmt::Display) -> Result<OpenDevice> {
        self.say(log::Level::Warn, format!("engine {failed}: {reason}; engine cpu takes over"));
        Ok(OpenDevice::Cpu(CpuDevice::new(threads, budget.clone())?))
    }

    #[cfg(feature = "ort")]
    fn open_ort(&self, threads: usize, budget: &Arc<Budget>) -> Result<OpenDevice> {
        let asked = self.asked.ort;
        let library = OrtLibrary::open(asked.library)?;
        self.say(log::Level::Info, format!("engine ort: {}", library.path().display()));
        let tried: Vec<_> = asked.providers.iter().map(|provider| (provider, library.try_provider(provider))).collect();
        let mut providers = OrtProviders::default();
        tried.iter().filter(|(_, result)| result.is_ok()).for_each(|(provider, _)| providers.push(*provider));
        let instead = providers.iter().next().map_or("cpu".to_string(), |provider| provider.to_string());
        for (provider, result) in tried {
            match result {
                Ok(()) => self.say(log::Level::Info, format!("ONNX Runtime's provider {provider} is taken")),
                Err(why) => {
                    let line = format!("ONNX Runtime's provider {provider} is not taken: {why}; its provider {instead} computes");
                    self.say(log::Level::Warn, line);
                }
            }
        }
        let ort = Ort { library, options: OrtOptions { threads, prepack: asked.prepack, providers } };
        Ok(OpenDevice::Ort(CpuDevice::new(threads, budget.clone())?, ort))
    }

    #[cfg(not(feature = "ort"))]
    fn open_ort(&self, _: usize, _: &Arc<Budget>) -> Result<OpenDevice> {
        Err(AgentError::Usage("this program was built without the feature `ort`; give --engine cpu or cuda".into()))
    }

    /// Opens something on `device`, and where that refuses or fails, on the next one of the loop, each once.
    pub fn use_or_next<T>(
        &self,
        mut device: OpenDevice,
        threads: usize,
        budget: &Arc<Budget>,
        mut open: impl FnMut(&OpenDevice) -> Result<T>,
    ) -> Result<(OpenDevice, T)> {
        loop {
            let error = match open(&device) {
                Ok(opened) => return Ok((device, opened)),
                Err(error) => error,
            };
            if device.kind() == EngineKind::Ort || !another_may_do(device.kind(), &error) {
                return Err(error);
            }
            let Some(next) = self.after_in_loop(&device, threads, budget, &error)? else { return Err(error) };
            self.close(std::mem::replace(&mut device, next), budget);
        }
    }

    /// Closes a device, and keeps booked what its driver does not give back.
    pub fn close(&self, device: OpenDevice, budget: &Arc<Budget>) {
        self.keep(closed(device), budget);
    }

    /// Books what a driver keeps without a device.
    fn keep(&self, kept: u64, budget: &Arc<Budget>) {
        if kept == 0 {
            return;
        }
        match Reservation::new(budget.clone(), Purpose::Driver, kept) {
            Ok(reservation) => self.left.lock().unwrap_or_else(PoisonError::into_inner).push(reservation),
            Err(error) => log::warn!("the driver keeps {kept} bytes after its device was closed: {error}"),
        }
    }

    /// Bytes of the host that drivers keep after their device was closed.
    pub fn left_bytes(&self) -> u64 {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).iter().map(Reservation::bytes).sum()
    }

    /// Bytes of the host beside what is planned for the CPU where `device` serves `artifact`: its own overhead, and what is left of drivers
    /// that were closed.
    ///
    /// # Errors
    /// As [`OpenDevice::overhead_bytes`].
    pub fn beside_bytes(&self, device: &OpenDevice, artifact: &Artifact) -> Result<u64> {
        Ok(device.overhead_bytes(artifact)?.saturating_add(self.left_bytes()))
    }

    /// Says a line unless it was said before: a command may open a device several times. Of a run of years the lines that are remembered
    /// stay few.
    fn say(&self, level: log::Level, line: String) {
        const MOST: usize = 64;
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() >= MOST {
            said.clear();
        }
        if said.insert(line.clone()) {
            log::log!(level, "{line}");
        }
    }
}

/// Why an engine was passed over.
struct Passed {
    reason: String,
    /// Whether that is how most machines are.
    expected: bool,
    /// Bytes of the host's memory that the attempt has left with its driver.
    kept: u64,
}

/// The GPU, and what its driver takes of the host's memory.
#[cfg(feature = "cuda")]
fn open_cuda(precision: Precision, budget: &Arc<Budget>, left: &Left) -> std::result::Result<(OpenDevice, u64), Passed> {
    use espalier_kernels::cuda;

    let failed = |reason: &dyn fmt::Display, kept: u64| Passed { reason: reason.to_string(), expected: false, kept };
    let (before, booked_before) = (DriverGauge::read().map_err(|error| failed(&error, 0))?, budget.used());
    // A context that is gone has taken its pages outside the process with it.
    let kept =
        || DriverGauge::settled().map_or(0, |now| now.since(before).process).saturating_sub(budget.used().saturating_sub(booked_before));
    let device = CudaDevice::open(0, budget.clone()).map_err(|reason| {
        let absent = matches!(reason, Unavailable::NoDriver);
        let expected = absent || matches!(reason, Unavailable::NoDevice { .. });
        Passed { reason: reason.to_string(), expected, kept: if absent { 0 } else { kept() } }
    })?;
    // What the device booked is page-locked memory of the host, which is among what the driver has taken.
    let booked = budget.used().saturating_sub(booked_before);
    let opened = DriverGauge::settled().map(|now| now.since(before)).map_err(|error| error.to_string());
    let reserved = opened.and_then(|taken| {
        let bytes = taken.bytes().saturating_sub(booked);
        let reservation = Reservation::new(budget.clone(), Purpose::Driver, bytes).map_err(|error| error.to_string())?;
        Ok((bytes, DriverMemory::new(reservation, taken, left.clone())))
    });
    let (taken, driver) = match reserved {
        Ok(reserved) => reserved,
        Err(reason) => {
            drop(device);
            return Err(failed(&reason, kept()));
        }
    };
    let device = device.with_plan(cuda::Plan {
        precision: match precision {
            Precision::Exact => cuda::Precision::Exact,
            Precision::Fast => cuda::Precision::Fast,
        },
        ..device.plan()
    });
    Ok((OpenDevice::Cuda(device, Opened { bytes: booked + taken, driver: Arc::new(driver) }), taken))
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_: Precision, _: &Arc<Budget>, _: &Left) -> std::result::Result<(OpenDevice, u64), Passed> {
    Err(Passed { reason: "this program was built without the feature `cuda`".into(), expected: true, kept: 0 })
}
