//! Recorded work on the CUDA device, on the emulator.
#![cfg(feature = "cuda")]

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use espalier_kernels::cuda::{Buffer, Graph, Plan};
use espalier_kernels::{CudaDevice, Device, KernelError, Product, Result};
use support::{Emulator, Limited};

const LEN: usize = 1000;

/// `y = 2 x + y`, and a sum in y's last place would show a launch too many.
fn step(device: &CudaDevice, y: &mut Buffer, x: &Buffer) -> Result<()> {
    device.add(y, x, LEN, 2.0)?;
    device.scale(y, LEN, 0.5)
}

fn first(device: &CudaDevice, buffer: &Buffer) -> f32 {
    let mut number = [0.0];
    device.read(buffer, 0, &mut number).unwrap();
    number[0]
}

fn launches(device: &CudaDevice) -> u64 {
    device.kernel_counts().iter().map(|count| count.launches).sum()
}

#[test]
fn a_cuda_graph_does_what_the_work_does() {
    let Some(emulator) = Emulator::start("") else { return };
    let device = emulator.device();
    let (mut x, mut y) = (device.zeros(LEN).unwrap(), device.zeros(LEN).unwrap());
    let mut graph = Graph::default();
    let mut expected = 0.0;
    let mut calls = 0;
    for round in 1..=5 {
        device.write(&mut x, 0, &[round as f32; LEN]).unwrap();
        device
            .replay(&mut graph, || {
                calls += 1;
                step(&device, &mut y, &x)
            })
            .unwrap();
        expected = (expected + 2.0 * round as f32) / 2.0;
        assert_eq!(first(&device, &y), expected, "round {round}");
        assert_eq!(launches(&device), 2 * round as u64, "a run of a graph counts as its launches");
    }
    assert_eq!((calls, emulator.counter("graph_launches")), (2, 4), "the work ran once and was recorded once");
    assert!(graph.is_recorded());
}

#[test]
fn a_cuda_graph_is_recorded_anew_when_its_memory_has_gone() {
    let Some(emulator) = Emulator::start("") else { return };
    let device = emulator.device();
    let (mut x, mut y) = (device.zeros(LEN).unwrap(), device.zeros(LEN).unwrap());
    let (mut graph, mut calls) = (Graph::default(), 0);
    let mut run = |x: &Buffer, y: &mut Buffer| {
        let before = calls;
        device
            .replay(&mut graph, || {
                calls += 1;
                step(&device, y, x)
            })
            .unwrap();
        calls > before
    };
    assert_eq!([run(&x, &mut y), run(&x, &mut y), run(&x, &mut y)], [true, true, false]);
    drop(device.zeros(LEN).unwrap());
    assert!(!run(&x, &mut y), "a buffer that the graph does not use may come and go");
    x = device.zeros(LEN).unwrap();
    device.fill(&mut x, LEN, 1.0).unwrap();
    device.fill(&mut y, LEN, 4.0).unwrap();
    assert!(run(&x, &mut y), "a graph whose buffer was dropped must not run");
    assert_eq!(first(&device, &y), 3.0);
    assert_eq!([run(&x, &mut y), run(&x, &mut y)], [true, false]);
}

#[test]
fn indices_of_a_cuda_graph_that_grow_are_checked_again() {
    let Some(emulator) = Emulator::start("") else { return };
    let device = emulator.device();
    let table = device.own_weight(device.zeros(4 * LEN).unwrap(), 4, LEN).unwrap();
    let (mut ids, mut out) = (device.indices(&[0, 3]).unwrap(), device.zeros(2 * LEN).unwrap());
    let mut graph = Graph::default();
    for _ in 0..3 {
        device.replay(&mut graph, || device.embed(&mut out, &table, &ids, 2)).unwrap();
    }
    device.write_indices(&mut ids, &[3, 2]).unwrap();
    device.replay(&mut graph, || panic!("the same largest index needs no new recording") as Result<()>).unwrap();
    device.write_indices(&mut ids, &[0, 4]).unwrap();
    let refused = device.replay(&mut graph, || device.embed(&mut out, &table, &ids, 2));
    assert!(matches!(refused, Err(KernelError::Shape { operation: "embed", .. })), "{refused:?}");
}

