//! Text from tokens as they come: whole characters only, nothing of a stop string.

use super::Tokenizer;
use crate::error::Result;

/// Tokens that may wait for the end of a character. Three do for one character; more come where a text has U+FFFD itself, which cannot be
/// told from a character that is not whole. Then all but the last is shown.
const MAX_WAITING_TOKENS: usize = 16;

/// Tokens of one character at most, each a byte of it.
const CHARACTER_TOKENS: usize = 4;

/// Tokens of the prompt that the first generated ones are decoded after: tokenizers leave out a text's first space, which is no first
/// space here.
const CONTEXT_TOKENS: usize = 4;

/// Turns a growing continuation into text that may be shown at once.
pub struct TextStream<'a> {
    decoder: Decoder<'a>,
    stops: Stops,
}

impl<'a> TextStream<'a> {
    /// A stream after `prompt`, which ends before the first of `stops` that occurs; an empty one is ignored.
    pub fn new(tokenizer: &'a Tokenizer, prompt: &[u32], stops: &[String]) -> Result<Self> {
        Ok(Self { decoder: Decoder::new(tokenizer, prompt)?, stops: Stops::new(stops) })
    }

    /// Takes a token and appends what may be shown now to `out`. Returns true once a stop string has occurred; what came before it has
    /// then been appended, and no more tokens may follow.
    pub fn push(&mut self, id: u32, out: &mut String) -> Result<bool> {
        self.decoder.push(id, &mut self.stops.held)?;
        Ok(self.stops.release(out))
    }

    /// Appends what was held back, when no token follows. Returns whether that completed a stop string.
    pub fn finish(mut self, out: &mut String) -> Result<bool> {
        self.decoder.finish(&mut self.stops.held)?;
        let stopped = self.stops.release(out);
        out.push_str(&self.stops.held);
        Ok(stopped)
    }
}

/// Decodes the newest tokens after some that are known, so that the cost of a token does not grow with the text.
struct Decoder<'a> {
    tokenizer: &'a Tokenizer,
    /// Tokens whose text is all shown, then those whose text may not be.
    ids: Vec<u32>,
    known: usize,
    /// The part of the text of `ids` that is shown.
    shown: String,
}

impl<'a> Decoder<'a> {
    fn new(tokenizer: &'a Tokenizer, prompt: &[u32]) -> Result<Self> {
        // Without a vocabulary the text is the ids alone, and no first space is to be kept.
        let context = if tokenizer.has_vocabulary() { prompt.len().min(CONTEXT_TOKENS) } else { 0 };
        let ids = prompt[prompt.len() - context..].to_vec();
        let shown = tokenizer.decode(&ids)?;
        Ok(Self { tokenizer, known: ids.len(), ids, shown })
    }

