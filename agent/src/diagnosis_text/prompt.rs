//! The statistics of a window as text.

use std::fmt::Write;

use espalier_models::manifest::TextDiagnosis;

use super::statistics::{FREQUENCY_NAMES, Statistics, TIME_NAMES};

/// The last line of every prompt.
pub const PROMPT_END: &str = "Condition:";

/// Writes the prompt for a window with these statistics over `out`. The label of a class follows after a space.
pub fn write_prompt(out: &mut String, statistics: &Statistics, diagnosis: &TextDiagnosis) {
    out.clear();
    out.push_str("Statistics of a bearing's vibration.\nTime domain:\n");
    for (name, value) in TIME_NAMES.iter().zip(statistics.time) {
        write_line(out, name, value);
    }
    out.push_str("Frequency domain:\n");
    for (name, value) in FREQUENCY_NAMES.iter().zip(statistics.frequency) {
        write_line(out, name, value);
    }
    out.push_str("The condition is one of: ");
    for (index, label) in diagnosis.labels.iter().enumerate() {
        out.push_str(if index > 0 { ", " } else { "" });
        out.push_str(label);
    }
    out.push_str(".\n");
    out.push_str(PROMPT_END);
}

fn write_line(out: &mut String, name: &str, value: f64) {
    out.push_str(name);
    out.push_str(": ");
    write_number(out, value);
    out.push('\n');
}

/// Four significant digits, without zeros at the end of a fraction: fewer tokens, and more digits than the statistics of two windows of
/// one machine have in common. Below a millionth the number is rounding noise of a normalised window, and 0.
fn write_number(out: &mut String, value: f64) {
    let magnitude = value.abs();
    if magnitude < 1e-6 {
        out.push('0');
        return;
    }
    // Writing to a string cannot fail.
    if (1e-3..1e6).contains(&magnitude) {
        let decimals = (3 - magnitude.log10().floor() as i32).max(0) as usize;
        let _ = write!(out, "{value:.decimals$}");
        if decimals > 0 {
            let kept = out.trim_end_matches('0').trim_end_matches('.').len();
            out.truncate(kept);
        }
    } else {
        let _ = write!(out, "{value:.3e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnosis_text::for_classes;

    #[test]
    fn numbers_have_four_digits() {
        let cases = [
            (0.0, "0"),
            (-3e-9, "0"),
            (1.0, "1"),
            (-0.123_456, "-0.1235"),
            (0.001_234_56, "0.001235"),
            (12.345_6, "12.35"),
            (1234.56, "1235"),
            (123_456.0, "123456"),
            (1_234_567.0, "1.235e6"),
            (0.000_012_3, "1.230e-5"),
            (100.0, "100"),
        ];
        let mut failures = Vec::new();
        for (value, expected) in cases {
            let mut found = String::new();
            write_number(&mut found, value);
            if found != expected {
                failures.push(format!("{value}: {found}, expected {expected}"));
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }

    #[test]
    fn a_prompt_names_every_statistic_and_every_label() {
        let statistics = Statistics { time: [0.5; 12], frequency: [1500.0; 12] };
        let diagnosis = for_classes(&["N".to_string(), "IR".to_string(), "belt".to_string()], 2048, 12_000.0);
        let mut text = "rest".to_string();
        write_prompt(&mut text, &statistics, &diagnosis);
        assert!(text.starts_with("Statistics of a bearing's vibration.\nTime domain:\nmean: 0.5\nstandard deviation: 0.5\n"), "{text}");
        assert!(text.ends_with("16th moment: 1500\nThe condition is one of: normal, inner, belt.\nCondition:"), "{text}");
        assert_eq!(text.matches(": ").count(), 25);
    }
}
