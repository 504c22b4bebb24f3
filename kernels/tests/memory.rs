//! Memory of the CPU device: booked before it is taken, refused with an error, given back on drop.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use espalier_kernels::{CpuDevice, Device, Format, HostBytes, KernelError, Ledger, Purpose, Result};

/// A ledger with a limit.
struct Limited {
    limit: u64,
    booked: Mutex<BTreeMap<Purpose, u64>>,
}

impl Limited {
    fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, booked: Mutex::default() })
    }
    fn total(&self) -> u64 {
        self.booked.lock().unwrap().values().sum()
    }
    fn of(&self, purpose: Purpose) -> u64 {
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

#[test]
fn a_refusal_names_purpose_and_numbers_and_the_device_goes_on() {
    let ledger = Limited::new(1 << 20);
    let device = CpuDevice::new(2, ledger.clone()).unwrap();
    let kept = device.for_purpose(Purpose::KvCache).zeros(1000).unwrap();
    let error = device.for_purpose(Purpose::Gradients).zeros(1 << 20).err().unwrap();
    assert_eq!(error, KernelError::OutOfBudget { purpose: "gradients", needed: 4 << 20, available: (1 << 20) - 4000, limit: 1 << 20 });
    assert_eq!(error.to_string(), "gradients needs 4194304 bytes, but only 1044576 bytes of the memory limit of 1048576 bytes are left");
    assert_eq!(device.sum_of_squares(&kept, 1000), Ok(0.0));
    assert!(device.zeros(200_000).is_ok(), "a buffer that fits must still be given");
    drop(kept);
    assert_eq!(ledger.total(), 0);
}

#[test]
fn a_size_beyond_the_machine_is_an_error() {
    let device = CpuDevice::new(1, Arc::new(espalier_kernels::Unlimited)).unwrap();
    for len in [usize::MAX, usize::MAX / 4, isize::MAX as usize / 4 - 1] {
        assert!(matches!(device.zeros(len), Err(KernelError::OutOfMemory { purpose: "activations", .. })), "{len} numbers");
    }
}

#[test]
fn everything_is_booked_by_purpose_and_given_back() {
    let ledger = Limited::new(1 << 30);
    let device = CpuDevice::new(1, ledger.clone()).unwrap();
    let adapters = device.for_purpose(Purpose::Adapters);
    let small = adapters.zeros(10).unwrap();
    let weight = adapters.own_weight(adapters.zeros(100_001).unwrap(), 10, 10_000).unwrap();
    let ids = device.indices(&[1, 2, 3]).unwrap();
    // A mapping takes whole pages.
    let mapped = 400_004_u64.next_multiple_of(rustix_page());
    assert_eq!((ledger.of(Purpose::Adapters), ledger.of(Purpose::Activations)), (40 + mapped, 12));
    drop((small, weight, ids));
    assert_eq!(ledger.total(), 0);
}

fn rustix_page() -> u64 {
    rustix::param::page_size() as u64
}

#[test]
fn zeros_of_a_large_buffer_are_not_resident_until_written() {
    let resident = || -> u64 {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * rustix_page()
    };
    let device = CpuDevice::new(1, Arc::new(espalier_kernels::Unlimited)).unwrap();
    let before = resident();
    let mut buffer = device.zeros(64 << 20).unwrap();
    assert!(resident() < before + (64 << 20), "reserving 256 MiB made {} bytes resident", resident() - before);
    device.fill(&mut buffer, 64 << 20, 1.0).unwrap();
    assert!(resident() > before + (200 << 20));
    drop(buffer);
    assert!(resident() < before + (64 << 20), "dropping 256 MiB left {} bytes resident", resident() - before);
}

struct Bytes(Vec<u64>);

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

#[test]
fn a_misaligned_map_is_refused_by_name() {
    let device = CpuDevice::new(1, Arc::new(espalier_kernels::Unlimited)).unwrap();
    let owner: Arc<dyn AsRef<[u8]> + Send + Sync> = Arc::new(Bytes(vec![0; 16]));
    let bytes = HostBytes { owner, range: 2..66 };
    let error = device.map_weight(bytes, Format::F32, 4, 4).err().unwrap();
    assert_eq!(
        error.to_string(),
        "map_weight: a F32 matrix [4, 4] starts 2 bytes past a multiple of 4 bytes; it is read in place and has to start at one"
    );
}

#[test]
fn a_device_needs_a_sensible_number_of_threads() {
    for threads in [0, 100_000] {
        assert!(matches!(CpuDevice::new(threads, Arc::new(espalier_kernels::Unlimited)), Err(KernelError::Shape { .. })));
    }
}
