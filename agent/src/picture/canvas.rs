//! The sheet that pictures are drawn on: lines, text and axes in pixels.

use std::ops::Range;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Most points of one line; more are thinned, because no screen shows more and a viewer should not have to load them.
const POINTS: usize = 4000;
const FAMILIES: &str = "Helvetica, Arial, DejaVu Sans, sans-serif";
/// The SVG backend writes a font size divided by this.
const FONT_SCALE: f64 = 1.24;
/// Axis labels and mark labels, in pixels.
pub(super) const SMALL: f64 = 12.0;
/// Legends and captions, in pixels.
pub(super) const MEDIUM: f64 = 13.0;
/// Titles, in pixels.
pub(super) const LARGE: f64 = 17.0;

pub(super) const INK: RGBColor = RGBColor(0x2b, 0x32, 0x3a);
pub(super) const GREY: RGBColor = RGBColor(0x8a, 0x93, 0x9c);
pub(super) const FAINT: RGBColor = RGBColor(0xe4, 0xe7, 0xea);
/// Distinct for most colour-blind readers (after Okabe and Ito, 2008), and dark enough on white.
pub(super) const PALETTE: [RGBColor; 8] = [
    RGBColor(0x1f, 0x5f, 0x99),
    RGBColor(0xc4, 0x53, 0x1a),
    RGBColor(0x1b, 0x84, 0x66),
    RGBColor(0x8e, 0x4a, 0x86),
    RGBColor(0xa8, 0x7d, 0x08),
    RGBColor(0x3a, 0x9f, 0xc9),
    RGBColor(0x55, 0x5b, 0x61),
    RGBColor(0xb8, 0x3b, 0x5e),
];

/// What drawing gives: nothing, or the drawing library's words.
pub(super) type Drawn = Result<(), String>;

/// An SVG sheet.
pub(super) struct Canvas<'a> {
    root: DrawingArea<SVGBackend<'a>, Shift>,
}

fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Where a text lies relative to its point.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    /// The point is the middle of the left edge.
    Left,
    /// The point is the middle of the right edge.
    Right,
    /// The point is the middle of the upper edge.
    Above,
}

impl<'a> Canvas<'a> {
    /// A white sheet that is written to `svg`.
    pub fn new(svg: &'a mut String, width: u32, height: u32) -> Result<Self, String> {
        let root = SVGBackend::with_string(svg, (width, height)).into_drawing_area();
        root.fill(&WHITE).map_err(words)?;
        Ok(Self { root })
    }

    /// Writes the end of the file.
    pub fn finish(self) -> Drawn {
        self.root.present().map_err(words)
    }

    pub fn line(&self, points: Vec<(i32, i32)>, colour: RGBColor, width: u32) -> Drawn {
        if points.len() < 2 {
            return Ok(());
        }
        self.root.draw(&PathElement::new(points, colour.stroke_width(width))).map_err(words)
    }

    /// A horizontal-and-vertical line in dashes.
    pub fn dashed(&self, points: &[(i32, i32)], colour: RGBColor, width: u32) -> Drawn {
        const DASH: usize = 7;
        const GAP: usize = 5;
        for pair in points.windows(2) {
            let (from, to) = (pair[0], pair[1]);
            let length = from.0.abs_diff(to.0).max(from.1.abs_diff(to.1)) as usize;
            let at = |step: usize| {
                let share = step.min(length) as f64 / length.max(1) as f64;
                let mix = |from: i32, to: i32| (f64::from(from) + share * f64::from(to - from)).round() as i32;
                (mix(from.0, to.0), mix(from.1, to.1))
            };
            for start in (0..length).step_by(DASH + GAP) {
                self.line(vec![at(start), at(start + DASH)], colour, width)?;
            }
        }
        Ok(())
    }

    pub fn shade(&self, points: Vec<(i32, i32)>, colour: RGBColor) -> Drawn {
        self.root.draw(&Polygon::new(points, colour.mix(0.10))).map_err(words)
    }

    /// Makes a rectangle white again.
    pub fn cover(&self, from: (i32, i32), to: (i32, i32)) -> Drawn {
        self.root.draw(&Rectangle::new([from, to], WHITE.filled())).map_err(words)
    }

    pub fn dot(&self, point: (i32, i32), radius: i32, colour: RGBColor) -> Drawn {
        self.root.draw(&Circle::new(point, radius, colour.filled())).map_err(words)
    }

    pub fn text(&self, text: &str, point: (i32, i32), size: f64, colour: RGBColor, anchor: Anchor) -> Drawn {
        let position = match anchor {
            Anchor::Left => Pos::new(HPos::Left, VPos::Center),
            Anchor::Right => Pos::new(HPos::Right, VPos::Center),
            Anchor::Above => Pos::new(HPos::Center, VPos::Top),
        };
        let style = (FAMILIES, size * FONT_SCALE).into_font().color(&colour).pos(position);
        // A control character has no place in XML at all.
        let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        self.root.draw(&Text::new(clean, point, style)).map_err(words)
    }

    /// A grid with its labels, and the left and lower edge.
    pub fn grid(&self, x: &Axis, y: &Axis, x_ticks: &[(f64, String)], y_ticks: &[(f64, String)]) -> Drawn {
        let (left, right, top, bottom) = (x.first(), x.last(), y.last(), y.first());
        for (value, label) in y_ticks {
            let height = y.at(*value);
            self.line(vec![(left, height), (right, height)], FAINT, 1)?;
            self.text(label, (left - 8, height), SMALL, INK, Anchor::Right)?;
        }
        for (value, label) in x_ticks {
            let column = x.at(*value);
            self.line(vec![(column, top), (column, bottom)], FAINT, 1)?;
            self.text(label, (column, bottom + 7), SMALL, INK, Anchor::Above)?;
        }
        self.line(vec![(left, top), (left, bottom), (right, bottom)], GREY, 1)
    }
}

