//! Reads arbitrary bytes as a `config.json`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| espalier_fuzz::config(bytes));
