//! The tokenizer that comes with a checkpoint: its `tokenizer.json`, or one made of a plain `vocab.txt`.
//!
//! A `vocab.txt` has one token a line, and a token's id is the number of its line, from 0: the vocabulary of transformers' `BertTokenizer`.
//! What is made of it gives the ids that `BertTokenizerFast` gives: text is cleaned, split at spaces and punctuation, and a word is the
//! longest pieces of the vocabulary that it is made of (WordPiece, Schuster and Nakajima, 2012), `[UNK]` where there are none.
//! `tokenizer_config.json` beside it sets what it sets there. Two things differ, because the models here continue text: every entry in
//! square brackets, such as `[HEAVY]`, is one token wherever the text has it (transformers' `additional_special_tokens`), and nothing is
//! added before or after the text.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::config::{Config, read_limited};
use crate::error::{Error, Result};

/// The longest `tokenizer.json`.
pub const MAX_TOKENIZER_BYTES: u64 = 64 << 20;
/// The longest `vocab.txt`: the JSON made of it is a few times longer.
const MAX_VOCABULARY_BYTES: u64 = 8 << 20;
/// The longest `tokenizer_config.json`.
const MAX_TOKENIZER_CONFIG_BYTES: u64 = 16 << 20;
/// The most bytes of one token.
pub(super) const MAX_TOKEN_BYTES: usize = 1024;

/// The tokenizer of the checkpoint `folder`, whose `config.json` is `config`, as a `tokenizer.json`: the file of that name, else, for a
/// model with a `vocab_size`, what `vocab.txt` says, in the folder itself or, for models that share one, in the folder above where it has a
/// line for each of the model's tokens. None where there is neither.
pub(super) fn tokenizer(folder: &Path, config: &Config) -> Result<Option<Vec<u8>>> {
    let ready = folder.join("tokenizer.json");
    if ready.exists() {
        return Ok(Some(read_limited(&ready, MAX_TOKENIZER_BYTES)?));
    }
    if config.lacks("vocab_size") {
        return Ok(None);
    }
    let (own, vocabulary) = (folder.join("vocab.txt"), config.size("vocab_size")?);
    if own.exists() {
        let text = read_text(&own)?;
        let tokens = Tokens::parse(&text).map_err(|problem| Error::checkpoint(&own, problem))?;
        if tokens.ordered.len() > vocabulary {
            let problem = format!("it has {} tokens, but the model's vocabulary is {vocabulary}", tokens.ordered.len());
            return Err(Error::checkpoint(&own, problem));
        }
        return build(folder, &own, &tokens).map(Some);
    }
    let Some(shared) = shared(folder) else { return Ok(None) };
    let text = read_text(&shared)?;
    match Tokens::parse(&text) {
        Ok(tokens) if tokens.ordered.len() == vocabulary => build(folder, &shared, &tokens).map(Some),
        _ => Ok(None),
    }
}

/// `vocab.txt` in the folder above `folder`, where there is one.
fn shared(folder: &Path) -> Option<PathBuf> {
    let above = folder.canonicalize().ok()?.parent()?.join("vocab.txt");
    above.is_file().then_some(above)
}

fn read_text(path: &Path) -> Result<String> {
    let bytes = read_limited(path, MAX_VOCABULARY_BYTES)?;
    String::from_utf8(bytes).map_err(|error| Error::checkpoint(path, format!("it is not UTF-8 text: {error}")))
}

/// The tokens of a `vocab.txt`.
struct Tokens<'a> {
    /// By id.
    ordered: Vec<&'a str>,
    ids: HashMap<&'a str, usize>,
}

