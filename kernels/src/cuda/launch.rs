//! Starting kernels.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::counters::{Counter, KernelCount};
use super::device::Core;
use super::driver::{Event, Hold, check, describe, is_sticky};
use super::images::{self, NotLoaded, Refusal, SOURCES, Target};
use super::memory::Pointer;
use super::probe::Unavailable;
use super::signature::{self, Kind, Signature};
use super::sys::{self, CUresult};
use crate::error::{KernelError, Result};

pub(super) use super::counters::Work;

/// The shared memory that a kernel may ask for without further ado.
const PLAIN_SHARED_BYTES: u32 = 48 << 10;

/// The most parameters of a kernel.
const MOST_ARGUMENTS: usize = 32;

/// The blocks of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grid {
    /// Blocks along x, y and z.
    pub blocks: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
}

impl Grid {
    /// A thread for each of `count`, `threads` a block.
    pub fn linear(count: usize, threads: u32) -> Result<Grid> {
        let blocks = u32::try_from(count.div_ceil(threads.max(1) as usize)).ok().filter(|blocks| *blocks <= i32::MAX as u32);
        let blocks = blocks.ok_or_else(|| KernelError::Shape {
            operation: "launch",
            detail: format!("{count} threads are more than a device starts at once"),
        })?;
        Ok(Grid { blocks: [blocks, 1, 1], threads, shared_bytes: 0 })
    }
}

/// The arguments of a launch, in the order of the kernel's parameters.
pub(super) struct Args {
    kinds: [Kind; MOST_ARGUMENTS],
    /// The driver reads as many bytes of each as its parameter has; all are little-endian.
    values: [u64; MOST_ARGUMENTS],
    /// May pass the end, which the comparison with the signature finds.
    count: usize,
}

impl Args {
    /// None yet.
    pub fn new() -> Self {
        Self { kinds: [Kind::Pointer; MOST_ARGUMENTS], values: [0; MOST_ARGUMENTS], count: 0 }
    }

    fn push(mut self, kind: Kind, value: u64) -> Self {
        if let (Some(k), Some(v)) = (self.kinds.get_mut(self.count), self.values.get_mut(self.count)) {
            (*k, *v) = (kind, value);
        }
        self.count += 1;
        self
    }

    /// An address.
    pub fn pointer(self, pointer: Pointer) -> Self {
        self.push(Kind::Pointer, pointer.address())
    }
    /// A `u32`.
    pub fn u32(self, value: u32) -> Self {
        self.push(Kind::U32, u64::from(value))
    }
    /// A `u64`.
    pub fn u64(self, value: u64) -> Self {
        self.push(Kind::U64, value)
    }
    /// A `float`.
    pub fn f32(self, value: f32) -> Self {
        self.push(Kind::F32, u64::from(value.to_bits()))
    }
}

/// A kernel of the loaded image.
pub(super) struct Function {
    handle: sys::CUfunction,
    signature: Signature,
    counter: Counter,
    /// Dynamic shared memory that the driver was told of.
    shared_bytes: AtomicU32,
}

// SAFETY: the driver lets any thread use a function in whose context it is.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Function {
    pub fn counter(&self) -> &Counter {
        &self.counter
    }

    fn compare(&self, kernel: &'static str, grid: &Grid, args: &Args) -> Result<()> {
        let refuse = |detail| Err(KernelError::Shape { operation: kernel, detail });
        let (parameters, threads) = (&self.signature.parameters, self.signature.threads);
        if parameters.len() > MOST_ARGUMENTS {
            return refuse(format!("the kernel takes {} arguments; a launch passes at most {MOST_ARGUMENTS}", parameters.len()));
        }
        if args.count != parameters.len() {
            return refuse(format!("{} arguments were given, but the kernel takes {}", args.count, parameters.len()));
        }
        let wrong = args.kinds.iter().zip(parameters).enumerate().find(|(_, (given, (_, kind)))| *given != kind);
        if let Some((i, (given, (name, kind)))) = wrong {
            return refuse(format!("argument {i} is a {given:?}, but the kernel's {name} is a {kind:?}"));
        }
        if grid.threads == 0 || grid.threads > threads {
            return refuse(format!("{} threads a block were asked for, but the kernel is compiled for 1 to {threads}", grid.threads));
        }
        let [x, y, z] = grid.blocks;
        if x > i32::MAX as u32 || y > 65_535 || z > 65_535 {
            return refuse(format!("a grid of {x} by {y} by {z} blocks is larger than a device starts at once"));
        }
        Ok(())
    }

    /// Tells the driver of more dynamic shared memory than it allows unasked; once for each larger size.
    fn allow_shared(&self, core: &Core, kernel: &'static str, bytes: u32) -> Result<()> {
        if bytes <= PLAIN_SHARED_BYTES.max(self.shared_bytes.load(Ordering::Relaxed)) {
            return Ok(());
        }
        let most = core.attributes().shared_bytes;
        if bytes > most {
            let detail = format!("{bytes} bytes of shared memory were asked for, but a block of this device has at most {most}");
            return Err(KernelError::Shape { operation: kernel, detail });
        }
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the handle is that of a loaded module.
        core.check(kernel, unsafe { sys::cuFuncSetAttribute(self.handle, attribute, bytes as i32) })?;
        self.shared_bytes.store(bytes, Ordering::Relaxed);
        Ok(())
    }
}