#[test]
fn what_no_cuda_graph_can_record_runs_as_it_is() {
    let Some(emulator) = Emulator::start("") else { return };
    let device = emulator.device();
    let (x, mut y) = (device.zeros(LEN).unwrap(), device.zeros(LEN).unwrap());
    let mut dropped: Vec<_> = (0..3).map(|_| device.zeros(LEN).unwrap()).collect();
    type Work<'a> = &'a mut dyn FnMut(&mut Buffer) -> Result<()>;
    let cases: [(&str, Work); 5] = [
        ("allocation", &mut |_| device.zeros(LEN).map(|_| ())),
        ("write", &mut |y| device.write(y, 0, &[1.0])),
        ("read", &mut |y| device.read(y, 0, &mut [0.0])),
        ("a result", &mut |y| device.sum_of_squares(y, LEN).map(|_| ())),
        ("drop", &mut |_| {
            dropped.pop();
            Ok(())
        }),
    ];
    for (name, work) in cases {
        let mut graph = Graph::default();
        device.replay(&mut graph, || work(&mut y)).unwrap();
        device.fill(&mut y, LEN, 8.0).unwrap();
        let (before, mut calls) = (launches(&device), 0);
        let result = device.replay(&mut graph, || {
            calls += 1;
            step(&device, &mut y, &x)?;
            work(&mut y)
        });
        assert_eq!((result, calls, graph.is_recorded()), (Ok(()), 2, false), "{name}");
        let mut numbers = [0.0; LEN];
        device.read(&y, 0, &mut numbers).unwrap();
        assert_eq!(numbers[1], 4.0, "{name}: the work has run once");
        let counted = launches(&device) - before;
        assert!((2..=4).contains(&counted), "{name}: {counted} launches are counted, as if what was recorded had run too");
    }
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut graph = Graph::default();
        device.replay(&mut graph, || step(&device, &mut y, &x)).unwrap();
        let _ = device.replay(&mut graph, || panic!("on purpose") as Result<()>);
    }));
    assert!(panicked.is_err());
    device.fill(&mut y, LEN, 8.0).unwrap();
    assert_eq!(first(&device, &y), 8.0);
}

#[test]
fn other_threads_stay_out_of_a_cuda_recording() {
    let Some(emulator) = Emulator::start("") else { return };
    let device = emulator.device();
    let (done, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let mut other = device.zeros(LEN).unwrap();
            device.fill(&mut other, LEN, 1.0).unwrap();
            while !done.load(Ordering::Relaxed) {
                let copy = device.zeros(LEN).unwrap();
                device.add(&mut other, &copy, LEN, 1.0).unwrap();
                rounds.fetch_add(1, Ordering::Relaxed);
            }
            first(&device, &other)
        });
        while rounds.load(Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }
        for _ in 0..20 {
            let (mut x, mut y) = (device.zeros(LEN).unwrap(), device.zeros(LEN).unwrap());
            device.fill(&mut x, LEN, 1.0).unwrap();
            let mut graph = Graph::default();
            for round in 1..=4 {
                device.replay(&mut graph, || step(&device, &mut y, &x)).unwrap();
                assert_eq!(first(&device, &y), 2.0 - 2.0_f32.powi(1 - round));
            }
        }
        done.store(true, Ordering::Relaxed);
        assert_eq!(other.join().unwrap(), 1.0);
    });
}

#[test]
fn timed_cuda_kernels_have_times_and_run_unrecorded() {
    let Some(emulator) = Emulator::start("") else { return };
    let device = emulator.device();
    let (x, mut y) = (device.zeros(LEN).unwrap(), device.zeros(LEN).unwrap());
    let mut graph = Graph::default();
    device.time_kernels(true);
    for _ in 0..3 {
        device.replay(&mut graph, || step(&device, &mut y, &x)).unwrap();
    }
    device.time_kernels(false);
    let counts = device.kernel_counts();
    let add = counts.iter().find(|count| count.name == "add").unwrap();
    assert_eq!((add.launches, add.timed_launches, add.bytes), (3, 3, 3 * 12 * LEN as u64));
    assert!(add.bytes_per_s().unwrap() > 0.0);
    assert_eq!(emulator.counter("graph_launches"), 0);
}

/// A product that cuts its sum into parts, which lie in scratch memory.
fn product(device: &CudaDevice, c: &mut Buffer, a: &Buffer) -> Result<()> {
    let product = Product { m: 9, n: 9, k: 900, transpose_a: false, transpose_b: true, alpha: 1.0, accumulate: false };
    device.matmul(c, a, a, product)
}

#[test]
fn a_refused_allocation_of_another_user_disturbs_no_cuda_recording() {
    let Some(emulator) = Emulator::start("") else { return };
    let device = emulator.device_of(Limited::new(64 << 20));
    let device = device.with_plan(Plan { multiprocessors: Some(64), ..Plan::default() });
    let (mut a, mut c) = (device.zeros(9 * 900).unwrap(), device.zeros(81).unwrap());
    device.fill(&mut a, 9 * 900, 1.0).unwrap();
    let mut graph = Graph::default();
    let mut calls = 0;
    // The refusal has the scratch memory given up: before a recording, and of a recorded graph.
    for (round, refused_before) in [(0, false), (1, true), (2, false), (3, true), (4, false), (5, false)] {
        if refused_before {
            let refused = device.zeros(1 << 30).err();
            assert!(matches!(refused, Some(KernelError::OutOfBudget { .. })), "{refused:?}");
        }
        device.fill(&mut c, 81, 0.0).unwrap();
        device
            .replay(&mut graph, || {
                calls += 1;
                product(&device, &mut c, &a)
            })
            .unwrap();
        assert_eq!(first(&device, &c), 900.0, "round {round}");
    }
    assert_eq!((calls, graph.is_recorded()), (5, true), "memory that has gone is allocated by a run, not missed by a recording");
}

