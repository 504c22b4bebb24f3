//! Finds and loads ONNX Runtime's shared library.
//!
//! It is looked for in the file that the caller names, in `ORT_DYLIB_PATH`, beside the program, in `target/onnxruntime` (here and above the
//! program), and where the system has its libraries. A file that is named must do; of the other places the first that has one counts.
//! A process loads one library, once, and keeps it.

use std::ffi::{CStr, c_char, c_void};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use libloading::Library;
use ort::environment::Environment;
use ort::sys;

use super::allocator;
use crate::error::{Result, RuntimeError};

/// Brings the library to where it is found.
const ADVICE: &str = "bring it with scripts/onnxruntime.sh, or name another with --ort-lib or ORT_DYLIB_PATH";

/// ONNX Runtime, loaded.
pub struct OrtLibrary {
    pub(super) environment: Environment,
    path: PathBuf,
}

/// The one library of this process.
static LOADED: Mutex<Loaded> = Mutex::new(Loaded { taken: None, library: None });

/// What this process has loaded; never unloaded.
struct Loaded {
    /// The library that crate `ort` has taken, for good, also where no environment could be made in it.
    taken: Option<PathBuf>,
    library: Option<&'static OrtLibrary>,
}

impl OrtLibrary {
    /// What the library holds of its own beside what it asks the allocator for: 7 MiB of `RssAnon` when version 1.31.1 had been loaded.
    pub const BYTES: u64 = 8 << 20;

    /// Loads the library `named`, or the first that is found.
    ///
    /// # Errors
    /// [`RuntimeError::Ort`] where there is none, where it is for another kind of processor, too old or no ONNX Runtime, or where this
    /// process has loaded another.
    pub fn open(named: Option<&Path>) -> Result<&'static Self> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        let path = match (named, &loaded.taken) {
            (Some(path), _) => absolute(path)?,
            (None, Some(taken)) => taken.clone(),
            (None, None) => find()?,
        };
        if let Some(library) = loaded.library
            && library.path == path
        {
            return Ok(library);
        }
        check_file(&path)?;
        if let Some(taken) = loaded.taken.as_ref().filter(|taken| **taken != path) {
            return Err(refused(&path, &format!("this process has loaded {} already, and takes one only", taken.display())));
        }
        stay_quiet();
        // Held until crate `ort` has opened it too: the loader gives it this one, by its path, whatever file is there by now.
        let checked = check_library(&path).map_err(|reason| refused(&path, &reason))?;
        let builder = ort::init_from(&path).map_err(|error| refused(&path, &reason(&error)))?;
        drop(checked);
        loaded.taken = Some(path.clone());
        let built = builder.with_name("espalier").with_telemetry(false).build();
        let environment = built.map_err(|error| refused(&path, &first_line(&error.to_string())))?;
        allocator::register(&environment)?;
        let library: &'static Self = Box::leak(Box::new(Self { environment, path }));
        loaded.library = Some(library);
        Ok(library)
    }

    /// Where it was found.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Microsoft's packages of ONNX Runtime report their use to Microsoft, and leave a file for that in the folder of temporary files when they
/// are loaded, unless this variable is set before.
fn stay_quiet() {
    const NAME: &str = "ORT_DISABLE_TELEMETRY";
    if std::env::var_os(NAME).is_some_and(|value| value == "1") {
        return;
    }
    // SAFETY: readers in Rust share a lock with this; C code does not, and after a takeover from a GPU its driver and the driver's threads
    // are in the process. One of them that looks up any variable in this very moment may read the list while the C library replaces it.
    // That is accepted: this is written once in a process and before ONNX Runtime is loaded, which alone reads this name, and whoever sets
    // the variable beforehand is spared the write.
    unsafe { std::env::set_var(NAME, "1") };
}

/// The error that `path` is no library that can be used.
fn refused(path: &Path, reason: &str) -> RuntimeError {
    RuntimeError::Ort(format!("{} cannot be used as ONNX Runtime: {reason}; {ADVICE}", path.display()))
}

/// Why crate `ort` did not load a library, for people.
fn reason(error: &ort::LoadDynamicError) -> String {
    match error {
        ort::LoadDynamicError::BadVersion { version_str, .. } => too_old(version_str),
        ort::LoadDynamicError::MissingApi { .. } => NO_ENTRY.to_string(),
        ort::LoadDynamicError::Dlopen { error, .. } => not_opened(error),
        ort::LoadDynamicError::InvalidVersionString => NO_VERSION.to_string(),
    }
}

