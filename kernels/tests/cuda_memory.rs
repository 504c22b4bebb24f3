//! Memory of the CUDA device on the emulator: booked by granule, refused with an error, packed, given back.
#![cfg(feature = "cuda")]

mod support;

use espalier_kernels::{CudaDevice, Device, KernelError, NO_TARGET, Purpose};
use support::{Emulator, Limited};

const GRANULE: u64 = 2 << 20;
/// f32 numbers of a granule.
const NUMBERS: usize = GRANULE as usize / 4;

fn sequence(len: usize, start: f32) -> Vec<f32> {
    (0..len).map(|i| start + (i % 1_000_003) as f32).collect()
}

fn contents(device: &CudaDevice, buffer: &<CudaDevice as Device>::Buffer) -> Vec<f32> {
    let mut numbers = vec![-1.0; device.len(buffer)];
    device.read(buffer, 0, &mut numbers).unwrap();
    numbers
}

#[test]
fn cuda_memory_is_booked_by_granule_and_given_back() {
    let Some(emulator) = Emulator::start("") else { return };
    let ledger = Limited::new(1 << 40);
    let device = emulator.device_of(ledger.clone());
    let before = ledger.total();
    let activations = ledger.of(Purpose::Activations);
    let adapters = device.for_purpose(Purpose::Adapters);
    let small: Vec<_> = (0..100).map(|_| adapters.zeros(1000).unwrap()).collect();
    assert_eq!(ledger.of(Purpose::Adapters), GRANULE, "small buffers of a purpose share granules");
    let large = adapters.zeros(3 * NUMBERS).unwrap();
    assert_eq!(ledger.of(Purpose::Adapters), 4 * GRANULE, "the end of a large buffer has room beside small ones");
    let empty = device.zeros(0).unwrap();
    let ids = device.indices(&[3, 1, NO_TARGET]).unwrap();
    assert_eq!(ledger.of(Purpose::Activations), activations + GRANULE, "an empty buffer takes nothing");
    assert_eq!(emulator.counter("bytes_mapped"), 5 * GRANULE);
    drop(large);
    assert_eq!(ledger.of(Purpose::Adapters), GRANULE, "granules go once nothing lies on them");
    drop((small, empty, ids));
    assert_eq!((ledger.total(), emulator.counter("bytes_mapped")), (before, 0));
    drop((device, adapters));
    assert_eq!(ledger.total(), 0, "page-locked buffers go with the device");
}

#[test]
fn a_cuda_device_without_virtual_memory_books_blocks() {
    let Some(emulator) = Emulator::start("vmm=0") else { return };
    let ledger = Limited::new(1 << 40);
    let device = emulator.device_of(ledger.clone()).for_purpose(Purpose::Gradients);
    let mut buffer = device.zeros(1000).unwrap();
    device.write(&mut buffer, 0, &sequence(1000, 1.0)).unwrap();
    assert_eq!(contents(&device, &buffer), sequence(1000, 1.0));
    assert_eq!(ledger.of(Purpose::Gradients), 4096);
    drop(buffer);
    assert_eq!(ledger.of(Purpose::Gradients), 0);
}

#[test]
fn numbers_written_to_a_cuda_device_are_read_back() {
    let Some(emulator) = Emulator::start("") else { return };
    let device = emulator.device();
    let mut wrong = Vec::new();
    for len in [0, 1, 5, 1000, 32 << 10, (32 << 10) + 1, NUMBERS + 77] {
        let mut buffer = device.zeros(len + 3).unwrap();
        let numbers = sequence(len, 0.5);
        device.write(&mut buffer, 2, &numbers).unwrap();
        let mut expected = vec![0.0; len + 3];
        expected[2..len + 2].copy_from_slice(&numbers);
        let mut copy = device.zeros(len + 10).unwrap();
        device.copy(&mut copy, 7, &buffer, 2, len).unwrap();
        let mut back = vec![0.0; len];
        device.read(&copy, 7, &mut back).unwrap();
        if contents(&device, &buffer) != expected || back != numbers {
            wrong.push(len);
        }
    }
    assert!(wrong.is_empty(), "wrong at lengths {wrong:?}");
}

