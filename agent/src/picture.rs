//! Pictures of a run and of a comparison, as SVG.
//!
//! Text is written as SVG text with a list of common sans-serif families, so that no font is needed on the device; whatever shows the
//! picture brings one.

mod canvas;
mod run;
mod scatter;

use thiserror::Error;

pub use run::RunPicture;
pub use scatter::{ScatterPicture, Series};

/// A picture that cannot be drawn.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PictureError {
    /// There is nothing to show.
    #[error("the picture `{title}` has no points; give at least one")]
    Empty {
        /// The picture's title.
        title: String,
    },
    /// A number cannot be placed on an axis.
    #[error("the picture `{title}` has a point ({x}, {y}) in `{series}`, which {problem}; leave it out")]
    Point {
        /// The picture's title.
        title: String,
        /// What the point belongs to.
        series: String,
        /// Its place along the horizontal axis.
        x: String,
        /// Its place along the vertical axis.
        y: String,
        /// Why it cannot be shown.
        problem: &'static str,
    },
    /// The drawing library failed.
    #[error("the picture `{title}` could not be drawn: {reason}")]
    Drawing {
        /// The picture's title.
        title: String,
        /// What it said.
        reason: String,
    },
}

/// The SVG text that `draw` makes.
fn drawn(title: &str, draw: impl FnOnce(&mut String) -> canvas::Drawn) -> Result<String, PictureError> {
    let mut svg = String::new();
    draw(&mut svg).map_err(|reason| PictureError::Drawing { title: title.to_owned(), reason })?;
    Ok(svg)
}

/// A point that cannot be shown, in words.
fn bad_point(title: &str, series: &str, (x, y): (f64, f64), problem: &'static str) -> PictureError {
    PictureError::Point { title: title.to_owned(), series: series.to_owned(), x: x.to_string(), y: y.to_string(), problem }
}
