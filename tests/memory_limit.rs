//! Pruning stays within its limit, everything included: the 85-million-parameter shape of the cascade's paper, in a process of its own,
//! watched through the kernel's accounting.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use espalier_agent::signals::{SimulationOptions, simulate_corpus};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// What the binary's own file pages, the recordings' scratch file and a sampling gap may add.
const SLACK_BYTES: u64 = 32 << 20;

fn espalier() -> Command {
    Command::new(env!("CARGO_BIN_EXE_espalier"))
}

/// A field of `/proc/PID/status` or a mapping of `/proc/PID/smaps`, in bytes.
fn kib_field(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)).and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    value.unwrap_or(0) * 1024
}

/// Resident bytes of the mapped artifacts.
fn artifact_bytes(smaps: &str) -> u64 {
    let (mut counted, mut total) = (false, 0);
    for line in smaps.lines() {
        let is_mapping = line.split(' ').next().is_some_and(|first| first.contains('-') && !first.ends_with(':'));
        if is_mapping {
            counted = line.trim_end_matches(" (deleted)").ends_with(".esp");
        } else if counted && line.starts_with("Rss:") {
            total += kib_field(line, "Rss:");
        }
    }
    total
}

/// Runs a command and returns the largest sum of anonymous memory and mapped artifacts, and the high-water mark of all resident memory.
fn watch(command: &mut Command) -> Fallible<(u64, u64)> {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn()?;
    let proc = format!("/proc/{}", child.id());
    let (mut peak, mut high_water) = (0, 0);
    while child.try_wait()?.is_none() {
        let (status, smaps) = (std::fs::read_to_string(format!("{proc}/status")), std::fs::read_to_string(format!("{proc}/smaps")));
        if let (Ok(status), Ok(smaps)) = (status, smaps) {
            peak = peak.max(kib_field(&status, "RssAnon:") + artifact_bytes(&smaps));
            high_water = high_water.max(kib_field(&status, "VmHWM:"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let status = child.wait()?;
    if !status.success() {
        return Err(format!("the command ended with {status}").into());
    }
    Ok((peak, high_water))
}

fn prune(model: &Path, data: &Path, output: &Path, limit: u64) -> Command {
    let mut command = espalier();
    command.arg("prune").arg(model).arg("--data").arg(data).arg("--output").arg(output).arg("--limit").arg(limit.to_string());
    // Half of everything stays: the largest intermediate networks, and so the hardest for the limit.
    command.args(["--ratio", "4", "--keep", "6,6,1536", "--steps", "8,8,8", "--windows", "128"]);
    command
}

#[test]
fn pruning_the_paper_shape_stays_within_one_and_a_half_times_its_weights() -> Fallible<()> {
    let place = tempfile::tempdir()?;
    let (data, model, output) = (place.path().join("data"), place.path().join("paper.esp"), place.path().join("small.esp"));
    let options = SimulationOptions { training_machines: 2, test_machines: 1, training_seconds: 4.0, test_seconds: 1.0 };
    simulate_corpus(&data, &options, 1)?;
    // Memory does not depend on what the weights are: an untrained network is the same work.
    let trained = espalier()
        .args(["train", "--size", "paper", "--steps", "0", "--output"])
        .arg(&model)
        .arg("--data")
        .arg(&data)
        .stdout(Stdio::null())
        .status()?;
    assert!(trained.success());
    let weights = std::fs::metadata(&model)?.len();

    let refused = prune(&model, &data, &output, weights).output()?;
    let sentence = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{sentence}");
    let needed: u64 =
        sentence.split("needs ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok()).ok_or_else(|| sentence.clone())?;
    assert!(needed > weights && needed <= weights + weights / 2, "{sentence}");
    assert!(!output.exists());

    let limit = weights + weights / 2;
    let (peak, high_water) = watch(&mut prune(&model, &data, &output, limit))?;
    println!("weights {weights}, limit {limit}, held at most {peak} (sampled), resident at most {high_water} (VmHWM), all files included");
    assert!(peak > weights, "the watch saw only {peak} bytes");
    assert!(peak <= limit + SLACK_BYTES, "held {peak} bytes with a limit of {limit}");
    assert!(high_water <= limit + SLACK_BYTES, "resident {high_water} bytes with a limit of {limit}");
    assert!(output.exists());
    Ok(())
}
