//! The run-time compiler of the CUDA toolkit (NVRTC), where its library is installed. It is loaded by hand: a library or a function that
//! is not there is a reason to do without, never a panic.

use std::ffi::{CStr, CString, OsString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::ptr;

use libloading::Library;

use super::fatbin::Code;

/// The best that a compiler which knows the architectures `supported` can do for a device of compute capability `capability`.
pub(crate) fn choose(supported: &[u32], capability: (u32, u32)) -> Option<Code> {
    let device = capability.0 * 10 + capability.1;
    let best = supported.iter().copied().filter(|architecture| *architecture <= device).max()?;
    Some(if best / 10 == capability.0 { Code::Cubin(best) } else { Code::Ptx(best) })
}

type Status = c_int;
type Program = *mut c_void;
type Size = unsafe extern "C" fn(Program, *mut usize) -> Status;
type Bytes = unsafe extern "C" fn(Program, *mut c_char) -> Status;
type Texts = *const *const c_char;

/// The functions of nvrtc.h that are called, with their types there.
struct Functions {
    error: unsafe extern "C" fn(Status) -> *const c_char,
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status,
    count_architectures: unsafe extern "C" fn(*mut c_int) -> Status,
    architectures: unsafe extern "C" fn(*mut c_int) -> Status,
    create: unsafe extern "C" fn(*mut Program, *const c_char, *const c_char, c_int, Texts, Texts) -> Status,
    compile: unsafe extern "C" fn(Program, c_int, Texts) -> Status,
    destroy: unsafe extern "C" fn(*mut Program) -> Status,
    cubin: (Size, Bytes),
    ptx: (Size, Bytes),
    log: (Size, Bytes),
}

impl Functions {
    fn of(library: &Library) -> Result<Self, String> {
        /// # Safety
        /// `F` must be the type that the function `name` has in nvrtc.h.
        unsafe fn get<F: Copy>(library: &Library, name: &str) -> Result<F, String> {
            // SAFETY: the caller says that the type is right; the library stays loaded beside the pointer.
            unsafe { library.get::<F>(name.as_bytes()) }.map(|function| *function).map_err(|_| format!("NVRTC has no function {name}"))
        }
        // SAFETY: every field has the type of the function that it is given, as nvrtc.h declares it.
        unsafe {
            Ok(Self {
                error: get(library, "nvrtcGetErrorString")?,
                version: get(library, "nvrtcVersion")?,
                count_architectures: get(library, "nvrtcGetNumSupportedArchs")?,
                architectures: get(library, "nvrtcGetSupportedArchs")?,
                create: get(library, "nvrtcCreateProgram")?,
                compile: get(library, "nvrtcCompileProgram")?,
                destroy: get(library, "nvrtcDestroyProgram")?,
                cubin: (get(library, "nvrtcGetCUBINSize")?, get(library, "nvrtcGetCUBIN")?),
                ptx: (get(library, "nvrtcGetPTXSize")?, get(library, "nvrtcGetPTX")?),
                log: (get(library, "nvrtcGetProgramLogSize")?, get(library, "nvrtcGetProgramLog")?),
            })
        }
    }
}

/// No code and no log comes near.
const LARGEST_BYTES: usize = 64 << 20;

/// The library, loaded.
pub(crate) struct Nvrtc {
    functions: Functions,
    version: (u32, u32),
    /// Keeps the functions where they are.
    _library: Library,
}

impl Nvrtc {
    /// Loads the first library of `places` that is there for a driver of this CUDA version (major, minor): of the driver's major version or an earlier
    /// one, since a driver loads what was compiled for it or for earlier ones.
    pub(crate) fn open(places: &[PathBuf], driver: (u32, u32)) -> Result<Self, String> {
        let mut passed_over = Vec::new();
        for place in places {
            // SAFETY: the library's constructors are those of NVIDIA's compiler, which may run at any time.
            let Ok(library) = (unsafe { Library::new(place) }) else { continue };
            match Self::of(library) {
                Ok(found) if found.version.0 <= driver.0 => return Ok(found),
                Ok(found) => passed_over.push(format!("{} is of CUDA {}.{}", place.display(), found.version.0, found.version.1)),
                Err(reason) => passed_over.push(format!("{}: {reason}", place.display())),
            }
        }
        if passed_over.is_empty() {
            let names: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
            return Err(format!("the library of the run-time compiler (NVRTC) is not installed; looked for {}", names.join(", ")));
        }
        Err(format!("no library of the run-time compiler (NVRTC) is of use: {}", passed_over.join("; ")))
    }

    fn of(library: Library) -> Result<Self, String> {
        let functions = Functions::of(&library)?;
        let mut found = Self { functions, version: (0, 0), _library: library };
        let (mut major, mut minor): (c_int, c_int) = (0, 0);
        // SAFETY: each pointer is good for one number.
        found.check("nvrtcVersion", unsafe { (found.functions.version)(&mut major, &mut minor) })?;
        let number = |n: c_int| u32::try_from(n).map_err(|_| format!("NVRTC says that it is version {major}.{minor}"));
        found.version = (number(major)?, number(minor)?);
        Ok(found)
    }

    /// The CUDA version of the compiler: major, minor.
    pub(crate) fn version(&self) -> (u32, u32) {
        self.version
    }

    /// The architectures that the compiler knows, each 10 · major + minor.
    pub(crate) fn supported(&self) -> Result<Vec<u32>, String> {
        let mut count: c_int = 0;
        // SAFETY: the pointer is good for one number.
        self.check("nvrtcGetNumSupportedArchs", unsafe { (self.functions.count_architectures)(&mut count) })?;
        let count =
            usize::try_from(count).ok().filter(|count| *count <= 1024).ok_or_else(|| format!("NVRTC knows {count} architectures"))?;
        let mut architectures: Vec<c_int> = vec![0; count];
        // SAFETY: the pointer is good for as many numbers as were announced.
        self.check("nvrtcGetSupportedArchs", unsafe { (self.functions.architectures)(architectures.as_mut_ptr()) })?;
        Ok(architectures.into_iter().filter_map(|architecture| u32::try_from(architecture).ok()).collect())
    }

    /// Compiles the last of `sources` (name, text), which may include the others. Machine code comes as it is, PTX as a text that ends in
    /// a zero byte.
    pub(crate) fn compile(&self, sources: &[(&str, &str)], code: Code) -> Result<Vec<u8>, String> {
        let program = self.create(sources)?;
        let options = [c"--std=c++17".to_owned(), CString::new(format!("--gpu-architecture={}", code.name())).unwrap_or_default()];
        let pointers = options.each_ref().map(|option| option.as_ptr());
        // SAFETY: the program is alive, and the two options live past the call.
        let status = unsafe { (self.functions.compile)(program.pointer, 2, pointers.as_ptr()) };
        if let Err(reason) = self.check("nvrtcCompileProgram", status) {
            let log = self.bytes(&program, self.functions.log).unwrap_or_default();
            return Err(format!("{reason}: {}", String::from_utf8_lossy(&log).trim_matches(['\0', '\n', ' '])));
        }
        match code {
            Code::Cubin(_) => self.bytes(&program, self.functions.cubin),
            Code::Ptx(_) => {
                let mut text = self.bytes(&program, self.functions.ptx)?;
                if text.last() != Some(&0) {
                    text.push(0);
                }
                Ok(text)
            }
        }
    }

    fn create(&self, sources: &[(&str, &str)]) -> Result<OwnProgram<'_>, String> {
        let text = |text: &str| CString::new(text).map_err(|_| "a source has a zero byte".to_owned());
        let ((unit, unit_text), headers) = sources.split_last().ok_or("there are no sources")?;
        let (unit, unit_text) = (text(unit)?, text(unit_text)?);
        let names = headers.iter().map(|(name, _)| text(name)).collect::<Result<Vec<_>, _>>()?;
        let texts = headers.iter().map(|(_, body)| text(body)).collect::<Result<Vec<_>, _>>()?;
        let pointers = |strings: &[CString]| -> Vec<*const c_char> { strings.iter().map(|string| string.as_ptr()).collect() };
        let (names, texts) = ((pointers(&names), names), (pointers(&texts), texts));
        let count = c_int::try_from(headers.len()).map_err(|_| "there are too many sources".to_owned())?;
        let mut pointer = ptr::null_mut();
        // SAFETY: every pointer is to a string that lives past the call, and both arrays have `count` of them.
        let status =
            unsafe { (self.functions.create)(&mut pointer, unit_text.as_ptr(), unit.as_ptr(), count, texts.0.as_ptr(), names.0.as_ptr()) };
        self.check("nvrtcCreateProgram", status)?;
        Ok(OwnProgram { nvrtc: self, pointer })
    }

    /// What one of the pairs of functions gives of a program.
    fn bytes(&self, program: &OwnProgram<'_>, (size, get): (Size, Bytes)) -> Result<Vec<u8>, String> {
        let mut count = 0;
        // SAFETY: the program is alive, and the pointer is good for one number.
        self.check("asking NVRTC for a size", unsafe { size(program.pointer, &mut count) })?;
        if count > LARGEST_BYTES {
            return Err(format!("NVRTC announces {count} bytes; {LARGEST_BYTES} are the most that is taken"));
        }
        let mut bytes = vec![0u8; count];
        // SAFETY: the program is alive, and the buffer has the bytes that were announced.
        self.check("asking NVRTC for what it compiled", unsafe { get(program.pointer, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }

    fn check(&self, what: &str, status: Status) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: it gives a string that lives as long as the library, whatever the number.
        let name = unsafe { CStr::from_ptr((self.functions.error)(status)) };
        Err(format!("{what} failed: {}", name.to_string_lossy()))
    }
}

/// A program of NVRTC, destroyed on drop.
struct OwnProgram<'a> {
    nvrtc: &'a Nvrtc,
    pointer: Program,
}

impl Drop for OwnProgram<'_> {
    fn drop(&mut self) {
        // SAFETY: the program was created by the same library, which is loaded, and is destroyed once.
        unsafe { (self.nvrtc.functions.destroy)(&mut self.pointer) };
    }
}

