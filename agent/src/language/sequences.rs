//! Texts from files: a whole file, its lines, or the records of a FASTA file.

use std::io::Read;
use std::path::Path;

use crate::error::{AgentError, Result, file_error};

/// The longest text file: its tokens, with what finding them takes, stay within a few GiB.
pub const MAX_TEXT_BYTES: u64 = 256 << 20;

/// The text of a file. Line ends are `\n`, whatever the file has (`\r\n`, `\r`), as Python reads text: published perplexities of WikiText-2,
/// whose file has `\r\n`, are of such text.
pub fn read_text(path: &Path) -> Result<String> {
    let failed = |error: std::io::Error| file_error("cannot read", path, &error);
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(MAX_TEXT_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_TEXT_BYTES {
        let path = path.display();
        return Err(AgentError::Usage(format!("{path} is longer than {MAX_TEXT_BYTES} bytes; give a part of it")));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        AgentError::Usage(format!("{} is not UTF-8 text: byte {} is none of a character", path.display(), error.utf8_error().valid_up_to()))
    })?;
    Ok(if text.contains('\r') { text.replace("\r\n", "\n").replace('\r', "\n") } else { text })
}

/// Whether a file is named as a FASTA file is.
pub fn is_fasta(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    ["fa", "fasta", "faa"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}

/// The sequences of a FASTA text (a line that starts with `>` begins a record, the lines after it are its letters), each with its letters
/// apart, since a letter is a word of the models that read them.
pub fn fasta_sequences(text: &str, path: &Path) -> Result<Vec<String>> {
    let mut sequences: Vec<String> = Vec::new();
    let mut inside = false;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('>') {
            sequences.push(String::new());
            inside = true;
        } else if !line.is_empty() && !line.starts_with(';') {
            let wrong = |problem: &str| {
                AgentError::Usage(format!(
                    "{}: line {}: {problem}; a FASTA record is a line `>name` and lines of letters",
                    path.display(),
                    index + 1
                ))
            };
            if !inside {
                return Err(wrong("letters before the first `>`"));
            }
            if let Some(other) = line.chars().find(|letter| !letter.is_ascii_alphabetic() && !"*-".contains(*letter)) {
                return Err(wrong(&format!("`{other}` is no letter of a sequence")));
            }
            if let Some(sequence) = sequences.last_mut() {
                for letter in line.chars() {
                    if !sequence.is_empty() {
                        sequence.push(' ');
                    }
                    sequence.push(letter.to_ascii_uppercase());
                }
            }
        }
    }
    sequences.retain(|sequence| !sequence.is_empty());
    Ok(sequences)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_are_read_as_python_reads_them() -> Result<()> {
        let folder = tempfile::tempdir().map_err(|error| file_error("cannot make a folder in", Path::new("."), &error))?;
        let path = folder.path().join("text");
        std::fs::write(&path, "a\r\nb\rc\n\r\n").map_err(|error| file_error("cannot write", &path, &error))?;
        assert_eq!(read_text(&path)?, "a\nb\nc\n\n");
        Ok(())
    }

    #[test]
    fn fasta_records_are_letters_apart_over_all_their_lines() -> Result<()> {
        let path = Path::new("some.fa");
        assert_eq!(fasta_sequences(">one\nQvk\nL\n\n>empty\n>two\nA\n", path)?, ["Q V K L", "A"]);
        let error = fasta_sequences(">one\nQV1\n", path).expect_err("a digit");
        assert!(error.to_string().contains("some.fa: line 2: `1`"), "{error}");
        assert!(fasta_sequences("QV\n", path).is_err());
        assert!(is_fasta(Path::new("x/y.FASTA")) && !is_fasta(Path::new("fa")));
        Ok(())
    }
}
