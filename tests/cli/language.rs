//! Texts and questions for language models.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::process::Stdio;

use crate::args;
use crate::journeys::{expected_ids, word_tokenizer};
use crate::support::{Place, assert_none, copy_files, end, fixture, world};

/// The llama fixture with a vocabulary of the words `w0` to `w96` and, where it is given, a chat template.
fn speaking_model(place: &Place, template: Option<&str>) -> OsString {
    let checkpoint = place.path("speaking");
    copy_files(&fixture("llama-gqa2"), &checkpoint);
    fs::write(checkpoint.join("tokenizer.json"), word_tokenizer(97)).expect("a tokenizer");
    if let Some(template) = template {
        let config = serde_json::json!({ "chat_template": template, "bos_token": "w1" });
        fs::write(checkpoint.join("tokenizer_config.json"), config.to_string()).expect("a tokenizer config");
    }
    let model = place.out("speaking.esp");
    place.succeed(args!["import", checkpoint, "-o", model]);
    model.into_os_string()
}

fn words(ids: &str) -> String {
    ids.split(' ').map(|id| format!("w{id}")).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_continuation_ends_before_a_stop_string_that_spans_tokens() {
    let place = Place::new();
    let model = speaking_model(&place, None);
    let prompt = words(&expected_ids("llama-gqa2", "input_ids", 8));
    let greedy = words(&expected_ids("llama-gqa2", "greedy", 8));
    let all: Vec<&str> = greedy.split(' ').collect();
    let stop = format!("{} {}", all[2], all[3]);
    let said = place.succeed(args!["generate", model, prompt, "--max-tokens", "8", "--stop", "never", "--stop", stop]);
    assert_eq!(said.stdout, format!(" {} \n", all[..2].join(" ")));
    let json = place.succeed(args!["generate", model, prompt, "--max-tokens", "3", "--json"]).json();
    assert_eq!((json["text"].as_str(), json["finish"].as_str()), (Some(format!(" {}", all[..3].join(" ")).as_str()), Some("length")));
    assert_eq!((json["prompt_tokens"].as_u64(), json["generated_tokens"].as_u64()), (Some(8), Some(3)));
}

#[test]
fn a_prompt_comes_from_standard_input_and_a_reader_may_go_away() {
    let (world, place) = (world(), Place::new());
    let mut command = place.command(args!["generate", world.gpt2, "-", "--max-tokens", "4"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let prompt = expected_ids("gpt2", "input_ids", 8);
    child.stdin.take().expect("a pipe").write_all(format!("{prompt}\n").as_bytes()).expect("the prompt is read");
    let said = end(child);
    assert_eq!((said.code, said.stdout.trim_end()), (Some(0), expected_ids("gpt2", "greedy", 4).as_str()), "{}", said.stderr);
}

#[test]
fn a_chat_is_put_into_the_models_template() {
    let place = Place::new();
    let template = "{{ bos_token }}{% for m in messages %} {{ 'w3' if m.role == 'system' else 'w4' }} {{ m.content }}{% endfor %} w5";
    let model = speaking_model(&place, Some(template));
    let chat = place.succeed(args!["generate", model, "w7 w8", "--chat", "--system", "w6", "--max-tokens", "6"]).stdout;
    let plain = place.succeed(args!["generate", model, "w1 w3 w6 w4 w7 w8 w5", "--max-tokens", "6"]).stdout;
    assert_eq!(chat, plain);
}

#[test]
fn perplexity_is_that_of_the_text_however_it_is_cut() {
    let (world, place) = (world(), Place::new());
    let ids: Vec<String> = (0..40).map(|i| ((i * 7) % 97).to_string()).collect();
    fs::write(place.path("all.txt"), ids.join(" ")).expect("a text");
    let lines: Vec<String> = ids.chunks_exact(8).map(|ids| ids.join(" ")).collect();
    fs::write(place.path("lines.txt"), lines.join("\n\n")).expect("a text");
    let eval = |file: &str, more: &[&str]| {
        let args: Vec<OsString> = args!["eval", world.gpt2, "--text", place.path(file), "--json"].to_vec();
        place.succeed(args.into_iter().chain(more.iter().map(OsString::from))).json()
    };
    let windows = eval("all.txt", &["--seq-len", "8"]);
    let sequences = eval("lines.txt", &["--lines"]);
    let perplexity = windows["perplexity"].as_f64().expect("a number");
    assert!((perplexity - sequences["perplexity"].as_f64().expect("a number")).abs() < 1e-6 * perplexity, "{windows} {sequences}");
    assert_eq!((windows["windows"].as_u64(), windows["scored_tokens"].as_u64()), (Some(5), Some(35)));
    assert!(windows["bits_per_byte"].as_f64().is_some_and(|bits| bits > 0.0));
    let each = sequences["each"].as_array().expect("a perplexity a sequence");
    let mean = each.iter().filter_map(serde_json::Value::as_f64).sum::<f64>() / 5.0;
    assert!((mean - sequences["mean_perplexity"].as_f64().expect("a number")).abs() < 1e-9 * mean);
    let context = eval("lines.txt", &["--lines", "--prefix", "3 4", "--suffix", "5", "--limit-examples", "2"]);
    assert_eq!((context["sequences"].as_u64(), context["scored_tokens"].as_u64()), (Some(2), Some(18)));
    let first = eval("all.txt", &["--seq-len", "8", "--windows", "2"]);
    assert_eq!(first["scored_tokens"].as_u64(), Some(14));
}

#[test]
fn questions_are_answered_and_counted() {
    let place = Place::new();
    let model = speaking_model(&place, None);
    let questions = place.path("questions");
    fs::create_dir(&questions).expect("a folder");
    let piqa: String = (0..4).map(|i| format!("{{\"goal\": \"w{i} w9\", \"sol1\": \"w5\", \"sol2\": \"w6 w{i}\"}}\n")).collect();
    fs::write(questions.join("piqa.valid.jsonl"), piqa).expect("questions");
    fs::write(questions.join("piqa.valid-labels.lst"), "0\n1\n1\n0\n").expect("labels");
    fs::write(questions.join("gsm8k.test.jsonl"), "{\"question\": \"w3\", \"answer\": \"#### 18\"}\n").expect("questions");
    let piqa = place.succeed(args!["eval", model, "--task", "piqa", "--data", questions, "--json"]).json();
    assert_eq!(piqa["questions"].as_u64(), Some(4));
    assert!(piqa["acc_norm"]["low"].as_f64() < piqa["acc_norm"]["high"].as_f64(), "{piqa}");
    let limited = place.succeed(args!["eval", model, "--task", "piqa", "--data", questions, "--limit-examples", "3", "--json"]).json();
    assert_eq!(limited["questions"].as_u64(), Some(3));
    let gsm8k = args!["eval", model, "--task", "gsm8k", "--data", questions.join("gsm8k.test.jsonl"), "--json"];
    assert!(place.succeed(gsm8k).json()["exact_match"]["value"].is_f64());
}

#[test]
fn embeddings_are_lines_of_json_of_length_one_where_that_is_asked_for() {
    let (world, place) = (world(), Place::new());
    fs::write(place.path("texts"), "1 2 3\n4 5\n").expect("texts");
    let said = place.succeed(args!["embed", world.gpt2, "--file", place.path("texts"), "--normalize"]).stdout;
    let lines: Vec<serde_json::Value> = said.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.iter().map(|line| line["tokens"].as_u64()).collect::<Vec<_>>(), [Some(3), Some(2)]);
    for line in &lines {
        let squares = line["embedding"].as_array().expect("numbers").iter().filter_map(|x| x.as_f64().map(|x| x * x)).sum::<f64>();
        assert!((squares - 1.0).abs() < 1e-5, "{squares}");
    }
    let one = place.succeed(args!["embed", world.gpt2, "4 5", "--normalize"]).stdout;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&one).expect("JSON")["embedding"], lines[1]["embedding"]);
}

