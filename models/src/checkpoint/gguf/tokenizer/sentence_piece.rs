//! SentencePiece BPE (Kudo and Richardson, 2018): neighbouring pieces are joined to the piece with the highest score, characters without a
//! piece become bytes, and a space is the character `▁`.
//!
//! The `tokenizers` library joins by a list of pairs instead: of every piece all ways to cut it in two pieces, in descending order of the
//! whole piece's score.

use serde::ser::{Serialize, SerializeSeq, Serializer};
use serde_json::{Value, json};

use super::{Bpe, Ids, TokenizerJson, Vocabulary, kind};
use crate::error::Result;

/// The most pairs: twice what a vocabulary of 262 144 pieces has.
const MAX_PAIRS: usize = 1 << 20;

/// A way to cut a piece in two.
#[derive(Debug, Clone, Copy)]
struct Pair {
    left: u32,
    right: u32,
    score: f32,
}

/// Pairs with the texts of their pieces.
struct Merges<'a> {
    tokens: &'a [&'a str],
    pairs: &'a [Pair],
}

impl Serialize for Merges<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut sequence = serializer.serialize_seq(Some(self.pairs.len()))?;
        for pair in self.pairs {
            sequence.serialize_element(&[self.tokens[pair.left as usize], self.tokens[pair.right as usize]])?;
        }
        sequence.end()
    }
}

/// The `tokenizer.json` of a vocabulary of pieces with scores.
pub(super) fn tokenizer_json(vocabulary: &Vocabulary<'_>) -> Result<Vec<u8>> {
    let gguf = vocabulary.gguf;
    let pairs = pairs(vocabulary)?;
    let space_first = gguf.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let replace = |from: &str, to: &str| json!({ "type": "Replace", "pattern": { "String": from }, "content": to });
    let mut normalizers = vec![replace(" ", "▁")];
    let mut decoders = vec![replace("▁", " "), json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" })];
    if space_first {
        normalizers.insert(0, json!({ "type": "Prepend", "prepend": "▁" }));
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let unknown = (0..vocabulary.tokens.len()).find(|&id| vocabulary.is(id, kind::UNKNOWN)).map(|id| vocabulary.tokens[id]);
    let json = TokenizerJson {
        version: "1.0",
        truncation: None,
        padding: None,
        added_tokens: vocabulary.added_tokens(),
        normalizer: json!({ "type": "Sequence", "normalizers": normalizers }),
        pre_tokenizer: Value::Null,
        // The ids that SentencePiece itself gives the first and the last token.
        post_processor: vocabulary.post_processor(true, [Some(1), Some(2)])?,
        decoder: json!({ "type": "Sequence", "decoders": decoders }),
        model: Bpe {
            r#type: "BPE",
            dropout: None,
            unk_token: unknown,
            continuing_subword_prefix: None,
            end_of_word_suffix: None,
            fuse_unk: true,
            byte_fallback: true,
            ignore_merges: false,
            vocab: Ids(&vocabulary.tokens),
            merges: Merges { tokens: &vocabulary.tokens, pairs: &pairs },
        },
    };
    vocabulary.finish(&json)
}

/// All pairs in the order in which they are joined: those of the highest score first, of one piece the longest left part first.
fn pairs(vocabulary: &Vocabulary<'_>) -> Result<Vec<Pair>> {
    let (gguf, key) = (vocabulary.gguf, "tokenizer.ggml.scores");
    let count = vocabulary.tokens.len();
    let expected = format!("a number for each of {count} tokens");
    let scores = gguf.scalars(key)?.ok_or_else(|| gguf.wrong(key, &expected))?;
    // Control tokens and bytes are no text; what a user has defined is cut out of a text before anything is joined.
    let joins = |id: usize| ![kind::UNKNOWN, kind::CONTROL, kind::USER_DEFINED, kind::BYTE].iter().any(|&kind| vocabulary.is(id, kind));
    let (mut pairs, mut seen) = (Vec::new(), 0);
    for (id, score) in scores.enumerate() {
        let score = score.as_f32().ok_or_else(|| gguf.wrong(key, &expected))?;
        seen = id + 1;
        let Some(token) = vocabulary.tokens.get(id).filter(|_| joins(id)) else { continue };
        let of_token = pairs.len();
        for (cut, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(cut);
            let Some(&left) = vocabulary.ids.get(left) else { continue };
            let Some(&right) = vocabulary.ids.get(right) else { continue };
            if joins(left as usize) && joins(right as usize) {
                pairs.push(Pair { left, right, score });
            }
        }
        pairs[of_token..].reverse();
        if pairs.len() > MAX_PAIRS {
            return Err(gguf.unsupported("a vocabulary of more than a million ways to cut its pieces in two", "smaller ones are"));
        }
    }
    if seen != count {
        return Err(gguf.wrong(key, &expected));
    }
    pairs.sort_by(|one, other| other.score.total_cmp(&one.score));
    Ok(pairs)
}
