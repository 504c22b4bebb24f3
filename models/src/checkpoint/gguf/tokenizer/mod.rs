//! Makes the `tokenizer.json` of a GGUF file's vocabulary.
//!
//! Two kinds are read: byte-level BPE with a list of merges (`gpt2`, [`byte_level`]) and SentencePiece BPE with a score a piece (`llama`,
//! [`sentence_piece`]). The JSON is that of the `tokenizers` library, so that one mechanism serves all models.

mod byte_level;
mod sentence_piece;

use std::collections::HashMap;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::{Value, json};

pub(super) use byte_level::words_name;

use super::reader::Gguf;
use crate::checkpoint::vocabulary::{MAX_TOKEN_BYTES, MAX_TOKENIZER_BYTES};
use crate::error::{Error, Result, quoted};

/// The largest vocabulary.
const MAX_TOKENS: usize = 1 << 19;

/// What a token is for, as `tokenizer.ggml.token_type` has it.
pub(super) mod kind {
    /// Plain text.
    pub const NORMAL: i32 = 1;
    /// What stands for text without a token.
    pub const UNKNOWN: i32 = 2;
    /// No text: the start or the end of one, for example.
    pub const CONTROL: i32 = 3;
    /// Cut out of a text before anything else is done with it.
    pub const USER_DEFINED: i32 = 4;
    /// An id without a token.
    pub const UNUSED: i32 = 5;
    /// A byte that is no text by itself.
    pub const BYTE: i32 = 6;
}

/// A vocabulary.
struct Vocabulary<'a> {
    gguf: &'a Gguf,
    /// The tokens' texts by id.
    tokens: Vec<&'a str>,
    /// What each is for, a constant of [`kind`].
    kinds: Vec<i8>,
    /// The ids by text.
    ids: HashMap<&'a str, u32>,
}

/// A whole `tokenizer.json`.
#[derive(Serialize)]
struct TokenizerJson<'a, M: Serialize> {
    version: &'static str,
    truncation: Option<()>,
    padding: Option<()>,
    added_tokens: Vec<AddedToken<'a>>,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    model: Bpe<'a, M>,
}

/// The `model` of a `tokenizer.json`.
#[derive(Serialize)]
struct Bpe<'a, M: Serialize> {
    r#type: &'static str,
    dropout: Option<f32>,
    unk_token: Option<&'a str>,
    continuing_subword_prefix: Option<()>,
    end_of_word_suffix: Option<()>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: Ids<'a>,
    merges: M,
}

/// A token that is found in a text before anything else is done with it.
#[derive(Serialize)]
struct AddedToken<'a> {
    id: u32,
    content: &'a str,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

/// Texts with their ids, in the order of the ids.
struct Ids<'a>(&'a [&'a str]);

impl Serialize for Ids<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (id, text) in self.0.iter().enumerate() {
            map.serialize_entry(text, &id)?;
        }
        map.end()
    }
}

/// The `tokenizer.json` of the file's vocabulary, none where it has none.
///
/// # Errors
/// [`Error::Unsupported`] for another kind of tokenizer, [`Error::Checkpoint`] where the vocabulary contradicts itself.
pub(super) fn tokenizer_json(gguf: &Gguf) -> Result<Option<Vec<u8>>> {
    let json = match gguf.text("tokenizer.ggml.model")? {
        None | Some("none" | "no_vocab") => return Ok(None),
        Some("gpt2") => byte_level::tokenizer_json(&Vocabulary::read(gguf)?)?,
        Some("llama") => sentence_piece::tokenizer_json(&Vocabulary::read(gguf)?)?,
        Some(other) => return Err(gguf.unsupported(format!("a tokenizer of the kind {}", quoted(other)), "`gpt2` and `llama` are")),
    };
    Ok(Some(json))
}

