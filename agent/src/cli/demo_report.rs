//! What the demo shows: a table, JSON, and a picture.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::diagnosis::Snapshot;
use crate::error::{AgentError, Result, file_error};
use crate::picture::RunPicture;
use crate::prune::CascadeResult;
use crate::table::{self, Table};

/// Everything.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether the recordings were simulated.
    pub simulated: bool,
    /// Seconds of the whole demo.
    pub seconds: f64,
    /// Dense, after each stage; the last is what serves.
    pub rows: Vec<Row>,
    /// The serving run.
    pub run: Run,
}

/// One artifact.
#[derive(Debug, Serialize)]
pub struct Row {
    pub stage: String,
    pub left: String,
    pub parameters: usize,
    pub compression_ratio: f64,
    pub artifact_bytes: u64,
    /// By the kernel's accounting, in a process that serves only this artifact.
    pub held_bytes: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// Latency ratio over parameter ratio.
    pub compression_efficiency: Option<f64>,
    pub holdout_accuracy: f64,
    pub holdout_loss: f64,
    pub test_accuracy: f64,
    pub test_loss: f64,
    pub steps: usize,
    pub seconds: f64,
}

/// What serving held and how fast it was.
#[derive(Debug, Default, Serialize)]
pub struct Served {
    pub held_bytes: u64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub windows: u64,
}

/// The serving run, from dense to pruned.
#[derive(Debug, Default, Serialize)]
pub struct Run {
    pub planned_bytes: u64,
    pub limit_bytes: u64,
    pub goal_bytes: u64,
    pub dense: Served,
    pub peak_held_bytes: u64,
    pub final_held_bytes: u64,
    pub squeeze_to_commit_seconds: f64,
    /// No window lost or judged twice.
    pub complete: bool,
    pub loop_totals: Option<Snapshot>,
    pub cascade: Option<CascadeResult>,
    pub events: Vec<(f64, String)>,
    #[serde(skip)]
    pub last_held_bytes: u64,
    #[serde(skip)]
    pub stages_folder: PathBuf,
    #[serde(skip)]
    pub accuracy_series: Vec<(f64, f64)>,
    #[serde(skip)]
    pub held_series: Vec<(f64, u64)>,
    #[serde(skip)]
    pub goal_series: Vec<(f64, u64)>,
    #[serde(skip)]
    pub limit_series: Vec<(f64, u64)>,
    #[serde(skip)]
    pub marks: Vec<(f64, String)>,
}

impl Report {
    /// Writes `demo.json` and `run.svg`.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(self)
            .map_err(|error| AgentError::Training(format!("the result cannot be written as JSON: {error}")))?;
        let source = if self.simulated { "simulated recordings" } else { "recordings" };
        let run = &self.run;
        let picture = RunPicture {
            title: format!("Espalier under a squeeze: {source}"),
            accuracy_points: run.accuracy_series.clone(),
            held_bytes: run.held_series.clone(),
            goal: run.goal_series.clone(),
            limit: run.limit_series.clone(),
            marks: run.marks.clone(),
        };
        let svg = picture.svg().map_err(|error| AgentError::Training(format!("the picture cannot be drawn: {error}")))?;
        for (name, text) in [("demo.json", json), ("run.svg", svg)] {
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(|error| file_error("cannot write", &path, &error))?;
        }
        Ok(())
    }

    /// The table and what the run proved.
    pub fn render(&self, folder: &Path) -> String {
        let mut table = Table::new([
            "",
            "left",
            "parameters",
            "ratio",
            "artifact",
            "held",
            "p50 ms",
            "p99 ms",
            "efficiency",
            "holdout",
            "test",
            "test CE",
            "steps",
            "seconds",
        ]);
        for row in &self.rows {
            table.row([
                row.stage.clone(),
                row.left.clone(),
                table::count(row.parameters as u64),
                format!("{:.2}", row.compression_ratio),
                table::bytes(row.artifact_bytes),
                table::bytes(row.held_bytes),
                format!("{:.3}", row.p50_ms),
                format!("{:.3}", row.p99_ms),
                row.compression_efficiency.map_or(String::new(), |efficiency| format!("{efficiency:.2}")),
                format!("{:.1} %", row.holdout_accuracy * 100.0),
                format!("{:.1} %", row.test_accuracy * 100.0),
                format!("{:.3}", row.test_loss),
                row.steps.to_string(),
                format!("{:.1}", row.seconds),
            ]);
        }
        format!("\n{table}\n{}\n{}: demo.json, run.svg\n", self.proof(), folder.display())
    }

    fn proof(&self) -> String {
        let run = &self.run;
        let kept = |held: u64, bound: u64| if held <= bound { "within" } else { "BEYOND" };
        let mut text = format!(
            "peak held {} ({} the limit of {}), now {} ({} the goal of {}), {:.0} s from squeeze to commit\n",
            table::bytes(run.peak_held_bytes),
            kept(run.peak_held_bytes, run.limit_bytes),
            table::bytes(run.limit_bytes),
            table::bytes(run.final_held_bytes),
            kept(run.final_held_bytes, run.goal_bytes),
            table::bytes(run.goal_bytes),
            run.squeeze_to_commit_seconds
        );
        if let Some(totals) = &run.loop_totals {
            let verdict = match (run.complete, totals.is_complete()) {
                (true, _) => "none lost, none judged twice",
                (false, true) => "this machine was too busy to judge them all; every one that is missing was counted",
                (false, false) => "NOT ALL ACCOUNTED FOR",
            };
            text += &format!(
                "{} windows, {} judged, {} dropped, {} repeated: {verdict}; {} swap, at most {} windows waited; {}\n",
                totals.produced,
                totals.judged,
                totals.dropped,
                totals.repeated,
                totals.swaps,
                totals.queue_high_water,
                if self.simulated { "all recordings are simulated" } else { "recordings as given" }
            );
        }
        text + &format!("whole demo {:.0} s", self.seconds)
    }
}
