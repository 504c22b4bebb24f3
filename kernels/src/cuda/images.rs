//! The compiled kernels that the binary holds, and which of them a device is given.
//!
//! An image is tried where the driver is new enough and a code in it fits the device, in this order: machine code, newest compiler first;
//! PTX, which the driver compiles; and last, where the library is installed, what NVRTC compiles on this machine from the sources that the
//! binary holds too, kept on disk for the next start. Whatever was passed over or refused is said with its reason.

mod cache;
mod fatbin;
mod nvrtc;
#[cfg(test)]
mod sources;

use std::borrow::Cow;
use std::path::PathBuf;
use std::{env, io};

use lzma_rust2::XzReader;

use self::fatbin::Code;
use self::nvrtc::Nvrtc;

/// A fat binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Image {
    name: &'static str,
    /// The CUDA version of what compiled it: major, minor.
    toolkit: (u32, u32),
    /// What is in it.
    codes: &'static [Code],
    /// Whether it is packed by xz, its codes uncompressed. Else a driver is given the whole, and takes from it what fits.
    packed: bool,
    bytes: &'static [u8],
}

impl Image {
    /// What a driver is given for `code`.
    fn unpacked(&self, code: Code) -> io::Result<Cow<'static, [u8]>> {
        if !self.packed {
            return Ok(Cow::Borrowed(self.bytes));
        }
        fatbin::extract(XzReader::new(self.bytes, false), code).map(Cow::Owned)
    }
}

// SOURCES (name, text; the unit last), SOURCES_HASH and IMAGES, best first.
include!(concat!(env!("OUT_DIR"), "/cuda_images.rs"));

/// What images are chosen by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target {
    /// The CUDA version of the driver: major, minor.
    pub driver: (u32, u32),
    /// The compute capability of the device: major, minor.
    pub capability: (u32, u32),
}

/// Why a device was not given an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rejection {
    /// Which image.
    pub image: String,
    /// The reason.
    pub reason: String,
}

impl std::fmt::Display for Rejection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.image, self.reason)
    }
}

/// Why `load` did not take an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It does not suit; the next one may.
    Image(String),
    /// The device has no memory left: none will load.
    Full(String),
    /// The device fails whatever it is given.
    DeviceFailed(String),
}

impl Refusal {
    /// The same, said of `what`.
    pub fn of(self, what: &str) -> Self {
        let said = |reason| format!("{what}: {reason}");
        match self {
            Self::Image(reason) => Self::Image(said(reason)),
            Self::Full(reason) => Self::Full(said(reason)),
            Self::DeviceFailed(reason) => Self::DeviceFailed(said(reason)),
        }
    }
}

/// Why nothing was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NotLoaded {
    /// Nothing suits: every image, in order, and why not.
    Rejected(Vec<Rejection>),
    /// The device has no memory left.
    Full(String),
    /// The device fails.
    DeviceFailed(String),
}

/// Loads the best image that `load` takes; its name, and what `load` made of it. What was passed over before is in the log.
///
/// # Errors
/// All rejections, in order, where there is no such image; the first refusal that is not the image's fault.
pub(super) fn load<M>(target: Target, load: impl Fn(&[u8]) -> Result<M, Refusal>) -> Result<(String, M), NotLoaded> {
    let variable = |name: &str| env::var_os(name);
    let compiler = || Compiler::open(&nvrtc::places(target.driver.0, variable), cache::folder(variable), (SOURCES, SOURCES_HASH), target);
    let (name, module) = first_loaded(IMAGES, target, load, compiler)?;
    log::info!("CUDA kernels: {name}");
    Ok((name, module))
}

/// Tries the images in order, then what `compiler` compiles; the name of what was loaded, and what `load` made of it.
fn first_loaded<M>(
    images: &[Image],
    target: Target,
    load: impl Fn(&[u8]) -> Result<M, Refusal>,
    compiler: impl FnOnce() -> Result<Compiler, String>,
) -> Result<(String, M), NotLoaded> {
    let (chosen, mut rejections) = choose(images, target);
    rejections.iter().for_each(|rejection| log::info!("CUDA kernels passed over: {rejection}"));
    let reject = |image: &str, reason: String, rejections: &mut Vec<Rejection>| {
        let rejection = Rejection { image: image.to_owned(), reason };
        log::warn!("CUDA kernels refused: {rejection}");
        rejections.push(rejection);
    };
    for (image, code) in chosen {
        let name = format!("{} of {}", code.name(), image.name);
        let unpacked = image.unpacked(code).map_err(|error| Refusal::Image(format!("it cannot be unpacked: {error}")));
        match unpacked.and_then(|bytes| load(&bytes)) {
            Ok(module) => return Ok((name, module)),
            Err(Refusal::Image(reason)) => reject(&name, reason, &mut rejections),
            Err(Refusal::Full(reason)) => return Err(NotLoaded::Full(format!("{name}: {reason}"))),
            Err(Refusal::DeviceFailed(reason)) => return Err(NotLoaded::DeviceFailed(format!("{name}: {reason}"))),
        }
    }
    match compiler().map_err(Refusal::Image).and_then(|compiler| compiler.load(load)) {
        Ok(loaded) => Ok(loaded),
        Err(Refusal::Image(reason)) => {
            reject("the sources", reason, &mut rejections);
            Err(NotLoaded::Rejected(rejections))
        }
        Err(Refusal::Full(reason)) => Err(NotLoaded::Full(reason)),
        Err(Refusal::DeviceFailed(reason)) => Err(NotLoaded::DeviceFailed(reason)),
    }
}

