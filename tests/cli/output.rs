//! Help and JSON.

use crate::args;
use crate::support::{Place, assert_none, world};

#[test]
fn help_of_every_command_names_its_options() {
    let place = Place::new();
    let data = ["--data", "--split"];
    let commands: [(&str, &[&str]); 11] = [
        ("demo", &["--data", "--split", "--output", "--json"]),
        ("train", &[&data[..], &["--output", "--layers", "--width", "--heads", "--channels", "--epochs", "--steps", "--limit"]].concat()),
        ("import", &["--output", "--dtype"]),
        ("inspect", &["--verify", "--json"]),
        ("eval", &[&data[..], &["--snr", "--holdout", "--reference", "--without", "--json"]].concat()),
        ("check", &["--json"]),
        (
            "prune",
            &[&data[..], &["--output", "--ratio", "--fit", "--keep", "--limit", "--stages", "--rank", "--steps", "--epochs"]].concat(),
        ),
        ("run", &[&data[..], &["--source", "--pace", "--repeat", "--budget", "--limit", "--store", "--max-drop"]].concat()),
        ("generate", &["--max-tokens", "--temperature", "--seed"]),
        ("export", &["--safetensors", "--dialect"]),
        ("bench", &["--count", "--json"]),
    ];
    let mut faults = Vec::new();
    let overview = place.run(["--help"]).stdout;
    for (command, options) in commands {
        let said = place.run([command, "--help"]);
        if said.code != Some(0) || !said.stderr.is_empty() {
            faults.push(format!("{command}: exit code {:?}, {}", said.code, said.stderr));
        }
        let missing = options.iter().chain(&["--threads", "--verbose", "--help"]).filter(|option| !said.stdout.contains(**option));
        faults.extend(missing.map(|option| format!("{command}: its help does not mention {option}")));
        if !overview.contains(command) {
            faults.push(format!("the overview does not mention {command}"));
        }
    }
    assert_none(faults);
}

#[test]
fn a_command_line_that_cannot_be_is_a_usage_error() {
    let (world, place) = (world(), Place::new());
    let mut faults = Vec::new();
    let mut refuse = |arguments: &[std::ffi::OsString], words: &[&str]| {
        faults.extend(place.refuse(arguments, 2, words).into_iter().map(|fault| format!("{arguments:?}: {fault}")));
    };
    refuse(&args!["grow"], &["grow"]);
    refuse(&args!["inspect"], &["<MODEL>"]);
    refuse(&args!["demo", "--output", place.out("demo"), "--engine", "ort"], &["engine ort", "--engine cpu or cuda"]);
    refuse(&args!["demo", "--output", place.out("demo"), "--engine", "cpu", "--precision", "fast"], &["--precision", "--engine cpu"]);
    refuse(&args!["inspect", world.model, "--colour"], &["--colour"]);
    refuse(&args!["inspect", world.model, "--threads", "0"], &["--threads", "1..=1024"]);
    refuse(&args!["train", "-o", place.out("model.esp")], &["no recordings", "--data"]);
    refuse(&args!["prune", world.model, "-o", place.out("small.esp"), "--data", world.corpus], &["--ratio", "--fit"]);
    refuse(&args!["prune", world.model, "-o", place.out("small.esp"), "--fit", "2", "--ratio", "2"], &["--ratio", "--fit"]);
    refuse(&args!["prune", world.model, "-o", place.out("small.esp"), "--fit", "two"], &["two"]);
    refuse(&args!["prune", world.model, "-o", place.out("small.esp"), "--ratio", "2", "--steps", "1,2"], &["1,2", "three"]);
    refuse(
        &args!["export", world.model, "--safetensors", place.out("checkpoint"), "--dialect", "onnx"],
        &["onnx", "gpt2", "llama", "espalier"],
    );
    refuse(&args!["generate", world.gpt2, "1 2", "--temperature=-1"], &["temperature", "0 or more"]);
    refuse(&args!["generate", world.gpt2, "hello"], &["`hello` is no token id", "give ids such as"]);
    assert_none(faults);
}

#[test]
fn an_option_that_would_be_ignored_is_a_usage_error() {
    let (world, place) = (world(), Place::new());
    let (text, fasta) = (place.path("text.txt"), place.path("records.fa"));
    std::fs::write(&text, "1 2 3 4 5 6 7 8").expect("a text");
    std::fs::write(&fasta, ">one\nQV\n").expect("sequences");
    let on_windows = args!["eval", world.model, "--data", world.corpus].to_vec();
    let on_text = args!["eval", world.gpt2, "--text", text].to_vec();
    let on_records = args!["eval", world.gpt2, "--text", fasta].to_vec();
    let on_task = args!["eval", world.gpt2, "--task", "gsm8k", "--data", place.path("")].to_vec();
    let lora = args!["train", "--lora", world.gpt2, "--data", world.corpus, "-o", place.out("x.esp")].to_vec();
    let of_windows = ["--holdout", "--snr=3", "--reference=x.esp", "--without=N", "--seed=1"];
    let on_signals = args!["train", "--data", world.corpus, "-o", place.out("x.esp")].to_vec();
    let on_signals_wide = [&on_signals[..], &args!["--width", "16"]].concat();
    let on_holdout = [&on_windows[..], &args!["--holdout"]].concat();
    let cases: [(&[std::ffi::OsString], &[&str]); 10] = [
        (&on_windows, &["--limit-examples=1", "--seq-len=8", "--windows=2", "--lines"]),
        (&on_text, &of_windows),
        (&on_text, &["--split=generic", "--task=piqa"]),
        (&on_task, &of_windows),
        (&on_task, &["--split=generic", "--seq-len=8", "--windows=2", "--lines", "--prefix=1", "--suffix=1"]),
        (&on_records, &["--seq-len=8", "--windows=2"]),
        (&lora, &["--weight-decay=0.1", "--layers=2", "--patch=64"]),
        (&on_signals, &["--rank=4", "--alpha=8", "--ffn"]),
        (&on_signals_wide, &["--rank=4", "--alpha=8", "--ffn"]),
        (&on_holdout, &["--limit-examples=1", "--seq-len=8", "--lines"]),
    ];
    let mut faults = Vec::new();
    for (command, options) in cases {
        for option in options {
            let arguments = command.iter().cloned().chain([option.into()]);
            let refused = place.refuse(arguments, 2, &["--"]);
            faults.extend(refused.into_iter().map(|fault| format!("{command:?} {option}: {fault}")));
        }
    }
    assert_none(faults);
}

