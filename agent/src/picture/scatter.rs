//! Several named series in one plane, as accuracy over compression ratio of several methods.

use std::ops::Range;

use super::canvas::{Anchor, Axis, Canvas, Drawn, INK, LARGE, MEDIUM, PALETTE, log_ticks, padded, ticks, trace};
use super::{PictureError, bad_point, drawn};

const WIDTH: i32 = 900;
const LEFT: i32 = 84;
/// The right edge of the plane; the legend is beyond it, where no line can run through it.
const RIGHT: i32 = WIDTH - 190;
const TITLE: i32 = 24;
const TOP: i32 = 78;
const BOTTOM: i32 = 478;
const HEIGHT: i32 = BOTTOM + 58;
const ROW: i32 = 22;
/// The legend has room for so many names.
const SERIES: usize = 18;
const NAME_CHARACTERS: usize = 20;

/// One named series.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Series {
    /// In the legend.
    pub name: String,
    /// Points (x, y), connected in this order.
    pub points: Vec<(f64, f64)>,
}

/// Several series in one plane.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ScatterPicture {
    /// Above the plane.
    pub title: String,
    /// Below the horizontal axis, with its unit.
    pub x_label: String,
    /// Above the vertical axis, with its unit.
    pub y_label: String,
    /// Whether the horizontal axis is logarithmic; all x must then be positive.
    pub log_x: bool,
    /// Whether each series' points are connected.
    pub lines: bool,
    /// What to show, at most 18 series.
    pub series: Vec<Series>,
}

impl ScatterPicture {
    /// The picture as SVG text.
    ///
    /// # Errors
    /// Where there is no point or more series than the legend has room for, or a point cannot be placed on the axes.
    pub fn svg(&self) -> Result<String, PictureError> {
        self.check()?;
        drawn(&self.title, |svg| self.draw(svg))
    }

    fn check(&self) -> Result<(), PictureError> {
        if self.series.iter().all(|series| series.points.is_empty()) {
            return Err(PictureError::Empty { title: self.title.clone() });
        }
        if self.series.len() > SERIES {
            let reason = format!("it has {} series, and the legend has room for {SERIES}; draw two pictures", self.series.len());
            return Err(PictureError::Drawing { title: self.title.clone(), reason });
        }
        for Series { name, points } in &self.series {
            for &(x, y) in points {
                if ![x, y].iter().all(|value| value.is_finite() && value.abs() < 1e18) {
                    return Err(bad_point(&self.title, name, (x, y), "is not a number that an axis can show"));
                }
                if self.log_x && x < 1e-18 {
                    return Err(bad_point(&self.title, name, (x, y), "has no place on a logarithmic axis"));
                }
            }
        }
        Ok(())
    }

    fn values(&self, of: fn(&(f64, f64)) -> f64) -> impl Iterator<Item = f64> {
        self.series.iter().flat_map(|series| series.points.iter()).map(of)
    }

    fn x_axis(&self) -> (Axis, Vec<f64>) {
        if self.log_x {
            let logs = padded(self.values(|(x, _)| x.ln()), 0.7, 0.05);
            let range = logs.start.exp()..logs.end.exp();
            let ticks = log_ticks(&range);
            return (Axis::logarithmic(range, LEFT, RIGHT), ticks);
        }
        let range = self.span(|(x, _)| *x);
        let ticks = ticks(&range, 8, false);
        (Axis::linear(range, LEFT, RIGHT), ticks)
    }

    /// A range with air around the values, and not so narrow that ticks would need more digits than labels have.
    fn span(&self, of: fn(&(f64, f64)) -> f64) -> Range<f64> {
        let largest = self.values(of).fold(0.0, |largest: f64, value| largest.max(value.abs()));
        padded(self.values(of), (largest * 1e-3).max(1e-3), 0.06)
    }

    fn draw(&self, svg: &mut String) -> Drawn {
        let (x, x_ticks) = self.x_axis();
        let y_range = self.span(|(_, y)| *y);
        let y_ticks = labelled(&ticks(&y_range, 6, false));
        let y = Axis::linear(y_range, BOTTOM, TOP);
        let canvas = Canvas::new(svg, WIDTH as u32, HEIGHT as u32)?;
        canvas.text(&self.title, (LEFT, TITLE), LARGE, INK, Anchor::Left)?;
        canvas.text(&self.y_label, (LEFT, TOP - 18), MEDIUM, INK, Anchor::Left)?;
        canvas.grid(&x, &y, &labelled(&x_ticks), &y_ticks)?;
        canvas.text(&self.x_label, ((LEFT + RIGHT) / 2, BOTTOM + 30), MEDIUM, INK, Anchor::Above)?;
        for (index, series) in self.series.iter().enumerate() {
            self.draw_series(&canvas, index, series, &x, &y)?;
        }
        canvas.finish()
    }

