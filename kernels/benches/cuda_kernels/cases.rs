//! The cases of benches/cuda_cases.txt.

use std::fmt;

use espalier_kernels::{Format, KernelError, Result};

const TEXT: &str = include_str!("../../../benches/cuda_cases.txt");

/// An operation and its sizes.
#[derive(Clone)]
pub struct Case {
    usage: &'static str,
    pub operation: &'static str,
    sizes: Vec<(&'static str, &'static str, usize)>,
}

/// All, in the order of the file.
pub fn all() -> Vec<Case> {
    TEXT.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).filter_map(Case::parse).collect()
}

impl Case {
    /// `use operation name=value...`
    fn parse(line: &'static str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let (usage, operation) = (words.next()?, words.next()?);
        let sizes = words.filter_map(|word| word.split_once('=')).map(|(name, value)| (name, value, value.parse().unwrap_or(0))).collect();
        Some(Self { usage, operation, sizes })
    }

    /// The same operation on shapes of a few dozen, which take every path that the large ones take where a shape allows it.
    pub fn small(mut self) -> Self {
        // Its backward pass wants as many keys as queries.
        let most_keys = if self.operation == "attention_backward" { 33 } else { 70 };
        for (name, _, size) in &mut self.sizes {
            let most = match *name {
                "batch" | "groups" => 2,
                "heads" => 4,
                "sequence" => 5,
                "count" => 9,
                "patch" | "stride" => 16,
                "m" => 33,
                "queries" => 33,
                "units" => 40,
                "keys" => most_keys,
                "window" => 200,
                "len" => 1000,
                "rows" | "other_rows" | "columns" | "n" | "k" | "d" => 72,
                _ => continue,
            };
            *size = most.min(*size);
        }
        self
    }

    fn find(&self, name: &str) -> Result<(&'static str, usize)> {
        let size = self.sizes.iter().find(|(given, ..)| *given == name);
        size.map(|(_, text, size)| (*text, *size)).ok_or_else(|| self.wrong(&format!("has no {name}")))
    }

    /// The size `name`.
    pub fn size(&self, name: &str) -> Result<usize> {
        self.find(name).map(|(_, size)| size)
    }

    /// Whether the size `name` is there and not 0.
    pub fn is(&self, name: &str) -> bool {
        self.find(name).is_ok_and(|(_, size)| size > 0)
    }

    /// Whether products round activations to the weight's format.
    pub fn is_fast(&self) -> bool {
        self.find("precision").is_ok_and(|(text, _)| text == "fast")
    }

    /// The format of the weight.
    pub fn format(&self) -> Result<Format> {
        match self.find("format")?.0 {
            "f32" => Ok(Format::F32),
            "f16" => Ok(Format::F16),
            "bf16" => Ok(Format::Bf16),
            "f16_pairs" => Ok(Format::F16Pairs),
            "bf16_pairs" => Ok(Format::Bf16Pairs),
            "q8" => Ok(Format::Q8),
            "q4" => Ok(Format::Q4),
            "q8_units" => Ok(Format::Q8Units),
            "q4_units" => Ok(Format::Q4Units),
            other => Err(self.wrong(&format!("has the format {other}, which there is not"))),
        }
    }

    /// An error about the file.
    pub fn wrong(&self, what: &str) -> KernelError {
        KernelError::Shape { operation: "cuda_kernels", detail: format!("the case `{self}` of benches/cuda_cases.txt {what}") }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.usage, self.operation)?;
        for (name, text, size) in &self.sizes {
            if text.parse::<usize>().is_ok() { write!(f, " {name}={size}")? } else { write!(f, " {name}={text}")? }
        }
        Ok(())
    }
}