#[test]
fn what_cannot_be_asked_is_refused() {
    let (world, place) = (world(), Place::new());
    fs::write(place.path("short.txt"), "1 2 3").expect("a text");
    fs::write(place.path("latin.txt"), b"caf\xe9").expect("a text");
    let text = |name: &str| place.path(name);
    let cases: Vec<(Vec<OsString>, i32, &[&str])> = vec![
        (args!["generate", world.model, "1 2"].to_vec(), 2, &["is a signal model", "espalier run"]),
        (args!["embed", world.model, "1 2"].to_vec(), 2, &["is a signal model"]),
        (args!["eval", world.model, "--text", text("short.txt")].to_vec(), 2, &["is a signal model"]),
        (args!["generate", world.gpt2, "1 2", "--top-p", "0"].to_vec(), 2, &["top-p of 0", "more than 0"]),
        (args!["generate", world.gpt2, "1 2", "--chat"].to_vec(), 2, &["no chat template", "--chat"]),
        (args!["generate", world.gpt2, "1 2", "--system", "x"].to_vec(), 2, &["--chat"]),
        (args!["generate", world.gpt2, "w1"].to_vec(), 2, &["`w1` is no token id"]),
        (args!["eval", world.gpt2, "--text", text("short.txt"), "--seq-len", "8"].to_vec(), 2, &["3 tokens", "window of 8", "--seq-len"]),
        (args!["eval", world.gpt2, "--text", text("short.txt"), "--seq-len", "65"].to_vec(), 2, &["context of 64"]),
        (args!["eval", world.gpt2, "--text", text("short.txt"), "--seq-len", "2", "--windows", "2"].to_vec(), 2, &["1 windows", "not 2"]),
        (args!["eval", world.gpt2, "--text", text("short.txt"), "--seq-len", "1"].to_vec(), 2, &["--seq-len 2 or more"]),
        (args!["eval", world.gpt2, "--text", text("latin.txt")].to_vec(), 2, &["latin.txt", "UTF-8", "byte 3"]),
        (args!["eval", world.gpt2, "--text", text("absent.txt")].to_vec(), 1, &["absent.txt"]),
        (args!["eval", world.gpt2, "--task", "piqa"].to_vec(), 2, &["--data"]),
        (args!["eval", world.gpt2, "--task", "piqa", "--data", text("out")].to_vec(), 2, &["piqa.valid.jsonl"]),
        (args!["eval", world.gpt2, "--text", text("short.txt"), "--seq-len", "2", "--limit", "1KiB"].to_vec(), 1, &["limit"]),
    ];
    assert_none(cases.into_iter().flat_map(|(args, code, words)| place.refuse(args, code, words)).collect());
}
