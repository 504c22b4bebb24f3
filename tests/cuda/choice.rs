//! Which engine computes, and what takes over.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::args;
use crate::device::emulator_folder;
use crate::support::{Place, Said, assert_none, end, world};

/// Has a command find the emulator, set up so.
pub fn emulate<'a>(command: &'a mut Command, folder: &Path, settings: &str) -> &'a mut Command {
    command.env("LD_LIBRARY_PATH", folder).env("ESPALIER_EMULATOR", settings)
}

/// Runs the program on the emulator.
pub fn run_on(place: &Place, folder: &Path, settings: &str, args: impl IntoIterator<Item = OsString>) -> Said {
    let mut command = place.command(args);
    emulate(&mut command, folder, settings).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    end(command.spawn().expect("the program starts"))
}

/// Verdicts in their order.
fn verdicts(said: &Said) -> Vec<Value> {
    said.stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

/// What is wrong where every window should have its verdict, once and in order.
fn gaps(said: &Said) -> Vec<String> {
    let verdicts = verdicts(said);
    let mut faults = Vec::new();
    if verdicts.is_empty() {
        faults.push("there are no verdicts".to_string());
    }
    for (index, verdict) in verdicts.iter().enumerate() {
        if verdict["sequence"] != index as u64 || verdict["class"].is_null() {
            faults.push(format!("verdict {index} is {verdict}"));
        }
    }
    if !said.stderr.contains("every sequence number accounted for; missing 0, repeated 0") {
        faults.push("sequence numbers are not accounted for".to_string());
    }
    faults
}

/// A driver or device that cannot be used, and the sentence that says so.
const UNUSABLE: [(&str, &str); 8] = [
    ("stub=1", "is the stub for linking, not a driver"),
    ("driver=12040", "the NVIDIA driver supports CUDA 12.4, but 12.6 or later is needed"),
    ("devices=0", "no CUDA device 0: the driver knows 0"),
    ("capability=7.5", "has compute capability 7.5, but 8.0 or later is needed"),
    ("reject_images=99", "none of the kernels' images loads on"),
    ("memory=1048576", "the system refused"),
    ("fail_alloc=1", "the system refused"),
    ("lose_device=1", "CUDA_ERROR_DEVICE_UNAVAILABLE"),
];

#[test]
fn a_cuda_device_that_cannot_be_used_is_passed_over_with_a_sentence() {
    let Some(folder) = emulator_folder() else { return };
    let (world, place) = (world(), Place::new());
    let mut faults = Vec::new();
    for (settings, sentence) in UNUSABLE {
        let store = place.out(&format!("store-{settings}"));
        let run = args!["run", world.model, "--source", world.corpus, "--store", store, "-v"];
        let said = run_on(&place, &folder, settings, run.clone());
        let mut wrong = gaps(&said);
        if said.code != Some(0) {
            wrong.push(format!("exit code {:?}", said.code));
        }
        let lines = said.stderr.lines().filter(|line| line.contains("engine cuda") && line.contains("engine cpu"));
        match lines.collect::<Vec<_>>()[..] {
            [line] if line.contains(sentence) => {}
            ref lines => wrong.push(format!("it says {lines:?} instead of one line with `{sentence}`")),
        }
        faults.extend(wrong.into_iter().map(|fault| format!("{settings}: {fault}; it said: {}", said.stderr.trim_end())));
    }
    assert_none(faults);
}

#[test]
fn a_cuda_engine_that_was_asked_for_by_name_is_not_replaced() {
    let Some(folder) = emulator_folder() else { return };
    let (world, place) = (world(), Place::new());
    let mut faults = Vec::new();
    for (settings, sentence) in UNUSABLE {
        let said = run_on(&place, &folder, settings, args!["bench", world.model, "--engine", "cuda", "--count", "2"]);
        let wrong = said.faults(1, &[sentence]);
        faults.extend(wrong.into_iter().map(|fault| format!("{settings}: {fault}")));
    }
    assert_none(faults);
}

#[test]
fn without_a_cuda_driver_the_cpu_computes() {
    let (world, place) = (world(), Place::new());
    // A folder without a driver; a driver of the machine's own would be found all the same.
    // SAFETY: a driver's initialisers are as safe as a program's that links it.
    if unsafe { libloading::Library::new("libcuda.so.1") }.is_ok() {
        eprintln!("SKIPPED: this machine has a driver");
        return;
    }
    let said = place.succeed(args!["bench", world.model, "--count", "2", "-v"]);
    let lines = said.stderr.matches("engine cuda not taken: no NVIDIA driver: libcuda.so is not installed; engine cpu computes").count();
    assert_eq!(lines, 1, "{}", said.stderr);
    assert_none(place.refuse(args!["bench", world.model, "--engine", "cuda"], 1, &["engine cuda: no NVIDIA driver"]));
    let quiet = place.succeed(args!["bench", world.model, "--engine", "cpu", "--count", "2", "-v"]);
    assert!(!quiet.stderr.contains("cuda"), "{}", quiet.stderr);
}

#[test]
fn a_cuda_device_that_fails_in_the_loop_loses_no_window() {
    let Some(folder) = emulator_folder() else { return };
    let (world, place) = (world(), Place::new());
    let healthy = run_on(&place, &folder, "", args!["run", world.model, "--source", world.corpus, "--store", place.out("healthy"), "-v"]);
    assert!(healthy.stderr.contains("engine cuda: ") && !healthy.stderr.contains("engine cpu"), "{}", healthy.stderr);
    let expected = verdicts(&healthy);
    let mut faults: Vec<String> = gaps(&healthy).into_iter().map(|fault| format!("healthy: {fault}")).collect();
    // A window of three layers takes about 50 launches: in the first, in the recording, and in a graph.
    for fault in ["lose_device=20", "lose_device=70", "lose_device=400", "fault_launch=300", "fail_launch=30"] {
        let store = place.out(&format!("store-{fault}"));
        let said = run_on(&place, &folder, fault, args!["run", world.model, "--source", world.corpus, "--store", store, "-v"]);
        let mut wrong = gaps(&said);
        let takes_over =
            said.stderr.lines().filter(|line| line.contains("engine cuda: ") && line.contains("engine cpu takes over")).count();
        if said.code != Some(0) || takes_over != 1 {
            wrong.push(format!("exit code {:?}, {takes_over} lines that say who takes over", said.code));
        }
        let same = verdicts(&said).iter().zip(&expected).filter(|(a, b)| a["class"] == b["class"]).count();
        if same != expected.len() {
            wrong.push(format!("{same} of {} verdicts name the class that the healthy device does", expected.len()));
        }
        faults.extend(wrong.into_iter().map(|wrong| format!("{fault}: {wrong}; it said: {}", said.stderr.trim_end())));
    }
    assert_none(faults);
}

#[test]
fn a_cuda_device_that_was_asked_for_by_name_fails_its_windows_in_order() {
    let Some(folder) = emulator_folder() else { return };
    let (world, place) = (world(), Place::new());
    let run = args!["run", world.model, "--source", world.corpus, "--store", place.out("store"), "--engine", "cuda"];
    let said = run_on(&place, &folder, "lose_device=400", run);
    let verdicts = verdicts(&said);
    assert!(verdicts.iter().enumerate().all(|(index, verdict)| verdict["sequence"] == index as u64), "{}", said.stdout);
    let failed = verdicts.iter().filter(|verdict| verdict["class"].is_null()).count();
    assert!(failed > 0 && failed < verdicts.len(), "{failed} of {} failed; {}", verdicts.len(), said.stderr);
    assert!(said.stderr.contains("every sequence number accounted for"), "{}", said.stderr);
    let sentence = format!("no engine serves any more, and {failed} of {} windows have no verdict", verdicts.len());
    assert_none(said.faults(1, &[&sentence]));
    // However many windows fail, the log says once what of.
    let lines = said.stderr.lines().filter(|line| line.contains("the engine failed")).count();
    assert!(lines <= 2, "{lines} lines; {}", said.stderr);
}

/// MiB of the host that the driver of the emulator takes where its context takes so many bytes of the process, and so many outside.
fn driver_mib(place: &Place, folder: &Path, context: u64, kernel: u64) -> f64 {
    let settings = format!("integrated=1,context={context},kernel={kernel}");
    let said = run_on(place, folder, &settings, args!["bench", world().model, "--engine", "cuda", "--count", "2", "-v"]);
    let line = said.stderr.lines().find_map(|line| line.split_once("its driver takes ")?.1.split_once(" bytes of the host"));
    let bytes = line.and_then(|(bytes, _)| bytes.parse::<f64>().ok());
    bytes.unwrap_or_else(|| panic!("{settings}: it does not say what the driver takes: {}", said.stderr)) / f64::from(1 << 20)
}

#[test]
fn what_a_cuda_driver_takes_of_the_host_is_booked_wherever_it_is() {
    let Some(folder) = emulator_folder() else { return };
    let (world, place) = (world(), Place::new());
    let cases = [(16, 0), (0, 24), (16, 24)];
    let faults = || {
        let plain = driver_mib(&place, &folder, 0, 0);
        let wrong = cases.into_iter().filter_map(|(context, kernel)| {
            let (more, expected) = (driver_mib(&place, &folder, context << 20, kernel << 20) - plain, (context + kernel) as f64);
            let fault = || format!("{context} MiB of the process and {kernel} outside: {more} MiB more than with neither");
            ((more - expected).abs() > 8.0).then(fault)
        });
        wrong.collect::<Vec<_>>()
    };
    // A large process that ends at that moment moves the gauge.
    let tries: Vec<_> = std::iter::repeat_with(faults).take(3).take_while(|faults| !faults.is_empty()).collect();
    assert!(tries.len() < 3, "{tries:#?}");
    // Where the limit leaves it no room the CPU serves.
    let run = args!["run", world.model, "--source", world.corpus, "--store", place.out("store"), "--limit", "32000000", "-v"];
    let said = run_on(&place, &folder, "integrated=1,context=25165824,kernel=25165824", run);
    let sentence = |line: &str| line.contains("more than the budget of 30.5 MiB leaves; engine cpu takes over");
    assert!(said.code == Some(0) && said.stderr.lines().any(sentence), "{}", said.stderr);
}
