//! Who hears the verdicts.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::queue::Gap;
use super::verdict::{State, Verdict};
use crate::error::{AgentError, Result, file_error};
use crate::signals::BadWindow;

/// Hears every verdict, in order, on the loop's thread. It must not allocate after its first calls.
pub trait Sink: Send {
    /// A window's verdict.
    ///
    /// # Errors
    /// [`AgentError::Cancelled`] ends the loop quietly: whoever read the verdicts has gone. Any other error ends it with that error.
    fn verdict(&mut self, verdict: &Verdict) -> Result<()>;

    /// Windows that were dropped before the next verdict.
    ///
    /// # Errors
    /// As [`Sink::verdict`].
    fn gap(&mut self, gap: Gap) -> Result<()> {
        let _ = gap;
        Ok(())
    }
}

/// Writes each verdict as a line of JSON. Dropped windows show as gaps in `sequence`.
pub struct JsonLines<W> {
    writer: W,
    path: PathBuf,
    /// Class names as JSON strings.
    classes: Vec<String>,
    line: Vec<u8>,
}

/// Enough for a line of [`MAX_CLASSES`](super::engine::MAX_CLASSES) probabilities and a long class name.
const LINE_BYTES: usize = 1024;

impl<W: Write + Send> JsonLines<W> {
    /// Writes to `writer`, one call a line; `path` is for messages.
    pub fn new(writer: W, path: &Path, classes: &[String]) -> Self {
        let classes = classes.iter().map(|name| serde_json::Value::from(name.as_str()).to_string()).collect();
        Self { writer, path: path.to_path_buf(), classes, line: Vec::with_capacity(LINE_BYTES) }
    }

