//! Hands libFuzzer's inputs to `check_rest_binary`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| torchmodel_fuzz::check_rest_binary(input));
