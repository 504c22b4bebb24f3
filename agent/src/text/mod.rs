//! Text to token ids and back. Without the feature `text`, a model that brings a tokenizer is refused.
//!
//! | module | concern |
//! |--|--|
//! | [`stream`] | text from tokens as they come, whole characters only, up to a stop string |
//! | [`chat`] | a conversation as the prompt that the model was trained on |
//! | `outline` | what a tokenizer must be like before the library reads it |

use espalier_models::{Artifact, Manifest};

use crate::error::{AgentError, Result};

pub mod chat;
#[cfg(feature = "text")]
mod outline;
pub mod stream;

pub use chat::{ChatTemplate, Message};
pub use stream::TextStream;

#[cfg(feature = "text")]
type Inner = tokenizers::Tokenizer;

/// No tokenizer can be.
#[cfg(not(feature = "text"))]
enum Inner {}

/// The tokenizer that came with a model, or none: then text is token ids separated by spaces.
pub struct Tokenizer {
    inner: Option<Inner>,
    ends: Vec<u32>,
}

impl Tokenizer {
    /// The tokenizer of a model.
    pub fn of(artifact: &Artifact) -> Result<Self> {
        Self::new(artifact.manifest(), artifact.tokenizer()?)
    }

    /// A tokenizer of a model from its `tokenizer.json`, if there is one.
    pub fn new(manifest: &Manifest, json: Option<&[u8]>) -> Result<Self> {
        let inner = json.map(|json| read(&manifest.name, json)).transpose()?;
        let config = parse_config(manifest);
        let mut ends = end_tokens(&config);
        if let Some(id) = inner.as_ref().zip(special_token(&config, "eos_token")).and_then(|(inner, token)| token_id(inner, &token)) {
            ends.push(id);
        }
        Ok(Self { inner, ends })
    }

    /// The tokenizer of a `tokenizer.json` that stands for itself: `name` is what errors call it.
    pub fn of_file(name: &str, json: &[u8]) -> Result<Self> {
        Ok(Self { inner: Some(read(name, json)?), ends: Vec::new() })
    }

    /// Whether text is text; else it is token ids separated by spaces.
    pub fn has_vocabulary(&self) -> bool {
        self.inner.is_some()
    }

    /// Token ids of a text. With `add_special` the tokens that the tokenizer puts around a text (a beginning-of-text token, for most
    /// models that have one) are added; names of special tokens inside the text always become those tokens.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        match &self.inner {
            Some(tokenizer) => encode(tokenizer, text, add_special),
            None => text
                .split_whitespace()
                .map(|word| {
                    let wrong = || {
                        AgentError::Usage(format!("the model has no tokenizer, and `{word}` is no token id; give ids such as \"12 7 90\""))
                    };
                    word.parse().map_err(|_| wrong())
                })
                .collect(),
        }
    }

    /// The text of token ids, special tokens left out. Bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        match &self.inner {
            Some(tokenizer) => decode(tokenizer, ids),
            None => Ok(ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")),
        }
    }

    /// The name of a token, as the vocabulary has it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.as_ref().and_then(|inner| token_name(inner, id))
    }

    /// Whether a token ends the text.
    pub fn is_end(&self, id: u32) -> bool {
        self.inner.is_some() && self.ends.contains(&id)
    }
}

#[cfg(feature = "text")]
fn read(name: &str, bytes: &[u8]) -> Result<Inner> {
    let inner = outline::check(bytes).and_then(|()| unwind(|| Inner::from_bytes(bytes).map_err(|error| error.to_string())));
    let mut inner = inner
        .map_err(|error| AgentError::Usage(format!("{name}: its tokenizer.json cannot be used: {error}; import the checkpoint again")))?;
    // A file may say to cut texts and to fill them up, for training in batches; here every text is read whole and as it is.
    inner.with_padding(None);
    inner.with_truncation(None).map_err(|error| AgentError::Usage(format!("{name}: its tokenizer.json cannot be used: {error}")))?;
    Ok(inner)
}

/// Runs a call of the library, whose panics (on files that are no tokenizers and that [`outline`] does not know) are errors here.
#[cfg(feature = "text")]
fn unwind<T>(call: impl FnOnce() -> std::result::Result<T, String>) -> std::result::Result<T, String> {
    // What the call may leave half done is the library's cache of words, which holds whole entries only.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err("the tokenizers library panicked on it".to_string()))
}

#[cfg(not(feature = "text"))]
fn read(name: &str, _bytes: &[u8]) -> Result<Inner> {
    Err(AgentError::Usage(format!(
        "{name} brings a tokenizer, and this program was built without the feature `text`; build it with that feature"
    )))
}

#[cfg(feature = "text")]
fn encode(tokenizer: &Inner, text: &str, add_special: bool) -> Result<Vec<u32>> {
    let encoding = unwind(|| tokenizer.encode_fast(text, add_special).map_err(|error| error.to_string()));
    Ok(encoding.map_err(|error| AgentError::Usage(format!("the text cannot be tokenised: {error}")))?.get_ids().to_vec())
}

