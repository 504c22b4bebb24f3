//! What a `tokenizer.json` must be like before the `tokenizers` library reads it: the library panics, or takes memory without bound, on
//! some files that are no tokenizers.
//!
//! | what | what the library would do |
//! |--|--|
//! | broken JSON inside a decoder | panic |
//! | a `Precompiled` normalizer | panic, or read its table's length from the file and allocate that |
//! | a decoder that strips the end of a token | panic on a shorter token |
//! | a pre-tokenizer that cuts pieces of no length | panic on any text |
//! | a template with a token that it does not define, or with a second text | panic on any text |
//! | two templates in a row | panic on any text |
//! | a prefix of continuing BPE pieces that a piece lacks | panic |
//! | a token id of 2^32 − 1 | overflow where ids are given to added tokens |

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// The largest token id: more than any vocabulary has.
const MAX_ID: u64 = 1 << 28;

/// The small parts of a `tokenizer.json`; the vocabulary is only walked through.
#[derive(Deserialize)]
struct Outline {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default)]
    continuing_subword_prefix: Value,
    #[serde(default)]
    merges: Option<IgnoredAny>,
    #[serde(default, rename = "vocab")]
    _vocabulary: Vocabulary,
}

/// A vocabulary whose ids are not too large: tokens with their ids, or a list.
#[derive(Default)]
struct Vocabulary;

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Vocabulary)
    }
}

impl<'de> Visitor<'de> for Vocabulary {
    type Value = Vocabulary;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a vocabulary: tokens with their ids, or a list of tokens with their scores")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        while let Some((_, id)) = map.next_entry::<IgnoredAny, u64>()? {
            if id > MAX_ID {
                return Err(A::Error::custom(format!("a token has the id {id}; expected 0 to {MAX_ID}")));
            }
        }
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(self)
    }
}

/// Checks a `tokenizer.json`. The error says what is wrong with it, in words that follow "cannot be used:".
pub(super) fn check(json: &[u8]) -> Result<(), String> {
    let outline: Outline = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    objects(&outline.normalizer, &mut |normalizer| {
        let precompiled = normalizer["type"] == "Precompiled" || !normalizer["precompiled_charsmap"].is_null();
        if precompiled { Err("its normalizer is `Precompiled`, which is not supported".to_string()) } else { Ok(()) }
    })?;
    objects(&outline.decoder, &mut |decoder| match &decoder["stop"] {
        Value::Null => Ok(()),
        stop if stop.as_u64() == Some(0) => Ok(()),
        stop => Err(format!("its decoder has `stop` = {stop:.40}; only 0, nothing stripped from the end of a token, is supported")),
    })?;
    objects(&outline.pre_tokenizer, &mut |pre_tokenizer| match pre_tokenizer["length"].as_u64() {
        Some(0) => Err("its pre-tokenizer has `length` = 0; expected at least 1".to_string()),
        _ => Ok(()),
    })?;
    let mut templates = 0;
    objects(&outline.post_processor, &mut |processor| {
        let Some(pieces) = processor["single"].as_array() else { return Ok(()) };
        templates += 1;
        if templates > 1 {
            return Err("its post-processor has two templates; expected one at most".to_string());
        }
        pieces.iter().try_for_each(|piece| check_piece(piece, &processor["special_tokens"]))
    })?;
    match outline.model.continuing_subword_prefix.as_str() {
        Some(prefix) if !prefix.is_empty() && outline.model.merges.is_some() => {
            Err(format!("its BPE model has `continuing_subword_prefix` = \"{prefix:.40}\"; only an empty one is supported"))
        }
        _ => Ok(()),
    }
}