#[test]
fn a_cuda_buffer_is_never_used_out_of_bounds() {
    let Some(emulator) = Emulator::start("") else { return };
    let device = emulator.device();
    let (mut a, b) = (device.zeros(10).unwrap(), device.zeros(5).unwrap());
    let mut ids = device.indices(&[1, 2]).unwrap();
    let cases = [
        ("write", device.write(&mut a, 8, &[0.0; 3])),
        ("write", device.write(&mut a, usize::MAX, &[0.0; 3])),
        ("read", device.read(&a, 6, &mut [0.0; 5])),
        ("copy", device.copy(&mut a, 0, &b, 1, 5)),
        ("copy", device.copy(&mut a, 6, &b, 0, 5)),
        ("write_indices", device.write_indices(&mut ids, &[1, 2, 3])),
        ("fill", device.fill(&mut a, 11, 1.0)),
    ];
    for (name, result) in cases {
        assert!(matches!(&result, Err(KernelError::Shape { operation, .. }) if *operation == name), "{name}: {result:?}");
    }
    for len in [usize::MAX, usize::MAX / 4, usize::MAX / 8, 1 << 60] {
        assert!(matches!(device.zeros(len), Err(KernelError::OutOfMemory { purpose: "activations", .. })), "{len} numbers");
    }
}

#[test]
fn a_cuda_device_without_room_goes_on() {
    let Some(emulator) = Emulator::start("memory=33554432") else { return };
    let (small, large) = (NUMBERS, 12 * NUMBERS);
    let ledger = Limited::new(1 << 40);
    let device = emulator.device_of(ledger.clone());
    let mut kept = device.zeros(small).unwrap();
    device.fill(&mut kept, small, 2.0).unwrap();
    let held = device.zeros(large).unwrap();
    let booked = ledger.total();
    let error = device.for_purpose(Purpose::KvCache).zeros(large).err().unwrap();
    assert!(matches!(error, KernelError::OutOfMemory { purpose: "KV cache", needed: 25_165_824, .. }), "{error:?}");
    assert!(!error.is_lost());
    assert_eq!(ledger.total(), booked, "what was refused is not booked");
    assert_eq!(device.sum_of_squares(&kept, small), Ok(4.0 * small as f64));
    drop(held);
    assert!(device.for_purpose(Purpose::KvCache).zeros(large).is_ok(), "a buffer that fits must be given");

    let limited = Limited::new(16 << 20);
    let device = emulator.device_of(limited);
    let error = device.zeros(6 * NUMBERS).err().unwrap();
    assert!(matches!(error, KernelError::OutOfBudget { purpose: "activations", needed: 12_582_912, .. }), "{error:?}");
}

/// Buffers that come and go in an order of chance keep their numbers, and no more is mapped than what lies on their granules.
#[test]
fn cuda_buffers_that_come_and_go_keep_their_numbers() {
    for settings in ["", "vmm=0", "lazy=1,protect=1"] {
        let Some(emulator) = Emulator::start(settings) else { return };
        let ledger = Limited::new(1 << 40);
        let device = emulator.device_of(ledger.clone()).for_purpose(Purpose::Adapters);
        let mut state = 12_345_u64;
        let mut chance = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let mut held = Vec::new();
        for round in 0..300 {
            if held.len() > 20 || (!held.is_empty() && chance(5) < 2) {
                let (buffer, value) = held.swap_remove(chance(held.len() as u64) as usize);
                assert!(contents(&device, &buffer).iter().all(|number| *number == value), "{settings}: round {round}");
            } else {
                let most = if chance(4) == 0 { 3 * NUMBERS as u64 } else { 5000 };
                let len = 1 + chance(most) as usize;
                let mut buffer = device.zeros(len).unwrap();
                assert!(contents(&device, &buffer).iter().all(|number| *number == 0.0), "{settings}: round {round}");
                device.fill(&mut buffer, len, round as f32).unwrap();
                held.push((buffer, round as f32));
            }
            let numbers: usize = held.iter().map(|(buffer, _)| device.len(buffer)).sum();
            let most = numbers as u64 * 4 + held.len() as u64 * 2 * GRANULE;
            assert!(ledger.of(Purpose::Adapters) <= most, "{settings}: {} bytes for {numbers} numbers", ledger.of(Purpose::Adapters));
        }
        held.clear();
        assert_eq!(ledger.of(Purpose::Adapters), 0, "{settings}");
    }
}
