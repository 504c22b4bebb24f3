//! What a checkpoint says about conversations beside its `config.json`: the chat template and the tokens that begin and end a text.

use std::path::Path;

use serde_json::{Map, Value};

use super::config::{Config, read_limited};
use crate::error::{Error, Result};

/// The longest `tokenizer_config.json` and chat template: some list every added token, a few MiB.
const MAX_BYTES: u64 = 16 << 20;

/// The fields that move from `tokenizer_config.json` into the config of an artifact's origin.
const FIELDS: [&str; 3] = ["chat_template", "bos_token", "eos_token"];

/// The text of `config.json` with the fields `chat_template`, `bos_token` and `eos_token` of the `tokenizer_config.json` beside it; a file
/// `chat_template.jinja`, where newer checkpoints keep the template, wins. Unchanged where there is neither.
pub(super) fn with_conversation(config: &Config, folder: &Path) -> Result<String> {
    let mut found = Map::new();
    let path = folder.join("tokenizer_config.json");
    if path.exists() {
        let bytes = read_limited(&path, MAX_BYTES)?;
        let fields: Map<String, Value> =
            serde_json::from_slice(&bytes).map_err(|error| Error::checkpoint(&path, format!("it is not a JSON object: {error}")))?;
        found.extend(fields.into_iter().filter(|(name, value)| FIELDS.contains(&name.as_str()) && !value.is_null()));
    }
    let path = folder.join("chat_template.jinja");
    if path.exists() {
        let template = String::from_utf8(read_limited(&path, MAX_BYTES)?)
            .map_err(|error| Error::checkpoint(&path, format!("it is not UTF-8 text: {error}")))?;
        found.insert("chat_template".into(), template.into());
    }
    if found.is_empty() {
        return Ok(config.text.clone());
    }
    let mut fields = config.fields.clone();
    fields.extend(found);
    serde_json::to_string_pretty(&fields).map_err(|error| Error::checkpoint(folder, format!("its config cannot be written: {error}")))
}
