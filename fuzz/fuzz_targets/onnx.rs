//! Reads arbitrary bytes as an ONNX graph.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| espalier_fuzz::onnx(bytes));
