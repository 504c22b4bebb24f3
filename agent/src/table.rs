//! Text for people: tables with aligned columns, and sizes and counts with units, written and read.

use std::fmt;

use thiserror::Error;

/// A plain-text table. A column is aligned to the right where every cell that is not empty reads as a number, else to the left.
///
/// Widths are counted in characters, and control characters in a cell are written as escapes, so that a name that came from a file cannot
/// break the layout or steer a terminal.
#[derive(Debug, Clone, Default)]
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column titles; [`Table::default`] is a table without a header.
    pub fn new<S: Into<String>>(header: impl IntoIterator<Item = S>) -> Self {
        Self { header: header.into_iter().map(|title| printable(title.into())).collect(), rows: Vec::new() }
    }

    /// Adds a row. A row may have fewer or more cells than the header has titles; what is missing is empty.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) -> &mut Self {
        self.rows.push(cells.into_iter().map(|cell| printable(cell.into())).collect());
        self
    }

    /// Number of rows without the header.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether the table has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn columns(&self) -> usize {
        self.rows.iter().map(Vec::len).chain([self.header.len()]).max().unwrap_or(0)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = || std::iter::once(&self.header).filter(|header| !header.is_empty()).chain(&self.rows);
        let cell = |line: &Vec<String>, column: usize| line.get(column).map_or(String::new(), String::clone);
        let columns: Vec<(usize, bool)> = (0..self.columns())
            .map(|column| {
                let width = lines().map(|line| cell(line, column).chars().count()).max().unwrap_or(0);
                let numbers = self.rows.iter().all(|row| row.get(column).is_none_or(|text| text.is_empty() || is_number(text)));
                (width, numbers && !self.rows.is_empty())
            })
            .collect();
        for line in lines() {
            let mut text = String::new();
            for (column, (width, right)) in columns.iter().enumerate() {
                let gap = if column == 0 { "" } else { "  " };
                let content = cell(line, column);
                text += &if *right { format!("{gap}{content:>width$}") } else { format!("{gap}{content:<width$}") };
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

/// Whether a cell reads as a number: digits first (after a sign), or a dash for "none"; a unit may follow.
fn is_number(text: &str) -> bool {
    let unsigned = text.trim_start_matches(['+', '-', '−', '±', '≈', '<', '>', ' ']);
    matches!(text, "-" | "–" | "—") || unsigned.starts_with(|first: char| first.is_ascii_digit())
}

fn printable(text: String) -> String {
    if !text.chars().any(char::is_control) {
        return text;
    }
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

/// Bytes with a binary unit and three significant digits or so: `512 B`, `1.50 KiB`, `64.0 MiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64;
    let mut unit = "B";
    for next in UNITS {
        // A value that would print as 1024 belongs to the next unit.
        if value < 1023.5 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{} {unit}", three_digits(value))
}

/// A count with a decimal unit: `999`, `1.23 k`, `2.70 M`, `7.00 G`.
pub fn count(count: u64) -> String {
    const UNITS: [&str; 6] = ["k", "M", "G", "T", "P", "E"];
    if count < 1000 {
        return count.to_string();
    }
    let mut value = count as f64;
    let mut unit = "";
    for next in UNITS {
        if value < 999.5 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    format!("{} {unit}", three_digits(value))
}

fn three_digits(value: f64) -> String {
    if value < 9.995 {
        format!("{value:.2}")
    } else if value < 99.95 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

/// A size on the command line that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SizeError {
    /// There is no number at the start.
    #[error("`{text}` is not a size: a number was expected first, as in `64MiB`, `2GB`, `512k` or `1048576`")]
    NoNumber {
        /// What was given.
        text: String,
    },
    /// The number has more than one point, or a fraction that is too long.
    #[error("`{text}` is not a size: give the number as digits with at most one point and nine digits after it, as in `1.5GiB`")]
    BadNumber {
        /// What was given.
        text: String,
    },
    /// The unit is unknown.
    #[error(
        "`{text}` is not a size: the unit `{unit}` is unknown; use B, KiB, MiB, GiB, TiB (1024), kB, MB, GB, TB (1000), or k, M, G, T (1024)"
    )]
    UnknownUnit {
        /// What was given.
        text: String,
        /// What follows the number.
        unit: String,
    },
    /// A part of a byte.
    #[error("`{text}` is not a size: a byte has no fraction; add a unit such as KiB or leave the fraction out")]
    FractionOfByte {
        /// What was given.
        text: String,
    },
    /// More than 64 bits can say.
    #[error("`{text}` is too large: the largest size is 16 EiB less one byte")]
    TooLarge {
        /// What was given.
        text: String,
    },
}

/// Reads a size: `64MiB` and `512k` count in 1024s (a bare letter as in cgroup files), `2GB` in 1000s, a plain number in bytes. Case does not
/// matter, a space before the unit is fine, and a fraction such as `1.5GiB` is rounded down to whole bytes.
///
/// # Errors
/// [`SizeError`] where the text is no size or does not fit 64 bits.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let given = || printable(text.chars().take(64).collect());
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let unit = unit.trim();
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() {
        return Err(SizeError::NoNumber { text: given() });
    }
    if fraction.contains('.') || fraction.len() > 9 || number.ends_with('.') {
        return Err(SizeError::BadNumber { text: given() });
    }
    let factor =
        unit_factor(unit).ok_or_else(|| SizeError::UnknownUnit { text: given(), unit: printable(unit.chars().take(32).collect()) })?;
    if factor == 1 && !fraction.is_empty() {
        return Err(SizeError::FractionOfByte { text: given() });
    }
    let too_large = || SizeError::TooLarge { text: given() };
    let whole: u128 = whole.parse().map_err(|_| too_large())?;
    let part: u128 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| too_large())? };
    let part_bytes = part * u128::from(factor) / 10u128.pow(fraction.len() as u32);
    let total = whole.checked_mul(u128::from(factor)).and_then(|bytes| bytes.checked_add(part_bytes)).ok_or_else(too_large)?;
    u64::try_from(total).map_err(|_| too_large())
}

