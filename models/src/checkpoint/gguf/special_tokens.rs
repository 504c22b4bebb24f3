//! Reads which tokens a `tokenizer.json` adds before and after a text, and writes them as metadata.

use serde_json::Value;

use super::header::Header;
use super::writer::refuse;
use crate::error::{Result, quoted};

/// The ids of the tokens that start and end a text and a turn, as a `config.json` has them.
struct Ids {
    first: Option<u32>,
    last: Option<u32>,
    end_of_turn: Option<u32>,
    padding: Option<u32>,
}

impl Ids {
    fn of(config: &Value) -> Self {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ends: Vec<u32> = match &config["eos_token_id"] {
            Value::Array(ids) => ids.iter().filter_map(id).collect(),
            one => id(one).into_iter().collect(),
        };
        Self {
            first: id(&config["bos_token_id"]),
            last: ends.first().copied(),
            end_of_turn: ends.get(1).copied(),
            padding: id(&config["pad_token_id"]),
        }
    }
}

/// Writes the ids of special tokens that `config` names, and which of them `tokenizer`, a `tokenizer.json`, adds to a text.
///
/// # Errors
/// [`Error::Inexpressible`](crate::Error::Inexpressible) where it adds anything else.
pub(super) fn add_special_tokens(header: &mut Header, config: &Value, tokenizer: &Value) -> Result<()> {
    let ids = Ids::of(config);
    for (name, id) in [("bos", ids.first), ("eos", ids.last), ("eot", ids.end_of_turn), ("padding", ids.padding)] {
        if let Some(id) = id {
            header.count(&format!("tokenizer.ggml.{name}_token_id"), id);
        }
    }
    let [first, last] = added(&tokenizer["post_processor"], &ids)?;
    header.flag("tokenizer.ggml.add_bos_token", first);
    header.flag("tokenizer.ggml.add_eos_token", last);
    Ok(())
}

/// Whether the first token is added before a text, and the last one after it.
fn added(post_processor: &Value, ids: &Ids) -> Result<[bool; 2]> {
    let mut templates = Vec::new();
    collect(post_processor, &mut templates)?;
    let template = match templates[..] {
        [] => return Ok([false, false]),
        [template] => template,
        _ => return Err(refuse(format!("its tokenizer fills {} templates one after the other, and llama.cpp one", templates.len()))),
    };
    let pieces = template["single"].as_array().map_or(&[][..], |pieces| pieces);
    let is_text = |piece: &Value| piece["Sequence"]["id"] == "A";
    let (before, after) = match pieces {
        [text] if is_text(text) => (None, None),
        [before, text] if is_text(text) => (Some(before), None),
        [text, after] if is_text(text) => (None, Some(after)),
        [before, text, after] if is_text(text) => (Some(before), Some(after)),
        _ => return Err(refuse("its tokenizer adds more to a text than one token before it and one after it")),
    };
    let is_added = |piece: Option<&Value>, id: Option<u32>, name: &str| {
        let Some(piece) = piece else { return Ok(false) };
        let text = piece["SpecialToken"]["id"].as_str().unwrap_or_default();
        match template["special_tokens"][text]["ids"].as_array().map(|ids| &ids[..]) {
            Some([only]) if id.is_some() && only.as_u64() == id.map(u64::from) => Ok(true),
            _ => {
                let token = id.map_or_else(|| "none".to_string(), |id| id.to_string());
                Err(refuse(format!("its tokenizer adds {} to a text, but its configuration's `{name}` is {token}", quoted(text))))
            }
        }
    };
    Ok([is_added(before, ids.first, "bos_token_id")?, is_added(after, ids.last, "eos_token_id")?])
}

/// Collects the templates of a post-processor. The byte-level step beside them changes where tokens lie in the text, not which they are.
fn collect<'a>(step: &'a Value, templates: &mut Vec<&'a Value>) -> Result<()> {
    match step["type"].as_str() {
        None if step.is_null() => Ok(()),
        Some("ByteLevel") => Ok(()),
        Some("TemplateProcessing") => {
            templates.push(step);
            Ok(())
        }
        Some("Sequence") => step["processors"].as_array().into_iter().flatten().try_for_each(|step| collect(step, templates)),
        kind => {
            let kind = quoted(kind.unwrap_or_default());
            Err(refuse(format!("its tokenizer has a post-processor of the kind {kind}, and only TemplateProcessing can be written")))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template(single: Value) -> Value {
        let special_tokens = json!({
            "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] },
            "</s>": { "id": "</s>", "ids": [2], "tokens": ["</s>"] },
            "[SEP]": { "id": "[SEP]", "ids": [3], "tokens": ["[SEP]"] },
            "two": { "id": "two", "ids": [1, 2], "tokens": ["<s>", "</s>"] },
        });
        json!({ "type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": special_tokens })
    }

    fn token(name: &str) -> Value {
        json!({ "SpecialToken": { "id": name, "type_id": 0 } })
    }

    fn text() -> Value {
        json!({ "Sequence": { "id": "A", "type_id": 0 } })
    }

    fn sequence(processors: Value) -> Value {
        json!({ "type": "Sequence", "processors": processors })
    }

    /// Llama 3 has its first token in a sequence with a byte-level step; a model that loses it continues texts worse.
    #[test]
    fn tokens_around_a_text_are_found_wherever_the_post_processor_has_them() {
        let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": true });
        let started = template(json!([token("<s>"), text()]));
        let cases = [
            ("none", Value::Null, [false, false]),
            ("byte level", byte_level.clone(), [false, false]),
            ("text alone", template(json!([text()])), [false, false]),
            ("first", started.clone(), [true, false]),
            ("last", template(json!([text(), token("</s>")])), [false, true]),
            ("both", template(json!([token("<s>"), text(), token("</s>")])), [true, true]),
            ("Llama 3", sequence(json!([byte_level.clone(), started.clone()])), [true, false]),
            ("nested", sequence(json!([null, sequence(json!([started.clone()])), byte_level])), [true, false]),
        ];
        let config = json!({ "bos_token_id": 1, "eos_token_id": [2, 4] });
        let found = cases.map(|(name, step, expected)| (name, added(&step, &Ids::of(&config)).ok(), expected));
        let wrong: Vec<_> = found.iter().filter(|(_, found, expected)| *found != Some(*expected)).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    #[test]
    fn what_llama_cpp_would_not_add_is_refused() {
        let started = template(json!([token("<s>"), text()]));
        let cases = [
            ("two templates", sequence(json!([started.clone(), started.clone()]))),
            ("another kind", json!({ "type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1] })),
            ("no kind", json!({ "single": [] })),
            ("another first token", template(json!([token("[SEP]"), text()]))),
            ("another last token", template(json!([text(), token("[SEP]")]))),
            ("two ids", template(json!([token("two"), text()]))),
            ("an unknown token", template(json!([token("<t>"), text()]))),
            ("two tokens", template(json!([token("<s>"), token("</s>"), text()]))),
            ("no text", template(json!([token("<s>")]))),
            ("the second text", template(json!([token("<s>"), json!({ "Sequence": { "id": "B", "type_id": 0 } })]))),
        ];
        let config = json!({ "bos_token_id": 1, "eos_token_id": 2 });
        let mut accepted: Vec<&str> =
            cases.iter().filter(|(_, step)| added(step, &Ids::of(&config)).is_ok()).map(|(name, _)| *name).collect();
        if added(&started, &Ids::of(&json!({}))).is_ok() {
            accepted.push("a first token that the configuration does not name");
        }
        assert!(accepted.is_empty(), "{accepted:?}");
    }
}
