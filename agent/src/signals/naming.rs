//! What the file names of the public bearing corpora tell.
//!
//! CWRU: `{class}{size}_{load}hp_{record}.mat`, size in thousandths of an inch. UESTC: `{class}_{rpm}_{part}.mat`. UESTC's `I` and `O` become
//! `IR` and `OR`, so that both corpora have the classes `N`, `B`, `IR`, `OR`.

/// Sampling rate of the CWRU drive-end recordings used here.
pub const CWRU_RATE_HZ: f64 = 12_000.0;
/// Sampling rate of the UESTC recordings.
pub const UESTC_RATE_HZ: f64 = 20_000.0;

/// A CWRU file name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CwruName {
    /// `N`, `B`, `IR` or `OR`.
    pub class: &'static str,
    /// Diameter of the fault in thousandths of an inch; 0 for normal.
    pub size_mil: u32,
    /// Motor load in horsepower.
    pub load_hp: u32,
    /// The data center's number of the record, which names the arrays.
    pub record: u32,
}

impl CwruName {
    /// Parses a name without extension; none if it is not of this form.
    pub fn parse(stem: &str) -> Option<Self> {
        let mut parts = stem.split('_');
        let (fault, load, record) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        let letters = fault.len() - fault.trim_start_matches(|c: char| c.is_ascii_uppercase()).len();
        let (letters, size) = fault.split_at(letters);
        let class = ["N", "B", "IR", "OR"].into_iter().find(|class| *class == letters)?;
        Some(Self { class, size_mil: number(size)?, load_hp: number(load.strip_suffix("hp")?)?, record: number(record)? })
    }

    /// The motor's nominal speed at this load, for records that lack their own.
    pub fn nominal_rpm(&self) -> Option<f64> {
        [1797.0, 1772.0, 1750.0, 1730.0].get(self.load_hp as usize).copied()
    }
}

/// A UESTC file name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UestcName {
    /// `N`, `B`, `IR` or `OR`.
    pub class: &'static str,
    /// Shaft turns a minute.
    pub rpm: u32,
    /// 1 or 2: the earlier or the later part of a continuous recording.
    pub part: u32,
}

impl UestcName {
    /// Parses a name without extension; none if it is not of this form.
    pub fn parse(stem: &str) -> Option<Self> {
        let mut parts = stem.split('_');
        let (class, rpm, part) = (parts.next()?, number(parts.next()?)?, number(parts.next()?)?);
        if parts.next().is_some() {
            return None;
        }
        let class = match class {
            "N" => "N",
            "B" => "B",
            "I" => "IR",
            "O" => "OR",
            _ => return None,
        };
        Some(Self { class, rpm, part })
    }
}

/// Decimal digits only: no sign, no blanks.
fn number(text: &str) -> Option<u32> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_class_load_and_speed() {
        let got = CwruName::parse("IR007_0hp_105");
        assert_eq!(got, Some(CwruName { class: "IR", size_mil: 7, load_hp: 0, record: 105 }));
        assert_eq!(CwruName::parse("N000_0hp_97").and_then(|name| name.nominal_rpm()), Some(1797.0));
        assert_eq!(UestcName::parse("O_1400_2"), Some(UestcName { class: "OR", rpm: 1400, part: 2 }));
        for other in ["", "IR007", "X007_0hp_105", "IR007_0hp_105_2", "IR_0hp_1", "IR007_0_105", "I_800", "I_-800_1", "é_800_1"] {
            assert_eq!(CwruName::parse(other), None, "{other}");
            assert_eq!(UestcName::parse(other), None, "{other}");
        }
    }
}
