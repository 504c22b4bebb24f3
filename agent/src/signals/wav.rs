//! WAV files: one channel of 8 to 32-bit integers or 32-bit floats. Integers are scaled to [−1, 1).

use std::io::Read;
use std::path::Path;

use hound::{SampleFormat, WavReader};

use super::error::SignalError;
use super::recording::{Summary, check_count};

const RESAVE: &str = "save it again as 16, 24 or 32-bit PCM or 32-bit float";

/// How many samples a channel has and their rate, from the header alone.
pub fn summary(reader: impl Read, path: &Path, channel: Option<u16>) -> Result<Summary, SignalError> {
    let wav = open(reader, path, channel)?;
    let signal = Some(format!("channel {}", channel.unwrap_or(0)));
    let samples = check_count(path, u64::from(wav.duration()))?;
    Ok(Summary { signal, samples, sample_rate_hz: Some(f64::from(wav.spec().sample_rate)), rpm: None })
}

/// The samples of `channel` (counted from 0; the first when none is given).
pub fn read(reader: impl Read, path: &Path, channel: Option<u16>) -> Result<Vec<f32>, SignalError> {
    let mut wav = open(reader, path, channel)?;
    check_count(path, u64::from(wav.duration()))?;
    let spec = wav.spec();
    let (channels, channel) = (usize::from(spec.channels), usize::from(channel.unwrap_or(0)));
    let broken = |index: usize, error: hound::Error| {
        let place = format!("sample {}", index / channels);
        SignalError::malformed(path, place, format!("the data cannot be read ({error})"), "as many samples as the header says", RESAVE)
    };
    let mut samples = Vec::new();
    match spec.sample_format {
        SampleFormat::Float => {
            for (index, value) in wav.samples::<f32>().enumerate() {
                let value = value.map_err(|error| broken(index, error))?;
                if index % channels == channel {
                    samples.push(value);
                }
            }
        }
        SampleFormat::Int => {
            let scale = 1.0 / (1u64 << (spec.bits_per_sample - 1)) as f64;
            for (index, value) in wav.samples::<i32>().enumerate() {
                let value = value.map_err(|error| broken(index, error))?;
                if index % channels == channel {
                    samples.push((f64::from(value) * scale) as f32);
                }
            }
        }
    }
    Ok(samples)
}

fn open<R: Read>(reader: R, path: &Path, channel: Option<u16>) -> Result<WavReader<R>, SignalError> {
    let wav = WavReader::new(reader).map_err(|error| {
        SignalError::malformed(
            path,
            "header",
            format!("not a WAV file that can be read ({error})"),
            "RIFF/WAVE with PCM or float samples",
            RESAVE,
        )
    })?;
    let spec = wav.spec();
    let known = match spec.sample_format {
        SampleFormat::Int => matches!(spec.bits_per_sample, 8 | 16 | 24 | 32),
        SampleFormat::Float => spec.bits_per_sample == 32,
    };
    if !known {
        let what = format!("WAV with {}-bit {:?} samples", spec.bits_per_sample, spec.sample_format);
        return Err(SignalError::Unsupported { path: path.to_path_buf(), what, remedy: RESAVE });
    }
    if spec.channels == 0 || channel.unwrap_or(0) >= spec.channels {
        let wanted = format!("channel {}", channel.unwrap_or(0));
        let found = format!("{} channels, counted from 0", spec.channels);
        return Err(SignalError::NoSuchSignal { path: path.to_path_buf(), wanted, found });
    }
    Ok(wav)
}
