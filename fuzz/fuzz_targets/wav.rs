//! Reads arbitrary bytes as a WAV file.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| espalier_fuzz::wav(bytes));
