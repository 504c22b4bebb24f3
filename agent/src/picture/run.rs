//! A run over time: accuracy above, bytes below, what happened as vertical marks through both.

use super::canvas::{Anchor, Axis, Canvas, Drawn, FAINT, GREY, INK, LARGE, MEDIUM, PALETTE, SMALL, padded, ticks, trace};
use super::{PictureError, bad_point, drawn};
use crate::table;

const WIDTH: i32 = 1000;
const LEFT: i32 = 84;
const RIGHT: i32 = WIDTH - 24;
/// Middle of the title's line.
const TITLE: i32 = 24;
/// Where the rows of mark labels start.
const LABELS: i32 = 46;
const ROW: i32 = 17;
/// Most rows of mark labels; marks beyond that keep their line and lose their label.
const ROWS: usize = 6;
const LABEL_CHARACTERS: usize = 40;
/// Width of an average character of a label, generous so that labels never touch.
const CHARACTER: f64 = 6.6;
/// Height of the line above a panel that says what it shows.
const CAPTION: i32 = 30;
const ACCURACY: i32 = 170;
const BYTES: i32 = 250;
/// Width of the legend of the lower panel.
const LEGEND: i32 = 240;
/// Below the lower panel: labels of the time axis.
const FOOT: i32 = 34;

/// A run of the agent. Times are seconds since its start, ascending.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RunPicture {
    /// Above everything.
    pub title: String,
    /// Share of right windows over the last few, 0 to 1.
    pub accuracy_points: Vec<(f64, f64)>,
    /// What the program held.
    pub held_bytes: Vec<(f64, u64)>,
    /// The goal from each time on.
    pub goal: Vec<(f64, u64)>,
    /// The limit from each time on.
    pub limit: Vec<(f64, u64)>,
    /// What happened when.
    pub marks: Vec<(f64, String)>,
}

/// A mark's label, shortened, and its place: the row counts from below.
struct Label {
    text: String,
    start: f64,
    row: usize,
}

/// What is taken of the rows for labels, as ranges of pixels.
#[derive(Default)]
struct Rows {
    labels: [Vec<(f64, f64)>; ROWS],
    lines: [Vec<f64>; ROWS],
}

impl Rows {
    /// The lowest row with room for a label to the right or left of its mark, and for the line from there down.
    fn place(&mut self, mark: f64, text: String, right: bool) -> Option<Label> {
        const GAP: f64 = 6.0;
        let start = if right { mark + 4.0 } else { (mark - 4.0 - width(&text)).max(2.0) };
        let (from, to) = (start - GAP, start + width(&text) + GAP);
        let covers = |spans: &[(f64, f64)], from: f64, to: f64| spans.iter().any(|span| from < span.1 && to > span.0);
        let fits = |row: &usize| {
            let label_is_free = !covers(&self.labels[*row], from, to) && !self.lines[*row].iter().any(|line| (from..to).contains(line));
            label_is_free && !self.labels[..=*row].iter().any(|spans| covers(spans, mark - 2.0, mark + 2.0))
        };
        let row = (0..ROWS).find(fits)?;
        self.labels[row].push((from, to));
        self.lines[..=row].iter_mut().for_each(|lines| lines.push(mark));
        Some(Label { text, start, row })
    }
}

fn width(text: &str) -> f64 {
    text.chars().count() as f64 * CHARACTER
}

impl RunPicture {
    /// The picture as SVG text.
    ///
    /// # Errors
    /// Where there is neither an accuracy nor a held size, or a time or share is not a number.
    pub fn svg(&self) -> Result<String, PictureError> {
        self.check()?;
        drawn(&self.title, |svg| self.draw(svg))
    }

    fn check(&self) -> Result<(), PictureError> {
        if self.accuracy_points.is_empty() && self.held_bytes.is_empty() {
            return Err(PictureError::Empty { title: self.title.clone() });
        }
        let bytes = [("held", &self.held_bytes), ("goal", &self.goal), ("limit", &self.limit)];
        let bytes = bytes.iter().flat_map(|(name, points)| points.iter().map(|(time, bytes)| (*name, *time, *bytes as f64)));
        let accuracy = self.accuracy_points.iter().map(|(time, share)| ("accuracy", *time, *share));
        let marks = self.marks.iter().map(|(time, _)| ("marks", *time, 0.0));
        // Times beyond the age of the universe would leave no finite width.
        let drawable = |value: f64| value.is_finite() && value.abs() < 1e18;
        match bytes.chain(accuracy).chain(marks).find(|(name, time, value)| !drawable(*time) || (*name == "accuracy" && !drawable(*value)))
        {
            Some((series, x, y)) => Err(bad_point(&self.title, series, (x, y), "is not a number that an axis can show")),
            None => Ok(()),
        }
    }

