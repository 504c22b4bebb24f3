//! From training or a checkpoint to a pruned model and back.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use safetensors::SafeTensors;

use crate::args;
use crate::support::{Place, copy_files, fixture, world};

#[test]
fn train_evaluate_prune_export_and_import_again() {
    let (world, place) = (world(), Place::new());
    let inspected = place.succeed(args!["inspect", world.model, "--verify"]).stdout;
    for words in ["classes N, B, IR, OR", "12000 Hz", "history  trained on simulated", "every checksum is right", "together"] {
        assert!(inspected.contains(words), "no `{words}` in\n{inspected}");
    }
    let evaluated = place.succeed(args!["eval", world.model, "--data", world.corpus]).stdout;
    assert!(evaluated.contains("simulated: unseen machines"), "{evaluated}");
    let checked = place.succeed(args!["check", world.model]).stdout;
    assert!(!checked.trim().is_empty());

    let (small, stages) = (place.out("small.esp"), place.out("stages"));
    let prune = args!["prune", world.model, "-o", small, "--data", world.corpus, "--ratio", "4", "--steps", "6,6,6", "--stages", stages];
    let pruned = place.succeed(prune).stdout;
    assert!(["dense", "layers", "heads", "channels", "smaller"].iter().all(|word| pruned.contains(word)), "{pruned}");
    for stage in ["layers", "heads", "channels"] {
        place.succeed(args!["inspect", "--verify", stages.join(format!("{stage}.esp"))]);
    }
    let rights = |path: &Path| fs::metadata(path).expect("an artifact").permissions().mode();
    assert_eq!(rights(&small), rights(&world.model), "a pruned artifact is as readable as a trained one");
    let dense = place.succeed(args!["inspect", world.model, "--json"]).json();
    let before = place.succeed(args!["inspect", small, "--json", "--verify"]).json();
    let parameters = |inspected: &serde_json::Value| inspected["parameters"].as_u64().expect("parameters");
    assert!(4 * parameters(&before) <= parameters(&dense), "{} of {}", parameters(&before), parameters(&dense));
    let evaluated = place.succeed(args!["eval", small, "--data", world.corpus, "--reference", world.model, "--json"]).json();
    assert!(evaluated[0]["accuracy"].is_f64(), "{evaluated}");

    let (checkpoint, again) = (place.out("checkpoint"), place.out("again.esp"));
    place.succeed(args!["export", small, "--safetensors", checkpoint, "--dialect", "espalier"]);
    place.succeed(args!["import", checkpoint, "-o", again]);
    let after = place.succeed(args!["inspect", again, "--json", "--verify"]).json();
    for field in ["name", "parameters", "compression_ratio", "architecture", "layers"] {
        assert_eq!(before[field], after[field], "{field}");
    }
    let verdicts = |model| place.succeed(args!["eval", model, "--data", world.corpus, "--json"]).json();
    assert_eq!(verdicts(&small), verdicts(&again), "the same weights give the same verdicts");
}

/// `count` ids of an i64 tensor of a fixture's expectations.
pub fn expected_ids(name: &str, tensor: &str, count: usize) -> String {
    let bytes = fs::read(fixture(name).join("expected.safetensors")).expect("the expectations");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let data = tensors.tensor(tensor).expect("the tensor").data().to_vec();
    let id = |bytes: &[u8]| i64::from_le_bytes(bytes.try_into().expect("8 bytes")).to_string();
    data.chunks_exact(8).take(count).map(id).collect::<Vec<_>>().join(" ")
}

#[test]
fn imported_language_models_continue_as_pytorch_does() {
    let place = Place::new();
    for name in ["gpt2", "llama-gqa2"] {
        let model = place.out(&format!("{name}.esp"));
        place.succeed(args!["import", fixture(name), "-o", model]);
        let prompt = expected_ids(name, "input_ids", 8);
        let said = place.succeed(args!["generate", model, prompt, "--max-tokens", "32"]);
        assert_eq!(said.stdout.trim_end(), expected_ids(name, "greedy", 32), "{name}");
        assert!(said.stderr.contains("32 tokens"), "{}", said.stderr);
    }
}

#[test]
fn a_prompt_that_the_model_cannot_read_is_refused() {
    let (world, place) = (world(), Place::new());
    let generate = |prompt: &str, tokens: &str| args!["generate", world.gpt2, prompt, "--max-tokens", tokens];
    let mut faults = place.refuse(generate("1 2 97", "4"), 1, &["token 97", "vocabulary of 97"]);
    faults.extend(place.refuse(generate("", "4"), 2, &["the prompt has no tokens"]));
    faults.extend(place.refuse(generate("1 2", "100"), 2, &["the prompt has 2 tokens and 100 more", "reads 64", "--max-tokens"]));
    crate::support::assert_none(faults);
}

/// A tokenizer of the words `w0`, `w1`, ... as Hugging Face's library writes one.
pub fn word_tokenizer(words: usize) -> String {
    let vocabulary: serde_json::Map<String, serde_json::Value> = (0..words).map(|id| (format!("w{id}"), id.into())).collect();
    serde_json::json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" },
        "post_processor": null,
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "w0" }
    })
    .to_string()
}

#[test]
fn a_model_with_a_tokenizer_speaks_text() {
    let place = Place::new();
    let checkpoint = place.path("checkpoint");
    copy_files(&fixture("llama-gqa2"), &checkpoint);
    fs::write(checkpoint.join("tokenizer.json"), word_tokenizer(97)).expect("a tokenizer");
    let model = place.out("model.esp");
    place.succeed(args!["import", checkpoint, "-o", model]);
    let words = |ids: String| ids.split(' ').map(|id| format!("w{id}")).collect::<Vec<_>>().join(" ");
    let prompt = words(expected_ids("llama-gqa2", "input_ids", 8));
    let said = place.succeed(args!["generate", model, prompt, "--max-tokens", "32"]);
    let expected = words(expected_ids("llama-gqa2", "greedy", 32));
    // The end token of the checkpoint, id 2, ends the text.
    let expected = expected.split_once(" w2 ").map_or(expected.clone(), |(before, _)| format!("{before} w2"));
    assert_eq!(said.stdout.trim(), expected);
    let sampled: Vec<OsString> = args!["generate", model, "w5 w6", "--max-tokens", "8", "--temperature", "1.5", "--seed", "3"].to_vec();
    assert_eq!(place.succeed(&sampled).stdout, place.succeed(&sampled).stdout, "the same seed gives the same text");

    fs::write(checkpoint.join("tokenizer.json"), "{}").expect("a tokenizer");
    let broken = place.out("broken.esp");
    let said = place.run(args!["import", checkpoint, "-o", broken]);
    let said = if said.code == Some(0) { place.run(args!["generate", broken, "w5"]) } else { said };
    assert!(said.code != Some(0) && said.stderr.contains("tokenizer.json"), "{}", said.stderr);
}
