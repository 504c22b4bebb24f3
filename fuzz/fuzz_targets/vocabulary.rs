//! Reads arbitrary bytes as a `vocab.txt`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| espalier_fuzz::vocabulary(bytes));
