//! The tensor of rotary frequency factors that GGUF files of Llama 3 carry in place of the scaling's parameters.

use serde_json::{Value, json};

use super::reader::Gguf;
use crate::architecture::{Rotary, RotaryScaling};
use crate::checkpoint::tensors::Tensors;
use crate::error::{Error, Result};

/// The tensor's name.
pub(super) const TENSOR: &str = "rope_freqs.weight";

/// Every parameter set of Llama 3 scaling that models were published with: factor, low and high frequency factor, original context.
const PUBLISHED: [(f64, f64, f64, usize); 2] = [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192)];

/// `rope_scaling` of the factors of `dims` rotated dimensions, none where the file has none.
///
/// # Errors
/// [`Error::Checkpoint`] where there is not one factor for each pair of dimensions, [`Error::Unsupported`] where the factors are those of
/// no published parameters.
pub(super) fn factors(gguf: &Gguf, dims: usize) -> Result<Option<Value>> {
    let Some(found) = gguf.find(TENSOR) else { return Ok(None) };
    let count = found.shape.iter().product::<usize>();
    if count != dims / 2 {
        let problem = format!("tensor `{TENSOR}` has {count} numbers; expected {}, one for each pair of rotated dimensions", dims / 2);
        return Err(Error::checkpoint(gguf.path(), problem));
    }
    let mut stored = vec![0.0; count];
    gguf.read(TENSOR, 0, &mut stored)?;
    let architecture = gguf.text("general.architecture")?.unwrap_or_default();
    let base = gguf.number(&format!("{architecture}.rope.freq_base"))?.unwrap_or(10_000.0);
    let equal = |&&(factor, low_freq_factor, high_freq_factor, original_context): &&(f64, f64, f64, usize)| {
        let scaling = RotaryScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context };
        let expected = of(Rotary { base, scaling }, dims);
        expected.iter().zip(&stored).all(|(expected, &stored)| (expected - f64::from(stored)).abs() <= 1e-5 * expected)
    };
    let refused = || gguf.unsupported(format!("tensor `{TENSOR}`"), "the factors of Llama 3.1 and 3.2 are");
    let &(factor, low, high, context) = PUBLISHED.iter().find(equal).ok_or_else(refused)?;
    Ok(Some(json!({
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    })))
}

/// What scaling multiplies the wavelength of each of `dims / 2` rotated pairs by.
pub(super) fn of(rotary: Rotary, dims: usize) -> Vec<f64> {
    let plain = Rotary::of_base(rotary.base).frequencies(dims);
    plain.into_iter().zip(rotary.frequencies(dims)).map(|(plain, scaled)| plain / scaled).collect()
}