/// Checks a piece of a template for one text.
fn check_piece(piece: &Value, special_tokens: &Value) -> Result<(), String> {
    match (piece["SpecialToken"]["id"].as_str(), piece["Sequence"]["id"].as_str()) {
        (Some(id), _) if special_tokens.get(id).is_none() => {
            Err(format!("its template has the token `{id:.40}`, which is not among its `special_tokens`"))
        }
        (_, Some(id)) if id != "A" => Err(format!("its template for one text has the text `{id:.40}`; expected `A`")),
        _ => Ok(()),
    }
}

/// Calls `check` for every object inside a part, itself too. The depth is bounded by that of the JSON parser.
fn objects(part: &Value, check: &mut dyn FnMut(&Value) -> Result<(), String>) -> Result<(), String> {
    match part {
        Value::Object(fields) => {
            check(part)?;
            fields.values().try_for_each(|field| objects(field, check))
        }
        Value::Array(parts) => parts.iter().try_for_each(|part| objects(part, check)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A WordPiece tokenizer with one part replaced.
    fn with(part: &str, value: &str) -> String {
        let parts = ["normalizer", "pre_tokenizer", "post_processor", "decoder"].map(|name| {
            let value = if name == part { value } else { "null" };
            format!("\"{name}\": {value}")
        });
        let model = r####"{"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 9, "vocab": {"[UNK]": 0, "a": 1}}"####;
        let model = if part == "model" { value } else { model };
        format!("{{\"version\": \"1.0\", \"added_tokens\": [], {}, \"model\": {model}}}", parts.join(", "))
    }

    #[test]
    fn what_the_library_panics_on_is_refused_in_a_sentence() {
        let cases = [
            ("decoder", "{\"type\": \"Word\u{1}Piece\"}", "control character"),
            ("normalizer", r#"{"type": "Precompiled", "precompiled_charsmap": "////fw=="}"#, "`Precompiled`"),
            ("normalizer", r#"{"type": "Sequence", "normalizers": [{"precompiled_charsmap": ""}]}"#, "`Precompiled`"),
            ("decoder", r#"{"type": "Sequence", "decoders": [{"type": "Strip", "content": " ", "start": 0, "stop": 9}]}"#, "`stop` = 9"),
            ("pre_tokenizer", r#"{"type": "FixedLength", "length": 0}"#, "`length` = 0"),
            (
                "post_processor",
                r#"{"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}], "pair": [], "special_tokens": {}}"#,
                "`<s>`, which is not among",
            ),
            (
                "post_processor",
                r#"{"type": "TemplateProcessing", "single": [{"Sequence": {"id": "B", "type_id": 0}}], "pair": [], "special_tokens": {}}"#,
                "has the text `B`",
            ),
            (
                "post_processor",
                r#"{"type": "Sequence", "processors": [{"single": [], "pair": [], "special_tokens": {}}, {"single": [], "pair": []}]}"#,
                "two templates",
            ),
            (
                "model",
                r#"{"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "é"]], "continuing_subword_prefix": "@"}"#,
                "`continuing_subword_prefix`",
            ),
            ("model", r#"{"type": "WordLevel", "vocab": {"a": 4294967295}, "unk_token": "a"}"#, "id 4294967295"),
            ("model", "7", "expected struct Model"),
        ];
        let mut wrong = Vec::new();
        for (part, value, expected) in cases {
            let found = check(with(part, value).as_bytes());
            if !found.as_ref().is_err_and(|problem| problem.contains(expected)) {
                wrong.push(format!("{part} {value}: {found:?}, expected {expected}"));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn usual_parts_are_let_through() {
        let cases = [
            ("decoder", r#"{"type": "Strip", "content": " ", "start": 1, "stop": 0}"#),
            (
                "post_processor",
                r#"{"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                    "pair": [{"Sequence": {"id": "B", "type_id": 0}}], "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}"#,
            ),
            ("model", r#"{"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0], ["b", -1.5]]}"#),
            ("", ""),
        ];
        for (part, value) in cases {
            assert_eq!(check(with(part, value).as_bytes()), Ok(()), "{part} {value}");
        }
    }
}
