//! Text to token ids and back. Without the feature `text`, a model that brings a tokenizer is refused.

use espalier_models::Manifest;

use crate::error::{AgentError, Result};

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
    pub fn of(manifest: &Manifest) -> Result<Self> {
        let inner = match &manifest.tokenizer {
            None => None,
            Some(bytes) => Some(read(&manifest.name, bytes)?),
        };
        Ok(Self { inner, ends: end_tokens(&manifest.origin.config) })
    }

    /// Token ids of a text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &self.inner {
            Some(tokenizer) => encode(tokenizer, text),
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

    /// The text of token ids.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        match &self.inner {
            Some(tokenizer) => decode(tokenizer, ids),
            None => Ok(ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")),
        }
    }

    /// Whether a token ends the text.
    pub fn is_end(&self, id: u32) -> bool {
        self.inner.is_some() && self.ends.contains(&id)
    }
}

#[cfg(feature = "text")]
fn read(name: &str, bytes: &[u8]) -> Result<Inner> {
    // The library panics on some files that are no tokenizers (a decoder without a type); that is a broken file, not a broken program.
    let parsed = std::panic::catch_unwind(|| Inner::from_bytes(bytes).map_err(|error| error.to_string()));
    parsed
        .unwrap_or_else(|_| Err("it is not what the tokenizers library expects".to_string()))
        .map_err(|error| AgentError::Usage(format!("{name}: its tokenizer.json cannot be used: {error}; import the checkpoint again")))
}

#[cfg(not(feature = "text"))]
fn read(name: &str, _bytes: &[u8]) -> Result<Inner> {
    Err(AgentError::Usage(format!(
        "{name} brings a tokenizer, and this program was built without the feature `text`; build it with that feature"
    )))
}

#[cfg(feature = "text")]
fn encode(tokenizer: &Inner, text: &str) -> Result<Vec<u32>> {
    let encoding = tokenizer.encode(text, true).map_err(|error| AgentError::Usage(format!("the prompt cannot be tokenised: {error}")))?;
    Ok(encoding.get_ids().to_vec())
}

#[cfg(not(feature = "text"))]
fn encode(tokenizer: &Inner, _text: &str) -> Result<Vec<u32>> {
    match *tokenizer {}
}

#[cfg(feature = "text")]
fn decode(tokenizer: &Inner, ids: &[u32]) -> Result<String> {
    tokenizer.decode(ids, true).map_err(|error| AgentError::Usage(format!("token ids {ids:?} cannot be decoded: {error}")))
}

#[cfg(not(feature = "text"))]
fn decode(tokenizer: &Inner, _ids: &[u32]) -> Result<String> {
    match *tokenizer {}
}

/// `eos_token_id` of a checkpoint's config, a number or a list.
fn end_tokens(config: &str) -> Vec<u32> {
    let Ok(config) = serde_json::from_str::<serde_json::Value>(config) else { return Vec::new() };
    let number = |value: &serde_json::Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match &config["eos_token_id"] {
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
        assert_eq!(tokenizer.encode(" 3 14  15")?, [3, 14, 15]);
        assert_eq!(tokenizer.decode(&[9, 26])?, "9 26");
        assert!(tokenizer.encode("3 pies").is_err_and(|error| error.to_string().contains("`pies` is no token id")));
        Ok(())
    }

    #[test]
    fn end_tokens_are_a_number_or_a_list() {
        assert_eq!(end_tokens(r#"{"eos_token_id": 2}"#), [2]);
        assert_eq!(end_tokens(r#"{"eos_token_id": [2, 7]}"#), [2, 7]);
        assert_eq!(end_tokens("{}"), [0u32; 0]);
    }
}
