//! A machine without a CUDA driver, or with a library of its name that is none.
#![cfg(feature = "cuda")]

use std::process::Command;
use std::sync::Arc;

use espalier_kernels::cuda::Unavailable;
use espalier_kernels::{CudaDevice, Unlimited};
use libloading::Library;

/// One test, since a process loads one driver.
#[test]
fn without_a_cuda_driver_the_reason_is_said() {
    let open = || CudaDevice::open(0, Arc::new(Unlimited)).err();
    // SAFETY: a driver's initialisers are as safe as those of a program that links it.
    if unsafe { Library::new("libcuda.so.1") }.is_ok() || unsafe { Library::new("libcuda.so") }.is_ok() {
        return eprintln!("SKIPPED: this machine has a CUDA driver");
    }
    assert_eq!(open(), Some(Unavailable::NoDriver));
    assert_eq!(open().unwrap().to_string(), "no NVIDIA driver: libcuda.so is not installed");

    let folder = tempfile::tempdir().unwrap();
    let (source, library) = (folder.path().join("other.c"), folder.path().join("libcuda.so"));
    std::fs::write(&source, "int cuInit(unsigned flags) { return flags ? 1 : 0; }\n").unwrap();
    // As for the emulator, CXX names the compiler of a machine that is emulated.
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "cc".into());
    let options = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so", "-x", "c"];
    let compiled = Command::new(compiler).args(options).arg(&source).arg("-o").arg(&library).status();
    if !compiled.is_ok_and(|status| status.success()) {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "a C compiler is needed in CI");
        return eprintln!("SKIPPED: there is no C compiler for a library that is not a driver");
    }
    // SAFETY: it has no initialisers. It stays loaded, so that it is found by its name.
    let _library = unsafe { Library::new(&library) }.unwrap();
    let reason = open().unwrap();
    assert!(matches!(reason, Unavailable::NotADriver(_)), "{reason}");
}
