//! Hands libFuzzer's inputs to `check_archive`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| torchmodel_fuzz::check_archive(input));
