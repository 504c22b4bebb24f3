//! What a user of exported tokenizers relies on: a GGUF file gives the same ids, or the export is refused with a reason.

use std::path::{Path, PathBuf};

use espalier_models::checkpoint::{export_gguf, import};
use espalier_models::{Artifact, Error};
use serde_json::{Map, Value, json};

/// What llama.cpp calls `llama-bpe`.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn parity(name: &str) -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/parity");
    std::env::var_os("ESPALIER_PARITY").map_or_else(default, PathBuf::from).join(name)
}

/// Exports a small Llama with this `tokenizer.json`, whose first and last token are 0 and 1, and imports that: the tokenizer that comes back.
fn round_trip(tokenizer: &Value) -> Result<Value, Error> {
    let folder = tempfile::tempdir().unwrap();
    let at = |file: &str| folder.path().join(file);
    let source = parity("llama-gqa2");
    std::fs::create_dir(at("source")).unwrap();
    std::fs::copy(source.join("model.safetensors"), at("source/model.safetensors")).unwrap();
    let mut config: Value = serde_json::from_slice(&std::fs::read(source.join("config.json")).unwrap()).unwrap();
    (config["bos_token_id"], config["eos_token_id"]) = (json!(0), json!([1, 2]));
    std::fs::write(at("source/config.json"), config.to_string()).unwrap();
    std::fs::write(at("source/tokenizer.json"), tokenizer.to_string()).unwrap();
    import(&at("source"), &at("first.esp"), None, &mut |_, _| {}).unwrap();
    let first = Artifact::open(&at("first.esp")).unwrap();
    if let Err(error) = export_gguf(&first, first.manifest(), &at("model.gguf")) {
        assert!(!at("model.gguf").exists(), "a refused export leaves nothing");
        return Err(error);
    }
    import(&at("model.gguf"), &at("second.esp"), None, &mut |_, _| {}).unwrap();
    let second = Artifact::open(&at("second.esp")).unwrap();
    Ok(serde_json::from_slice(second.tokenizer().unwrap().unwrap()).unwrap())
}

/// `[bos] A`, or `[bos] A [eos]`.
fn template(ends: bool) -> Value {
    let token = |name: &str| json!({ "SpecialToken": { "id": name, "type_id": 0 } });
    let mut single = vec![token("<s>"), json!({ "Sequence": { "id": "A", "type_id": 0 } })];
    if ends {
        single.push(token("</s>"));
    }
    let special = |name: &str, id: u32| json!({ "id": name, "ids": [id], "tokens": [name] });
    let special_tokens = json!({ "<s>": special("<s>", 0), "</s>": special("</s>", 1) });
    json!({ "type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": special_tokens })
}

/// A tokenizer of the three special tokens, `pieces` and merges of two of them.
fn tokenizer(pieces: &[&str], merges: &[&str]) -> Value {
    let texts = ["<s>", "</s>", "<turn>"].iter().chain(pieces).enumerate();
    let vocab: Map<String, Value> = texts.map(|(id, text)| (text.to_string(), json!(id))).collect();
    let added = |(id, text): (usize, &str)| json!({ "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true });
    let added: Vec<Value> = ["<s>", "</s>", "<turn>"].into_iter().enumerate().map(added).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": null,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": merges,
        },
    })
}

/// As Llama 3 has it: the first token comes from a template in a sequence, and words that are tokens are taken whole.
fn llama3() -> Value {
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    let split = json!({ "type": "Split", "pattern": { "Regex": LLAMA3 }, "behavior": "Isolated", "invert": false });
    let mut llama = tokenizer(&["a", "b", "ab"], &["a b"]);
    llama["pre_tokenizer"] = json!({ "type": "Sequence", "pretokenizers": [split, byte_level] });
    llama["post_processor"] = json!({ "type": "Sequence", "processors": [byte_level, template(false)] });
    llama["model"]["ignore_merges"] = json!(true);
    llama
}

/// As Llama 2 has it.
fn pieces() -> Value {
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let mut pieces = tokenizer(&["▁", "a", "b", "▁a", "ab"], &["▁ a", "a b"]);
    pieces["normalizer"] = json!({ "type": "Sequence", "normalizers": [{ "type": "Prepend", "prepend": "▁" }, replace] });
    pieces["post_processor"] = template(true);
    pieces["model"]["byte_fallback"] = json!(true);
    pieces
}

fn special_ids(template: &Value) -> Vec<&str> {
    template["single"].as_array().into_iter().flatten().filter_map(|piece| piece["SpecialToken"]["id"].as_str()).collect()
}

#[test]
fn llama_3_keeps_its_first_token_and_its_whole_words() {
    let back = round_trip(&llama3()).unwrap();
    assert_eq!(special_ids(&back["post_processor"]), ["<s>"]);
    assert_eq!(back["model"]["ignore_merges"], json!(true));
    assert_eq!(back["model"]["merges"], json!(["a b"]));
    assert_eq!(back["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"], json!(LLAMA3));
}

#[test]
fn pieces_keep_their_order_and_their_space() {
    let back = round_trip(&pieces()).unwrap();
    assert_eq!(special_ids(&back["post_processor"]), ["<s>", "</s>"]);
    assert_eq!(back["normalizer"], pieces()["normalizer"]);
    assert_eq!(back["model"]["merges"], json!([["▁", "a"], ["a", "b"]]));
    let mut gemma = pieces();
    gemma["normalizer"] = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    gemma["pre_tokenizer"] = json!({ "type": "Split", "pattern": { "String": " " }, "behavior": "MergedWithPrevious", "invert": false });
    let back = round_trip(&gemma).unwrap();
    assert_eq!(back["normalizer"]["normalizers"], json!([gemma["normalizer"]]), "no space is put before a text");
}

#[test]
fn tokenizers_that_llama_cpp_does_not_have_are_refused_with_a_reason() {
    let change = |mut tokenizer: Value, pointer: &str, value: Value| {
        *tokenizer.pointer_mut(pointer).unwrap() = value;
        tokenizer
    };
    let mut other_first = llama3();
    other_first["post_processor"]["processors"][1]["special_tokens"]["<s>"]["ids"] = json!([2]);
    let mut long = llama3();
    long["model"]["merges"] = json!(["x".repeat(100_000)]);
    let cases = [
        ("another first token", "`bos_token_id` is 0", other_first),
        ("a processor", "`RobertaProcessing`", change(llama3(), "/post_processor", json!({ "type": "RobertaProcessing" }))),
        ("merges in whole words", "no name for", change(llama3(), "/model/ignore_merges", json!(false))),
        ("whole words in pieces", "`ignore_merges`", change(pieces(), "/model/ignore_merges", json!(true))),
        ("another normalizer", "changes a text", change(pieces(), "/normalizer/normalizers/0", json!({ "type": "NFKC" }))),
        ("no normalizer", "writes spaces", change(pieces(), "/normalizer", Value::Null)),
        ("marked pieces", "`end_of_word_suffix`", change(llama3(), "/model/end_of_word_suffix", json!("</w>"))),
        ("another kind", "`Unigram`", change(llama3(), "/model/type", json!("Unigram"))),
        ("no pair", "is no pair", long),
    ];
    let mut wrong = Vec::new();
    for (name, reason, tokenizer) in cases {
        match round_trip(&tokenizer) {
            Err(error @ Error::Inexpressible { .. }) if error.to_string().contains(reason) && error.to_string().len() < 512 => {}
            other => wrong.push(format!("{name}: {other:?}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