    fn time_axis(&self) -> Axis {
        let bytes = [&self.held_bytes, &self.goal, &self.limit].into_iter().flatten().map(|(time, _)| *time);
        let others = self.accuracy_points.iter().map(|(time, _)| *time).chain(self.marks.iter().map(|(time, _)| *time));
        Axis::linear(padded(bytes.chain(others), 1.0, 0.0), LEFT, RIGHT)
    }

    fn draw(&self, svg: &mut String) -> Drawn {
        let times = self.time_axis();
        let labels = self.place_labels(&times);
        let rows = labels.iter().flatten().map(|label| label.row as i32 + 1).max().unwrap_or(0);
        let labels_end = LABELS + rows * ROW;
        let accuracy_top = labels_end + CAPTION;
        let bytes_top = accuracy_top + ACCURACY + CAPTION + 8;
        let canvas = Canvas::new(svg, WIDTH as u32, (bytes_top + BYTES + FOOT) as u32)?;
        canvas.text(&self.title, (LEFT, TITLE), LARGE, INK, Anchor::Left)?;
        let accuracy = Axis::linear(self.accuracy_range(), accuracy_top + ACCURACY, accuracy_top);
        let bytes = Axis::linear(0.0..self.highest_byte(), bytes_top + BYTES, bytes_top);
        self.draw_grids(&canvas, &times, &accuracy, &bytes)?;
        self.draw_marks(&canvas, &times, &labels, labels_end, bytes_top + BYTES)?;
        canvas.text("accuracy, rolling", (LEFT, accuracy_top - 15), MEDIUM, INK, Anchor::Left)?;
        canvas.line(trace(&self.accuracy_points, &times, &accuracy), PALETTE[0], 2)?;
        self.draw_bytes(&canvas, &times, &bytes)?;
        canvas.finish()
    }

    fn accuracy_range(&self) -> std::ops::Range<f64> {
        let range = padded(self.accuracy_points.iter().map(|(_, share)| *share), 0.1, 0.1);
        // A share has no room above 1 and below 0, but a line there should not lie on the frame.
        let end = range.end.clamp(0.11, 1.02);
        range.start.clamp(-0.02, end - 0.1)..end
    }

    fn highest_byte(&self) -> f64 {
        let all = [&self.held_bytes, &self.goal, &self.limit];
        let highest = all.iter().flat_map(|points| points.iter()).map(|(_, bytes)| *bytes).max().unwrap_or(0);
        (highest as f64 * 1.08).max(1024.0)
    }

    fn draw_grids(&self, canvas: &Canvas<'_>, times: &Axis, accuracy: &Axis, bytes: &Axis) -> Drawn {
        let seconds = ticks(&times.values, 8, false);
        let decimals = if seconds.iter().any(|time| time.fract().abs() > 1e-6) { 1 } else { 0 };
        let with_label: Vec<_> = seconds.iter().map(|time| (*time, format!("{time:.decimals$} s"))).collect();
        let without: Vec<_> = seconds.iter().map(|time| (*time, String::new())).collect();
        let shares = ticks(&accuracy.values, 5, false);
        let decimals = if shares.iter().any(|share| (share * 100.0 - (share * 100.0).round()).abs() > 1e-6) { 1 } else { 0 };
        let shares: Vec<_> = shares.iter().map(|share| (*share, format!("{:.decimals$} %", 100.0 * share + 0.0))).collect();
        let sizes: Vec<_> = ticks(&bytes.values, 6, true).iter().map(|size| (*size, size_label(*size))).collect();
        canvas.grid(times, accuracy, &without, &shares)?;
        canvas.grid(times, bytes, &with_label, &sizes)
    }

