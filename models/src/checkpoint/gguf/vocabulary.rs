//! Writes the vocabulary of a `tokenizer.json` as metadata.

use std::collections::HashMap;

use serde_json::Value;

use super::header::Header;
use super::tokenizer::words_name;
use super::writer::refuse;
use crate::architecture::Input;
use crate::error::Result;
use crate::manifest::Manifest;

/// Score of tokens that no merge makes.
const UNMERGED: f32 = -1e6;

/// Adds tokens, merges or scores, special tokens and the chat template. A model without a tokenizer is written without one.
///
/// # Errors
/// [`Error::Inexpressible`](crate::Error::Inexpressible) where the tokenizer is none that llama.cpp has.
pub(super) fn add_tokenizer(header: &mut Header, manifest: &Manifest) -> Result<()> {
    let Input::Tokens { vocabulary } = manifest.architecture.input else { return Err(refuse("it reads signals")) };
    let Some(bytes) = &manifest.tokenizer else {
        header.text("tokenizer.ggml.model", "no_vocab");
        return Ok(());
    };
    let json: Value = serde_json::from_slice(bytes).map_err(|error| refuse(format!("its tokenizer.json cannot be read: {error}")))?;
    let model = &json["model"];
    if model["type"] != "BPE" {
        return Err(refuse(format!("its tokenizer is of the kind {}, and only BPE can be written", model["type"])));
    }
    let Tokens { texts, mut kinds } = tokens(&json, vocabulary)?;
    let merges = merges(model)?;
    if model["byte_fallback"] == true {
        header.text("tokenizer.ggml.model", "llama");
        header.text("tokenizer.ggml.pre", "default");
        header.flag("tokenizer.ggml.add_space_prefix", json["normalizer"].to_string().contains("Prepend"));
        for (text, kind) in texts.iter().zip(&mut kinds) {
            if *kind == 1 && text.len() == 6 && text.starts_with("<0x") && text.ends_with('>') {
                *kind = 6;
            } else if model["unk_token"] == text.as_str() {
                *kind = 2;
            }
        }
        header.numbers("tokenizer.ggml.scores", &scores(&texts, &merges)?);
    } else {
        let name = words_name(&json).ok_or_else(|| refuse("its tokenizer cuts words in a way that llama.cpp has no name for"))?;
        header.text("tokenizer.ggml.model", "gpt2");
        header.text("tokenizer.ggml.pre", name);
        let merges: Vec<String> = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
        header.texts("tokenizer.ggml.merges", &merges);
    }
    header.texts("tokenizer.ggml.tokens", &texts);
    header.integers("tokenizer.ggml.token_type", &kinds);
    add_specials(header, manifest, &json);
    Ok(())
}

/// A vocabulary in the order of its ids.
struct Tokens {
    texts: Vec<String>,
    /// 1 plain, 3 control, 4 defined by a user, 5 not used.
    kinds: Vec<i32>,
}

/// The tokens of `count` ids; ids without a token are marked as not used.
fn tokens(json: &Value, count: usize) -> Result<Tokens> {
    let vocabulary = json["model"]["vocab"].as_object().ok_or_else(|| refuse("its tokenizer.json has no vocabulary"))?;
    let mut texts = vec![String::new(); count];
    let mut kinds = vec![5; count];
    let mut put = |text: &str, id: &Value, kind: i32| {
        let id = id.as_u64().and_then(|id| usize::try_from(id).ok()).filter(|&id| id < count);
        let id = id.ok_or_else(|| refuse(format!("its token `{text}` has no id below {count}, the size of its token table")))?;
        (texts[id], kinds[id]) = (text.to_string(), kind);
        Ok(())
    };
    for (text, id) in vocabulary {
        put(text, id, 1)?;
    }
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        put(token["content"].as_str().unwrap_or_default(), &token["id"], if token["special"] == true { 3 } else { 4 })?;
    }
    for (id, text) in texts.iter_mut().enumerate().filter(|(id, _)| kinds[*id] == 5) {
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
    merges.map(|found| merge(found).ok_or_else(|| refuse(format!("the merge {found} of its tokenizer is no pair")))).collect()
}

/// Scores with which pieces are joined in the order of the merges: the later a piece is made, the lower.
fn scores(texts: &[String], merges: &[(String, String)]) -> Result<Vec<f32>> {
    let mut made: HashMap<String, usize> = HashMap::with_capacity(texts.len());
    let (mut last, mut rank) = (String::new(), 0);
    for (left, right) in merges {
        let joined = format!("{left}{right}");
        if joined != last {
            rank += 1;
            if made.insert(joined.clone(), rank).is_some() {
                return Err(refuse(format!("its tokenizer makes `{joined}` at two ranks, and a score can say one")));
            }
            last = joined;
        }
    }
    Ok(texts.iter().map(|text| made.get(text).map_or(UNMERGED, |&rank| -(rank as f32))).collect())
}

/// Writes which tokens start and end a text, and the chat template.
fn add_specials(header: &mut Header, manifest: &Manifest, json: &Value) {
    let config: Value = serde_json::from_str(&manifest.origin.config).unwrap_or(Value::Null);
    let ends: Vec<u64> = match &config["eos_token_id"] {
        Value::Array(ids) => ids.iter().filter_map(Value::as_u64).collect(),
        id => id.as_u64().into_iter().collect(),
    };
    let first = config["bos_token_id"].as_u64();
    let ids = [("bos", first), ("eos", ends.first().copied()), ("eot", ends.get(1).copied()), ("padding", config["pad_token_id"].as_u64())];
    for (name, id) in ids {
        if let Some(id) = id.and_then(|id| u32::try_from(id).ok()) {
            header.count(&format!("tokenizer.ggml.{name}_token_id"), id);
        }
    }
    let specials = |step: &Value| step["SpecialToken"]["id"].as_str().map(str::to_string);
    let template = json["post_processor"]["single"].as_array().cloned().unwrap_or_default();
    header.flag("tokenizer.ggml.add_bos_token", template.first().and_then(specials).is_some());
    header.flag("tokenizer.ggml.add_eos_token", template.len() > 1 && template.last().and_then(specials).is_some());
    if let Some(template) = config["chat_template"].as_str() {
        header.text("tokenizer.chat_template", template);
    }
}
