//! CUDA devices for tests: the machine's own, or the emulator, which scripts/emulator.sh builds.

#![allow(dead_code)]

use std::collections::BTreeMap;
use std::ffi::{CString, c_char};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use espalier_kernels::{CudaDevice, KernelError, Ledger, Purpose, Result, Unlimited};
use libloading::Library;

/// The workspace, whose tests these are as much as this crate's.
fn root() -> PathBuf {
    let script = |folder: &&Path| folder.join("scripts/emulator.sh").is_file();
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().find(script).expect("scripts/emulator.sh in a folder above").to_path_buf()
}

/// Builds the emulator where it is not built; the folder with its libcuda.so, or why there is none.
fn build_emulator() -> std::result::Result<PathBuf, String> {
    let output = Command::new("scripts/emulator.sh").current_dir(root()).output().map_err(|e| format!("scripts/emulator.sh: {e}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// The folder of the emulator, for programs that are started with it. None where it cannot be built, which is said, and fails where
/// CI=true.
pub fn emulator_folder() -> Option<PathBuf> {
    static FOLDER: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    match FOLDER.get_or_init(build_emulator) {
        Ok(folder) => Some(folder.clone()),
        Err(reason) => {
            skip(reason);
            None
        }
    }
}

/// Says that a test is skipped; where CI=true it fails.
fn skip(reason: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "the emulator is needed in CI: {reason}");
    eprintln!("SKIPPED: {reason}\nto run this test, install g++ 12 or later and run `scripts/emulator.sh`");
}

/// Loads the emulator as the driver of this process, or says why there is none.
fn load_emulator() -> std::result::Result<&'static Library, String> {
    static LIBRARY: OnceLock<std::result::Result<Library, String>> = OnceLock::new();
    let load = || {
        let folder = build_emulator()?;
        // SAFETY: the library's initialisers only set up its own state. It has the name of the driver's, so that whoever asks for that
        // one in this process gets it.
        unsafe { Library::new(folder.join("libcuda.so")) }.map_err(|e| e.to_string())
    };
    LIBRARY.get_or_init(load).as_ref().map_err(Clone::clone)
}

/// The emulator for one test: the others wait.
pub struct Emulator {
    library: &'static Library,
    _alone: MutexGuard<'static, ()>,
}

impl Emulator {
    /// The emulated device with `settings` (kernels/emulator/settings.hpp). None where it cannot be built, which is said, and fails where
    /// CI=true.
    pub fn start(settings: &str) -> Option<Self> {
        static ALONE: Mutex<()> = Mutex::new(());
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        match load_emulator() {
            Ok(library) => {
                let emulator = Self { library, _alone };
                emulator.configure(settings);
                Some(emulator)
            }
            Err(reason) => {
                skip(&reason);
                None
            }
        }
    }

    /// Another device, and all counters at 0. No device may be open.
    pub fn configure(&self, settings: &str) {
        let text = CString::new(settings).unwrap();
        // SAFETY: the emulator's header declares the function so.
        unsafe {
            let configure = self.library.get::<unsafe extern "C" fn(*const c_char)>(b"espalier_emulator_configure").unwrap();
            configure(text.as_ptr());
        }
    }

    /// What the emulator has counted.
    pub fn counter(&self, name: &str) -> u64 {
        let text = CString::new(name).unwrap();
        // SAFETY: the emulator's header declares the function so.
        let count = unsafe {
            let counter = self.library.get::<unsafe extern "C" fn(*const c_char) -> u64>(b"espalier_emulator_counter").unwrap();
            counter(text.as_ptr())
        };
        assert_ne!(count, u64::MAX, "the emulator has no counter {name}");
        count
    }

    /// The device, with nothing booked elsewhere.
    pub fn device(&self) -> CudaDevice {
        self.device_of(Arc::new(Unlimited))
    }

    /// The device with a ledger.
    pub fn device_of(&self, ledger: Arc<dyn Ledger>) -> CudaDevice {
        CudaDevice::open(0, ledger).unwrap_or_else(|reason| panic!("the emulated device does not open: {reason}"))
    }
}

/// The machine's own device, or the emulator with `settings`. Once the machine's driver is loaded, the process has no emulator.
pub fn real_or_emulated(settings: &str) -> Option<(CudaDevice, Option<Emulator>)> {
    // SAFETY: a driver's initialisers are as safe as a program's that links it.
    let driver = unsafe { Library::new("libcuda.so.1") };
    if driver.is_ok() {
        match CudaDevice::open(0, Arc::new(Unlimited)) {
            Ok(device) => return Some((device, None)),
            Err(reason) => panic!("there is a driver, but no device: {reason}"),
        }
    }
    let emulator = Emulator::start(settings)?;
    Some((emulator.device(), Some(emulator)))
}

/// A ledger with a limit, which remembers what is booked.
pub struct Limited {
    limit: u64,
    booked: Mutex<BTreeMap<Purpose, u64>>,
}

impl Limited {
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, booked: Mutex::default() })
    }
    pub fn total(&self) -> u64 {
        self.booked.lock().unwrap().values().sum()
    }
    pub fn of(&self, purpose: Purpose) -> u64 {
        self.booked.lock().unwrap().get(&purpose).copied().unwrap_or(0)
    }
}

impl Ledger for Limited {
    fn reserve(&self, purpose: Purpose, bytes: u64) -> Result<()> {
        let available = self.limit - self.total();
        if bytes > available {
            return Err(KernelError::OutOfBudget { purpose: purpose.name(), needed: bytes, available, limit: self.limit });
        }
        *self.booked.lock().unwrap().entry(purpose).or_default() += bytes;
        Ok(())
    }
    fn release(&self, purpose: Purpose, bytes: u64) {
        *self.booked.lock().unwrap().get_mut(&purpose).unwrap() -= bytes;
    }
}
