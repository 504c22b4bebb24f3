//! The questions as their files have them.

use std::path::Path;

use serde_json::Value;

use super::choice::ChoiceQuestion;
use super::solution::{NumberQuestion, last_number};
use crate::error::{AgentError, Result};
use crate::language::sequences::read_text;

/// PIQA: one object a line (`goal`, `sol1`, `sol2`); the right solutions, 0 or 1 a line, are beside it in `….labels.lst` or
/// `…-labels.lst`.
pub fn piqa(path: &Path) -> Result<Vec<ChoiceQuestion>> {
    let stem = path.file_name().map(|name| name.to_string_lossy().replace(".jsonl", "")).unwrap_or_default();
    let candidates = ["-labels.lst", ".labels.lst"].map(|ending| path.with_file_name(format!("{stem}{ending}")));
    let missing = || wrong(path, "its labels are missing", &format!("the file {stem}-labels.lst beside it"));
    let labels_path = candidates.iter().find(|path| path.is_file()).ok_or_else(missing)?;
    let labels = read_text(labels_path)?;
    let labels: Vec<(usize, &str)> = full_lines(&labels).collect();
    let lines = json_lines(path)?;
    if labels.len() != lines.len() {
        let problem = format!("it has {} labels for {} questions", labels.len(), lines.len());
        return Err(wrong(labels_path, &problem, "one label a question"));
    }
    let question = |((line, value), (label_line, label)): ((usize, Value), (usize, &str))| {
        let right = match label.trim() {
            "0" => 0,
            "1" => 1,
            other => return Err(wrong(labels_path, &format!("line {label_line}: `{other}` is no label"), "0 or 1")),
        };
        let field = |name| text_field(path, &format!("line {line}"), &value, name);
        Ok(ChoiceQuestion { question: field("goal")?, choices: vec![field("sol1")?, field("sol2")?], right })
    };
    lines.into_iter().zip(labels).map(question).collect()
}

/// ARC: an array of objects whose `instruction` holds question and answers in one text
/// (`…the question: {question}\n\nAnswer1: … Answer2: …\n\nAnswer format: …`) and whose `answer` is `answer1` and so on.
pub fn arc(path: &Path) -> Result<Vec<ChoiceQuestion>> {
    let text = read_text(path)?;
    let expected = "an array of objects with `instruction` and `answer`";
    let list: Vec<Value> = serde_json::from_str(&text).map_err(|error| wrong(path, &error.to_string(), expected))?;
    let question = |(index, value): (usize, &Value)| {
        let place = format!("question {}", index + 1);
        let instruction = text_field(path, &place, value, "instruction")?;
        let answer = text_field(path, &place, value, "answer")?;
        parse_instruction(&instruction, &answer).ok_or_else(|| {
            let problem = format!("{place}: its instruction or its answer `{answer}` cannot be understood");
            wrong(path, &problem, "`…the question: …`, an empty line, `Answer1: … Answer2: …`, and `answer1` or another of them")
        })
    };
    list.iter().enumerate().map(question).collect()
}

/// Takes question and answers out of one text.
fn parse_instruction(instruction: &str, answer: &str) -> Option<ChoiceQuestion> {
    let (_, rest) = instruction.split_once("the question: ")?;
    let (rest, _) = rest.rsplit_once("\n\nAnswer format:")?;
    let (question, mut rest) = rest.rsplit_once("\n\nAnswer1:")?;
    let mut choices = Vec::new();
    loop {
        match rest.split_once(&format!(" Answer{}:", choices.len() + 2)) {
            Some((choice, after)) => {
                choices.push(choice.trim().to_string());
                rest = after;
            }
            None => {
                choices.push(rest.trim().to_string());
                break;
            }
        }
    }
    let right = answer.strip_prefix("answer")?.parse::<usize>().ok()?.checked_sub(1)?;
    (right < choices.len() && choices.len() > 1).then(|| ChoiceQuestion { question: question.trim().to_string(), choices, right })
}

/// GSM8K: one object a line, `question` and `answer`, whose last number follows `####`.
pub fn gsm8k(path: &Path) -> Result<Vec<NumberQuestion>> {
    let question = |(line, value): (usize, Value)| {
        let place = format!("line {line}");
        let answer = text_field(path, &place, &value, "answer")?;
        let number = answer.rsplit_once("####").and_then(|(_, number)| last_number(number));
        let problem = || wrong(path, &format!("{place}: its answer has no number"), "`#### ` and a number at its end");
        Ok(NumberQuestion { question: text_field(path, &place, &value, "question")?, answer: number.ok_or_else(problem)? })
    };
    json_lines(path)?.into_iter().map(question).collect()
}