const NO_ENTRY: &str = "it is no ONNX Runtime: it does not export OrtGetApiBase";
const NO_VERSION: &str = "it is no ONNX Runtime: the name of its version is no text";

fn too_old(version: &str) -> String {
    format!("it is version {version}, but 1.{} or a later one is needed", ort::MINOR_VERSION)
}

fn not_opened(error: &libloading::Error) -> String {
    format!("the system's loader refuses it: {}", first_line(&error.to_string()))
}

/// `OrtApiBase` of ONNX Runtime's C interface, in a library that may be another: its functions may be missing.
#[repr(C)]
struct ApiBase {
    api: Option<unsafe extern "system" fn(version: u32) -> *const c_void>,
    version: Option<unsafe extern "system" fn() -> *const c_char>,
}

/// Opens a library and asks it for all that crate `ort` takes for granted, or why it cannot be used.
fn check_library(path: &Path) -> std::result::Result<Library, String> {
    // SAFETY: opening a library runs what it has to run first. A person named it, or installed it where ONNX Runtime is looked for; crate
    // `ort` opens it in the same way.
    let library = unsafe { Library::new(path) }.map_err(|error| not_opened(&error))?;
    // SAFETY: a function of this name has this signature in ONNX Runtime's C interface, whose name nothing else uses.
    let entry = unsafe { library.get::<unsafe extern "C" fn() -> *const ApiBase>(b"OrtGetApiBase\0") }.map_err(|_| NO_ENTRY)?;
    // SAFETY: as above; it takes nothing and may be called at any time. What it returns is null or lives as long as the library, which is
    // open to the end of this function, and is laid out as `ApiBase`.
    let base = unsafe { entry().as_ref() }.ok_or("it is no ONNX Runtime: its OrtGetApiBase gives nothing")?;
    let (Some(api), Some(version)) = (base.api, base.version) else {
        return Err("it is no ONNX Runtime: its OrtGetApiBase gives no functions".to_string());
    };
    // SAFETY: it takes nothing and may be called at any time.
    let version = unsafe { version() };
    if version.is_null() {
        return Err(NO_VERSION.to_string());
    }
    // SAFETY: it is not null, and the interface promises a text that ends with a zero and lives as long as the library.
    let version = unsafe { CStr::from_ptr(version) }.to_str().map_err(|_| NO_VERSION)?;
    check_version(version)?;
    // SAFETY: it may be called at any time with any number, and gives null for one that it does not know.
    if unsafe { api(sys::ORT_API_VERSION) }.is_null() {
        let needed = sys::ORT_API_VERSION;
        return Err(format!("it says that it is version {version}, but it does not give interface {needed}, which is needed"));
    }
    Ok(library)
}

/// Whether a version has the interface that is needed: a later one of generation 1, of which each has those before it.
fn check_version(version: &str) -> std::result::Result<(), String> {
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().ok());
    let (major, minor) = (numbers.next().flatten(), numbers.next().flatten());
    match (major, minor) {
        (Some(major), _) if major != 1 => Err(format!(
            "it is version {version}, of generation {major}, but one of generation 1 is needed, 1.{} or later",
            ort::MINOR_VERSION
        )),
        (Some(_), Some(minor)) if minor >= ort::MINOR_VERSION => Ok(()),
        _ => Err(too_old(version)),
    }
}

pub(super) fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim().to_string()
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| refused(path, &error.to_string()))
}

/// The library that `ORT_DYLIB_PATH` names, else the first in the usual places.
fn find() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()) {
        return absolute(Path::new(&path));
    }
    let folders = folders();
    folders.iter().find_map(|folder| library_in(folder)).ok_or_else(|| {
        RuntimeError::Ort(format!(
            "ONNX Runtime was not found beside the program, in target/onnxruntime or in the system's folders; {ADVICE}"
        ))
    })
}

