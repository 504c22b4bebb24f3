//! The tensor of rotary frequency factors that GGUF files of Llama 3 carry in place of the scaling's parameters.

use serde_json::{Value, json};

use super::reader::Gguf;
use crate::checkpoint::tensors::Tensors;
use crate::error::Result;

/// The tensor's name.
pub(super) const TENSOR: &str = "rope_freqs.weight";

/// Every parameter set of Llama 3 scaling that models were published with: factor, low and high frequency factor, original context.
const PUBLISHED: [(f64, f64, f64, f64); 2] = [(8.0, 1.0, 4.0, 8192.0), (32.0, 1.0, 4.0, 8192.0)];

/// `rope_scaling` of the factors, none where the file has none.
///
/// # Errors
/// [`Error::Unsupported`](crate::Error::Unsupported) where the factors are those of no published parameters.
pub(super) fn factors(gguf: &Gguf) -> Result<Option<Value>> {
    let Some(found) = gguf.find(TENSOR) else { return Ok(None) };
    let refused = || gguf.unsupported(format!("tensor `{TENSOR}`"), "the factors of Llama 3.1 and 3.2 are");
    let count = found.shape.iter().product::<usize>();
    if count > 1 << 15 {
        return Err(refused());
    }
    let mut stored = vec![0.0; count];
    gguf.read(TENSOR, 0, &mut stored)?;
    let architecture = gguf.text("general.architecture")?.unwrap_or_default();
    let base = gguf.number(&format!("{architecture}.rope.freq_base"))?.unwrap_or(10_000.0);
    let equal = |parameters: &&(f64, f64, f64, f64)| {
        let expected = (0..count).map(|pair| factor(**parameters, base, pair as f64 / count as f64));
        expected.zip(&stored).all(|(expected, &stored)| (expected - f64::from(stored)).abs() <= 1e-5 * expected)
    };
    let &(factor, low, high, context) = PUBLISHED.iter().find(equal).ok_or_else(refused)?;
    Ok(Some(json!({
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": context as u64,
    })))
}

/// What the wavelength of the pair at `share` of all pairs is multiplied by.
pub(super) fn factor((factor, low, high, context): (f64, f64, f64, f64), base: f64, share: f64) -> f64 {
    let wavelength = 2.0 * std::f64::consts::PI * base.powf(share);
    if wavelength < context / high {
        1.0
    } else if wavelength > context / low {
        factor
    } else {
        let smooth = (context / wavelength - low) / (high - low);
        1.0 / ((1.0 - smooth) / factor + smooth)
    }
}