    /// Where each mark's label goes, so that no label covers another or a mark's line; none where all rows are taken.
    fn place_labels(&self, times: &Axis) -> Vec<Option<Label>> {
        let mut rows = Rows::default();
        let mut labels: Vec<Option<Label>> = self.marks.iter().map(|_| None).collect();
        let fits_right = |index: usize| {
            let (time, label) = &self.marks[index];
            f64::from(times.at(*time)) + 4.0 + width(&shortened(label)) <= f64::from(WIDTH)
        };
        // Labels stand to the right of their line and are placed from right to left, so that each meets only lines that start below it.
        // Those near the right edge stand to the left of theirs, come last, and so end above what they would cover.
        let mut order: Vec<usize> = (0..self.marks.len()).collect();
        order.sort_by(|a, b| self.marks[*b].0.total_cmp(&self.marks[*a].0));
        let (right, mut left): (Vec<usize>, Vec<usize>) = order.into_iter().partition(|index| fits_right(*index));
        left.reverse();
        for index in right.into_iter().chain(left) {
            let (time, label) = &self.marks[index];
            labels[index] = rows.place(f64::from(times.at(*time)), shortened(label), fits_right(index));
        }
        labels
    }

    fn draw_marks(&self, canvas: &Canvas<'_>, times: &Axis, labels: &[Option<Label>], labels_end: i32, bottom: i32) -> Drawn {
        for ((time, _), label) in self.marks.iter().zip(labels) {
            let x = times.at(*time);
            let Some(label) = label else {
                canvas.line(vec![(x, labels_end), (x, bottom)], FAINT, 1)?;
                continue;
            };
            let y = labels_end - ROW / 2 - label.row as i32 * ROW;
            canvas.line(vec![(x, y - 6), (x, bottom)], GREY, 1)?;
            canvas.text(&label.text, (label.start.round() as i32, y), SMALL, INK, Anchor::Left)?;
        }
        Ok(())
    }

    fn draw_bytes(&self, canvas: &Canvas<'_>, times: &Axis, bytes: &Axis) -> Drawn {
        let held: Vec<(f64, f64)> = self.held_bytes.iter().map(|(time, bytes)| (*time, *bytes as f64)).collect();
        let held = trace(&held, times, bytes);
        if let (Some(first), Some(last)) = (held.first(), held.last()) {
            let floor = [(last.0, bytes.first()), (first.0, bytes.first())];
            canvas.shade(held.iter().copied().chain(floor).collect(), PALETTE[0])?;
        }
        canvas.dashed(&stepped(&self.limit, times, bytes), PALETTE[6], 2)?;
        canvas.line(stepped(&self.goal, times, bytes), PALETTE[1], 2)?;
        canvas.line(held, PALETTE[0], 2)?;
        let y = bytes.last() - 15;
        canvas.text("bytes", (LEFT, y), MEDIUM, INK, Anchor::Left)?;
        let keys = [("held", 0, &self.held_bytes), ("goal", 1, &self.goal), ("limit", 6, &self.limit)];
        let mut x = RIGHT;
        // Marks run through this line too: the legend covers them.
        canvas.cover((RIGHT - LEGEND, y - 9), (RIGHT, y + 9))?;
        for (name, colour, _) in keys.iter().rev().filter(|(_, _, points)| !points.is_empty()) {
            canvas.text(name, (x, y), MEDIUM, INK, Anchor::Right)?;
            let text_start = x - name.len() as i32 * 7 - 8;
            let stroke = [(text_start - 24, y), (text_start, y)];
            if *name == "limit" {
                canvas.dashed(&stroke, PALETTE[*colour], 2)?
            } else {
                canvas.line(stroke.to_vec(), PALETTE[*colour], 2)?
            }
            x = text_start - 24 - 20;
        }
        Ok(())
    }
}

/// The pixels of a line that keeps each value until the next, and the last to the end.
fn stepped(points: &[(f64, u64)], times: &Axis, bytes: &Axis) -> Vec<(i32, i32)> {
    let mut line: Vec<(i32, i32)> = Vec::new();
    for (time, value) in points {
        let point = (times.at(*time), bytes.at(*value as f64));
        if let Some(last) = line.last().copied() {
            line.push((point.0, last.1));
        }
        line.push(point);
    }
    if let Some(last) = line.last().copied() {
        line.push((times.last(), last.1));
    }
    line.dedup();
    line
}

/// A round number of bytes, without the digits that a tick does not have.
fn size_label(size: f64) -> String {
    let text = if size <= 0.0 { "0".to_owned() } else { table::bytes(size.round() as u64) };
    match text.split_once(' ') {
        Some((number, unit)) if number.contains('.') => format!("{} {unit}", number.trim_end_matches('0').trim_end_matches('.')),
        _ => text,
    }
}