impl<'a> Vocabulary<'a> {
    fn read(gguf: &'a Gguf) -> Result<Self> {
        let key = "tokenizer.ggml.tokens";
        let (count, texts) = gguf.texts(key)?.ok_or_else(|| gguf.wrong(key, "an array of texts"))?;
        if count > MAX_TOKENS {
            return Err(gguf.wrong(key, &format!("at most {MAX_TOKENS} tokens")));
        }
        let tokens: Vec<&str> = texts.collect();
        if let Some((id, token)) = tokens.iter().enumerate().find(|(_, token)| token.len() > MAX_TOKEN_BYTES) {
            return Err(gguf.wrong(key, &format!("tokens of at most {MAX_TOKEN_BYTES} bytes; token {id} has {}", token.len())));
        }
        let bytes: u64 = tokens.iter().map(|token| token.len() as u64).sum();
        if bytes > MAX_TOKENIZER_BYTES {
            return Err(gguf.wrong(key, &format!("at most {MAX_TOKENIZER_BYTES} bytes of tokens; these have {bytes}")));
        }
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, &token) in tokens.iter().enumerate() {
            if let Some(first) = ids.insert(token, id as u32) {
                return Err(gguf.wrong(key, &format!("different tokens; {first} and {id} are both {}", quoted(token))));
            }
        }
        let kinds = kinds(gguf, count)?;
        Ok(Self { gguf, tokens, kinds, ids })
    }

    /// Whether the token `id` is of that kind.
    fn is(&self, id: usize, kind: i32) -> bool {
        i32::from(self.kinds[id]) == kind
    }

    /// The tokens that are found before anything else: control tokens, and those that a user has defined.
    fn added_tokens(&self) -> Vec<AddedToken<'a>> {
        let added = |(id, &content): (usize, &&'a str)| {
            let special = self.is(id, kind::CONTROL);
            (!content.is_empty() && (special || self.is(id, kind::USER_DEFINED))).then_some(AddedToken {
                id: id as u32,
                content,
                single_word: false,
                lstrip: false,
                rstrip: false,
                normalized: false,
                special,
            })
        };
        self.tokens.iter().enumerate().filter_map(added).collect()
    }

    /// The token whose id is at `tokenizer.ggml.{name}_token_id`, `default` where that is missing.
    fn special(&self, name: &str, default: Option<u64>) -> Result<Option<(u32, &'a str)>> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let Some(id) = self.gguf.count(&key)?.or(default) else { return Ok(None) };
        let token = usize::try_from(id).ok().and_then(|id| self.tokens.get(id));
        let token = token.ok_or_else(|| self.gguf.wrong(&key, &format!("the id of one of the {} tokens", self.tokens.len())))?;
        Ok(Some((id as u32, token)))
    }

    /// What adds the first and the last token to a text; null where neither is added. `first` says whether the first one is added where
    /// the file does not say it; `ids` are those of the first and the last token where it does not say them.
    fn post_processor(&self, first: bool, ids: [Option<u64>; 2]) -> Result<Value> {
        let mut around = [Vec::new(), Vec::new()];
        let mut specials = serde_json::Map::new();
        for (at, (name, default)) in [("bos", first), ("eos", false)].into_iter().enumerate() {
            let key = format!("tokenizer.ggml.add_{name}_token");
            if !self.gguf.flag(&key)?.unwrap_or(default) {
                continue;
            }
            let named = self.special(name, ids[at])?;
            let (id, token) = named.ok_or_else(|| self.gguf.wrong(&format!("tokenizer.ggml.{name}_token_id"), "the id of a token"))?;
            around[at].push(json!({ "SpecialToken": { "id": token, "type_id": 0 } }));
            specials.insert(token.to_string(), json!({ "id": token, "ids": [id], "tokens": [token] }));
        }
        if specials.is_empty() {
            return Ok(Value::Null);
        }
        let text = |name: &str, of: u32| {
            let mut template = around[0].clone();
            template.push(json!({ "Sequence": { "id": name, "type_id": of } }));
            template.extend_from_slice(&around[1]);
            template
        };
        let pair = [text("A", 0), text("B", 1)].concat();
        Ok(json!({ "type": "TemplateProcessing", "single": text("A", 0), "pair": pair, "special_tokens": specials }))
    }

    /// Writes the JSON.
    fn finish<M: Serialize>(&self, json: &TokenizerJson<'_, M>) -> Result<Vec<u8>> {
        let mut length = Length(0);
        let written = serde_json::to_writer(&mut length, json).and_then(|()| {
            // Exactly as long as it will be: a list that grows is there twice while it is moved.
            let mut bytes = Vec::with_capacity(length.0);
            serde_json::to_writer(&mut bytes, json).map(|()| bytes)
        });
        written.map_err(|_| {
            let problem = format!("its tokenizer would take more than the {MAX_TOKENIZER_BYTES} bytes allowed");
            Error::checkpoint(crate::checkpoint::tensors::Tensors::path(self.gguf), problem)
        })
    }
}

/// The kinds of `count` tokens; all plain where the file does not say.
fn kinds(gguf: &Gguf, count: usize) -> Result<Vec<i8>> {
    let key = "tokenizer.ggml.token_type";
    let Some(values) = gguf.scalars(key)? else { return Ok(vec![kind::NORMAL as i8; count]) };
    let kinds: Option<Vec<i8>> = values.map(|value| value.as_i64().and_then(|kind| i8::try_from(kind).ok())).collect();
    kinds.filter(|kinds| kinds.len() == count).ok_or_else(|| gguf.wrong(key, &format!("a small number for each of {count} tokens")))
}

/// How many bytes are written to it: at most what a tokenizer may have.
struct Length(usize);

impl std::io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        if self.0 as u64 > MAX_TOKENIZER_BYTES {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
