//! Reads arbitrary bytes as the pickle of a PyTorch checkpoint.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| espalier_fuzz::pickle(bytes));
