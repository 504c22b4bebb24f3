//! Reads arbitrary bytes as a `tokenizer.json`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| espalier_fuzz::tokenizer(bytes));