impl<'a> Tokens<'a> {
    fn parse(text: &'a str) -> Result<Self, String> {
        let mut tokens = Self { ordered: Vec::new(), ids: HashMap::new() };
        for (index, line) in text.trim_end_matches(['\n', '\r']).split('\n').enumerate() {
            let (number, token) = (index + 1, line.trim_end_matches('\r'));
            if token.is_empty() {
                return Err(format!("line {number} is empty; expected one token a line"));
            }
            if token.len() > MAX_TOKEN_BYTES {
                return Err(format!("line {number} has {} bytes; a token has at most {MAX_TOKEN_BYTES}", token.len()));
            }
            if let Some(first) = tokens.ids.insert(token, index) {
                return Err(format!("line {number} has the token of line {} again; expected each once", first + 1));
            }
            tokens.ordered.push(token);
        }
        Ok(tokens)
    }

    /// Whether a token has a capital letter outside square brackets: then text keeps its case.
    fn has_capitals(&self) -> bool {
        self.ordered.iter().any(|token| !is_bracketed(token) && token.chars().any(char::is_uppercase))
    }
}

/// Whether a token is a name in square brackets.
fn is_bracketed(token: &str) -> bool {
    token.len() > 2 && token.starts_with('[') && token.ends_with(']')
}

/// The settings of `BertTokenizer`.
struct Settings {
    lowercase: bool,
    strip_accents: Option<bool>,
    chinese_characters: bool,
    unknown: String,
}

impl Settings {
    /// What `tokenizer_config.json` in `folder` says; where it is silent, BertTokenizer's defaults, but case is kept for a vocabulary with
    /// capital letters.
    fn read(folder: &Path, tokens: &Tokens) -> Result<Self> {
        let path = folder.join("tokenizer_config.json");
        let config = if path.exists() {
            let bytes = read_limited(&path, MAX_TOKENIZER_CONFIG_BYTES)?;
            let text = String::from_utf8(bytes).map_err(|error| Error::checkpoint(&path, format!("it is not UTF-8 text: {error}")))?;
            Config::parse(path, text)?
        } else {
            Config::parse(path, "{}".to_string())?
        };
        match config.text("tokenizer_class")? {
            None | Some("BertTokenizer" | "BertTokenizerFast") => {}
            Some(class) => {
                let feature = format!("a vocab.txt of the tokenizer `{class}`");
                return Err(config.unsupported(feature, "those of BertTokenizer are; save the tokenizer as tokenizer.json beside it"));
            }
        }
        let strip_accents = if config.lacks("strip_accents") { None } else { Some(config.flag_or("strip_accents", false)?) };
        let unknown = match config.fields.get("unk_token") {
            // Written as an object where the token has settings of its own.
            Some(Value::Object(token)) => token.get("content").and_then(Value::as_str).unwrap_or("[UNK]"),
            _ => config.text("unk_token")?.unwrap_or("[UNK]"),
        };
        Ok(Self {
            lowercase: config.flag_or("do_lower_case", !tokens.has_capitals())?,
            strip_accents,
            chinese_characters: config.flag_or("tokenize_chinese_chars", true)?,
            unknown: unknown.to_string(),
        })
    }
}

/// The `tokenizer.json` of `tokens`, read from `path`, with the settings in `folder`.
fn build(folder: &Path, path: &Path, tokens: &Tokens) -> Result<Vec<u8>> {
    let settings = Settings::read(folder, tokens)?;
    if !tokens.ids.contains_key(settings.unknown.as_str()) {
        let problem = format!("it has no `{}`, the token of what no other token is; add it, or give a tokenizer.json", settings.unknown);
        return Err(Error::checkpoint(path, problem));
    }
    let added = tokens.ordered.iter().enumerate().filter(|(_, token)| is_bracketed(token) || **token == settings.unknown);
    let added: Vec<Value> = added
        .map(|(id, token)| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    let vocabulary: Map<String, Value> =
        tokens.ordered.iter().enumerate().map(|(id, token)| (token.to_string(), Value::from(id))).collect();
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": true,
            "handle_chinese_chars": settings.chinese_characters,
            "strip_accents": settings.strip_accents,
            "lowercase": settings.lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": null,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {
            "type": "WordPiece",
            "unk_token": settings.unknown,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        },
    });
    serde_json::to_vec(&tokenizer).map_err(|error| Error::checkpoint(path, format!("no tokenizer can be made of it: {error}")))
}
