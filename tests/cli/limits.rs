//! Budgets, ratios and disks that are too small.

use std::ffi::OsString;
use std::fs;
use std::process::Command;

use espalier_models::Artifact;

use crate::args;
use crate::support::{Place, Said, assert_none, fixture, world};

/// Lengths of recovery that cost a fraction of a second.
const SHORT: [&str; 2] = ["--steps", "4,4,4"];

/// The number in front of `word`, the last one in the text.
fn number_before(text: &str, word: &str) -> u64 {
    let before = text.rsplit_once(word).map_or("", |(before, _)| before);
    let number = before.split_whitespace().next_back().unwrap_or("");
    number.parse().unwrap_or_else(|_| panic!("no number before `{word}` in: {text}"))
}

#[test]
fn a_budget_below_the_smallest_network_says_how_much_it_needs() {
    let (world, place) = (world(), Place::new());
    let prune = |fit: &str| {
        let arguments = args!["prune", world.model, "-o", place.out("small.esp"), "--data", world.corpus, "--fit", fit];
        place.run(arguments.into_iter().chain(SHORT.map(OsString::from)))
    };
    let before = place.listing();
    let refused = prune("1KiB");
    assert_none(refused.faults(1, &["1024 bytes are too few", "the smallest network", "give at least"]));
    assert_none(place.changes(&before));
    let run = args!["run", world.model, "--source", world.corpus, "--store", place.out("store"), "--budget", "1KiB"];
    assert_none(place.refuse(run, 1, &["1024 bytes are too few", "the smallest network", "give at least"]));

    let needed = number_before(&refused.stderr, " bytes\n");
    let said = prune(&needed.to_string());
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let inspected = place.succeed(args!["inspect", "--json", place.out("small.esp")]).json();
    assert!(inspected["plan_total_bytes"].as_u64().is_some_and(|bytes| bytes <= needed), "{inspected}");
}

#[test]
fn a_budget_leaves_room_for_the_longest_recording_that_is_read_whole() {
    let (world, place) = (world(), Place::new());
    let run = |source: &std::path::Path, budget: u64| {
        let (budget, store) = (budget.to_string(), place.out("store"));
        place.run(args!["run", world.model, "--source", source, "--store", store, "--budget", budget])
    };
    // Both hold 2 MiB of samples; only one of them is ever in memory.
    let (raw, whole) = (place.path("day.f32"), place.path("day.npy"));
    let samples = vec![0_u8; 2 << 20];
    fs::write(&raw, &samples).expect("raw samples");
    let header = format!("{:<117}\n", format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({},), }}", samples.len() / 4));
    let npy = [&b"\x93NUMPY\x01\x00"[..], &(header.len() as u16).to_le_bytes(), header.as_bytes(), &samples].concat();
    fs::write(&whole, npy).expect("a NumPy file");

    let smallest = number_before(&run(&raw, 1024).stderr, " bytes\n");
    let words = ["and the longest recording 2097152 bytes", &format!("give at least {} bytes", smallest + (2 << 20))];
    assert_none(run(&whole, smallest).faults(1, &words));
    // What is left for the model is enough for the smallest network; that the model has to be pruned is the next thing to refuse.
    assert_none(run(&whole, smallest + (2 << 20)).faults(2, &["its longest recording 2.00 MiB", "give --data DIR"]));
    let planned = place.succeed(args!["inspect", "--json", world.model]).json()["plan_total_bytes"].as_u64().expect("a number");
    assert_eq!(run(&raw, planned).code, Some(0));
}

#[test]
fn a_ratio_that_cannot_be_is_refused() {
    let (world, place) = (world(), Place::new());
    let prune = |ratio: &str| args!["prune", world.model, "-o", place.out("small.esp"), "--data", world.corpus, "--ratio", ratio];
    let mut faults = Vec::new();
    for ratio in ["0.5", "1", "0", "NaN", "inf"] {
        let words = ["a compression ratio of", "cuts nothing", "give a ratio above 1"];
        faults.extend(place.refuse(prune(ratio), 2, &words).into_iter().map(|fault| format!("{ratio}: {fault}")));
    }
    faults.extend(place.refuse(prune("many"), 2, &["invalid value 'many'", "--ratio"]));
    faults.extend(place.refuse(prune("500"), 1, &["a ratio of 500 cannot be reached", "the smallest network", "give a ratio of at most"]));
    assert_none(faults);
}

#[test]
fn the_largest_ratio_that_is_named_can_be_reached() {
    let (world, place) = (world(), Place::new());
    let out = place.out("small.esp");
    let prune = |ratio: &str| {
        let arguments = args!["prune", world.model, "-o", out, "--data", world.corpus, "--ratio", ratio];
        place.run(arguments.into_iter().chain(SHORT.map(OsString::from)))
    };
    let refused = prune("500").stderr;
    let most: f64 = refused.split("at most ").nth(1).and_then(|number| number.trim().parse().ok()).expect("a number in the sentence");
    let said = prune(&most.to_string());
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let ratio = Artifact::open(&out).expect("the result").manifest().compression_ratio();
    assert!(ratio >= most, "{ratio} instead of {most}");
}