/// What the driver's refusal of an image says.
fn refusal(code: CUresult) -> Refusal {
    match code {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Refusal::Full(describe(code)),
        code if is_sticky(code) => Refusal::DeviceFailed(describe(code)),
        code => Refusal::Image(describe(code)),
    }
}

/// A loaded image.
struct Module(sys::CUmodule);

// SAFETY: the driver lets any thread use a module in whose context it is.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    fn load(image: &[u8]) -> std::result::Result<Self, Refusal> {
        // The driver reads PTX up to a zero byte, and a fatbin or cubin by the lengths inside it, from an address that suits its header.
        let mut aligned = vec![0_u64; image.len() / 8 + 1];
        bytemuck::cast_slice_mut(&mut aligned)[..image.len()].copy_from_slice(image);
        let mut module = ptr::null_mut();
        // SAFETY: the image lives through the call and ends in a zero byte.
        match unsafe { sys::cuModuleLoadData(&mut module, aligned.as_ptr().cast()) } {
            CUresult::CUDA_SUCCESS => Ok(Self(module)),
            code => Err(refusal(code)),
        }
    }

    fn function(&self, name: &str) -> std::result::Result<sys::CUfunction, Refusal> {
        let text = CString::new(name).map_err(|error| Refusal::Image(format!("{name}: {error}")))?;
        let mut function = ptr::null_mut();
        // SAFETY: `function` is a place for the handle; the name ends in a zero byte.
        match unsafe { sys::cuModuleGetFunction(&mut function, self.0, text.as_ptr()) } {
            CUresult::CUDA_SUCCESS => Ok(function),
            code => Err(refusal(code).of(name)),
        }
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded once, unloaded once; the device waits for its streams before. An error would be that of a lost device.
        unsafe { sys::cuModuleUnload(self.0) };
    }
}

/// The kernels of the device, by name.
pub(super) struct Functions {
    functions: HashMap<&'static str, Function>,
    image: String,
    timed: AtomicBool,
    _module: Module,
}

impl Functions {
    /// Loads the first image that the device takes and that has every kernel.
    pub fn load(target: Target, device: &str) -> std::result::Result<Self, Unavailable> {
        let name = || device.to_string();
        let signatures = signature::parse(SOURCES).map_err(|reason| Unavailable::DeviceFailed { name: name(), reason })?;
        match images::load(target, |image| Self::resolve(image, &signatures)) {
            Ok((image, (module, functions))) => Ok(Self { functions, image, timed: AtomicBool::new(false), _module: module }),
            Err(NotLoaded::Full(reason)) => Err(Unavailable::Full { name: name(), reason }),
            Err(NotLoaded::DeviceFailed(reason)) => Err(Unavailable::DeviceFailed { name: name(), reason }),
            Err(NotLoaded::Rejected(rejections)) => {
                let reasons = rejections.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                Err(Unavailable::NoImage { name: name(), reasons })
            }
        }
    }

    fn resolve(
        image: &[u8],
        signatures: &HashMap<&'static str, Signature>,
    ) -> std::result::Result<(Module, HashMap<&'static str, Function>), Refusal> {
        let module = Module::load(image)?;
        let function = |(name, signature): (&&'static str, &Signature)| {
            let handle = module.function(name)?;
            let (counter, shared_bytes) = (Counter::default(), AtomicU32::new(0));
            Ok((*name, Function { handle, signature: signature.clone(), counter, shared_bytes }))
        };
        let functions = signatures.iter().map(function).collect::<std::result::Result<_, Refusal>>()?;
        Ok((module, functions))
    }

    /// The name of the image that was loaded.
    pub fn image(&self) -> &str {
        &self.image
    }

    /// A kernel.
    pub fn get(&self, name: &str) -> Option<&Function> {
        self.functions.get(name)
    }

