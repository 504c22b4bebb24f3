//! A prefix of a stored matrix is the smaller matrix, in every layout: this is what running a smaller level relies on.

use std::sync::Arc;

use espalier_kernels::{CpuDevice, Device, Format, HostBytes, Unlimited};
use proptest::prelude::*;

struct Words(Vec<u32>, usize);

impl AsRef<[u8]> for Words {
    fn as_ref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.0)[..self.1]
    }
}

fn host_bytes(bits: &[u16]) -> HostBytes {
    let words = bits.chunks(2).map(|pair| u32::from(pair[0]) | u32::from(*pair.get(1).unwrap_or(&0)) << 16).collect();
    HostBytes { owner: Arc::new(Words(words, bits.len() * 2)), range: 0..bits.len() * 2 }
}

/// `[rows / 2, columns, 2]` of `[rows, columns]`, `rows` even.
fn paired(bits: &[u16], columns: usize) -> Vec<u16> {
    bits.chunks(2 * columns).flat_map(|pair| (0..columns).flat_map(|c| [pair[c], pair[columns + c]])).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_prefix_of_pairs_reads_as_a_prefix_of_rows(
        (pairs, columns, kept, m) in (1_usize..70, 1_usize..50).prop_flat_map(|(pairs, columns)| {
            (Just(pairs), Just(columns), 0..=2 * pairs, 1_usize..140)
        }),
        seed in any::<u32>(),
        bf16 in any::<bool>(),
    ) {
        let rows = 2 * pairs;
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let encode = |x: f32| if bf16 { half::bf16::from_f32(x).to_bits() } else { half::f16::from_f32(x).to_bits() };
        // The row behind the kept ones is another unit's: infinite here, so that reading it shows.
        let bits: Vec<u16> = (0..rows * columns).map(|i| encode(if i / columns == kept { f32::INFINITY } else { next() })).collect();
        let (by_rows, by_pairs) = if bf16 { (Format::Bf16, Format::Bf16Pairs) } else { (Format::F16, Format::F16Pairs) };
        let device = CpuDevice::new(1, Arc::new(Unlimited)).unwrap();
        let plain = device.map_weight(host_bytes(&bits), by_rows, kept, columns).unwrap();
        let pair = device.map_weight(host_bytes(&paired(&bits, columns)), by_pairs, kept, columns).unwrap();

        let noise: Vec<f32> = (0..m * rows.max(columns)).map(|_| next()).collect();
        let mut x = device.zeros(noise.len()).unwrap();
        device.write(&mut x, 0, &noise).unwrap();
        for units in [false, true] {
            let width = if units { columns } else { kept };
            let results = [&plain, &pair].map(|weight| {
                let mut y = device.zeros(m * width).unwrap();
                let done = if units { device.matmul_units(&mut y, &x, weight, m, false) } else { device.matmul_rows(&mut y, &x, weight, m, false) };
                done.unwrap();
                let mut numbers = vec![0.0; m * width];
                device.read(&y, 0, &mut numbers).unwrap();
                numbers
            });
            for (i, (a, b)) in results[0].iter().zip(&results[1]).enumerate() {
                prop_assert!((a - b).abs() <= 1e-4, "units {units}, number {i}: {a} by rows, {b} by pairs");
            }
        }
    }
}
