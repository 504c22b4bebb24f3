//! Reads the fields of a `config.json`, each with a sentence where it is not what it must be.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::architecture::Activation;
use crate::artifact::validate::MAX_LENGTH;
use crate::error::{Error, Result, quoted};

/// The longest `config.json`. An espalier model lists the original index of every unit in it.
const MAX_CONFIG_BYTES: u64 = 256 << 20;

/// A parsed `config.json`.
pub(super) struct Config {
    path: PathBuf,
    /// The file as it is.
    pub text: String,
    /// Its fields.
    pub fields: Map<String, Value>,
}

impl Config {
    /// Reads the `config.json` of the checkpoint `folder`.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let bytes = read_limited(&path, MAX_CONFIG_BYTES)?;
        let text = String::from_utf8(bytes).map_err(|error| Error::checkpoint(&path, format!("it is not UTF-8 text: {error}")))?;
        Self::parse(path, text)
    }

    /// Parses `text`, the contents of `path`.
    pub fn parse(path: PathBuf, text: String) -> Result<Self> {
        match serde_json::from_str(&text) {
            Ok(fields) => Ok(Self { path, text, fields }),
            Err(error) => Err(Error::checkpoint(&path, format!("it is not a JSON object: {error}"))),
        }
    }

    /// The field `name`, none where it is missing or null.
    fn get(&self, name: &str) -> Option<&Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    /// Whether the field `name` is missing or null.
    pub fn lacks(&self, name: &str) -> bool {
        self.get(name).is_none()
    }

    /// The whole file as a `T`.
    pub fn parse_as<T: serde::de::DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_str(&self.text).map_err(|error| Error::checkpoint(&self.path, error.to_string()))
    }

    /// The error that a field is not what it must be.
    pub fn wrong(&self, name: &str, expected: &str) -> Error {
        match self.get(name) {
            Some(value) => Error::checkpoint(&self.path, format!("`{name}` is {}; expected {expected}", quoted(&value.to_string()))),
            None => Error::checkpoint(&self.path, format!("`{name}` is missing; expected {expected}")),
        }
    }

    /// The error that the model asks for a feature that no artifact can hold exactly.
    pub fn unsupported(&self, feature: impl Into<String>, expected: impl Into<String>) -> Error {
        Error::Unsupported { path: self.path.clone(), feature: feature.into(), expected: expected.into() }
    }

    /// The error that the file describes a model that cannot be.
    pub fn invalid(&self, problem: String) -> Error {
        Error::checkpoint(&self.path, problem)
    }

    /// The size `name`, at least 1.
    pub fn size(&self, name: &str) -> Result<usize> {
        let size = self.get(name).and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok());
        let expected = "a whole number from 1 to 268435456";
        size.filter(|size| (1..=MAX_LENGTH).contains(size)).ok_or_else(|| self.wrong(name, expected))
    }

    /// The size `name`, or `default` where it is missing or null.
    pub fn size_or(&self, name: &str, default: usize) -> Result<usize> {
        if self.get(name).is_some() { self.size(name) } else { Ok(default) }
    }

    /// The texts `name`, none where it is missing or null.
    pub fn texts(&self, name: &str) -> Result<Option<Vec<&str>>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let texts = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        texts.map(Some).ok_or_else(|| self.wrong(name, "a list of texts"))
    }

    /// Whether the file has the field `name`, be it null.
    pub fn has(&self, name: &str) -> bool {
        self.fields.contains_key(name)
    }

    /// Refuses the model where the field `name` is there and not null.
    pub fn require_none(&self, name: &str) -> Result<()> {
        match self.get(name) {
            None => Ok(()),
            Some(value) => Err(self.unsupported(format!("`{name}` = {}", quoted(&value.to_string())), "only null is")),
        }
    }

    /// The finite number `name`, or `default` where it is missing or null.
    pub fn number_or(&self, name: &str, default: f64) -> Result<f64> {
        match self.get(name) {
            None => Ok(default),
            Some(value) => value.as_f64().filter(|number| number.is_finite()).ok_or_else(|| self.wrong(name, "a number")),
        }
    }

    /// The flag `name`, or `default` where it is missing or null.
    pub fn flag_or(&self, name: &str, default: bool) -> Result<bool> {
        match self.get(name) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(name, "true or false")),
        }
    }

    /// The text `name`, none where it is missing or null.
    pub fn text(&self, name: &str) -> Result<Option<&str>> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| self.wrong(name, "a text")),
        }
    }

    /// The object `name` as a configuration of its own, none where it is missing or null.
    pub fn object(&self, name: &str) -> Result<Option<Config>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(Config { path: self.path.clone(), text: String::new(), fields: fields.clone() })),
            Some(_) => Err(self.wrong(name, "an object")),
        }
    }

    /// Refuses the model where the flag `name` is not `required`; missing means `required`.
    pub fn require_flag(&self, name: &str, required: bool) -> Result<()> {
        if self.flag_or(name, required)? == required {
            return Ok(());
        }
        Err(self.unsupported(format!("`{name}` = {}", !required), format!("only {required} is")))
    }

    /// The activation `name`, `default` where it is missing.
    pub fn activation(&self, name: &str, default: &str) -> Result<Activation> {
        match self.text(name)?.unwrap_or(default) {
            "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
            "gelu" => Ok(Activation::GeluExact),
            "relu" => Ok(Activation::Relu),
            "silu" | "swish" => Ok(Activation::Silu),
            other => {
                Err(self
                    .unsupported(format!("`{name}` = {}", quoted(other)), "gelu_new, gelu_pytorch_tanh, gelu, relu, silu and swish are"))
            }
        }
    }
}

/// Reads a whole file of at most `limit` bytes.
pub(super) fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    use std::io::Read;
    if !std::fs::metadata(path).map_err(Error::io("read", path))?.is_file() {
        return Err(Error::checkpoint(path, "it is not a file"));
    }
    let file = std::fs::File::open(path).map_err(Error::io("read", path))?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(Error::checkpoint(path, format!("it is longer than the {limit} bytes allowed")));
    }
    Ok(bytes)
}
