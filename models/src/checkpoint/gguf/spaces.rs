//! Finds out how a SentencePiece-style `tokenizer.json` writes spaces.
//!
//! llama.cpp replaces every space by `▁`, puts one before a text where `tokenizer.ggml.add_space_prefix` says so, and joins pieces over the
//! whole text. Only forms that are known to do the same are accepted.

use serde_json::Value;

use super::writer::refuse;
use crate::error::Result;

/// Whether a space is put before a text. `joined` are the texts that merges make.
///
/// Three forms are known: the normalizers `Prepend` (or not) and `Replace`, as [`super::tokenizer`] writes them; Gemma's `Replace` with a
/// pre-tokenizer that splits at spaces, of which none are left; and the pre-tokenizer `Metaspace` without a normalizer.
///
/// # Errors
/// [`Error::Inexpressible`](crate::Error::Inexpressible) for any other.
pub(super) fn space_first<'a>(tokenizer: &Value, joined: impl Iterator<Item = &'a str>) -> Result<bool> {
    let (normalizer, pre_tokenizer) = (&tokenizer["normalizer"], &tokenizer["pre_tokenizer"]);
    if normalizer.is_null() {
        return metaspace(pre_tokenizer, joined);
    }
    let no_split = pre_tokenizer.is_null() || (pre_tokenizer["type"] == "Split" && pre_tokenizer["pattern"]["String"] == " ");
    if !no_split {
        return Err(refuse("its tokenizer cuts words in a way that llama.cpp does not"));
    }
    let only = std::slice::from_ref(normalizer);
    let steps = match normalizer["type"].as_str() {
        Some("Sequence") => normalizer["normalizers"].as_array().map_or(&[][..], |steps| steps),
        _ => only,
    };
    let replaces = |step: &Value| step["type"] == "Replace" && step["pattern"]["String"] == " " && step["content"] == "▁";
    let prepends = |step: &Value| step["type"] == "Prepend" && step["prepend"] == "▁";
    match steps {
        [replace] if replaces(replace) => Ok(false),
        [prepend, replace] if prepends(prepend) && replaces(replace) => Ok(true),
        _ => Err(refuse("its tokenizer changes a text in another way than writing each space as `▁`")),
    }
}

/// Whether the pre-tokenizer `Metaspace` puts a space before a text. Where it splits, no word may have a `▁` but as its first character:
/// llama.cpp, which does not split, would join pieces over the cut.
fn metaspace<'a>(pre_tokenizer: &Value, mut joined: impl Iterator<Item = &'a str>) -> Result<bool> {
    if pre_tokenizer["type"] != "Metaspace" || pre_tokenizer["replacement"] != "▁" {
        return Err(refuse("its tokenizer writes spaces in a way that llama.cpp does not"));
    }
    if pre_tokenizer["split"] != false && joined.any(|text| text.chars().skip(1).any(|character| character == '▁')) {
        return Err(refuse("its tokenizer splits at spaces but has pieces with a space inside, which llama.cpp would use"));
    }
    match pre_tokenizer["prepend_scheme"].as_str() {
        Some("first" | "always") => Ok(true),
        Some("never") => Ok(false),
        _ => Err(refuse("its tokenizer does not say whether it puts a space before a text (`prepend_scheme`)")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn replace(from: &str, to: &str) -> Value {
        json!({ "type": "Replace", "pattern": { "String": from }, "content": to })
    }

    fn sequence(normalizers: Value) -> Value {
        json!({ "type": "Sequence", "normalizers": normalizers })
    }

    fn metaspace(scheme: &str, split: bool) -> Value {
        json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split })
    }

    fn found(normalizer: &Value, pre_tokenizer: &Value) -> Result<bool> {
        space_first(&json!({ "normalizer": normalizer, "pre_tokenizer": pre_tokenizer }), ["▁the", "▁▁"].into_iter())
    }

    #[test]
    fn the_known_forms_say_whether_a_space_comes_first() {
        let prepend = json!({ "type": "Prepend", "prepend": "▁" });
        let gemma = json!({ "type": "Split", "pattern": { "String": " " }, "behavior": "MergedWithPrevious", "invert": false });
        let cases = [
            ("Llama 2", sequence(json!([prepend, replace(" ", "▁")])), Value::Null, true),
            ("no prefix", sequence(json!([replace(" ", "▁")])), Value::Null, false),
            ("Gemma", replace(" ", "▁"), gemma, false),
            ("Metaspace first", Value::Null, metaspace("first", false), true),
            ("Metaspace always", Value::Null, metaspace("always", false), true),
            ("Metaspace never", Value::Null, metaspace("never", false), false),
        ];
        let wrong: Vec<_> = cases.iter().filter(|(_, normalizer, step, first)| found(normalizer, step).ok() != Some(*first)).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        let split = json!({ "normalizer": null, "pre_tokenizer": metaspace("always", true) });
        assert!(space_first(&split, ["▁the", "▁"].into_iter()).unwrap(), "no piece reaches over a cut");
    }

    #[test]
    fn other_forms_are_refused() {
        let prepend = |text| json!({ "type": "Prepend", "prepend": text });
        let cases = [
            ("nothing", Value::Null, Value::Null),
            ("lower case", sequence(json!([{ "type": "Lowercase" }, replace(" ", "▁")])), Value::Null),
            ("another mark", replace(" ", "_"), Value::Null),
            ("another space", replace("\t", "▁"), Value::Null),
            ("another prefix", sequence(json!([prepend("_"), replace(" ", "▁")])), Value::Null),
            ("the prefix last", sequence(json!([replace(" ", "▁"), prepend("▁")])), Value::Null),
            ("NFKC alone", json!({ "type": "NFKC" }), Value::Null),
            ("words", replace(" ", "▁"), json!({ "type": "Whitespace" })),
            ("both", replace(" ", "▁"), metaspace("first", false)),
            ("another Metaspace", Value::Null, json!({ "type": "Metaspace", "replacement": "_", "prepend_scheme": "first" })),
            ("an old Metaspace", Value::Null, json!({ "type": "Metaspace", "replacement": "▁", "split": false })),
            ("pieces over a cut", Value::Null, metaspace("first", true)),
        ];
        let accepted: Vec<&str> = cases.iter().filter(|(_, one, other)| found(one, other).is_ok()).map(|(name, ..)| *name).collect();
        assert!(accepted.is_empty(), "{accepted:?}");
    }
}
