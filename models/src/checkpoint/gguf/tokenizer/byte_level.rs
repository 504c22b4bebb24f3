//! Byte-level BPE (Radford et al., 2019): a text is cut into words, a word's bytes are merged by a list of pairs.

use serde::ser::{Serialize, SerializeSeq, Serializer};
use serde_json::{Value, json};

use super::{Bpe, Ids, TokenizerJson, Vocabulary};
use crate::error::{Result, quoted};

/// How a text is cut into words.
struct Words {
    /// The names of `tokenizer.ggml.pre` that mean this.
    names: &'static [&'static str],
    /// The pieces that each expression matches, and those between them, are words; the next expression is applied to each of these.
    expressions: &'static [&'static str],
    /// Whether a word that is a token is not looked at any further.
    whole_words: bool,
    /// Whether a text starts with the first token where the file does not say.
    add_bos: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The ways to cut that are known, each as llama.cpp names it and as the model's own tokenizer does it.
const WORDS: &[Words] = &[
    Words {
        names: &["gpt-2", "phi-2", "olmo", "mpt", "jina-es", "jina-de", "jina-v1-en", "jina-v2-es", "jina-v2-de", "roberta-bpe"],
        expressions: &[GPT2],
        whole_words: false,
        add_bos: false,
    },
    Words {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "minerva-7b"],
        expressions: &[r"\p{N}", GPT2],
        whole_words: false,
        add_bos: false,
    },
    Words {
        names: &["qwen2", "stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan"],
        expressions: &[r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"],
        whole_words: false,
        add_bos: false,
    },
    Words {
        names: &["llama3", "llama-v3", "llama-bpe", "falcon3", "dbrx", "smaug-bpe"],
        expressions: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        whole_words: true,
        add_bos: true,
    },
    Words {
        names: &["default"],
        expressions: &[
            r"[\p{P}\$\+<=>\^~\|]+",
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
            r"\p{N}+",
            r"[0-9][0-9][0-9]",
        ],
        whole_words: false,
        add_bos: false,
    },
];

/// Merges as the file has them, `left right`.
struct Merges<I>(I);

impl<'a, I: Iterator<Item = &'a str> + Clone> Serialize for Merges<I> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut sequence = serializer.serialize_seq(None)?;
        for merge in self.0.clone() {
            sequence.serialize_element(merge)?;
        }
        sequence.end()
    }
}

/// The `tokenizer.json` of a byte-level vocabulary.
pub(super) fn tokenizer_json(vocabulary: &Vocabulary<'_>) -> Result<Vec<u8>> {
    let gguf = vocabulary.gguf;
    let name = gguf.text("tokenizer.ggml.pre")?.unwrap_or("default");
    let words = WORDS.iter().find(|words| words.names.contains(&name)).ok_or_else(|| {
        let known: Vec<&str> = WORDS.iter().flat_map(|words| words.names).copied().collect();
        gguf.unsupported(
            format!("a tokenizer that cuts words as {} does (`tokenizer.ggml.pre`)", quoted(name)),
            format!("{} are", known.join(", ")),
        )
    })?;
    let (_, merges) = gguf.texts("tokenizer.ggml.merges")?.ok_or_else(|| gguf.wrong("tokenizer.ggml.merges", "an array of texts"))?;
    check_merges(vocabulary, merges.clone())?;
    let json = TokenizerJson {
        version: "1.0",
        truncation: None,
        padding: None,
        added_tokens: vocabulary.added_tokens(),
        normalizer: Value::Null,
        pre_tokenizer: pre_tokenizer(words.expressions),
        post_processor: vocabulary.post_processor(words.add_bos, [None, None])?,
        decoder: byte_level(),
        model: Bpe {
            r#type: "BPE",
            dropout: None,
            unk_token: None,
            continuing_subword_prefix: None,
            end_of_word_suffix: None,
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges: words.whole_words,
            vocab: Ids(&vocabulary.tokens),
            merges: Merges(merges),
        },
    };
    vocabulary.finish(&json)
}

/// Checks that every merge joins two tokens to a third.
fn check_merges<'a>(vocabulary: &Vocabulary<'_>, merges: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut joined = String::new();
    for merge in merges {
        let parts = merge.split_once(' ').filter(|(left, right)| {
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            [left, right, joined.as_str()].iter().all(|part| vocabulary.ids.contains_key(part))
        });
        if parts.is_none() {
            let expected = format!("merges of two tokens to a third; {} is none", quoted(merge));
            return Err(vocabulary.gguf.wrong("tokenizer.ggml.merges", &expected));
        }
    }
    Ok(())
}

/// The name of `tokenizer.ggml.pre` for the way in which a `tokenizer.json` cuts words; none where llama.cpp has no such way or the
/// vocabulary is not byte-level.
pub(in crate::checkpoint::gguf) fn words_name(json: &Value) -> Option<&'static str> {
    let only = [json["pre_tokenizer"].clone()];
    let steps: &[Value] = json["pre_tokenizer"]["pretokenizers"].as_array().map_or(&only, |steps| steps);
    let (last, before) = steps.split_last()?;
    // NFC changes no text that is composed already, and llama.cpp leaves it to the writer of the text.
    let composed = json["normalizer"].is_null() || json["normalizer"]["type"] == "NFC";
    if last["type"] != "ByteLevel" || last["add_prefix_space"] == true || !composed {
        return None;
    }
    let mut expressions = Vec::new();
    for step in before {
        match step["type"].as_str()? {
            "Digits" if step["individual_digits"] == true => expressions.push(r"\p{N}".to_string()),
            "Split" if step["behavior"] == "Isolated" && step["invert"] != true => {
                expressions.push(step["pattern"]["Regex"].as_str()?.to_string());
            }
            _ => return None,
        }
    }
    // The library's byte-level step cuts as GPT-2 does unless it is told not to.
    if last["use_regex"] != false {
        expressions.push(GPT2.to_string());
    }
    let whole_words = json["model"]["ignore_merges"] == true;
    WORDS.iter().find(|words| words.expressions == expressions && words.whole_words == whole_words).map(|words| words.names[0])
}

/// What cuts a text into words and writes their bytes as characters.
fn pre_tokenizer(expressions: &[&str]) -> Value {
    let split = |expression| json!({ "type": "Split", "pattern": { "Regex": expression }, "behavior": "Isolated", "invert": false });
    let mut steps: Vec<Value> = expressions.iter().map(split).collect();
    steps.push(byte_level());
    json!({ "type": "Sequence", "pretokenizers": steps })
}

/// Bytes as characters, and back.
fn byte_level() -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false })
}
