//! Attention of few queries on the CUDA device, on the emulator: recorded for every position, and in parts that the last block merges.
#![cfg(feature = "cuda")]

mod support;

use espalier_kernels::cuda::{Buffer, Graph, Indices};
use espalier_kernels::{AttentionShape, CudaDevice, Device, KernelError, KeyValues, Result, Start, TokenShape};
use support::Emulator;

fn first(device: &CudaDevice, buffer: &Buffer) -> f32 {
    let mut number = [0.0];
    device.read(buffer, 0, &mut number).unwrap();
    number[0]
}

#[test]
fn one_cuda_recording_serves_every_position_that_leaves_its_keys_enough() {
    let Some(emulator) = Emulator::start("") else { return };
    let device = emulator.device();
    const CAPACITY: usize = 80;
    let (mut keys, mut values) = (device.zeros(2 * CAPACITY).unwrap(), device.zeros(2 * CAPACITY).unwrap());
    let (mut q, mut k, mut v, mut out) =
        (device.zeros(2).unwrap(), device.zeros(2).unwrap(), device.zeros(2).unwrap(), device.zeros(2).unwrap());
    let groups = device.indices(&[0]).unwrap();
    let mut position = device.indices(&[0]).unwrap();
    let tokens = TokenShape { sequence: 1, heads: 1, groups: 1, head_dim: 2 };
    let shape = AttentionShape {
        batch: 1,
        queries: 1,
        keys: 70,
        key_capacity: CAPACITY,
        heads: 1,
        groups: 1,
        head_dim: 2,
        scale: 1.0,
        window: None,
    };
    let (mut graph, mut calls) = (Graph::default(), 0);
    // All scores are 0, so that attention is the mean of the values so far, of which the n-th is n.
    for at in 0..70_u32 {
        device.write(&mut v, 0, &[at as f32, 0.0]).unwrap();
        device.write_indices(&mut position, &[at]).unwrap();
        device
            .replay(&mut graph, || {
                calls += 1;
                let cache = KeyValues { keys: &mut keys, values: &mut values, capacity: CAPACITY };
                device.cache_tokens(cache, &mut q, &mut k, &v, None, tokens, Start::Stored(&position))?;
                device.attention_at(shape, &mut out, &q, &keys, &values, &groups, &position)
            })
            .unwrap();
        assert!((first(&device, &out) - at as f32 / 2.0).abs() < 1e-4, "position {at}: {}", first(&device, &out));
    }
    assert_eq!((calls, emulator.counter("graph_launches")), (2, 69));
    // Work that is not recorded counts the keys that there are, of 2 numbers, and as many values; and queries and results.
    let bytes = || device.kernel_counts().iter().find(|count| count.name == "attention_decode").map_or(0, |count| count.bytes);
    for (at, parts) in [(9, 1), (69, 2)] {
        device.write_indices(&mut position, &[at]).unwrap();
        let before = bytes();
        device.attention_at(shape, &mut out, &q, &keys, &values, &groups, &position).unwrap();
        let merged = 2 * parts * (2 + 2);
        assert_eq!(bytes() - before, 4 * (2 * 2 + 2 * 2 * (u64::from(at) + 1) + merged), "position {at}");
    }
    // One position further there would be more keys than the recording is for.
    device.write_indices(&mut position, &[70]).unwrap();
    let refused = device.replay(&mut graph, || device.attention_at(shape, &mut out, &q, &keys, &values, &groups, &position));
    assert!(matches!(refused, Err(KernelError::Shape { operation: "attention_at", .. })), "{refused:?}");
}

/// Attention of one query a sequence over `keys` keys with scores of 0: the mean of the values, of which the n-th key's is n.
struct Means {
    shape: AttentionShape,
    values: Buffer,
    zeros: Buffer,
    groups: Indices,
}

impl Means {
    fn new(device: &CudaDevice, batch: usize, keys: usize) -> Self {
        let mut values = device.zeros(batch * keys).unwrap();
        let numbers: Vec<f32> = (0..batch * keys).map(|i| (i % keys) as f32).collect();
        device.write(&mut values, 0, &numbers).unwrap();
        let (queries, key_capacity) = (1, keys);
        let shape = AttentionShape { batch, queries, keys, key_capacity, heads: 1, groups: 1, head_dim: 1, scale: 1.0, window: None };
        Self { shape, values, zeros: device.zeros(batch * keys).unwrap(), groups: device.indices(&[0]).unwrap() }
    }

    fn attend(&self, device: &CudaDevice, out: &mut Buffer) -> Result<()> {
        device.attention(self.shape, out, &self.zeros, &self.zeros, &self.values, &self.groups)
    }

    fn faults(&self, device: &CudaDevice, out: &Buffer) -> usize {
        let mut found = vec![0.0; self.shape.batch];
        device.read(out, 0, &mut found).unwrap();
        let mean = (self.shape.keys - 1) as f32 / 2.0;
        found.iter().filter(|number| (**number - mean).abs() > 1e-3 * mean).count()
    }
}

#[test]
fn parts_of_cuda_attention_are_merged_whatever_else_has_run_or_was_given_back() {
    let Some(emulator) = Emulator::start("") else { return };
    let device = emulator.device();
    // Several parts of one sequence, and of more sequences than there are counters at first.
    let (few, many) = (Means::new(&device, 1, 300), Means::new(&device, 1100, 257));
    let (mut out, mut outs) = (device.zeros(1).unwrap(), device.zeros(1100).unwrap());
    let (mut graph, mut calls, mut faults) = (Graph::default(), 0, Vec::new());
    for round in 0..8 {
        match round {
            3 => many.attend(&device, &mut outs).unwrap(),
            6 => assert!(device.release_scratch() > 0),
            _ => {}
        }
        device.fill(&mut out, 1, -1.0).unwrap();
        let run = device.replay(&mut graph, || {
            calls += 1;
            few.attend(&device, &mut out)
        });
        run.unwrap();
        if few.faults(&device, &out) > 0 {
            faults.push(format!("round {round}: {}", first(&device, &out)));
        }
    }
    match many.faults(&device, &outs) {
        0 => {}
        wrong => faults.push(format!("{wrong} of 1100 sequences have another mean")),
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    // Recorded in round 1; the counters moved before round 3, and went before round 6: as it is, and recorded again.
    assert_eq!(calls, 6);
}
