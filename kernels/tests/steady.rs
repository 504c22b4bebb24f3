//! What a diagnosis loop relies on: no allocation once it is warm, and the same numbers every time.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use espalier_kernels::{Activation, AttentionShape, CpuDevice, Device, NormKind, Product, Unlimited};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator, with a counter beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A layer of a small model on one window, and its buffers.
struct Layer<D: Device> {
    device: D,
    buffers: Vec<D::Buffer>,
    weights: Vec<D::Weight>,
    groups: D::Indices,
    targets: D::Indices,
}

const T: usize = 32;
const D_MODEL: usize = 192;
const F: usize = 768;
const HEADS: usize = 6;

impl<D: Device> Layer<D> {
    fn new(device: D) -> Self {
        let noise = |len: usize, seed: usize| -> D::Buffer {
            let numbers: Vec<f32> = (0..len).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0).collect();
            let mut buffer = device.zeros(len).unwrap();
            device.write(&mut buffer, 0, &numbers).unwrap();
            buffer
        };
        let sizes = [T * D_MODEL, T * D_MODEL, T * D_MODEL, T * D_MODEL, T * D_MODEL, T * F, T * F, D_MODEL, F, 16, 4 * D_MODEL, T * 4];
        let buffers = sizes.iter().enumerate().map(|(seed, len)| noise(*len, seed)).collect();
        let weights = [(D_MODEL, D_MODEL), (F, D_MODEL), (10, D_MODEL)]
            .iter()
            .map(|(rows, columns)| device.own_weight(noise(rows * columns, 50), *rows, *columns).unwrap())
            .collect();
        let groups = device.indices(&(0..HEADS as u32).collect::<Vec<_>>()).unwrap();
        let targets = device.indices(&[3; T]).unwrap();
        Self { device, buffers, weights, groups, targets }
    }

    fn forward(&mut self) {
        let Self { device, buffers, weights, groups, targets } = self;
        let [x, y, q, k, v, up, act, gain, bias, frequencies, adapter, rank] = buffers.as_mut_slice() else { unreachable!() };
        let (square, tall) = (&weights[0], &weights[1]);
        device.norm(NormKind::LayerNorm, y, x, gain, Some(gain), 1e-5, T).unwrap();
        for projection in [&mut *q, &mut *k, &mut *v] {
            device.matmul_rows(projection, y, square, T, false).unwrap();
        }
        let product = Product { m: T, n: 4, k: D_MODEL, transpose_a: false, transpose_b: true, alpha: 1.0, accumulate: false };
        device.matmul(rank, y, adapter, product).unwrap();
        let product = Product { m: T, n: D_MODEL, k: 4, transpose_a: false, transpose_b: false, alpha: 4.0, accumulate: true };
        device.matmul(q, rank, adapter, product).unwrap();
        device.rotate(q, frequencies, 1, T, HEADS, D_MODEL / HEADS, 0, false).unwrap();
        let head_dim = D_MODEL / HEADS;
        let (scale, window) = (0.25, None);
        let shape = AttentionShape { batch: 1, queries: T, keys: T, key_capacity: T, heads: HEADS, groups: HEADS, head_dim, scale, window };
        device.attention(shape, y, q, k, v, groups).unwrap();
        device.matmul_units(x, y, square, T, true).unwrap();
        device.scale(x, T * D_MODEL, 0.1).unwrap();
        device.matmul_rows(up, x, tall, T, false).unwrap();
        device.add_bias(up, bias, T, F).unwrap();
        device.activate(Activation::GeluExact, act, up, None, T * F).unwrap();
        device.matmul_units(x, act, tall, T, false).unwrap();
        device.scale(x, T * D_MODEL, 0.01).unwrap();
        device.mean_pool(q, x, 1, T, D_MODEL).unwrap();
        device.matmul_rows(k, q, &weights[2], 1, false).unwrap();
        device.softmax(k, 1, 10).unwrap();
        device.cross_entropy(None, x, targets, T, D_MODEL).unwrap();
    }
}

fn result(device: CpuDevice) -> Vec<u32> {
    let mut layer = Layer::new(device.clone());
    device.enter(|| (0..3).for_each(|_| layer.forward()));
    let mut out = vec![0.0; T * D_MODEL];
    device.read(&layer.buffers[0], 0, &mut out).unwrap();
    assert!(out.iter().all(|x| x.is_finite()) && out.iter().any(|x| *x != 0.0));
    out.iter().map(|x| x.to_bits()).collect()
}

/// One test, since the counter is the whole process's.
#[test]
fn a_warm_layer_allocates_nothing_and_repeats_bit_by_bit() {
    for threads in [1, 2, 4] {
        let device = CpuDevice::new(threads, Arc::new(Unlimited)).unwrap();
        let mut layer = Layer::new(device.clone());
        let count = device.enter(|| {
            (0..200).for_each(|_| layer.forward());
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            (0..200).for_each(|_| layer.forward());
            ALLOCATIONS.load(Ordering::Relaxed) - before
        });
        assert_eq!(count, 0, "allocations in 200 passes on {threads} threads");
        assert_eq!(result(device.clone()), result(device), "two runs on {threads} threads");
    }
    let of = |threads| result(CpuDevice::new(threads, Arc::new(Unlimited)).unwrap());
    assert_eq!(of(1), of(3), "one thread and three");
}