#[test]
fn a_number_that_cannot_be_is_a_usage_error() {
    let (world, place) = (world(), Place::new());
    let mut faults = Vec::new();
    let mut refuse = |arguments: &[std::ffi::OsString], options: &[&str], words: &[&str]| {
        for option in options {
            let arguments = arguments.iter().cloned().chain([option.into()]);
            faults.extend(place.refuse(arguments, 2, words).into_iter().map(|fault| format!("{option}: {fault}")));
        }
    };
    let train = args!["train", "--data", world.corpus, "-o", place.out("model.esp")];
    refuse(&train, &["--batch=0", "--batch=18446744073709551615"], &["--batch", "1..=65536"]);
    refuse(&train, &["--epochs=NaN", "--epochs=-1", "--learning-rate=inf", "--noise=-0.1", "--weight-decay=NaN"], &["give 0 or more"]);
    refuse(
        &train,
        &["--width=0", "--width=65537", "--layers=0", "--heads=0", "--channels=0", "--patch=2049"],
        &["are not possible; give 1 to"],
    );
    refuse(&train, &["--width=7"], &["cannot be shared by", "give a multiple of"]);
    let prune = args!["prune", world.model, "-o", place.out("small.esp"), "--data", world.corpus, "--ratio", "2"];
    refuse(&prune, &["--batch=0", "--batch=18446744073709551615"], &["--batch", "1..=65536"]);
    refuse(&prune, &["--epochs=NaN,1,1", "--epochs=1,-1,1", "--steps=1,1,x"], &["is no length"]);
    refuse(&prune, &["--alpha=NaN", "--learning-rate=-1"], &["give 0 or more"]);
    refuse(&prune, &["--rank=0", "--rank=1025"], &["rank", "give 1 to 1024"]);
    refuse(&prune, &["--keep=0,0,0", "--keep=3,4,65"], &["cannot be cut from 3 layers, 4 heads and 64 channels"]);
    refuse(&args!["bench", world.model], &["--count=0", "--count=18446744073709551615"], &["--count", "1..=1000000"]);
    refuse(&args!["eval", world.model, "--data", world.corpus], &["--snr=NaN", "--snr=loud"], &["is no finite number"]);
    refuse(&args!["run", world.model, "--source", world.corpus, "--store", place.out("store")], &["--max-drop=NaN"], &["give 0 or more"]);
    refuse(&args!["run", world.model, "--source", world.corpus, "--store", place.out("store")], &["--budget=1XB"], &["unit `XB`", "MiB"]);
    assert_none(faults);
    let generate = args!["generate", world.gpt2, "1 2", "--max-tokens=18446744073709551615"];
    assert_none(place.refuse(generate, 2, &["reads 64 at most", "--max-tokens"]));
}

#[test]
fn json_parses_and_holds_what_the_text_shows() {
    let (world, place) = (world(), Place::new());
    let inspected = place.succeed(args!["inspect", world.model, "--json", "--verify"]).json();
    assert_eq!((&inspected["verified"], inspected["layers"].as_array().map(Vec::len)), (&true.into(), Some(3)), "{inspected}");
    let parameters = inspected["parameters"].as_u64().expect("parameters");
    let evaluated = place.succeed(args!["eval", world.model, "--data", world.corpus, "--json"]).json();
    assert_eq!(evaluated[0]["set"], "unseen machines", "{evaluated}");
    assert!(evaluated[0]["accuracy"].as_f64().is_some_and(|share| (0.0..=1.0).contains(&share)), "{evaluated}");
    let checked = place.succeed(args!["check", world.model, "--json"]).json();
    assert!(checked.is_object(), "{checked}");
    let timed = place.succeed(args!["bench", world.model, "--json", "--count", "5"]).json();
    assert!(timed["p50_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{timed}");
    for start in ["cold", "warm"] {
        assert!(timed[start]["chunks"].as_u64().is_some_and(|chunks| chunks > 0), "{timed}");
        assert_eq!(timed[start]["chunks_checked"], timed[start]["chunks"], "{timed}");
    }
    let out = place.out("small.esp");
    let pruned = args!["prune", world.model, "-o", out, "--data", world.corpus, "--ratio", "2", "--steps", "2,2,2", "--json"];
    let pruned = place.succeed(pruned).json();
    assert_eq!(pruned["stages"].as_array().map(Vec::len), Some(3), "{pruned}");
    assert!(pruned["parameters"].as_u64().is_some_and(|left| 2 * left <= parameters), "{pruned}");
    let trained = args!["train", "--data", world.corpus, "-o", place.out("model.esp"), "--layers", "1", "--width", "16", "--heads", "2"];
    let trained = place.succeed(trained.into_iter().chain(args!["--channels", "16", "--steps", "2", "--json"])).json();
    assert_eq!(trained["steps"], 2, "{trained}");
}
