//! Weights of the CUDA device on the emulator: read in place, registered or uploaded; packed and given back in a shrink.
#![cfg(feature = "cuda")]

mod support;

use std::sync::Arc;

use espalier_kernels::cuda::{Buffer, Graph, Weight};
use espalier_kernels::{CudaDevice, Device, Format, HostBytes, KernelError, Purpose};
use support::{Emulator, Limited};

const GRANULE: u64 = 2 << 20;

fn sequence(len: usize, start: f32) -> Vec<f32> {
    (0..len).map(|i| start + (i % 1_000_003) as f32).collect()
}

fn contents(device: &CudaDevice, buffer: &Buffer) -> Vec<f32> {
    let mut numbers = vec![-1.0; device.len(buffer)];
    device.read(buffer, 0, &mut numbers).unwrap();
    numbers
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

/// Rows of the matrices of a model, of 1000 columns each, and rows that are kept; none where the matrix is dropped before.
type Shrink = (&'static str, &'static [(usize, Option<usize>)]);

const SHRINKS: [Shrink; 8] = [
    ("nothing goes", &[(700, Some(700)), (300, Some(300))]),
    ("a little of each", &[(1000, Some(990)), (3000, Some(2950)), (500, Some(499)), (2000, Some(1999))]),
    ("much of each", &[(1000, Some(100)), (3000, Some(300)), (500, Some(50)), (2000, Some(200))]),
    ("whole matrices", &[(1000, Some(0)), (3000, Some(3000)), (500, Some(0)), (2000, Some(2000))]),
    ("all", &[(1000, Some(0)), (3000, Some(0))]),
    ("all but a row", &[(4000, Some(1)), (4000, Some(4000))]),
    ("matrices that were dropped before", &[(1000, None), (3000, Some(3000)), (500, None), (2000, Some(1900)), (3, Some(2))]),
    ("small ones beside large ones", &[(3, Some(2)), (2000, Some(1)), (3, Some(3)), (2000, Some(1500)), (1, None), (2, Some(2))]),
];

/// Shrinks a model and says what is wrong then.
fn shrink(emulator: &Emulator, sizes: &[(usize, Option<usize>)]) -> Vec<String> {
    let (ledger, columns) = (Limited::new(1 << 40), 1000);
    let device = emulator.device_of(ledger.clone()).for_model();
    let numbers = |i: usize, rows: usize| sequence(rows * columns, 1e6 * i as f32);
    let map = |(i, (rows, _)): (usize, &(usize, _))| device.map_weight(host(&numbers(i, *rows), 0), Format::F32, *rows, columns).unwrap();
    let mapped: Vec<_> = sizes.iter().enumerate().map(map).collect();
    let before = device.weight_bytes();
    let kept = mapped.into_iter().zip(sizes).enumerate().filter_map(|(i, (weight, (_, kept)))| Some((i, weight, (*kept)?)));
    let mut weights: Vec<_> = kept.collect();
    device.shrink_weights(&mut weights.iter_mut().map(|(_, weight, kept)| (weight, *kept)).collect::<Vec<_>>()).unwrap();
    let (after, booked) = (device.weight_bytes(), ledger.of(Purpose::Weights));
    let needed: u64 = weights.iter().map(|(_, _, kept)| (kept * columns * 4) as u64).sum();
    let mut wrong = Vec::new();
    for (i, weight, kept) in &weights {
        if rows(&device, weight) != numbers(*i, *kept) {
            wrong.push(format!("matrix {i} has other numbers"));
        }
    }
    if after > (needed + 4 * 4096).next_multiple_of(GRANULE) || booked != after {
        wrong.push(format!("{before} bytes became {after}, of which {needed} are needed and {booked} are booked"));
    }
    drop(weights);
    if ledger.of(Purpose::Weights) != 0 {
        wrong.push(format!("{} bytes stay booked", ledger.of(Purpose::Weights)));
    }
    wrong
}

#[test]
fn shrinking_a_cuda_model_packs_its_weights_and_gives_memory_back() {
    let mut failed = Vec::new();
    for settings in ["", "vmm=0", "lazy=1,protect=1"] {
        let Some(emulator) = Emulator::start(settings) else { return };
        for (name, sizes) in SHRINKS {
            failed.extend(shrink(&emulator, sizes).into_iter().map(|wrong| format!("{settings} {name}: {wrong}")));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Quants of every kind in a host's bytes: byte `i` is `i` times an odd number, scales and minima are halves around 1.
fn quantised(format: Format, rows: usize, columns: usize) -> HostBytes {
    let planes = format.planes(rows, columns).unwrap();
    let mut words = vec![0_u64; planes.bytes().div_ceil(8) + 8];
    let start = words.as_ptr().align_offset(64) * 8;
    let bytes = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut words)[start..start + planes.bytes()];
    bytes[planes.quants.clone()].iter_mut().enumerate().for_each(|(i, byte)| *byte = (i * 37 % 251) as u8);
    for (plane, factor) in [(planes.scales.clone(), 11), (planes.minima.clone(), 13)] {
        let halves = bytes[plane].chunks_exact_mut(2).enumerate();
        halves.for_each(|(i, half)| half.copy_from_slice(&(0x3800 + (i * factor % 1021) as u16).to_le_bytes()));
    }
    HostBytes { range: start..start + planes.bytes(), owner: Arc::new(Bytes(words)) }
}

/// A quantised matrix, `(format, rows, kept)`, whose planes are moved together; some by less than it would take to close the gap.
const QUANTISED_SHRINKS: [(Format, usize, usize); 12] = [
    (Format::Q8, 3000, 2999),
    (Format::Q8, 3000, 1000),
    (Format::Q8, 3000, 1),
    (Format::Q4, 3000, 2990),
    (Format::Q4, 3000, 700),
    (Format::Q4, 3000, 0),
    (Format::Q8Units, 3008, 2976),
    (Format::Q8Units, 3008, 32),
    (Format::Q4Units, 3001, 3001),
    (Format::Q4Units, 3001, 2976),
    (Format::Q4Units, 3001, 64),
    (Format::Q4Units, 3001, 0),
];

#[test]
fn shrinking_quantised_cuda_weights_keeps_every_plane() {
    let (columns, mut failed) = (301, Vec::new());
    for settings in ["", "vmm=0", "integrated=1,pageable=1"] {
        let Some(emulator) = Emulator::start(settings) else { return };
        let ledger = Limited::new(1 << 40);
        let device = emulator.device_of(ledger.clone()).for_model();
        let map = |format, rows| device.map_weight(quantised(format, rows, columns), format, rows, columns).unwrap();
        let mut weights: Vec<_> = QUANTISED_SHRINKS.iter().map(|&(format, rows, kept)| (map(format, rows), kept)).collect();
        let before: Vec<_> = weights.iter().map(|(weight, _)| rows(&device, weight)).collect();
        device.shrink_weights(&mut weights.iter_mut().map(|(weight, kept)| (weight, *kept)).collect::<Vec<_>>()).unwrap();
        for (((weight, kept), before), case) in weights.iter().zip(&before).zip(QUANTISED_SHRINKS) {
            if rows(&device, weight) != before[..kept * columns] {
                failed.push(format!("{settings} {case:?}: other numbers"));
            }
        }
        // A plane that is left where it is may stand a sixty-fourth of its length too high.
        let needed: usize = QUANTISED_SHRINKS.iter().map(|(format, _, kept)| format.planes(*kept, columns).unwrap().bytes()).sum();
        let (after, booked) = (device.weight_bytes(), ledger.of(Purpose::Weights));
        if after > (needed as u64 + needed as u64 / 32).next_multiple_of(GRANULE) || booked != after {
            failed.push(format!("{settings}: {after} bytes are left, of which {needed} are needed and {booked} are booked"));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn a_cuda_shrink_of_registered_planes_gives_back_the_pages_between_them() {
    let cases = [
        (Format::Q8, 2000, 2000),
        (Format::Q8, 2000, 1999),
        (Format::Q8, 2000, 700),
        (Format::Q8, 2000, 0),
        (Format::Q4, 3000, 1),
        (Format::Q4, 3000, 1500),
        (Format::Q8Units, 2000, 64),
        (Format::Q4Units, 3000, 1504),
    ];
    let Some(emulator) = Emulator::start("integrated=1") else { return };
    let (columns, mut failed) = (1001, Vec::new());
    for (format, all, kept) in cases {
        let ledger = Limited::new(1 << 40);
        let device = emulator.device_of(ledger.clone()).for_model();
        let mut weight = device.map_weight(quantised(format, all, columns), format, all, columns).unwrap();
        assert!(device.reads_host(&weight), "{format:?} [{all}, {columns}] is too small to be registered");
        let before = rows(&device, &weight);
        device.shrink_weights(&mut [(&mut weight, kept)]).unwrap();
        if rows(&device, &weight) != before[..kept * columns] {
            failed.push(format!("{format:?}, {kept} of {all} rows: other numbers"));
        }
        // A plane may begin and end in the middle of a page, and the emulator looks at the first byte of a plane only.
        let planes = format.planes(kept, columns).unwrap();
        let needed = (planes.quants.len() + planes.scales.len() + planes.minima.len()) as u64;
        let most = needed + if kept == 0 { 0 } else { 3 * 2 * 4096 };
        let (booked, registered) = (ledger.of(Purpose::Weights), emulator.counter("bytes_registered"));
        if booked < needed || booked > most || registered != booked {
            failed.push(format!("{format:?}, {kept} of {all} rows: {registered} bytes are registered, {booked} booked, {needed} needed"));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn a_cuda_shrink_refuses_parts_of_blocks() {
    let cases = [
        ("", Format::Q8Units, 33, "33 rows of a Q8Units matrix of 2000 were to be kept; its blocks are 32 rows: keep a multiple"),
        ("", Format::Q4Units, 1999, "1999 rows of a Q4Units matrix of 2000 were to be kept; its blocks are 32 rows: keep a multiple"),
    ];
    let mut failed = Vec::new();
    for (settings, format, kept, expected) in cases {
        let Some(emulator) = Emulator::start(settings) else { return };
        let device = emulator.device().for_model();
        let mut weight = device.map_weight(quantised(format, 2000, 1001), format, 2000, 1001).unwrap();
        let before = rows(&device, &weight);
        match device.shrink_weights(&mut [(&mut weight, kept)]) {
            Err(KernelError::Shape { operation: "shrink", detail }) if detail.contains(expected) => {}
            other => failed.push(format!("{format:?}, {kept} rows: {other:?}")),
        }
        if rows(&device, &weight) != before {
            failed.push(format!("{format:?}, {kept} rows: a refused shrink changes nothing"));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn shrinking_needs_every_weight_of_the_cuda_model() {
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
fn weights_are_read_where_the_cuda_device_can() {
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
            if device.reads_host(&weight) == uploaded {
                failed.push(format!("{name}: {} numbers at offset {offset}: are the host's pages read?", numbers.len()));
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
fn registered_pages_are_given_back_in_a_cuda_shrink() {
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

/// A host's bytes that hold nothing of use once they are dropped, as pages that are unmapped.
struct Passing(Bytes);

impl AsRef<[u8]> for Passing {
    fn as_ref(&self) -> &[u8] {
        self.0.as_ref()
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        std::hint::black_box(&mut self.0.0).fill(u64::MAX);
    }
}

#[test]
fn pages_that_a_cuda_shrink_gives_back_whole_have_been_read() {
    let Some(emulator) = Emulator::start("integrated=1,pageable=1,lazy=1") else { return };
    let device = emulator.device().for_model();
    let numbers = sequence(300 * 100, 1.0);
    let words: Vec<u64> = bytemuck::cast_slice::<f32, [u32; 2]>(&numbers).iter().map(|pair| bytemuck::cast(*pair)).collect();
    // In-place reading asks for a multiple of 16.
    let start = words.as_ptr() as usize % 16;
    let owner = Arc::new(Passing(Bytes(words)));
    let bytes = HostBytes { owner, range: start..numbers.len() * 4 };
    let mut weight = device.map_weight(bytes, Format::F32, 299, 100).unwrap();
    assert!(device.reads_host(&weight));
    let (mut out, ids) = (device.zeros(100).unwrap(), device.indices(&[298]).unwrap());
    device.embed(&mut out, &weight, &ids, 1).unwrap();
    device.shrink_weights(&mut [(&mut weight, 0)]).unwrap();
    let skipped = start / 4;
    assert!(contents(&device, &out) == numbers[skipped + 29_800..skipped + 29_900], "the row was read when its pages had gone");
}

#[test]
fn a_cuda_weight_whose_shrink_failed_is_an_error_and_the_device_goes_on() {
    // Pages that are not registered again, and no memory for the copy of a driver without virtual memory.
    for settings in ["integrated=1,fail_register=2", "vmm=0,fail_alloc=2"] {
        let Some(emulator) = Emulator::start(settings) else { return };
        let ledger = Limited::new(1 << 40);
        let device = emulator.device_of(ledger.clone()).for_model();
        let numbers = sequence(4000 * 1000, 0.0);
        let mut weight = device.map_weight(host(&numbers, 0), Format::F32, 4000, 1000).unwrap();
        device.shrink_weights(&mut [(&mut weight, 1000)]).unwrap_err();
        let (x, mut y) = (device.zeros(1000).unwrap(), device.zeros(4000).unwrap());
        let refused = device.matmul_rows(&mut y, &x, &weight, 1, false).unwrap_err();
        assert!(!refused.is_lost() && refused.to_string().contains("map it again"), "{settings}: {refused}");
        device.fill(&mut y, 4000, 1.0).unwrap();
        assert_eq!(contents(&device, &y), [1.0; 4000], "{settings}");
        drop(weight);
        assert_eq!(ledger.of(Purpose::Weights), 0, "{settings}");
    }
}

#[test]
fn a_cuda_graph_is_recorded_anew_after_a_shrink_and_a_larger_model_is_uploaded_again() {
    for settings in ["", "vmm=0", "integrated=1", "integrated=1,pageable=1"] {
        let Some(emulator) = Emulator::start(settings) else { return };
        let device = emulator.device().for_model();
        let numbers = sequence(4000 * 1000, 0.0);
        let map = || device.map_weight(host(&numbers, 0), Format::F32, 4000, 1000).unwrap();
        let mut weights = [map(), map()];
        let (mut out, ids) = (device.zeros(1000).unwrap(), device.indices(&[7]).unwrap());
        let (mut graph, mut runs) = (Graph::default(), 0);
        // The second matrix moves where the first one shrinks.
        let mut pass = |weights: &[Weight; 2]| {
            device
                .replay(&mut graph, || {
                    runs += 1;
                    device.embed(&mut out, &weights[1], &ids, 1)
                })
                .unwrap();
            assert!(contents(&device, &out) == numbers[7000..8000], "{settings}: pass {runs}");
            runs
        };
        assert_eq!([pass(&weights), pass(&weights), pass(&weights)], [1, 2, 2], "{settings}");
        let [first, second] = &mut weights;
        device.shrink_weights(&mut [(first, 1000), (second, 2000)]).unwrap();
        assert_eq!([pass(&weights), pass(&weights), pass(&weights)], [3, 4, 4], "{settings}");
        weights = [map(), map()];
        assert_eq!([pass(&weights), pass(&weights), pass(&weights)], [5, 6, 6], "{settings}");
    }
}

#[test]
fn a_cuda_weight_that_is_dropped_while_work_is_recorded_goes_afterwards() {
    for settings in ["", "integrated=1", "integrated=1,pageable=1"] {
        let Some(emulator) = Emulator::start(settings) else { return };
        let ledger = Limited::new(1 << 40);
        let device = emulator.device_of(ledger.clone());
        let numbers = sequence(1000 * 300, 0.0);
        let map = || device.map_weight(host(&numbers, 0), Format::F32, 300, 1000).unwrap();
        let (weight, mut other) = (map(), None);
        let (mut out, ids) = (device.zeros(2000).unwrap(), device.indices(&[1, 0]).unwrap());
        let (mut graph, mut runs) = (Graph::default(), 0);
        for _ in 0..2 {
            device
                .replay(&mut graph, || {
                    runs += 1;
                    other = None;
                    device.embed(&mut out, &weight, &ids, 2)
                })
                .unwrap();
            other = Some(map());
        }
        assert_eq!(runs, 3, "{settings}: once as it is, once recorded, once more since that failed");
        drop(other);
        assert!(contents(&device, &out) == [&numbers[1000..2000], &numbers[..1000]].concat(), "{settings}");
        drop(weight);
        assert_eq!((ledger.of(Purpose::Weights), emulator.counter("bytes_registered")), (0, 0), "{settings}");
    }
}

#[test]
fn a_cuda_weight_that_is_too_short_is_refused() {
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