/// The lines that are not empty, each with its number in the file.
fn full_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(|(index, line)| (index + 1, line))
}

/// The values of a file, each with the number of its line.
fn json_lines(path: &Path) -> Result<Vec<(usize, Value)>> {
    let text = read_text(path)?;
    let parse = |(line, value): (usize, &str)| match serde_json::from_str(value) {
        Ok(value) => Ok((line, value)),
        Err(error) => {
            // The parser sees one line, and calls it the first.
            let said = error.to_string();
            let reason = said.split(" at line ").next().unwrap_or(&said);
            Err(wrong(path, &format!("line {line}, column {}: {reason}", error.column()), "one JSON object a line"))
        }
    };
    full_lines(&text).map(parse).collect()
}

/// A text of the object at `place`.
fn text_field(path: &Path, place: &str, value: &Value, name: &str) -> Result<String> {
    let missing = || wrong(path, &format!("{place}: it has no text `{name}`"), &format!("a text field `{name}`"));
    value[name].as_str().map(|text| text.trim().to_string()).ok_or_else(missing)
}

fn wrong(path: &Path, problem: &str, expected: &str) -> AgentError {
    AgentError::Usage(format!("{}: {problem}; expected {expected}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).expect("a file");
        }
        folder
    }

    #[test]
    fn questions_are_read_as_their_files_have_them() -> Result<()> {
        let arc_text = serde_json::json!([{
            "instruction": "Please choose the correct answer to the question: Which Answer1: is it?\n\nAnswer1: the sun Answer2: a moon \n\nAnswer format: answer1/answer2",
            "answer": "answer2"
        }]);
        let folder = folder(&[
            ("p.valid.jsonl", "{\"goal\": \"Boil\", \"sol1\": \"a\", \"sol2\": \"b\"}\n"),
            ("p.valid-labels.lst", "1\n"),
            ("arc.json", &arc_text.to_string()),
            ("g.jsonl", "{\"question\": \"How many?\", \"answer\": \"2*500=1000\\n#### 1,000\"}\n"),
        ]);
        let at = |name| folder.path().join(name);
        let choice = |question: &str, choices: [&str; 2]| ChoiceQuestion {
            question: question.into(),
            choices: choices.map(String::from).to_vec(),
            right: 1,
        };
        assert_eq!(piqa(&at("p.valid.jsonl"))?, [choice("Boil", ["a", "b"])]);
        assert_eq!(arc(&at("arc.json"))?, [choice("Which Answer1: is it?", ["the sun", "a moon"])]);
        assert_eq!(gsm8k(&at("g.jsonl"))?, [NumberQuestion { question: "How many?".into(), answer: "1000".into() }]);
        Ok(())
    }

    #[test]
    fn broken_files_are_told_apart() {
        let folder = folder(&[
            ("a.jsonl", "{\"goal\": \"Boil\", \"sol1\": \"a\", \"sol2\": \"b\"}\n"),
            ("b.jsonl", "{\"goal\": \"Boil\", \"sol1\": \"a\", \"sol2\": \"b\"}\n"),
            ("b-labels.lst", "2\n"),
            ("c.jsonl", "{\"question\": \"How many?\", \"answer\": \"none\"}\n"),
            ("d.jsonl", "{\n"),
            ("f.jsonl", "\n{\"question\": \"How many?\", \"answer\": \"#### 1\"}\n\n{\"question\": 3, \"answer\": \"#### 1\"}\n"),
            ("h.jsonl", "\n\n{]\n"),
            ("i.jsonl", "\n{\"goal\": \"Boil\", \"sol1\": \"a\", \"sol2\": \"b\"}\n"),
            ("i-labels.lst", "\n\nx\n"),
            ("e.json", "[{\"instruction\": \"x\", \"answer\": \"answer1\"}]"),
        ]);
        let at = |name: &str| folder.path().join(name);
        let said = [
            (piqa(&at("a.jsonl")).err(), "a-labels.lst"),
            (piqa(&at("b.jsonl")).err(), "`2` is no label"),
            (gsm8k(&at("c.jsonl")).err(), "line 1: its answer has no number"),
            (gsm8k(&at("d.jsonl")).err(), "line 1"),
            (gsm8k(&at("f.jsonl")).err(), "line 4: it has no text `question`"),
            (gsm8k(&at("h.jsonl")).err(), "line 3, column 2"),
            (piqa(&at("i.jsonl")).err(), "i-labels.lst: line 3: `x` is no label"),
            (arc(&at("e.json")).err(), "question 1"),
        ];
        for (error, word) in said {
            let error = error.map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(word), "{word}: {error}");
        }
    }
}