fn unit_factor(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_lowercase();
    let power = |letter: &str| ["k", "m", "g", "t"].iter().position(|known| *known == letter).map(|index| index as u32 + 1);
    if unit.is_empty() || unit == "b" {
        Some(1)
    } else if let Some(power) = power(&unit).or_else(|| unit.strip_suffix("ib").and_then(power)) {
        Some(1024u64.pow(power))
    } else {
        unit.strip_suffix('b').and_then(power).map(|power| 1000u64.pow(power))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_stand_to_the_right_and_words_to_the_left() {
        let mut table = Table::new(["method", "ratio", "accuracy"]);
        table.row(["cascade", "13.8×", "93.9 %"]).row(["wanda-sp", "1.3×", "–"]).row(["gisp"]);
        let expected = "method    ratio  accuracy\ncascade   13.8×    93.9 %\nwanda-sp   1.3×         –\ngisp\n";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn a_cell_cannot_break_the_layout() {
        let mut table = Table::new(["file"]);
        table.row(["a\n\u{1b}[31mb"]);
        assert_eq!(table.to_string(), "file\na\\n\\u{1b}[31mb\n");
    }

    #[test]
    fn sizes_are_read_and_written() {
        let cases = [
            ("64MiB", Ok(64 << 20)),
            ("2GB", Ok(2_000_000_000)),
            ("512k", Ok(512 << 10)),
            ("1048576", Ok(1 << 20)),
            (" 1.5 GiB ", Ok(3 << 29)),
            ("0", Ok(0)),
            ("10b", Ok(10)),
            ("18446744073709551615", Ok(u64::MAX)),
            ("", Err("number was expected")),
            ("MiB", Err("number was expected")),
            ("-5", Err("number was expected")),
            (".5G", Err("number was expected")),
            ("1.2.3G", Err("one point")),
            ("1.G", Err("one point")),
            ("7parsecs", Err("`parsecs` is unknown")),
            ("1.5", Err("no fraction")),
            ("99999999T", Err("too large")),
            ("999999999999999999999999999999999999999999", Err("too large")),
        ];
        let mut failures = Vec::new();
        for (text, expected) in cases {
            let got = parse_size(text);
            let right = match (&got, &expected) {
                (Ok(got), Ok(expected)) => got == expected,
                (Err(error), Err(part)) => error.to_string().contains(part),
                _ => false,
            };
            if !right {
                failures.push(format!("{text:?}: expected {expected:?}, got {got:?}"));
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }

    #[test]
    fn units_fit_the_value() {
        let cases =
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (64 << 20, "64.0 MiB"), ((1 << 20) - 1, "1.00 MiB"), (u64::MAX, "16.0 EiB")];
        let counts = [(999, "999"), (1234, "1.23 k"), (999_999, "1.00 M"), (2_700_000, "2.70 M"), (88_000_000, "88.0 M")];
        let wrong: Vec<_> = cases.iter().filter(|(value, text)| bytes(*value) != *text).map(|(value, _)| bytes(*value)).collect();
        let wrong_counts: Vec<_> = counts.iter().filter(|(value, text)| count(*value) != *text).map(|(value, _)| count(*value)).collect();
        assert!(wrong.is_empty() && wrong_counts.is_empty(), "{wrong:?} {wrong_counts:?}");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,40}") {
            let _ = parse_size(&text);
        }

        #[test]
        fn plain_bytes_come_back(value: u64) {
            prop_assert_eq!(parse_size(&value.to_string()), Ok(value));
        }
    }
}
