//! Memory of the CUDA device on the emulator: booked by granule, refused with an error, packed, given back.
#![cfg(feature = "cuda")]

mod support;

use std::sync::Arc;

use espalier_kernels::cuda::Weight;
use espalier_kernels::{CudaDevice, Device, Format, HostBytes, KernelError, NO_TARGET, Purpose};
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

struct Bytes(Vec<u64>);

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// f32 numbers as a host's bytes that start `offset` bytes past a multiple of 64.
fn host(numbers: &[f32], offset: usize) -> HostBytes {
    let mut words = vec![0_u64; numbers.len().div_ceil(2) + 16 + offset / 8];
    let start = words.as_ptr().align_offset(64) * 8 + offset;
    bytemuck::cast_slice_mut::<u64, u8>(&mut words)[start..start + numbers.len() * 4].copy_from_slice(bytemuck::cast_slice(numbers));
    HostBytes { owner: Arc::new(Bytes(words)), range: start..start + numbers.len() * 4 }
}

/// The first rows of a weight, by multiplying it with unit vectors.
fn rows(device: &CudaDevice, weight: &Weight) -> Vec<f32> {
    let (rows, columns) = device.weight_shape(weight);
    let ids: Vec<u32> = (0..rows as u32).collect();
    let mut out = device.zeros(rows * columns).unwrap();
    device.embed(&mut out, weight, &device.indices(&ids).unwrap(), rows).unwrap();
    contents(device, &out)
}

