//! Hands libFuzzer's inputs to `check_grpc_contents`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| torchmodel_fuzz::check_grpc_contents(input));