#[test]
fn a_limit_below_what_pruning_needs_says_what_it_needs_and_that_is_enough() {
    let (world, place) = (world(), Place::new());
    let out = place.out("small.esp");
    let prune = |limit: &str| {
        let arguments = args!["prune", world.model, "-o", out, "--data", world.corpus, "--ratio", "2", "--limit", limit, "--json"];
        place.run(arguments.into_iter().chain(SHORT.map(OsString::from)))
    };
    let before = place.listing();
    let refused = prune("100KiB");
    assert_none(refused.faults(1, &["needs", "bytes of memory", "the limit is 102400 bytes", "give a limit of at least"]));
    assert_none(place.changes(&before));
    let needed = number_before(&refused.stderr, " bytes\n");
    let almost = prune(&(needed - 1).to_string());
    assert_none(almost.faults(1, &["give a limit of at least"]));
    let said = prune(&needed.to_string());
    assert_eq!(said.code, Some(0), "with the {needed} bytes that it asked for: {}", said.stderr);
    assert_eq!(said.json()["limit_bytes"].as_u64(), Some(needed));
}

#[test]
fn a_limit_below_what_serving_needs_is_refused() {
    let (world, place) = (world(), Place::new());
    let run = args!["run", world.model, "--source", world.corpus, "--store", place.out("store"), "--limit", "1KiB"];
    assert_none(place.refuse(run, 1, &["serving", "model.esp needs", "the limit is 1024 bytes", "give a limit of at least"]));

    let planned = place.succeed(args!["inspect", "--json", world.model]).json()["plan_total_bytes"].as_u64().expect("a number");
    let run = |limit: u64| {
        let limit = limit.to_string();
        place.run(args!["run", world.model, "--source", world.corpus, "--store", place.out("store"), "--limit", limit])
    };
    assert_none(run(planned - 1).faults(1, &[&format!("give a limit of at least {planned} bytes")]));
    let said = run(planned);
    assert_eq!(said.code, Some(0), "with the bytes that inspect names: {}", said.stderr);
}

#[test]
fn a_limit_below_what_training_needs_is_refused() {
    let (world, place) = (world(), Place::new());
    let train = args!["train", "--data", world.corpus, "-o", place.out("model.esp"), "--steps", "2", "--limit", "3MiB"];
    assert_none(place.refuse(train, 1, &["limit"]));
}

/// Runs the program from a shell that first does `prepare`, and lists `out` when it is done.
fn in_shell(place: &Place, wrapper: &[&str], prepare: &str, arguments: &[OsString]) -> Said {
    let script = format!("{prepare}\n\"$@\"; code=$?; find \"$OUT\" -mindepth 1 >&2; exit $code");
    let (first, rest) = wrapper.split_first().expect("a shell");
    let mut command = Command::new(first);
    command.args(rest).args(["-c", &script, "sh"]).arg(env!("CARGO_BIN_EXE_espalier")).args(arguments);
    command.env("OUT", place.path("out"));
    place.surround(&mut command);
    let output = command.output().expect("a shell");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Said { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Commands that write, each with more to write than 32 KiB.
fn writers(place: &Place) -> Vec<Vec<OsString>> {
    let world = world();
    let out = |name: &str| place.out(name);
    let mut prune = args!["prune", world.model, "-o", out("pruned.esp"), "--data", world.corpus, "--ratio", "1.2"].to_vec();
    prune.extend(SHORT.map(OsString::from));
    vec![
        args!["import", fixture("gpt2"), "-o", out("imported.esp")].to_vec(),
        args!["export", world.gpt2, "--safetensors", out("checkpoint")].to_vec(),
        prune,
        args!["train", "--data", world.corpus, "-o", out("trained.esp"), "--steps", "2"].to_vec(),
        args!["run", world.model, "--source", world.corpus, "--store", out("store")].to_vec(),
    ]
}

/// Faults of what each writing command says and leaves behind where the disk refuses with one of `words`.
fn refused_by_disk(wrapper: &[&str], prepare: &str, words: &[&str]) -> Vec<String> {
    let mut faults = Vec::new();
    for writer in 0..writers(&Place::new()).len() {
        let place = Place::new();
        let arguments = writers(&place).swap_remove(writer);
        let what = arguments[0].to_string_lossy().into_owned();
        let said = in_shell(&place, wrapper, prepare, &arguments);
        faults.extend(said.faults(1, &[]).into_iter().map(|fault| format!("{what}: {fault}")));
        if !words.iter().any(|word| said.stderr.contains(word)) {
            faults.push(format!("{what}: none of {words:?} in: {}", said.stderr));
        }
        let out = place.path("out").display().to_string();
        let left: Vec<&str> = said.stderr.lines().filter(|line| line.starts_with(&out)).collect();
        if !left.is_empty() {
            faults.push(format!("{what}: it left {left:?}"));
        }
        if fs::read_dir(place.path("scratch")).expect("the folder").next().is_some() {
            faults.push(format!("{what}: it left a scratch file"));
        }
    }
    faults
}

#[test]
fn a_full_disk_ends_in_a_sentence_and_leaves_nothing() {
    // A mount of its own goes with its process. Who may not mount here has the next test.
    let shell = ["unshare", "--mount", "sh"];
    let probe = Command::new("unshare").args(["--mount", "mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", "/mnt"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        eprintln!("no file system can be mounted here: a full disk is not tried");
        return;
    }
    let prepare = "mount -t tmpfs -o size=32k tmpfs \"$OUT\" || exit 99";
    assert_none(refused_by_disk(&shell, prepare, &["No space left on device"]));
}

#[test]
fn a_file_size_limit_ends_in_a_sentence_and_leaves_nothing() {
    // A limit counts blocks of 512 bytes or of 1 KiB, as the shell likes; the smallest file that is written here has 50 KiB. The signal
    // that comes with a refusal would end the program.
    assert_none(refused_by_disk(&["sh"], "trap '' XFSZ; ulimit -f 32", &["File too large"]));
}