/// Where the library may be, best first: by name, where the loader looks, then in the folders of the toolkit.
pub(crate) fn places(driver_major: u32, variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let mut names: Vec<String> = (12..=driver_major).rev().map(|major| format!("libnvrtc.so.{major}")).collect();
    names.push("libnvrtc.so".to_owned());
    let home = variable("CUDA_HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    let folders = home.into_iter().chain([PathBuf::from("/usr/local/cuda")]).map(|home| home.join("lib64"));
    let mut places: Vec<PathBuf> = names.iter().map(PathBuf::from).collect();
    for folder in folders {
        places.extend(names.iter().map(|name| folder.join(name)));
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the compiler knows, the device, and the choice.
    type Case = (&'static [u32], (u32, u32), Option<Code>);

    #[test]
    fn the_choice_is_machine_code_of_the_devices_generation_or_else_ptx() {
        let cases: [Case; 7] = [
            (&[80, 86, 87, 90], (8, 7), Some(Code::Cubin(87))),
            (&[80, 86], (8, 7), Some(Code::Cubin(86))),
            (&[80, 90], (12, 1), Some(Code::Ptx(90))),
            (&[80, 90, 100, 120], (11, 0), Some(Code::Ptx(100))),
            (&[90, 100], (8, 7), None),
            (&[], (8, 7), None),
            (&[121, 120], (12, 1), Some(Code::Cubin(121))),
        ];
        let wrong: Vec<_> = cases
            .iter()
            .filter_map(|(supported, capability, expected)| {
                let found = choose(supported, *capability);
                (found != *expected).then_some((supported, capability, expected, found))
            })
            .collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn no_library_newer_than_the_driver_is_looked_for_by_name() {
        let places = places(12, |name| (name == "CUDA_HOME").then(|| "/opt/cuda".into()));
        let expected = [
            "libnvrtc.so.12",
            "libnvrtc.so",
            "/opt/cuda/lib64/libnvrtc.so.12",
            "/opt/cuda/lib64/libnvrtc.so",
            "/usr/local/cuda/lib64/libnvrtc.so.12",
            "/usr/local/cuda/lib64/libnvrtc.so",
        ];
        assert_eq!(places, expected.map(PathBuf::from));
        assert_eq!(super::places(13, |_| None)[..3], ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"].map(PathBuf::from));
    }
}