/// What to try, in order (machine code before PTX), and why nothing of the other images is.
fn choose(images: &[Image], target: Target) -> (Vec<(Image, Code)>, Vec<Rejection>) {
    let (mut machine_code, mut ptx, mut rejections) = (Vec::new(), Vec::new(), Vec::new());
    for image in images {
        match fit(image, target) {
            Ok(code @ Code::Cubin(_)) => machine_code.push((*image, code)),
            Ok(code @ Code::Ptx(_)) => ptx.push((*image, code)),
            Err(reason) => rejections.push(Rejection { image: image.name.to_owned(), reason }),
        }
    }
    machine_code.append(&mut ptx);
    (machine_code, rejections)
}

/// The code of an image that the device will run, or why there is none.
///
/// A driver loads machine code of compilers of its own CUDA major version, whatever the minor, and of earlier ones (CUDA Compatibility:
/// minor version compatibility); PTX only of compilers that are not newer than itself.
fn fit(image: &Image, target: Target) -> Result<Code, String> {
    let Target { driver, capability } = target;
    let device = capability.0 * 10 + capability.1;
    let best = |of: fn(&Code) -> Option<u32>| image.codes.iter().filter_map(of).filter(|architecture| *architecture <= device).max();
    let machine_code = best(|code| if let Code::Cubin(architecture) = code { Some(*architecture) } else { None });
    let machine_code = machine_code.filter(|architecture| architecture / 10 == capability.0);
    let ptx = best(|code| if let Code::Ptx(architecture) = code { Some(*architecture) } else { None });
    let old_driver =
        |needed: (u32, u32)| format!("needs a driver of CUDA {}.{}; this one is of {}.{}", needed.0, needed.1, driver.0, driver.1);
    match (machine_code, ptx) {
        (Some(_), _) if driver.0 < image.toolkit.0 => Err(old_driver((image.toolkit.0, 0))),
        (Some(architecture), _) => Ok(Code::Cubin(architecture)),
        (None, Some(_)) if driver < image.toolkit => Err(old_driver(image.toolkit)),
        (None, Some(architecture)) => Ok(Code::Ptx(architecture)),
        (None, None) => Err(format!("has no code for compute capability {}.{}", capability.0, capability.1)),
    }
}

/// NVRTC, with what it is to compile for and where that is kept.
struct Compiler {
    nvrtc: Nvrtc,
    code: Code,
    folder: Option<PathBuf>,
    sources: Sources,
}

/// Name and text of each file, the unit last; and their hash.
type Sources = (&'static [(&'static str, &'static str)], &'static str);

impl Compiler {
    fn open(places: &[PathBuf], folder: Option<PathBuf>, sources: Sources, target: Target) -> Result<Self, String> {
        let nvrtc = Nvrtc::open(places, target.driver)?;
        let code = nvrtc::choose(&nvrtc.supported()?, target.capability).ok_or_else(|| {
            let ((major, minor), capability) = (nvrtc.version(), target.capability);
            format!("NVRTC {major}.{minor} cannot compile for compute capability {}.{}", capability.0, capability.1)
        })?;
        Ok(Self { nvrtc, code, folder, sources })
    }

    /// Loads the code that was compiled before, or else compiles it and keeps it.
    fn load<M>(&self, load: impl Fn(&[u8]) -> Result<M, Refusal>) -> Result<(String, M), Refusal> {
        let (major, minor) = self.nvrtc.version();
        let target = self.code.name();
        let name = format!("compiled for {target} by NVRTC {major}.{minor}");
        let file = format!("kernels-{}-{target}-nvrtc{major}.{minor}.code", &self.sources.1[..16]);
        if let Some(folder) = &self.folder {
            let read = cache::read(folder, &file).map_err(|error| Refusal::Image(error.to_string()));
            match read.and_then(|code| code.as_deref().map(&load).transpose()) {
                Ok(Some(module)) => return Ok((format!("{name}, kept in {}", folder.display()), module)),
                Ok(None) => {}
                Err(refusal @ (Refusal::Full(_) | Refusal::DeviceFailed(_))) => return Err(refusal),
                Err(Refusal::Image(reason)) => log::warn!("{} is passed over: {reason}", folder.join(&file).display()),
            }
        }
        log::info!("CUDA kernels are being compiled for {target} by NVRTC {major}.{minor}, which takes a while");
        let code = self.nvrtc.compile(self.sources.0, self.code).map_err(Refusal::Image)?;
        let module = load(&code).map_err(|refusal| refusal.of(&name))?;
        match &self.folder {
            Some(folder) => {
                if let Err(error) = cache::write(folder, &file, &code) {
                    log::warn!("the CUDA kernels that were compiled cannot be kept in {}: {error}", folder.display());
                }
            }
            None => log::warn!("the CUDA kernels that were compiled are not kept: ESPALIER_CACHE, XDG_CACHE_HOME and HOME name no folder"),
        }
        Ok((name, module))
    }
}

#[cfg(test)]
mod tests;