    /// Replaces the line by that of `verdict`.
    fn format(&mut self, verdict: &Verdict) -> io::Result<()> {
        let (line, classes) = (&mut self.line, &self.classes);
        line.clear();
        let state = match verdict.state {
            State::Verdict => "verdict",
            State::Unusable(_) => "unusable",
            State::Failed => "failed",
        };
        write!(line, r#"{{"sequence":{},"state":"{state}""#, verdict.sequence)?;
        match verdict.state {
            State::Unusable(BadWindow::Constant) => line.write_all(br#","reason":"constant""#)?,
            State::Unusable(BadWindow::NotFinite { index }) => write!(line, r#","reason":"not finite","sample":{index}"#)?,
            State::Verdict | State::Failed => {}
        }
        let name = |class: Option<usize>| class.and_then(|class| classes.get(class)).map_or("null", String::as_str);
        write!(line, r#","class":{}"#, name(verdict.class))?;
        if verdict.label.is_some() {
            write!(line, r#","label":{}"#, name(verdict.label))?;
        }
        line.write_all(br#","probabilities":["#)?;
        for (index, probability) in verdict.probabilities.iter().enumerate() {
            write!(line, "{}{probability:.6}", if index > 0 { "," } else { "" })?;
        }
        write!(line, r#"],"latency_us":{},"compute_us":{}"#, verdict.latency_us, verdict.compute_us)?;
        // 64 bits do not survive in readers that keep numbers as doubles, so the model's number is a string.
        write!(line, r#","level":{},"model":"{:016x}","time_unix_ms":{}"#, verdict.level, verdict.model_id, verdict.time_unix_ms)?;
        writeln!(line, r#","recording":{},"start":{}}}"#, verdict.recording, verdict.start)
    }
}

impl<W: Write + Send> Sink for JsonLines<W> {
    fn verdict(&mut self, verdict: &Verdict) -> Result<()> {
        let written = self.format(verdict).and_then(|()| self.writer.write_all(&self.line)).and_then(|()| self.writer.flush());
        written.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => AgentError::Cancelled,
            _ => file_error("cannot write verdicts to", &self.path, &error),
        })
    }
}

/// Counts; clones share the numbers.
#[derive(Debug, Clone, Default)]
pub struct CountingSink(Arc<[AtomicU64; 4]>);

impl CountingSink {
    /// Windows that were judged.
    pub fn judged(&self) -> u64 {
        self.0[0].load(Ordering::Acquire)
    }

    /// Windows that could not be used.
    pub fn unusable(&self) -> u64 {
        self.0[1].load(Ordering::Acquire)
    }

    /// Windows on which the engine failed.
    pub fn failed(&self) -> u64 {
        self.0[2].load(Ordering::Acquire)
    }

    /// Windows that were dropped.
    pub fn dropped(&self) -> u64 {
        self.0[3].load(Ordering::Acquire)
    }
}

impl Sink for CountingSink {
    fn verdict(&mut self, verdict: &Verdict) -> Result<()> {
        let index = match verdict.state {
            State::Verdict => 0,
            State::Unusable(_) => 1,
            State::Failed => 2,
        };
        self.0[index].fetch_add(1, Ordering::Release);
        Ok(())
    }

    fn gap(&mut self, gap: Gap) -> Result<()> {
        self.0[3].fetch_add(gap.count, Ordering::Release);
        Ok(())
    }
}

/// Keeps verdicts and gaps in memory; clones share them. It grows without end: for short runs.
#[derive(Debug, Clone, Default)]
pub struct MemorySink(Arc<Mutex<Heard>>);

/// What a [`MemorySink`] has heard.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    /// Verdicts in their order.
    pub verdicts: Vec<Verdict>,
    /// Gaps in their order.
    pub gaps: Vec<Gap>,
}

impl MemorySink {
    /// Takes what it has heard so far.
    pub fn take(&self) -> Heard {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Sink for MemorySink {
    fn verdict(&mut self, verdict: &Verdict) -> Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).verdicts.push(verdict.clone());
        Ok(())
    }

    fn gap(&mut self, gap: Gap) -> Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).gaps.push(gap);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(state: State) -> Verdict {
        let judged = state == State::Verdict;
        Verdict {
            sequence: 7,
            recording: 1,
            start: 2048,
            state,
            class: judged.then_some(1),
            label: Some(0),
            probabilities: if judged { [0.25, 0.75].into_iter().collect() } else { Default::default() },
            latency_us: 900,
            compute_us: 800,
            level: 2,
            model_id: u64::MAX,
            time_unix_ms: 1_700_000_000_123,
        }
    }

    #[test]
    fn every_line_is_json_that_reads_back() {
        let classes = ["N".to_string(), "a \"quoted\"\nname".to_string()];
        let mut sink = JsonLines::new(Vec::new(), Path::new("-"), &classes);
        let states =
            [State::Verdict, State::Unusable(BadWindow::Constant), State::Unusable(BadWindow::NotFinite { index: 3 }), State::Failed];
        for state in states {
            sink.verdict(&verdict(state)).unwrap();
        }
        let text = String::from_utf8(sink.writer).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let states: Vec<_> = lines.iter().map(|line| line["state"].as_str().unwrap()).collect();
        assert_eq!(states, ["verdict", "unusable", "unusable", "failed"]);
        assert_eq!(lines[0]["class"], classes[1].as_str());
        assert_eq!(lines[0]["label"], "N");
        assert_eq!(lines[0]["probabilities"], serde_json::json!([0.25, 0.75]));
        assert_eq!(lines[0]["model"], "ffffffffffffffff");
        assert_eq!((&lines[1]["class"], &lines[1]["reason"]), (&serde_json::Value::Null, &"constant".into()));
        assert_eq!((&lines[2]["reason"], &lines[2]["sample"]), (&"not finite".into(), &3.into()));
    }

    /// Refuses every write.
    struct Refusing(io::ErrorKind);

    impl Write for Refusing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_has_gone_is_no_failure_and_a_full_disk_is() {
        let error = |kind| JsonLines::new(Refusing(kind), Path::new("out.json"), &[]).verdict(&verdict(State::Failed)).unwrap_err();
        assert!(matches!(error(io::ErrorKind::BrokenPipe), AgentError::Cancelled));
        let full = error(io::ErrorKind::StorageFull).to_string();
        assert!(full.starts_with("cannot write verdicts to out.json: "), "{full}");
    }
}
