//! Hands libFuzzer's inputs to `check_request_head`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| torchmodel_fuzz::check_request_head(input));