#[cfg(not(feature = "text"))]
fn encode(tokenizer: &Inner, _text: &str, _add_special: bool) -> Result<Vec<u32>> {
    match *tokenizer {}
}

#[cfg(feature = "text")]
fn decode(tokenizer: &Inner, ids: &[u32]) -> Result<String> {
    let text = unwind(|| tokenizer.decode(ids, true).map_err(|error| error.to_string()));
    text.map_err(|error| AgentError::Usage(format!("token ids {ids:?} cannot be decoded: {error}")))
}

#[cfg(not(feature = "text"))]
fn decode(tokenizer: &Inner, _ids: &[u32]) -> Result<String> {
    match *tokenizer {}
}

#[cfg(feature = "text")]
fn token_id(tokenizer: &Inner, token: &str) -> Option<u32> {
    tokenizer.token_to_id(token)
}

#[cfg(not(feature = "text"))]
fn token_id(tokenizer: &Inner, _token: &str) -> Option<u32> {
    match *tokenizer {}
}

#[cfg(feature = "text")]
fn token_name(tokenizer: &Inner, id: u32) -> Option<String> {
    tokenizer.id_to_token(id)
}

#[cfg(not(feature = "text"))]
fn token_name(tokenizer: &Inner, _id: u32) -> Option<String> {
    match *tokenizer {}
}

/// The config of the checkpoint that a model came from; null where there is none.
fn parse_config(manifest: &Manifest) -> serde_json::Value {
    serde_json::from_str(&manifest.origin.config).unwrap_or(serde_json::Value::Null)
}

/// A special token of a config: a text, or an object with its `content`.
fn special_token(config: &serde_json::Value, name: &str) -> Option<String> {
    let value = &config[name];
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_string)
}

/// `eos_token_id` of a checkpoint's config, a number or a list; of its text part where the model reads more than text.
fn end_tokens(config: &serde_json::Value) -> Vec<u32> {
    let number = |value: &serde_json::Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let field = match &config["eos_token_id"] {
        serde_json::Value::Null => &config["text_config"]["eos_token_id"],
        field => field,
    };
    match field {
        serde_json::Value::Array(ids) => ids.iter().filter_map(number).collect(),
        id => number(id).into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_tokenizer_ids_are_text() -> Result<()> {
        let tokenizer = Tokenizer { inner: None, ends: Vec::new() };
        assert_eq!(tokenizer.encode(" 3 14  15", true)?, [3, 14, 15]);
        assert_eq!(tokenizer.decode(&[9, 26])?, "9 26");
        assert!(tokenizer.encode("3 pies", true).is_err_and(|error| error.to_string().contains("`pies` is no token id")));
        Ok(())
    }

    #[test]
    fn end_tokens_are_a_number_or_a_list() {
        let of = |text: &str| end_tokens(&serde_json::from_str(text).expect("JSON"));
        assert_eq!(of(r#"{"eos_token_id": 2}"#), [2]);
        assert_eq!(of(r#"{"eos_token_id": [2, 7]}"#), [2, 7]);
        assert_eq!(of(r#"{"text_config": {"eos_token_id": 1}}"#), [1]);
        assert_eq!(of("{}"), [0u32; 0]);
    }
}

/// Tokenizers for tests.
#[cfg(all(test, feature = "text"))]
pub(crate) mod samples {
    use super::Tokenizer;

    fn of(bytes: &[u8]) -> Tokenizer {
        Tokenizer { inner: Some(super::read("sample", bytes).expect("a tokenizer")), ends: vec![0] }
    }

    /// Byte-level BPE of 360 tokens, made by the `tokenizers` Python package; ids 0 and 1 are `<|end|>` and `<|user|>`.
    pub fn byte_level() -> Tokenizer {
        of(include_bytes!("../../../tests/data/byte_level_bpe.json"))
    }

    /// SentencePiece-style: `▁` for a space, bytes for what the vocabulary lacks, the first space of a decoded text left out.
    pub fn byte_fallback() -> Tokenizer {
        let mut vocabulary = serde_json::Map::new();
        let words = ["<unk>", "▁", "a", "b", "▁a", "▁b", "ab", "▁ab"];
        let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
        for token in words.iter().map(|word| word.to_string()).chain(bytes) {
            let id = vocabulary.len();
            vocabulary.insert(token, id.into());
        }
        let decoders = serde_json::json!([
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "ByteFallback" },
            { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 }
        ]);
        let normalizers = serde_json::json!([
            { "type": "Prepend", "prepend": "▁" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "▁" }
        ]);
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": { "type": "Sequence", "normalizers": normalizers },
            "pre_tokenizer": null, "post_processor": null,
            "decoder": { "type": "Sequence", "decoders": decoders },
            "model": {
                "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": true, "byte_fallback": true, "vocab": vocabulary,
                "merges": [["▁", "a"], ["▁", "b"], ["a", "b"], ["▁", "ab"]]
            }
        });
        of(json.to_string().as_bytes())
    }
}