    fn push(&mut self, id: u32, out: &mut String) -> Result<()> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids)?;
        let waiting = self.ids.len() - self.known;
        let Some(new) = text.strip_prefix(self.shown.as_str()) else { return self.push_apart(waiting, out) };
        match new.strip_suffix(char::REPLACEMENT_CHARACTER) {
            // A special token says nothing; kept, it would only make later decoding longer.
            None if new.is_empty() && waiting == 1 && !self.shown.is_empty() => {
                self.ids.pop();
            }
            None if new.is_empty() => {}
            None => {
                out.push_str(new);
                self.forget_known()?;
            }
            Some(settled) if waiting > MAX_WAITING_TOKENS => {
                out.push_str(settled);
                self.forget_known()?;
                if self.shown.ends_with(char::REPLACEMENT_CHARACTER) {
                    self.shown.pop();
                }
                // What is not shown is of the last character's tokens.
                self.known = self.ids.len() - CHARACTER_TOKENS;
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// Takes the waiting tokens where they change the text before them. Byte tokens after a character of byte tokens do: until they are whole
    /// they are decoded as invalid together with it, and where they never become a character that remains so. They wait until by
    /// themselves they are text.
    fn push_apart(&mut self, waiting: usize, out: &mut String) -> Result<()> {
        let own = self.tokenizer.decode(&self.ids[self.known..])?;
        let whole = !own.is_empty() && !own.ends_with(char::REPLACEMENT_CHARACTER);
        if whole || waiting > MAX_WAITING_TOKENS {
            out.push_str(&own);
            self.forget_known()?;
        }
        Ok(())
    }

    /// Goes on with the tokens that waited as those whose text is shown.
    fn forget_known(&mut self) -> Result<()> {
        self.ids.drain(..self.known);
        self.known = self.ids.len();
        self.shown = self.tokenizer.decode(&self.ids)?;
        Ok(())
    }

    /// Appends the text of tokens that ended inside a character.
    fn finish(&mut self, out: &mut String) -> Result<()> {
        let text = self.tokenizer.decode(&self.ids)?;
        match text.strip_prefix(self.shown.as_str()) {
            Some(new) => out.push_str(new),
            None => out.push_str(&self.tokenizer.decode(&self.ids[self.known..])?),
        }
        Ok(())
    }
}

/// Holds back text that may be the beginning of a stop string.
struct Stops {
    stops: Vec<String>,
    held: String,
}

impl Stops {
    fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().filter(|stop| !stop.is_empty()).cloned().collect(), held: String::new() }
    }

    /// Appends what cannot be part of a stop string to `out`; true once one is complete.
    fn release(&mut self, out: &mut String) -> bool {
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            out.push_str(&self.held[..at]);
            self.held.clear();
            return true;
        }
        let begins = |at: usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[at..]));
        let at = self.held.char_indices().map(|(at, _)| at).find(|at| begins(*at)).unwrap_or(self.held.len());
        out.push_str(&self.held[..at]);
        self.held.drain(..at);
        false
    }
}

