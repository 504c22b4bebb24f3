//! Reads arbitrary bytes as a MATLAB file.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| espalier_fuzz::mat(bytes));
