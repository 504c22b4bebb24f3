//! Progress bars on standard error.

use indicatif::{ProgressBar, ProgressStyle};

use crate::train::{Progress, Report};

/// A bar with steps, loss, accuracy and time left; where standard error is no terminal, one line at the end of each part.
pub struct Bar {
    bar: ProgressBar,
    what: String,
}

impl Bar {
    /// No part has begun.
    pub fn new() -> Self {
        Self { bar: ProgressBar::hidden(), what: String::new() }
    }
}

impl Progress for Bar {
    fn begin(&mut self, what: &str, total: usize) {
        self.what = what.to_string();
        self.bar = ProgressBar::new(total as u64);
        if let Ok(style) = ProgressStyle::with_template("{prefix:10} {bar:30} {pos}/{len} {msg} {eta} left") {
            self.bar.set_style(style);
        }
        self.bar.set_prefix(self.what.clone());
    }

    fn step(&mut self, report: Report) {
        let accuracy = report.accuracy.map_or(String::new(), |accuracy| format!(" accuracy {:.1} %", accuracy * 100.0));
        self.bar.set_message(format!("loss {:.3}{accuracy}", report.loss));
        self.bar.set_position(report.done as u64);
    }

    fn end(&mut self, summary: &str) {
        self.bar.finish_and_clear();
        super::tell(format_args!("{}: {summary}", self.what));
    }
}