#[cfg(all(test, feature = "text"))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::text::samples::{byte_fallback, byte_level};

    /// What is shown after each token, and whether a stop string ended it.
    fn shown(tokenizer: &Tokenizer, prompt: &[u32], ids: &[u32], stops: &[&str]) -> Result<(Vec<String>, bool)> {
        let stops: Vec<String> = stops.iter().map(|stop| stop.to_string()).collect();
        let mut stream = TextStream::new(tokenizer, prompt, &stops)?;
        let mut parts = Vec::new();
        for id in ids {
            let mut part = String::new();
            let stopped = stream.push(*id, &mut part)?;
            parts.push(part);
            if stopped {
                return Ok((parts, true));
            }
        }
        let mut part = String::new();
        let stopped = stream.finish(&mut part)?;
        parts.push(part);
        Ok((parts, stopped))
    }

    #[test]
    fn characters_come_whole() -> Result<()> {
        let tokenizer = byte_level();
        let ids = tokenizer.encode("ß🦊!", false)?;
        let (parts, _) = shown(&tokenizer, &[], &ids, &[])?;
        assert!(parts.iter().all(|part| !part.contains(char::REPLACEMENT_CHARACTER)), "{parts:?}");
        assert_eq!(parts.concat(), "ß🦊!");
        Ok(())
    }

    #[test]
    fn the_first_space_of_a_continuation_is_kept_and_that_of_a_text_is_not() -> Result<()> {
        let tokenizer = byte_fallback();
        let [prompt, word] = [tokenizer.encode("ab", false)?, tokenizer.encode("b", false)?];
        assert_eq!(shown(&tokenizer, &prompt, &word, &[])?.0.concat(), " b");
        assert_eq!(shown(&tokenizer, &[], &word, &[])?.0.concat(), "b");
        Ok(())
    }

    #[test]
    fn bytes_that_are_no_character_are_shown_as_such_and_hold_nothing_up() -> Result<()> {
        let tokenizer = byte_level();
        let lone = tokenizer.encode("ß", false)?[0];
        let letter = tokenizer.encode("x", false)?[0];
        let ids: Vec<u32> = [vec![lone; 30], vec![letter]].concat();
        let (parts, _) = shown(&tokenizer, &[], &ids, &[])?;
        assert_eq!(parts.concat(), tokenizer.decode(&ids)?);
        assert!(parts[..20].iter().any(|part| !part.is_empty()));
        Ok(())
    }

    #[test]
    fn bytes_that_spoil_the_character_before_them_hold_nothing_up() -> Result<()> {
        let tokenizer = byte_fallback();
        let [character, letters] = [tokenizer.encode("é", false)?, tokenizer.encode("ab ab", false)?];
        // After `▁` come the bytes of é, each a token, in the order of their values.
        let [first, second] = character[character.len() - 2..] else { panic!("{character:?}") };
        assert_eq!([tokenizer.token(first), tokenizer.token(second)], [Some("<0xC3>".into()), Some("<0xA9>".into())]);
        let invalid = first + (0xff - 0xc3);
        let text = [vec![first, second, invalid], letters.clone()].concat();
        let (parts, stopped) = shown(&tokenizer, &[], &text, &["ab a"])?;
        assert_eq!((parts.concat().as_str(), stopped), ("é\u{fffd} ", true));
        let (parts, _) = shown(&tokenizer, &[], &text, &[])?;
        assert_eq!(parts.concat(), "é\u{fffd} ab ab");
        // Without end.
        let run = [vec![first, second], vec![invalid; 200]].concat();
        let mut decoder = Decoder::new(&tokenizer, &[])?;
        let (mut out, mut longest) = (String::new(), 0);
        for id in run {
            decoder.push(id, &mut out)?;
            longest = longest.max(decoder.ids.len());
        }
        assert!(longest <= 3 * MAX_WAITING_TOKENS, "{longest} tokens are decoded for one");
        decoder.finish(&mut out)?;
        assert_eq!(out, format!("é{}", "\u{fffd}".repeat(200)));
        Ok(())
    }

    #[test]
    fn a_stop_string_ends_the_text_before_it_wherever_token_borders_lie() -> Result<()> {
        let tokenizer = byte_level();
        let ids = tokenizer.encode("one\n\nQuestion: two", false)?;
        let cases: [(&[&str], &str, bool); 6] = [
            (&["\n\nQ"], "one", true),
            (&["Question:"], "one\n\n", true),
            (&["two", "Question"], "one\n\n", true),
            (&["two!"], "one\n\nQuestion: two", false),
            (&["two"], "one\n\nQuestion: ", true),
            (&[""], "one\n\nQuestion: two", false),
        ];
        for (stops, expected, stopped) in cases {
            let found = shown(&tokenizer, &[], &ids, stops)?;
            assert_eq!((found.0.concat().as_str(), found.1), (expected, stopped), "{stops:?}");
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn byte_level_text_comes_back_byte_for_byte(text in "\\PC{0,40}|[a-z \\n\\t]{0,60}|[\u{0}-\u{10ffff}]{0,12}") {
            let tokenizer = byte_level();
            let ids = tokenizer.encode(&text, false)?;
            prop_assert_eq!(&tokenizer.decode(&ids)?, &text);
            let (parts, _) = shown(&tokenizer, &[], &ids, &[])?;
            prop_assert_eq!(parts.concat(), text);
        }

        #[test]
        fn byte_fallback_text_streams_as_it_decodes(text in "[ab ]{1,12}|[ab€🦊é ]{1,12}") {
            let tokenizer = byte_fallback();
            let ids = tokenizer.encode(&text, false)?;
            let (parts, _) = shown(&tokenizer, &[], &ids, &[])?;
            prop_assert_eq!(parts.concat(), tokenizer.decode(&ids)?);
        }

        #[test]
        fn a_stop_string_cuts_exactly_where_it_first_occurs(text in "[abc]{0,30}", stop in "[abc]{1,4}") {
            let tokenizer = byte_level();
            let ids = tokenizer.encode(&text, false)?;
            let (parts, stopped) = shown(&tokenizer, &[], &ids, &[&stop])?;
            prop_assert_eq!(stopped, text.contains(&stop));
            prop_assert_eq!(parts.concat(), text.split(&stop).next().unwrap_or_default());
        }
    }
}
