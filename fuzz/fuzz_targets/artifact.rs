//! Reads arbitrary bytes as an `.esp` file.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| espalier_fuzz::artifact(bytes));
