//! Cells brought together: means over seeds and test sets, the CSV of every measurement, and the picture.

use anyhow::Result;
use espalier_agent::picture::{ScatterPicture, Series};
use serde::Serialize;

use crate::cells::{CellResult, Tested};
use crate::config::{Cell, Family, Method};

/// The noise at which the picture compares: of the reported ones the first at which the dense network no longer saturates.
const PICTURE_SNR_DB: f64 = 4.0;

/// All cells of all protocols, those that are missing too.
pub struct Tables {
    cells: Vec<(Cell, Option<CellResult>)>,
}

/// The finished cells of one method of a protocol.
pub struct Row<'a> {
    /// The method.
    pub method: Method,
    /// Its cells, one a seed or training rotation.
    pub cells: Vec<&'a CellResult>,
    /// How many there will be.
    pub expected: usize,
}

/// A mean, and how far the values lie apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// The standard deviation (n − 1); none for a single value.
    pub deviation: Option<f64>,
}

impl Spread {
    /// Of `values`; none where there is none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let square = |value: &f64| (value - mean).powi(2);
        let deviation = (values.len() > 1).then(|| (values.iter().map(square).sum::<f64>() / (count - 1.0)).sqrt());
        (!values.is_empty()).then_some(Self { mean, deviation })
    }
}

impl Row<'_> {
    /// Of a number of each cell.
    pub fn over_cells(&self, of: impl Fn(&CellResult) -> f64) -> Option<Spread> {
        Spread::of(&self.cells.iter().map(|cell| of(cell)).collect::<Vec<_>>())
    }

    /// Of a number of each cell and test set under one condition.
    pub fn over_tests(&self, snr_db: Option<f64>, of: impl Fn(&Tested) -> Option<f64>) -> Option<Spread> {
        let tests = self.cells.iter().flat_map(|cell| &cell.tests).filter(|test| test.snr_db == snr_db);
        Spread::of(&tests.filter_map(of).collect::<Vec<_>>())
    }
}

#[derive(Serialize)]
struct Line<'a> {
    protocol: String,
    seed: u64,
    method: &'static str,
    target_ratio: Option<f64>,
    split: &'static str,
    recovered: bool,
    parameters: usize,
    compression_ratio: f64,
    kept_layers: usize,
    kept_heads: usize,
    kept_channels: usize,
    holdout_accuracy: f64,
    holdout_cross_entropy_nats: f64,
    steps: usize,
    seconds: f64,
    test_set: &'a str,
    snr_db: Option<f64>,
    windows: u64,
    accuracy: f64,
    accuracy_low: f64,
    accuracy_high: f64,
    clusters: u64,
    accuracy_without_n: Option<f64>,
    cross_entropy_nats: f64,
    agreement: f64,
}

impl Tables {
    /// Of these cells.
    pub fn new(cells: Vec<(Cell, Option<CellResult>)>) -> Self {
        Self { cells }
    }

    /// The rows of a protocol's table, in its order; a method without a finished cell has an empty row.
    pub fn rows(&self, family: Family) -> Vec<Row<'_>> {
        let row = |method: Method| {
            let of_method = || self.cells.iter().filter(move |(cell, _)| cell.family == family && cell.method == method);
            Row { method, expected: of_method().count(), cells: of_method().filter_map(|(_, result)| result.as_ref()).collect() }
        };
        family.methods().into_iter().map(row).collect()
    }

    /// Names of the cells of a protocol that are not there.
    pub fn missing(&self, family: Family) -> Vec<String> {
        let missing = self.cells.iter().filter(|(cell, result)| cell.family == family && result.is_none());
        missing.map(|(cell, _)| cell.name()).collect()
    }

    /// Every cell, condition and test set, a line each; shares are 0 to 1, an empty `snr_db` is clean.
    pub fn csv(&self) -> Result<String> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        for (cell, result) in &self.cells {
            let Some(result) = result else { continue };
            let (method, target_ratio, split, recovered) = match cell.method {
                Method::Dense => ("dense", None, "", false),
                Method::Cascade { ratio, keep, recovered } => {
                    ("cascade", Some(ratio), if keep.is_some() { "given" } else { "measured" }, recovered)
                }
            };
            let [kept_layers, kept_heads, kept_channels] = result.kept;
            for test in &result.tests {
                writer.serialize(Line {
                    protocol: cell.protocol.to_string(),
                    seed: cell.seed,
                    method,
                    target_ratio,
                    split,
                    recovered,
                    parameters: result.parameters,
                    compression_ratio: result.compression_ratio,
                    kept_layers,
                    kept_heads,
                    kept_channels,
                    holdout_accuracy: result.made.holdout_accuracy,
                    holdout_cross_entropy_nats: result.made.holdout_loss,
                    steps: result.made.steps,
                    seconds: result.made.seconds,
                    test_set: &test.set,
                    snr_db: test.snr_db,
                    windows: test.windows,
                    accuracy: test.accuracy,
                    accuracy_low: test.low,
                    accuracy_high: test.high,
                    clusters: test.clusters,
                    accuracy_without_n: test.accuracy_without_n,
                    cross_entropy_nats: test.cross_entropy_nats,
                    agreement: test.agreement,
                })?;
            }
        }
        Ok(String::from_utf8(writer.into_inner().map_err(|error| error.into_error())?)?)
    }

    /// Mean accuracy over the compression ratio under noise; each series begins with the dense network. Given splits are not in it, and
    /// neither is a method of which a seed or rotation is missing: a mean over others would not compare.
    pub fn picture(&self) -> ScatterPicture {
        let mut series = Vec::new();
        for family in Family::ALL {
            for (with, name) in [(true, "recovered"), (false, "only cut")] {
                let rows = self.rows(family);
                let shown = rows.iter().filter(|row| match row.method {
                    _ if row.cells.len() < row.expected => false,
                    Method::Dense => true,
                    Method::Cascade { keep, recovered, .. } => keep.is_none() && recovered == with,
                });
                let place = |row: &Row<'_>| {
                    let ratio = row.over_cells(|cell| cell.compression_ratio)?;
                    let accuracy = row.over_tests(Some(PICTURE_SNR_DB), |test| Some(test.accuracy))?;
                    Some((ratio.mean, 100.0 * accuracy.mean))
                };
                let points: Vec<(f64, f64)> = shown.filter_map(place).collect();
                if points.len() > 1 {
                    series.push(Series { name: format!("{} {name}", family.name().split('-').next().unwrap_or_default()), points });
                }
            }
        }
        ScatterPicture {
            title: format!("Cascade: accuracy at {PICTURE_SNR_DB} dB over compression"),
            x_label: "compression ratio (dense / kept parameters)".into(),
            y_label: "accuracy, %".into(),
            log_x: true,
            lines: true,
            series,
        }
    }
}