    fn draw_series(&self, canvas: &Canvas<'_>, index: usize, series: &Series, x: &Axis, y: &Axis) -> Drawn {
        let colour = PALETTE[index % PALETTE.len()];
        // A second turn through the palette is dashed.
        let dashed = index >= PALETTE.len();
        let row = TOP + 8 + index as i32 * ROW;
        let key = [(RIGHT + 18, row), (RIGHT + 44, row)];
        let points = trace(&series.points, x, y);
        for line in [&points[..], &key[..]].into_iter().filter(|_| self.lines) {
            if dashed { canvas.dashed(line, colour, 2)? } else { canvas.line(line.to_vec(), colour, 2)? }
        }
        for point in points.iter().chain([&(RIGHT + 31, row)]) {
            canvas.dot(*point, 4, colour)?;
        }
        let name: String = match series.name.char_indices().nth(NAME_CHARACTERS) {
            Some((end, _)) => format!("{}…", &series.name[..end]),
            None => series.name.clone(),
        };
        canvas.text(&name, (RIGHT + 52, row), MEDIUM, INK, Anchor::Left)
    }
}

/// Ticks with as many decimals as the finest of them needs.
fn labelled(ticks: &[f64]) -> Vec<(f64, String)> {
    let needs = |tick: &f64| {
        (0..=6).find(|decimals| ((tick * 10f64.powi(*decimals)).round() - tick * 10f64.powi(*decimals)).abs() < 1e-6).unwrap_or(6)
    };
    let decimals = ticks.iter().map(needs).max().unwrap_or(0) as usize;
    // Adding 0 turns a negative zero into a plain one.
    ticks.iter().map(|tick| (*tick, format!("{:.decimals$}", tick + 0.0))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published table of the cascade and its peers (arXiv 2606.26861).
    fn example() -> ScatterPicture {
        let ratios = [1.3, 2.5, 3.7, 5.8, 8.7, 13.8];
        let rows: [(&str, &[f64]); 5] = [
            ("cascade", &[88.25, 88.27, 87.82, 85.85, 84.55, 83.82]),
            ("Wanda-sp", &[88.98, 88.83, 88.02, 85.80, 79.97]),
            ("LLM-Pruner", &[86.13, 86.68, 85.22, 86.22, 83.97, 80.12]),
            ("FLAP", &[86.48, 85.85, 86.40, 85.38, 81.60]),
            ("magnitude", &[89.18, 83.62, 78.72, 81.27, 80.10, 78.12]),
        ];
        let series = |(name, row): &(&str, &[f64])| Series {
            name: (*name).to_owned(),
            points: ratios.into_iter().zip(row.iter().copied()).collect(),
        };
        ScatterPicture {
            title: "Accuracy over compression, CWRU, 88 M parameters".to_owned(),
            x_label: "compression ratio (dense / kept parameters)".to_owned(),
            y_label: "accuracy, %".to_owned(),
            log_x: true,
            lines: true,
            series: rows.iter().map(series).collect(),
        }
    }

    #[test]
    fn every_series_is_named_and_the_axes_are_round() {
        let svg = example().svg().unwrap();
        let parts = ["cascade", "Wanda-sp", "magnitude", "accuracy, %", "compression ratio", "\n10\n", "\n5\n", "\n80\n"];
        let missing: Vec<_> = parts.iter().filter(|part| !svg.contains(**part)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn what_cannot_be_placed_is_refused() {
        let with = |point, log_x| {
            let series = vec![Series { name: "a".to_owned(), points: vec![(1.0, 1.0), point] }];
            ScatterPicture { log_x, series, ..ScatterPicture::default() }.svg()
        };
        assert!(with((0.0, 1.0), true).unwrap_err().to_string().contains("logarithmic"));
        assert!(with((f64::NAN, 1.0), false).is_err());
        assert!(with((1e300, 1.0), false).is_err());
        assert!(with((1.0, 1.0), true).is_ok() && with((-5.0, 1e17), false).is_ok() && with((1e-17, 0.0), true).is_ok());
        assert!(matches!(ScatterPicture::default().svg(), Err(PictureError::Empty { .. })));
        let crowd = vec![Series { name: "x".to_owned(), points: vec![(1.0, 1.0)] }; SERIES + 1];
        assert!(ScatterPicture { series: crowd, ..ScatterPicture::default() }.svg().unwrap_err().to_string().contains("two pictures"));
    }
}