    /// Every kernel.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, &Function)> {
        self.functions.iter().map(|(name, function)| (*name, function))
    }

    /// The totals of the kernels that ran, by name.
    pub fn counts(&self) -> Vec<KernelCount> {
        let mut counts: Vec<_> = self.all().map(|(name, f)| f.counter.totals(name)).filter(|count| count.launches > 0).collect();
        counts.sort_unstable_by_key(|count| count.name);
        counts
    }

    /// Whether launches are timed, each by itself.
    pub fn is_timed(&self) -> bool {
        self.timed.load(Ordering::Relaxed)
    }
    pub fn set_timed(&self, timed: bool) {
        self.timed.store(timed, Ordering::Relaxed);
    }

    /// Puts `kernel` on the compute stream. Zero blocks are no launch.
    pub fn launch(&self, core: &Core, kernel: &'static str, grid: Grid, args: Args, work: Work) -> Result<()> {
        let function = self.functions.get(kernel).ok_or_else(|| KernelError::Shape {
            operation: kernel,
            detail: "none of the kernels' sources has a kernel of that name".to_string(),
        })?;
        function.compare(kernel, &grid, &args)?;
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        let _entered = core.enter()?;
        function.allow_shared(core, kernel, grid.shared_bytes)?;
        if self.is_timed() && !core.gate().is_capturing() {
            let (start, end) = (Event::new(true)?, Event::new(true)?);
            // On an idle stream the first event would be reached before the kernel is there, and the time be the host's too.
            let hold = Hold::start(core.compute())?;
            start.record(core.compute())?;
            self.start(core, kernel, function, grid, args)?;
            end.record(core.compute())?;
            drop(hold);
            end.synchronize().map_err(|error| core.note(error))?;
            function.counter.add_time(work, (f64::from(start.elapsed_ms(&end)?) * 1e6) as u64);
        } else {
            self.start(core, kernel, function, grid, args)?;
        }
        function.counter.add(1, work);
        Ok(())
    }

    fn start(&self, core: &Core, kernel: &'static str, function: &Function, grid: Grid, mut args: Args) -> Result<()> {
        let mut places: [*mut c_void; MOST_ARGUMENTS] = [ptr::null_mut(); MOST_ARGUMENTS];
        for (place, value) in places.iter_mut().zip(&mut args.values) {
            *place = ptr::from_mut(value).cast();
        }
        let [x, y, z] = grid.blocks;
        let (stream, parameters) = (core.compute().handle(), places.as_mut_ptr());
        // SAFETY: the arguments have the kinds that the kernel's source names, and the driver copies them before it returns. The launcher
        // has checked the lengths of what they point to; blocks outlive the launch, since they are reused in the order of the stream.
        let code = unsafe {
            sys::cuLaunchKernel(function.handle, x, y, z, grid.threads, 1, 1, grid.shared_bytes, stream, parameters, ptr::null_mut())
        };
        check(kernel, code).map_err(|error| core.note(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launch_that_does_not_fit_its_kernel_is_refused() {
        let source = "KERNEL(128) scale(float* x, u32 n, u64 stride, float alpha) {}";
        let signature = signature::parse(&[("a.cu", source)]).unwrap().remove("scale").unwrap();
        let function = Function { handle: ptr::null_mut(), signature, counter: Counter::default(), shared_bytes: AtomicU32::new(0) };
        let grid = |blocks, threads| Grid { blocks, threads, shared_bytes: 0 };
        let args = || Args::new().pointer(Pointer::new(256)).u32(1).u64(2).f32(4.0);
        let one = [1, 1, 1];
        let cases = [
            (grid(one, 128), args(), None),
            (grid([0, 1, 1], 1), args(), None),
            (grid(one, 129), args(), Some("scale: 129 threads a block were asked for, but the kernel is compiled for 1 to 128")),
            (grid(one, 0), args(), Some("scale: 0 threads a block were asked for, but the kernel is compiled for 1 to 128")),
            (grid([1, 65_536, 1], 32), args(), Some("scale: a grid of 1 by 65536 by 1 blocks is larger than a device starts at once")),
            (grid(one, 128), args().u32(5), Some("scale: 5 arguments were given, but the kernel takes 4")),
            (
                grid(one, 128),
                (0..40).fold(Args::new(), |args, i| args.u32(i)),
                Some("scale: 40 arguments were given, but the kernel takes 4"),
            ),
            (
                grid(one, 128),
                Args::new().pointer(Pointer::NULL).u64(1).u64(2).f32(4.0),
                Some("scale: argument 1 is a U64, but the kernel's n is a U32"),
            ),
        ];
        let answers = cases.map(|(grid, args, expected)| (function.compare("scale", &grid, &args).err().map(|e| e.to_string()), expected));
        let wrong: Vec<_> = answers.iter().filter(|(got, expected)| got.as_deref() != *expected).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn a_grid_has_a_thread_for_each() {
        let blocks = |count| Grid::linear(count, 256).map(|grid| grid.blocks);
        assert_eq!([blocks(0), blocks(1), blocks(256), blocks(257)], [Ok([0, 1, 1]), Ok([1; 3]), Ok([1; 3]), Ok([2, 1, 1])]);
        assert!(matches!(blocks(usize::MAX), Err(KernelError::Shape { .. })));
    }
}
