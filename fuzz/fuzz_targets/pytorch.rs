//! Reads arbitrary bytes as a PyTorch checkpoint.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| espalier_fuzz::pytorch(bytes));
