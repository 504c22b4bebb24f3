//! The compiled kernels that the binary holds, and which of them a device is given.
//!
//! An image is tried where the driver is new enough and a code in it fits the device, in this order: machine code that fits, newest compiler
//! first; PTX, which the driver compiles; and last, where the library is installed, what NVRTC compiles on this machine from the sources
//! that the binary holds too, kept on disk for the next start. Whatever was passed over or refused is said with its reason.

mod cache;
mod fatbin;
mod nvrtc;
#[cfg(test)]
mod sources;

use std::env;
use std::path::PathBuf;

use self::fatbin::Code;
use self::nvrtc::{Goal, Nvrtc};

/// A fat binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Image {
    name: &'static str,
    /// The CUDA version of what compiled it: major, minor.
    toolkit: (u32, u32),
    bytes: &'static [u8],
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

/// Loads the best image that `load` takes; its name, and what `load` made of it. What was passed over before is in the log.
///
/// # Errors
/// All rejections, in order, where there is no such image.
pub(super) fn load<M>(target: Target, load: impl Fn(&[u8]) -> Result<M, String>) -> Result<(String, M), Vec<Rejection>> {
    let variable = |name: &str| env::var_os(name);
    let compiler = || Compiler::open(&nvrtc::places(target.driver.0, variable), cache::folder(variable), target);
    let (name, module) = first_loaded(IMAGES, target, load, compiler)?;
    log::info!("CUDA kernels: {name}");
    Ok((name, module))
}

/// Tries the images in order, then what `compiler` compiles; the name of what was loaded, and what `load` made of it.
fn first_loaded<M>(
    images: &[Image],
    target: Target,
    load: impl Fn(&[u8]) -> Result<M, String>,
    compiler: impl FnOnce() -> Result<Compiler, String>,
) -> Result<(String, M), Vec<Rejection>> {
    let (chosen, mut rejections) = choose(images, target);
    rejections.iter().for_each(|rejection| log::info!("CUDA kernels passed over: {rejection}"));
    let reject = |image: &str, reason: String, rejections: &mut Vec<Rejection>| {
        let rejection = Rejection { image: image.to_owned(), reason };
        log::warn!("CUDA kernels refused: {rejection}");
        rejections.push(rejection);
    };
    for image in chosen {
        match load(image.bytes) {
            Ok(module) => return Ok((image.name.to_owned(), module)),
            Err(reason) => reject(image.name, reason, &mut rejections),
        }
    }
    match compiler().and_then(|compiler| compiler.load(load)) {
        Ok(loaded) => Ok(loaded),
        Err(reason) => {
            reject("the sources", reason, &mut rejections);
            Err(rejections)
        }
    }
}

/// The images to try, in order (those with machine code for the device before those with PTX), and why each of the others is not.
fn choose(images: &[Image], target: Target) -> (Vec<Image>, Vec<Rejection>) {
    let (mut machine_code, mut ptx, mut rejections) = (Vec::new(), Vec::new(), Vec::new());
    for image in images {
        match fit(image, target) {
            Ok(Code::Cubin { .. }) => machine_code.push(*image),
            Ok(Code::Ptx { .. }) => ptx.push(*image),
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
    let codes = fatbin::codes(image.bytes);
    let machine_code = codes
        .iter()
        .find(|code| matches!(code, Code::Cubin { architecture } if architecture / 10 == capability.0 && *architecture <= device));
    let ptx = codes.iter().find(|code| matches!(code, Code::Ptx { architecture } if *architecture <= device));
    let old_driver =
        |needed: (u32, u32)| format!("needs a driver of CUDA {}.{}; this one is of {}.{}", needed.0, needed.1, driver.0, driver.1);
    match (machine_code, ptx) {
        (Some(_), _) if driver.0 < image.toolkit.0 => Err(old_driver((image.toolkit.0, 0))),
        (Some(code), _) => Ok(*code),
        (None, Some(_)) if driver < image.toolkit => Err(old_driver(image.toolkit)),
        (None, Some(code)) => Ok(*code),
        (None, None) => Err(format!("has no code for compute capability {}.{}", capability.0, capability.1)),
    }
}

/// NVRTC, with what it is to compile for and where that is kept.
struct Compiler {
    nvrtc: Nvrtc,
    goal: Goal,
    folder: Option<PathBuf>,
}

impl Compiler {
    fn open(places: &[PathBuf], folder: Option<PathBuf>, target: Target) -> Result<Self, String> {
        let nvrtc = Nvrtc::open(places, target.driver)?;
        let goal = Goal::choose(&nvrtc.supported()?, target.capability).ok_or_else(|| {
            let ((major, minor), capability) = (nvrtc.version(), target.capability);
            format!("NVRTC {major}.{minor} cannot compile for compute capability {}.{}", capability.0, capability.1)
        })?;
        Ok(Self { nvrtc, goal, folder })
    }

    /// Loads the code that was compiled before, or else compiles it and keeps it.
    fn load<M>(&self, load: impl Fn(&[u8]) -> Result<M, String>) -> Result<(String, M), String> {
        let (major, minor) = self.nvrtc.version();
        let target = self.goal.name();
        let name = format!("compiled for {target} by NVRTC {major}.{minor}");
        let file = format!("kernels-{}-{target}-nvrtc{major}.{minor}.code", &SOURCES_HASH[..16]);
        if let Some(folder) = &self.folder {
            let kept =
                cache::read(folder, &file).map_err(|error| error.to_string()).and_then(|code| code.as_deref().map(&load).transpose());
            match kept {
                Ok(Some(module)) => return Ok((format!("{name}, kept in {}", folder.display()), module)),
                Ok(None) => {}
                Err(reason) => log::warn!("{} is passed over: {reason}", folder.join(&file).display()),
            }
        }
        log::info!("CUDA kernels are being compiled for {target} by NVRTC {major}.{minor}, which takes a while");
        let code = self.nvrtc.compile(SOURCES, self.goal)?;
        let module = load(&code).map_err(|reason| format!("{name}: {reason}"))?;
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