#[test]
fn shrinking_a_model_packs_its_weights_and_gives_memory_back() {
    let mut failed = Vec::new();
    // Rows of each matrix of 1000 columns, and rows that are kept.
    type Case = (&'static str, &'static [(usize, usize)]);
    let cases: [Case; 6] = [
        ("nothing goes", &[(700, 700), (300, 300)]),
        ("a little of each", &[(1000, 990), (3000, 2950), (500, 499), (2000, 1999)]),
        ("much of each", &[(1000, 100), (3000, 300), (500, 50), (2000, 200)]),
        ("whole matrices", &[(1000, 0), (3000, 3000), (500, 0), (2000, 2000)]),
        ("all", &[(1000, 0), (3000, 0)]),
        ("a first byte alone", &[(4000, 1), (4000, 4000)]),
    ];
    for vmm in [1, 0] {
        let Some(emulator) = Emulator::start(&format!("vmm={vmm}")) else { return };
        for (name, sizes) in cases {
            let ledger = Limited::new(1 << 40);
            let device = emulator.device_of(ledger.clone()).for_model();
            let columns = 1000;
            let numbers = |i: usize, rows: usize| sequence(rows * columns, 1e6 * i as f32);
            let mut weights: Vec<_> = (sizes.iter().enumerate())
                .map(|(i, (rows, _))| device.map_weight(host(&numbers(i, *rows), 0), Format::F32, *rows, columns).unwrap())
                .collect();
            let before = device.weight_bytes();
            assert_eq!(before, ledger.of(Purpose::Weights));
            let mut kept: Vec<_> = weights.iter_mut().zip(sizes).map(|(weight, (_, kept))| (weight, *kept)).collect();
            device.shrink_weights(&mut kept).unwrap();
            let (after, needed) = (device.weight_bytes(), sizes.iter().map(|(_, kept)| (kept * columns * 4) as u64).sum::<u64>());
            assert_eq!(after, ledger.of(Purpose::Weights));
            for (i, (weight, (_, kept))) in weights.iter().zip(sizes).enumerate() {
                if rows(&device, weight) != numbers(i, *kept) {
                    failed.push(format!("vmm={vmm}, {name}: matrix {i} has other numbers"));
                }
            }
            if after > (needed + 4 * 4096).next_multiple_of(GRANULE) {
                failed.push(format!("vmm={vmm}, {name}: {before} bytes became {after}, of which {needed} are needed"));
            }
            drop(weights);
            if ledger.of(Purpose::Weights) != 0 {
                failed.push(format!("vmm={vmm}, {name}: {} bytes stay", ledger.of(Purpose::Weights)));
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn shrinking_needs_every_weight_of_the_model() {
    let Some(emulator) = Emulator::start("") else { return };
    let device = emulator.device().for_model();
    let numbers = sequence(1000, 1.0);
    let map = |device: &CudaDevice| device.map_weight(host(&numbers, 0), Format::F32, 10, 100).unwrap();
    let (mut first, mut second, mut others) = (map(&device), map(&device), map(&device.for_model()));
    let shape =
        |result: Result<(), KernelError>| assert!(matches!(result, Err(KernelError::Shape { operation: "shrink", .. })), "{result:?}");
    shape(device.shrink_weights(&mut [(&mut first, 5)]));
    shape(device.shrink_weights(&mut [(&mut first, 5), (&mut others, 5)]));
    shape(device.shrink_weights(&mut [(&mut first, 11), (&mut second, 5)]));
    assert!(rows(&device, &first) == numbers, "a refused shrink changes nothing");
    device.shrink_weights(&mut [(&mut second, 5), (&mut first, 3)]).unwrap();
    assert!(rows(&device, &first) == numbers[..300] && rows(&device, &second) == numbers[..500]);
}

#[test]
fn weights_are_read_where_the_device_can() {
    let (large, small) = (sequence(1000 * 300, 0.0), sequence(1000, 0.0));
    // Settings; bytes of device memory and of registered pages that a large, a small and a misaligned weight take.
    let cases = [
        ("", "uploaded", [true, true, true], false),
        ("integrated=1,pageable=1", "read in place", [false, false, true], false),
        ("integrated=1,pageable=0", "registered", [false, true, true], true),
        ("integrated=1,pageable=0,register=0", "uploaded, since nothing can be registered", [true, true, true], false),
        ("integrated=0,pageable=1", "uploaded to memory of its own", [true, true, true], false),
    ];
    let mut failed = Vec::new();
    for (settings, name, uploaded, registered) in cases {
        let Some(emulator) = Emulator::start(settings) else { return };
        let ledger = Limited::new(1 << 40);
        let device = emulator.device_of(ledger.clone());
        for ((numbers, offset), uploaded) in [(&large, 0), (&small, 0), (&large, 4)].into_iter().zip(uploaded) {
            let weight = device.map_weight(host(numbers, offset), Format::F32, numbers.len() / 100, 100).unwrap();
            if rows(&device, &weight) != *numbers {
                failed.push(format!("{name}: {} numbers at offset {offset} are wrong", numbers.len()));
            }
            let pinned = emulator.counter("bytes_registered");
            if (device.weight_bytes() > 0) != uploaded || (pinned > 0) != (registered && !uploaded) {
                let bytes = device.weight_bytes();
                failed.push(format!("{name}: {} numbers at offset {offset}: {bytes} uploaded, {pinned} registered", numbers.len()));
            }
            if ledger.of(Purpose::Weights) != device.weight_bytes() + pinned {
                failed.push(format!("{name}: {} bytes are booked", ledger.of(Purpose::Weights)));
            }
            drop(weight);
            if (ledger.of(Purpose::Weights), emulator.counter("bytes_registered")) != (0, 0) {
                failed.push(format!("{name}: a dropped weight keeps its memory"));
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn registered_pages_are_given_back_in_a_shrink() {
    let Some(emulator) = Emulator::start("integrated=1") else { return };
    let ledger = Limited::new(1 << 40);
    let device = emulator.device_of(ledger.clone()).for_model();
    let numbers = sequence(4000 * 1000, 0.0);
    let mut weight = device.map_weight(host(&numbers, 0), Format::F32, 4000, 1000).unwrap();
    assert!(ledger.of(Purpose::Weights) >= 16_000_000);
    device.shrink_weights(&mut [(&mut weight, 1000)]).unwrap();
    assert!(ledger.of(Purpose::Weights) <= 4_000_000 + 2 * 65_536, "{} bytes stay booked", ledger.of(Purpose::Weights));
    assert!(rows(&device, &weight) == numbers[..1_000_000]);
}

#[test]
fn a_weight_that_is_too_short_is_refused() {
    let Some(emulator) = Emulator::start("") else { return };
    let device = emulator.device();
    let cases = [
        (4, 4, "map_weight: a F32 matrix [4, 4] takes 64 bytes, but 40 were given"),
        (usize::MAX, 2, "map_weight: [18446744073709551615, 2] does not fit in memory"),
    ];
    for (rows, columns, expected) in cases {
        let error = device.map_weight(host(&[0.0; 10], 0), Format::F32, rows, columns).err().unwrap();
        assert_eq!(error.to_string(), expected);
    }
    let buffer = device.zeros(10).unwrap();
    assert!(matches!(device.own_weight(buffer, 4, 4), Err(KernelError::Shape { operation: "own_weight", .. })));
}
