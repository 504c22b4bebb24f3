//! The CUDA device: custom kernels through the driver, nothing linked.
//!
//! The kernels are in `.cu` files with their launchers beside them; a launcher checks shapes and calls `CudaDevice::launch`, which compares
//! the arguments with the kernel's source. All work of a device is on one compute stream, in the order in which it was asked for; uploads
//! of weights run beside it on a copy stream, and threads take turns. An operation returns once it is on the stream;
//! [`read`](crate::Device::read) and the operations that return numbers wait.

mod activation;
mod arena;
mod attention;
mod counters;
mod device;
mod driver;
mod elementwise;
mod epilogue;
mod gate;
mod gauge;
mod gemv;
mod gemv_fused;
mod gemv_quantized;
mod graph;
mod images;
mod launch;
mod loss;
mod memory;
mod norm;
mod operations;
mod planes;
mod probe;
mod products;
mod products_quantized;
mod projections;
mod registration;
mod roofline;
mod rotary;
mod sequence;
mod signature;
mod staging;
mod sys;
mod training;
mod weight;
mod weights;

use std::sync::Arc;

use crate::error::{KernelError, Result};
use crate::memory::{Ledger, Purpose};
use arena::Arena;
use device::Core;
use driver::Priority;
use launch::{Args, Grid, Work};
use memory::{Pointer, Scratch, ScratchParts};

pub use counters::KernelCount;
pub use gauge::device_bytes;
pub use graph::Graph;
pub use memory::{Buffer, Indices, Storage};
pub use probe::{Attributes, Unavailable};
pub use products::{Plan, Precision};
pub use roofline::Roofline;
pub use weight::Weight;

/// An NVIDIA device, and a ledger that is asked for its memory. Cheap to clone; clones share both, and one compute stream. Opened twice, it
/// is two devices, and what is made by one is not for the other: their streams do not wait for each other.
#[derive(Clone)]
pub struct CudaDevice {
    core: Arc<Core>,
    purpose: Purpose,
    /// Where weights are uploaded.
    weights: Arc<Arena>,
    /// Of the products.
    plan: Plan,
}

impl CudaDevice {
    /// Device `ordinal`, from 0, which books its memory in `ledger`: whole granules of device memory by purpose (memory that is registered
    /// counts as weights), and 5 MiB of page-locked host memory as activations. Memory is booked as activations until
    /// [`for_purpose`](crate::Device::for_purpose) says otherwise.
    pub fn open(ordinal: usize, ledger: Arc<dyn Ledger>) -> std::result::Result<Self, Unavailable> {
        Self::open_with(ordinal, Priority::Highest, ledger)
    }

    /// As [`open`](CudaDevice::open), for work beside that of a device which serves: where both have kernels that wait, the device starts
    /// those of the other first.
    pub fn open_beside(ordinal: usize, ledger: Arc<dyn Ledger>) -> std::result::Result<Self, Unavailable> {
        Self::open_with(ordinal, Priority::Lowest, ledger)
    }

    fn open_with(ordinal: usize, priority: Priority, ledger: Arc<dyn Ledger>) -> std::result::Result<Self, Unavailable> {
        let core = Core::open(ordinal, priority, ledger)?;
        let weights = core.arena(Purpose::Weights);
        Ok(Self { core, purpose: Purpose::Activations, weights, plan: Plan::default() })
    }

    /// The same device, whose products are made by `plan`.
    pub fn with_plan(&self, plan: Plan) -> Self {
        Self { plan, ..self.clone() }
    }

    /// What decides between kernels that make the same product.
    pub fn plan(&self) -> Plan {
        self.plan
    }

    /// Keeps the first rows of every weight, `(weight, rows)`, moves what is kept together, and gives the rest of the memory back.
    ///
    /// The weights are all that were mapped through this device since [`for_model`](crate::Device::for_model), or a shape error says that some
    /// are missing. Quantised weights whose blocks run along 32 rows keep a multiple of 32: a shape error says so. After another error they
    /// hold nothing of use and have to be mapped again.
    pub fn shrink_weights(&self, weights: &mut [(&mut Weight, usize)]) -> Result<()> {
        weight::shrink(&self.core, &self.weights, weights)
    }