/// The folders that are searched, in order.
fn folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let program = std::env::current_exe().unwrap_or_default();
    folders.extend(program.parent().map(Path::to_path_buf));
    folders.push(PathBuf::from("target/onnxruntime"));
    // A program in target/debug, and a test in target/debug/deps.
    folders.extend(program.ancestors().skip(2).take(2).map(|folder| folder.join("onnxruntime")));
    folders.extend(std::env::var_os("LD_LIBRARY_PATH").iter().flat_map(std::env::split_paths).filter(|path| !path.as_os_str().is_empty()));
    let triple = format!("{}-linux-gnu", std::env::consts::ARCH);
    folders.extend(["/usr/local/lib".into(), format!("/usr/lib/{triple}"), "/usr/lib64".into(), "/usr/lib".into()].map(PathBuf::from));
    folders
}

/// `libonnxruntime.so` of a folder, or that with the highest version in its name.
fn library_in(folder: &Path) -> Option<PathBuf> {
    let plain = folder.join("libonnxruntime.so");
    if plain.is_file() {
        return std::path::absolute(plain).ok();
    }
    let names = std::fs::read_dir(folder).ok()?.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let versioned = names.filter(|path| path.is_file()).filter_map(|path| Some((version(&path)?, path)));
    std::path::absolute(versioned.max()?.1).ok()
}

/// The numbers behind `libonnxruntime.so.`; none where the name is another or has other words there.
fn version(path: &Path) -> Option<Vec<u64>> {
    let numbers = path.file_name()?.to_str()?.strip_prefix("libonnxruntime.so.")?;
    numbers.split('.').map(|number| number.parse().ok()).collect()
}

/// The number of this processor's kind in the head of an ELF file; none for kinds that are not told apart.
const fn elf_machine() -> Option<u16> {
    if cfg!(target_arch = "x86_64") {
        Some(62)
    } else if cfg!(target_arch = "aarch64") {
        Some(183)
    } else {
        None
    }
}

/// Checks the head of the file before the loader, whose messages help nobody, sees it.
fn check_file(path: &Path) -> Result<()> {
    let mut head = [0; 20];
    if !path.is_file() {
        return Err(refused(path, "there is no such file"));
    }
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut head));
    if read.is_err() || head[..4] != *b"\x7fELF" {
        return Err(refused(path, "it is no shared library"));
    }
    let machine = u16::from_le_bytes([head[18], head[19]]);
    match elf_machine() {
        Some(ours) if ours != machine => {
            let arch = std::env::consts::ARCH;
            Err(refused(path, &format!("it is made for another kind of processor (ELF machine {machine}); expected one for {arch}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_no_library_are_refused_by_reason() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let mut foreign = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0".to_vec();
        foreign.extend_from_slice(&[8, 0]);
        let cases = [
            (folder.path().join("missing.so"), "there is no such file"),
            (folder.path().to_path_buf(), "there is no such file"),
            (at("text.so", b"not a library at all"), "it is no shared library"),
            (at("short.so", b"\x7fELF"), "it is no shared library"),
            (at("mips.so", &foreign), "it is made for another kind of processor (ELF machine 8)"),
        ];
        let mut wrong = Vec::new();
        for (path, reason) in cases {
            match OrtLibrary::open(Some(&path)) {
                Ok(_) => wrong.push(format!("{} was loaded", path.display())),
                Err(error) => {
                    let text = error.to_string();
                    if !text.contains(reason) || !text.contains("scripts/onnxruntime.sh") {
                        wrong.push(format!("expected `{reason}`, found: {text}"));
                    }
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn a_name_with_a_version_is_found() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(library_in(folder.path()), None);
        // What is found when this file has come as well.
        let cases = [
            ("libonnxruntime.so.1.31.1.part", None),
            ("libonnxruntime.so.1.9.0", Some("libonnxruntime.so.1.9.0")),
            ("libonnxruntime.so.1.31.1", Some("libonnxruntime.so.1.31.1")),
            ("libonnxruntime.so.1", Some("libonnxruntime.so.1.31.1")),
            ("libonnxruntime.so.1.31.2", Some("libonnxruntime.so.1.31.2")),
            ("libonnxruntime.so", Some("libonnxruntime.so")),
        ];
        let mut wrong = Vec::new();
        for (name, expected) in cases {
            std::fs::write(folder.path().join(name), b"").unwrap();
            let found = library_in(folder.path());
            if found != expected.map(|name| folder.path().join(name)) {
                wrong.push(format!("with {name}: expected {expected:?}, found {found:?}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
