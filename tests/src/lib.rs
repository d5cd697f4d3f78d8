//! The harness of the end-to-end tests: what a person does with kubectl, helm, an S3 server and an inference client.
//!
//! `tests/cluster` is its only caller. A test gets a [`Namespace`] of its own on a [`Cluster`] that all tests share. Invariants:
//! whatever is awaited has a time limit and a sentence that says what did not happen; what a test makes is gone after it.

mod archive;
mod bucket;
mod cluster;
mod command;
mod expected;
mod grpc;
mod namespace;
mod reach;
mod release;
mod report;
mod rest;
mod settings;
mod sound;
mod traffic;
mod wait;

pub use archive::{script, with_unknown_operator};
pub use bucket::Stored;
pub use cluster::{Cluster, Stock};
pub use expected::direct_call;
pub use grpc::GrpcClient;
pub use namespace::{Namespace, condition, manifest, with_temp_namespace};
pub use release::Release;
pub use rest::RestClient;
pub use settings::Settings;
pub use sound::recording;
pub use traffic::Traffic;
pub use wait::{PATIENCE, eventually, eventually_any, gone, in_time};
