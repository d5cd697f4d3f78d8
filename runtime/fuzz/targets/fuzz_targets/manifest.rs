//! Hands libFuzzer's inputs to `check_manifest`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| torchmodel_fuzz::check_manifest(input));
