//! Reads arbitrary bytes as a sidecar of an ONNX graph.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| espalier_fuzz::sidecar(bytes));
