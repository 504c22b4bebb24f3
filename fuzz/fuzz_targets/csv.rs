//! Reads arbitrary bytes as a text table.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| espalier_fuzz::csv(bytes));
