//! What must hold for each decoder, whatever bytes it is given.
//!
//! Each check takes one input of a fuzzer's and panics where something does not hold. `targets/` hands them to libFuzzer, and
//! `tests/corpus.rs` runs them over the inputs that are kept in `corpus/`. Invariant: a check gives the same result for the same input,
//! keeps nothing between two inputs but buffers, and reaches no network.

#![expect(clippy::missing_panics_doc, reason = "a panic is how a check says what does not hold")]

mod archive;
mod grpc;
mod head;
mod input;
mod manifest;
mod rest;
mod round_trip;
mod stored;

pub use self::{
    archive::check_archive,
    grpc::{check_grpc_contents, check_grpc_frames},
    head::check_request_head,
    manifest::check_manifest,
    rest::{check_rest_binary, check_rest_json},
};

/// A check, by the name of its fuzz target and of its folder in `corpus/`.
pub type Check = (&'static str, fn(&[u8]));

/// Every check.
pub const CHECKS: [Check; 7] = [
    ("request_head", check_request_head),
    ("rest_json", check_rest_json),
    ("rest_binary", check_rest_binary),
    ("grpc_frames", check_grpc_frames),
    ("grpc_contents", check_grpc_contents),
    ("manifest", check_manifest),
    ("archive", check_archive),
];