fn shortened(label: &str) -> String {
    if label.chars().count() <= LABEL_CHARACTERS {
        return label.to_owned();
    }
    label.chars().take(LABEL_CHARACTERS - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run that compresses twice and goes back.
    fn example() -> RunPicture {
        const MIB: u64 = 1 << 20;
        let held = |time: f64| match time {
            ..210.0 => 352.0,
            210.0..420.0 => 352.0 + 40.0 * ((time - 210.0) / 30.0).min(1.0),
            420.0..900.0 => 141.0,
            _ => 352.0,
        };
        let accuracy = |time: f64| {
            let dip = if (420.0..520.0).contains(&time) { 0.05 * (1.0 - (time - 420.0) / 100.0) } else { 0.0 };
            0.962 - dip + 0.008 * (time / 9.0).sin() - if (420.0..900.0).contains(&time) { 0.012 } else { 0.0 }
        };
        let seconds = || (0..1100).map(f64::from);
        let marks = [
            (200.0, "goal lowered to 160 MiB"),
            (208.0, "compression started"),
            (395.0, "holdout accepts: 94.9 %"),
            (420.0, "swapped to slot A, probation"),
            (452.0, "committed"),
            (880.0, "goal back to 400 MiB"),
            (900.0, "factory restored"),
            (1090.0, "stopped by the user at the end of the day"),
        ];
        RunPicture {
            title: "cwru-load, 2.7 M parameters: a day in twenty minutes".to_owned(),
            accuracy_points: seconds().map(|time| (time, accuracy(time))).collect(),
            held_bytes: seconds().map(|time| (time, (held(time) * MIB as f64) as u64)).collect(),
            goal: vec![(0.0, 400 * MIB), (200.0, 160 * MIB), (880.0, 400 * MIB)],
            limit: vec![(0.0, 480 * MIB)],
            marks: marks.iter().map(|(time, label)| (*time, (*label).to_owned())).collect(),
        }
    }

    #[test]
    fn a_run_becomes_an_svg_with_its_words() {
        let mut run = example();
        run.marks.push((10.0, "a <tag> & a\u{0} control".to_owned()));
        let svg = run.svg().unwrap();
        let parts = [
            "<svg",
            "</svg>",
            "a day in twenty minutes",
            "committed",
            "goal",
            "limit",
            "accuracy, rolling",
            "100 MiB",
            "&lt;tag&gt; &amp; a  control",
        ];
        let missing: Vec<_> = parts.iter().filter(|part| !svg.contains(**part)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn labels_never_overlap() {
        let mut run = example();
        run.marks.extend((0..40).map(|index| (f64::from(index * 27), format!("event number {index}"))));
        let times = run.time_axis();
        let places = run.place_labels(&times);
        let placed: Vec<(f64, &Label)> =
            run.marks.iter().zip(&places).filter_map(|((time, _), label)| Some((f64::from(times.at(*time)), label.as_ref()?))).collect();
        assert!(placed.len() >= 20, "{} labels found a place", placed.len());
        let mut failures = Vec::new();
        for (index, (_, label)) in placed.iter().enumerate() {
            let (start, end) = (label.start, label.start + width(&label.text));
            for (other_index, (mark, other)) in placed.iter().enumerate().filter(|(other, _)| *other != index) {
                let other_end = other.start + width(&other.text);
                if other_index < index && other.row == label.row && other.start < end && start < other_end {
                    failures.push(format!("{} covers {}", label.text, other.text));
                }
                if other.row >= label.row && (start..end).contains(mark) {
                    failures.push(format!("the line of {} runs through {}", other.text, label.text));
                }
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }

    #[test]
    fn runs_that_are_short_flat_or_broken_are_drawn_or_refused() {
        let one =
            RunPicture { title: "one".to_owned(), accuracy_points: vec![(0.0, 1.0)], held_bytes: vec![(0.0, 0)], ..RunPicture::default() };
        assert!(one.svg().unwrap().contains("100 %"));
        let many = RunPicture { held_bytes: (0..50_000).map(|time| (f64::from(time), u64::MAX)).collect(), ..RunPicture::default() };
        assert!(many.svg().unwrap().len() < 200_000);
        assert!(matches!(RunPicture::default().svg(), Err(PictureError::Empty { .. })));
        for time in [f64::NAN, f64::INFINITY, -f64::MAX] {
            let broken = RunPicture { accuracy_points: vec![(0.0, 0.5), (time, 0.5)], ..RunPicture::default() };
            assert!(matches!(broken.svg(), Err(PictureError::Point { .. })), "{time}");
        }
    }
}