#[test]
fn a_cuda_graph_of_one_thread_leaves_the_intermediate_numbers_of_others_alone() {
    let Some(emulator) = Emulator::start("") else { return };
    let device = emulator.device().with_plan(Plan { multiprocessors: Some(64), ..Plan::default() });
    let operands = |value| {
        let mut a = device.zeros(9 * 900).unwrap();
        device.fill(&mut a, 9 * 900, value).unwrap();
        (a, device.zeros(81).unwrap())
    };
    let ((ones, mut of_ones), (twos, mut of_twos)) = (operands(1.0), operands(2.0));
    let (mut graph, done) = (Graph::default(), AtomicBool::new(false));
    for _ in 0..2 {
        device.replay(&mut graph, || product(&device, &mut of_ones, &ones)).unwrap();
    }
    assert!(graph.is_recorded());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                device.replay(&mut graph, || product(&device, &mut of_ones, &ones)).unwrap();
            }
        });
        let mut products = Vec::new();
        for _ in 0..200 {
            product(&device, &mut of_twos, &twos).unwrap();
            products.push(first(&device, &of_twos));
        }
        done.store(true, Ordering::Relaxed);
        assert_eq!(products, [3600.0; 200]);
    });
}

#[test]
fn a_cuda_driver_that_refuses_graphs_is_asked_less_and_less() {
    let Some(emulator) = Emulator::start("refuse_graphs=3") else { return };
    let device = emulator.device();
    let (mut x, mut y) = (device.zeros(LEN).unwrap(), device.zeros(LEN).unwrap());
    device.fill(&mut x, LEN, 1.0).unwrap();
    let mut graph = Graph::default();
    let mut attempts = Vec::new();
    for round in 1..=10 {
        let before = emulator.counter("captures");
        device.replay(&mut graph, || step(&device, &mut y, &x)).unwrap();
        assert_eq!(first(&device, &y), 2.0 - 2.0_f32.powi(1 - round));
        assert_eq!(launches(&device), 1 + 2 * round as u64);
        attempts.push(emulator.counter("captures") - before);
    }
    assert_eq!(attempts, [0, 1, 1, 0, 1, 0, 0, 0, 1, 0]);
    assert!(graph.is_recorded());
}

#[test]
fn a_recorded_cuda_graph_that_is_refused_gives_way_to_its_work() {
    // The fill, the first run's two kernels, then the kernels of the graph, all of which are refused at the fourth.
    let Some(emulator) = Emulator::start("fail_launch=4") else { return };
    let device = emulator.device();
    let (mut x, mut y) = (device.zeros(LEN).unwrap(), device.zeros(LEN).unwrap());
    device.fill(&mut x, LEN, 1.0).unwrap();
    let mut graph = Graph::default();
    for round in 1..=5 {
        device.replay(&mut graph, || step(&device, &mut y, &x)).unwrap();
        assert_eq!(first(&device, &y), 2.0 - 2.0_f32.powi(1 - round));
    }
    assert_eq!(emulator.counter("refused_launches"), 1);
    assert!(graph.is_recorded());
}

#[test]
fn what_another_thread_drops_does_not_spoil_a_cuda_recording() {
    let Some(emulator) = Emulator::start("") else { return };
    let device = emulator.device();
    let (x, mut y) = (device.zeros(LEN).unwrap(), device.zeros(LEN).unwrap());
    let mut graph = Graph::default();
    // Of a recording that is still good: once it is dropped, that is not.
    let (mut other, mut of_other) = (Graph::default(), device.zeros(LEN).unwrap());
    for _ in 0..2 {
        device.replay(&mut other, || step(&device, &mut of_other, &x)).unwrap();
    }
    device.replay(&mut graph, || step(&device, &mut y, &x)).unwrap();
    let (mut given, mut calls) = (Some(of_other), 0);
    std::thread::scope(|scope| {
        device
            .replay(&mut graph, || {
                calls += 1;
                step(&device, &mut y, &x)?;
                if let Some(of_other) = given.take() {
                    scope.spawn(move || drop(of_other));
                    std::thread::sleep(std::time::Duration::from_millis(50));
                }
                Ok(()) as Result<()>
            })
            .unwrap();
    });
    assert_eq!((calls, graph.is_recorded()), (1, true), "it waits until the recording is over");
}
