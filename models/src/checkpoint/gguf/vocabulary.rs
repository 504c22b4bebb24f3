//! Writes the vocabulary of a `tokenizer.json` as metadata.

use std::collections::HashMap;

use serde_json::Value;

use super::header::Header;
use super::spaces::space_first;
use super::special_tokens::add_special_tokens;
use super::tokenizer::{kind, words_name};
use super::writer::refuse;
use crate::architecture::Input;
use crate::error::{Result, quoted};
use crate::manifest::Manifest;

/// Score of tokens that no merge makes.
const UNMERGED: f32 = -1e6;

/// Adds tokens, merges or scores, special tokens and the chat template. A model without a tokenizer is written without one.
///
/// # Errors
/// [`Error::Inexpressible`](crate::Error::Inexpressible) where the tokenizer is none that llama.cpp has.
pub(super) fn add_tokenizer(header: &mut Header, manifest: &Manifest, tokenizer: Option<&[u8]>) -> Result<()> {
    let Input::Tokens { vocabulary } = manifest.architecture.input else { return Err(refuse("it reads signals")) };
    let Some(bytes) = tokenizer else {
        header.text("tokenizer.ggml.model", "no_vocab");
        return Ok(());
    };
    let json: Value = serde_json::from_slice(bytes).map_err(|error| refuse(format!("its tokenizer.json cannot be read: {error}")))?;
    let model = &json["model"];
    if model["type"] != "BPE" {
        let kind = quoted(model["type"].as_str().unwrap_or_default());
        return Err(refuse(format!("its tokenizer is of the kind {kind}, and only BPE can be written")));
    }
    let marks = ["continuing_subword_prefix", "end_of_word_suffix"];
    if let Some(mark) = marks.into_iter().find(|mark| model[mark].as_str().is_some_and(|mark| !mark.is_empty())) {
        return Err(refuse(format!("its tokenizer marks pieces of a word with a `{mark}`, and llama.cpp has none")));
    }
    let Tokens { texts, mut kinds } = tokens(&json, vocabulary)?;
    let merges = merges(model)?;
    if model["byte_fallback"] == true {
        add_pieces(header, &json, &texts, &mut kinds, &merges)?;
    } else {
        let name = words_name(&json).ok_or_else(|| refuse("its tokenizer cuts words in a way that llama.cpp has no name for"))?;
        header.text("tokenizer.ggml.model", "gpt2");
        header.text("tokenizer.ggml.pre", name);
        let merges: Vec<String> = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
        header.texts("tokenizer.ggml.merges", &merges);
    }
    header.texts("tokenizer.ggml.tokens", &texts);
    header.integers("tokenizer.ggml.token_type", &kinds);
    let config: Value = serde_json::from_str(&manifest.origin.config).unwrap_or(Value::Null);
    add_special_tokens(header, &config, &json)?;
    if let Some(template) = config["chat_template"].as_str() {
        header.text("tokenizer.chat_template", template);
    }
    Ok(())
}

/// Adds what is peculiar to SentencePiece BPE: scores and the way spaces are written; marks bytes and the unknown token in `kinds`.
fn add_pieces(header: &mut Header, json: &Value, texts: &[String], kinds: &mut [i32], merges: &[(String, String)]) -> Result<()> {
    let model = &json["model"];
    if model["ignore_merges"] == true {
        return Err(refuse("its tokenizer takes words that are tokens whole (`ignore_merges`), and llama.cpp joins pieces"));
    }
    let joined: Vec<String> = merges.iter().map(|(left, right)| format!("{left}{right}")).collect();
    let space_first = space_first(json, joined.iter().map(String::as_str))?;
    header.text("tokenizer.ggml.model", "llama");
    header.text("tokenizer.ggml.pre", "default");
    header.flag("tokenizer.ggml.add_space_prefix", space_first);
    for (text, found) in texts.iter().zip(kinds) {
        if *found == kind::NORMAL && text.len() == 6 && text.starts_with("<0x") && text.ends_with('>') {
            *found = kind::BYTE;
        } else if model["unk_token"] == text.as_str() {
            *found = kind::UNKNOWN;
        }
    }
    header.numbers("tokenizer.ggml.scores", &scores(texts, &joined)?);
    Ok(())
}

/// A vocabulary in the order of its ids.
struct Tokens {
    texts: Vec<String>,
    /// What each is for, a constant of [`kind`].
    kinds: Vec<i32>,
}

/// The tokens of `count` ids; ids without a token are marked as not used.
fn tokens(json: &Value, count: usize) -> Result<Tokens> {
    let vocabulary = json["model"]["vocab"].as_object().ok_or_else(|| refuse("its tokenizer.json has no vocabulary"))?;
    let mut texts = vec![String::new(); count];
    let mut kinds = vec![kind::UNUSED; count];
    let mut put = |text: &str, id: &Value, purpose: i32| {
        let id = id.as_u64().and_then(|id| usize::try_from(id).ok()).filter(|&id| id < count);
        let id = id.ok_or_else(|| refuse(format!("its token {} has no id below {count}, the size of its token table", quoted(text))))?;
        (texts[id], kinds[id]) = (text.to_string(), purpose);
        Ok(())
    };
    for (text, id) in vocabulary {
        put(text, id, kind::NORMAL)?;
    }
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        let purpose = if token["special"] == true { kind::CONTROL } else { kind::USER_DEFINED };
        put(token["content"].as_str().unwrap_or_default(), &token["id"], purpose)?;
    }
    for (id, text) in texts.iter_mut().enumerate().filter(|(id, _)| kinds[*id] == kind::UNUSED) {
        *text = format!("[PAD{id}]");
    }
    Ok(Tokens { texts, kinds })
}

/// The merges, each a text `left right` or a pair.
fn merges(model: &Value) -> Result<Vec<(String, String)>> {
    let merge = |merge: &Value| match merge {
        Value::String(text) => text.split_once(' ').map(|(left, right)| (left.to_string(), right.to_string())),
        Value::Array(pair) => match &pair[..] {
            [Value::String(left), Value::String(right)] => Some((left.clone(), right.clone())),
            _ => None,
        },
        _ => None,
    };
    let merges = model["merges"].as_array().into_iter().flatten();
    let no_pair = |found: &Value| refuse(format!("the merge {} of its tokenizer is no pair", quoted(&found.to_string())));
    merges.map(|found| merge(found).ok_or_else(|| no_pair(found))).collect()
}

/// Scores with which pieces are joined in the order of the merges, which make `joined`: the later a piece is made, the lower.
fn scores(texts: &[String], joined: &[String]) -> Result<Vec<f32>> {
    let mut made: HashMap<&str, usize> = HashMap::with_capacity(texts.len());
    let (mut last, mut rank) = ("", 0);
    for joined in joined {
        if joined != last {
            rank += 1;
            if made.insert(joined, rank).is_some() {
                return Err(refuse(format!("its tokenizer makes {} at two ranks, and a score can say one", quoted(joined))));
            }
            last = joined;
        }
    }
    Ok(texts.iter().map(|text| made.get(text.as_str()).map_or(UNMERGED, |&rank| -(rank as f32))).collect())
}