    /// Bytes of device memory that the weights of this device's arena take.
    pub fn weight_bytes(&self) -> u64 {
        self.weights.mapped_bytes()
    }

    /// What the device can do.
    pub fn attributes(&self) -> &Attributes {
        self.core.attributes()
    }

    /// The image of the kernels that was loaded.
    pub fn image(&self) -> &str {
        self.core.functions().image()
    }

    /// Device memory in bytes, `(free, total)`, as the driver sees it. On an integrated device page cache counts as used.
    pub fn memory_bytes(&self) -> Result<(u64, u64)> {
        let _entered = self.core.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both are places for the numbers.
        let code = unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) };
        self.core.check("memory info", code)?;
        Ok((free as u64, total as u64))
    }

    /// Whether the device is lost: everything on it fails from now on.
    pub fn is_lost(&self) -> bool {
        self.core.is_lost()
    }

    /// Gives the intermediate buffers that operations keep for each other back and says how many bytes they had.
    pub fn release_scratch(&self) -> u64 {
        self.core.scratch().clear(&self.core)
    }

    /// What the kernels that ran were asked to do, by name.
    pub fn kernel_counts(&self) -> Vec<KernelCount> {
        self.core.functions().counts()
    }

    /// Times every launch by itself from now on, or does so no more. The device then runs one kernel at a time and no graphs.
    pub fn time_kernels(&self, timed: bool) {
        self.core.functions().set_timed(timed);
    }

    /// Puts `kernel` on the compute stream; zero blocks are no launch. An error where the kernel's source names other parameters.
    fn launch(&self, kernel: &'static str, grid: Grid, args: Args, work: Work) -> Result<()> {
        self.core.functions().launch(&self.core, kernel, grid, args, work)
    }

    /// `len` numbers of whatever value for the time of an operation: the next one gets the same memory. Other threads wait until they are
    /// dropped.
    fn scratch(&self, len: usize) -> Result<Scratch<'_>> {
        let entered = self.core.enter()?;
        Ok(Scratch { buffer: self.core.scratch().take(&self.core, len)?, _entered: entered })
    }

    /// As [`scratch`](CudaDevice::scratch), with counters for the blocks of a launch that add their parts up.
    fn scratch_parts(&self, len: usize, counters: usize) -> Result<ScratchParts<'_>> {
        ScratchParts::take(&self.core, len, counters)
    }
}

/// The product of `dimensions`.
fn elements(operation: &'static str, dimensions: &[usize]) -> Result<usize> {
    let product = dimensions.iter().try_fold(1_usize, |product, &d| product.checked_mul(d));
    product.ok_or_else(|| KernelError::Shape { operation, detail: format!("{dimensions:?} does not fit in memory") })
}

/// The address of `name [dimensions]` at the start of a buffer.
fn input<T>(operation: &'static str, name: &str, buffer: &Storage<T>, dimensions: &[usize]) -> Result<Pointer> {
    if elements(operation, dimensions)? > buffer.len() {
        let detail = format!("{name} holds {} numbers, but {dimensions:?} were expected", buffer.len());
        return Err(KernelError::Shape { operation, detail });
    }
    Ok(buffer.pointer())
}

/// As [`input`], to be written.
fn output<T>(operation: &'static str, name: &str, buffer: &mut Storage<T>, dimensions: &[usize]) -> Result<Pointer> {
    input(operation, name, buffer, dimensions)
}

/// Refuses with `detail` unless `condition`.
fn require(operation: &'static str, condition: bool, detail: impl FnOnce() -> String) -> Result<()> {
    if condition { Ok(()) } else { Err(KernelError::Shape { operation, detail: detail() }) }
}

/// A size as kernels take it.
fn size32(operation: &'static str, name: &str, n: usize) -> Result<u32> {
    u32::try_from(n)
        .map_err(|_| KernelError::Shape { operation, detail: format!("{name} is {n}, but a kernel takes at most {}", u32::MAX) })
}
