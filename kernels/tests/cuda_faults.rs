//! A CUDA device that is not there, has no room, refuses a kernel, or is lost, on the emulator: an error each, and no more harm than that.
#![cfg(feature = "cuda")]

mod support;

use std::sync::Arc;

use espalier_kernels::cuda::{Buffer, Unavailable};
use espalier_kernels::{CudaDevice, Device, Format, HostBytes, KernelError, NormKind, Product, Result, Unlimited};
use support::{Emulator, Limited};

#[test]
fn an_unusable_cuda_device_says_why_in_a_sentence() {
    let Some(emulator) = Emulator::start("") else { return };
    let cases = [
        ("driver=12040", 0, "the NVIDIA driver supports CUDA 12.4, but 12.6 or later is needed"),
        ("stub=1", 0, "libcuda.so is the stub for linking, not a driver; take its folder out of LD_LIBRARY_PATH"),
        ("devices=0", 0, "no CUDA device 0: the driver knows 0"),
        ("devices=1", 3, "no CUDA device 3: the driver knows 1"),
        ("capability=7.5", 0, " has compute capability 7.5, but 8.0 or later is needed"),
        ("reject_images=99", 0, "CUDA_ERROR_NO_BINARY_FOR_GPU"),
    ];
    let mut failed = Vec::new();
    for (settings, ordinal, expected) in cases {
        emulator.configure(settings);
        match CudaDevice::open(ordinal, Arc::new(Unlimited)) {
            Ok(_) => failed.push(format!("{settings}: opened")),
            Err(reason) if reason.to_string().contains(expected) && !reason.to_string().contains('\n') => {}
            Err(reason) => failed.push(format!("{settings}: {reason}")),
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
    emulator.configure("");
    let refused = CudaDevice::open(0, Limited::new(1 << 20)).err();
    assert!(matches!(refused, Some(Unavailable::Full { .. })), "{refused:?}");
    assert!(CudaDevice::open(0, Arc::new(Unlimited)).is_ok(), "what was wrong before must not stay");
}

/// Some of everything: weights, buffers, indices, scratch, products, results.
fn work(device: &CudaDevice) -> Result<f64> {
    let (m, d, n) = (20, 96, 130);
    let numbers: Arc<Vec<f32>> = Arc::new((0..d * n).map(|i| (i % 17) as f32 / 17.0 - 0.5).collect());
    struct Numbers(Arc<Vec<f32>>);
    impl AsRef<[u8]> for Numbers {
        fn as_ref(&self) -> &[u8] {
            bytemuck::cast_slice(&self.0)
        }
    }
    let host = HostBytes { owner: Arc::new(Numbers(numbers.clone())), range: 0..d * n * 4 };
    let weight = device.map_weight(host, Format::F32, n, d)?;
    let mut x: Buffer = device.zeros(m * d)?;
    device.write(&mut x, 0, &numbers[..m * d])?;
    let mut gain = device.zeros(d)?;
    device.fill(&mut gain, d, 1.5)?;
    let mut normed = device.zeros(m * d)?;
    device.norm(NormKind::LayerNorm, &mut normed, &x, &gain, None, 1e-5, m)?;
    let mut y = device.zeros(m * n)?;
    device.matmul_rows(&mut y, &normed, &weight, m, false)?;
    let mut c = device.zeros(m * m)?;
    let product = Product { m, n: m, k: n, transpose_a: false, transpose_b: true, alpha: 1.0, accumulate: false };
    device.matmul(&mut c, &y, &y, product)?;
    let targets = device.indices(&vec![3; m])?;
    Ok(device.cross_entropy(None, &y, &targets, m, n)? + device.sum_of_squares(&c, m * m)?)
}

#[test]
fn every_failed_allocation_is_an_error_and_the_cuda_device_goes_on() {
    let Some(emulator) = Emulator::start("") else { return };
    let expected = work(&emulator.device()).unwrap();
    let mut failed = Vec::new();
    let mut refused = 0;
    for vmm in [1, 0] {
        for n in 1..100 {
            emulator.configure(&format!("vmm={vmm},fail_alloc={n}"));
            let ledger = Limited::new(1 << 40);
            let device = emulator.device_of(ledger.clone());
            let before = ledger.total();
            let first = work(&device);
            if emulator.counter("refused_allocations") == 0 {
                break;
            }
            refused += 1;
            match first {
                Err(KernelError::OutOfMemory { .. }) => {}
                // The scratch buffers were given up, and then there was room.
                Ok(_) => {}
                Err(other) => failed.push(format!("vmm={vmm}, allocation {n}: {other}")),
            }
            device.release_scratch();
            if ledger.total() != before {
                failed.push(format!("vmm={vmm}, allocation {n}: {} bytes stay booked", ledger.total() - before));
            }
            match work(&device) {
                Ok(result) if result == expected => {}
                other => failed.push(format!("vmm={vmm}, allocation {n}: then {other:?} instead of {expected}")),
            }
        }
    }
    assert!(refused >= 4, "only {refused} allocations were refused");
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn a_cuda_device_that_cannot_load_any_image_is_offered_one() {
    let Some(emulator) = Emulator::start("") else { return };
    let cases = [
        (209, 1, None),
        (2, 1, Some("no memory left to start: sm_87")),
        (46, 1, Some("does not start: sm_87")),
        // An error that no version of cuda.h has.
        (8888, 99, Some("CUDA error 8888, which the driver has no name for")),
    ];
    let mut failed = Vec::new();
    for (error, rejected, expected) in cases {
        emulator.configure(&format!("reject_images={rejected},image_error={error}"));
        match (CudaDevice::open(0, Arc::new(Unlimited)), expected) {
            (Ok(_), None) => {}
            (Err(reason), Some(expected)) if reason.to_string().contains(expected) => {}
            (result, _) => failed.push(format!("error {error}: {:?}", result.err())),
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn a_cuda_device_that_serves_comes_before_one_that_is_opened_beside_it() {
    let Some(emulator) = Emulator::start("") else { return };
    let streams = || (emulator.counter("highest_streams"), emulator.counter("lowest_streams"));
    let serving = emulator.device();
    assert_eq!(streams(), (2, 0));
    let beside = CudaDevice::open_beside(0, Arc::new(Unlimited)).unwrap();
    assert_eq!(streams(), (2, 2));
    assert_eq!(work(&serving), work(&beside));
}

#[test]
fn a_refused_kernel_is_an_error_and_the_cuda_device_goes_on() {
    let Some(emulator) = Emulator::start("") else { return };
    let expected = work(&emulator.device()).unwrap();
    let mut refused = 0;
    for n in 1..100 {
        emulator.configure(&format!("fail_launch={n}"));
        let device = emulator.device();
        match work(&device) {
            Ok(_) => break,
            Err(error) => {
                assert!(error.to_string().contains("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"), "launch {n}: {error}");
                assert!(!error.is_lost() && !device.is_lost());
                refused += 1;
            }
        }
        assert_eq!(work(&device), Ok(expected), "after launch {n} was refused");
    }
    assert!(refused >= 5, "only {refused} launches were refused");
}

#[test]
fn a_lost_cuda_device_says_so_and_gives_its_memory_back_to_the_ledger() {
    let Some(emulator) = Emulator::start("") else { return };
    for fault in ["lose_device=1", "lose_device=4", "lose_device=7", "fault_launch=3", "lose_device=2,vmm=0"] {
        emulator.configure(fault);
        let ledger = Limited::new(1 << 40);
        let device = emulator.device_of(ledger.clone());
        let error = work(&device).err().unwrap_or_else(|| panic!("{fault}: nothing was wrong"));
        assert!(error.is_lost() && device.is_lost(), "{fault}: {error}");
        let after = device.zeros(10).err().unwrap();
        assert!(after.is_lost(), "{fault}: {after}");
        assert!(work(&device).err().unwrap().is_lost());
        drop(device);
        assert_eq!(ledger.total(), 0, "{fault}");
    }
}