/// A range of values on a range of pixels.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    pub values: Range<f64>,
    pixels: Range<f64>,
    logarithmic: bool,
}

impl Axis {
    pub fn linear(values: Range<f64>, first: i32, last: i32) -> Self {
        Self { values, pixels: f64::from(first)..f64::from(last), logarithmic: false }
    }

    /// Both ends of the values must be positive.
    pub fn logarithmic(values: Range<f64>, first: i32, last: i32) -> Self {
        Self { logarithmic: true, ..Self::linear(values, first, last) }
    }

    /// The pixel of a value.
    pub fn at(&self, value: f64) -> i32 {
        let Range { start, end } = self.values;
        let share = if self.logarithmic { (value / start).ln() / (end / start).ln() } else { (value - start) / (end - start) };
        (self.pixels.start + share.clamp(0.0, 1.0) * (self.pixels.end - self.pixels.start)).round() as i32
    }

    pub fn first(&self) -> i32 {
        self.pixels.start as i32
    }

    pub fn last(&self) -> i32 {
        self.pixels.end as i32
    }
}

/// The pixels of a line of points, thinned.
pub(super) fn trace(points: &[(f64, f64)], x: &Axis, y: &Axis) -> Vec<(i32, i32)> {
    thinned(points).into_iter().map(|(a, b)| (x.at(a), y.at(b))).collect()
}

/// Round numbers within a range, 1, 2 or 5 times a power of 10 apart (times a power of 1024 for bytes); `wanted` of them or half as many
/// again, at most.
pub(super) fn ticks(range: &Range<f64>, wanted: usize, of_bytes: bool) -> Vec<f64> {
    let rough = (range.end - range.start) / wanted.max(1) as f64;
    if !rough.is_finite() || rough <= 0.0 {
        return vec![range.start];
    }
    let unit = if of_bytes && rough >= 1.0 { 1024f64.powf(rough.log(1024.0).floor()) } else { 1.0 };
    let power = unit * 10f64.powf((rough / unit).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].iter().map(|factor| factor * power).find(|step| *step >= 0.7 * rough).unwrap_or(10.0 * power);
    let first = (range.start / step - 1e-9).ceil();
    (0..=2 * wanted).map(|index| (first + index as f64) * step).take_while(|tick| *tick <= range.end + step * 1e-9).collect()
}

/// 1, 2, 5, 10, ... within a range of positive values.
pub(super) fn log_ticks(range: &Range<f64>) -> Vec<f64> {
    let (low, high) = (range.start.log10().floor() as i32, range.end.log10().ceil() as i32);
    let decades = high.saturating_sub(low);
    // Over many decades the powers of ten alone are enough.
    let factors: &[f64] = if decades > 4 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let every = (decades / 12 + 1) as usize;
    let all = (low..=high).step_by(every).flat_map(|power| factors.iter().map(move |factor| factor * 10f64.powi(power)));
    all.filter(|tick| *tick >= range.start * (1.0 - 1e-9) && *tick <= range.end * (1.0 + 1e-9)).collect()
}

/// The range of the values, at least `least` wide, with a share of air on both sides.
pub(super) fn padded(values: impl Iterator<Item = f64>, least: f64, air: f64) -> Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if low > high {
        return 0.0..least;
    }
    let missing = (least - (high - low)).max(0.0) / 2.0;
    let air = (high - low).max(least) * air;
    low - missing - air..high + missing + air
}

/// Every n-th point, and always the last, so that about [`POINTS`] remain.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let every = points.len().div_ceil(POINTS).max(1);
    let last = points.last().filter(|_| every > 1);
    points.iter().step_by(every).chain(last).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        const MIB: f64 = 1048576.0;
        let cases: [(Vec<f64>, &[f64]); 6] = [
            (ticks(&(0.0..10.0), 5, false), &[0.0, 2.0, 4.0, 6.0, 8.0, 10.0]),
            (ticks(&(0.0..100.0 * MIB), 5, true), &[0.0, 20.0 * MIB, 40.0 * MIB, 60.0 * MIB, 80.0 * MIB, 100.0 * MIB]),
            (ticks(&(1.0..1.0), 5, false), &[1.0]),
            (ticks(&(0.6..1.0), 4, false), &[0.6, 0.7, 0.8, 0.9, 1.0]),
            (log_ticks(&(1.0..14.0)), &[1.0, 2.0, 5.0, 10.0]),
            (ticks(&(0.0..f64::INFINITY), 5, true), &[0.0]),
        ];
        let near = |a: &[f64], b: &[f64]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-9 * b.abs());
        let failures: Vec<_> = cases.iter().filter(|(found, expected)| !near(found, expected)).collect();
        assert!(failures.is_empty(), "{failures:?}");
    }

    #[test]
    fn a_long_line_is_thinned_and_keeps_its_end() {
        let points: Vec<_> = (0..100_001).map(|index| (f64::from(index), 0.0)).collect();
        let thin = thinned(&points);
        assert!(thin.len() <= POINTS + 2 && thin.last() == points.last());
        assert_eq!(thinned(&points[..10]), points[..10]);
    }
}
