//! The inference runtime: pulls a TorchScript artifact and serves it over the Open Inference Protocol.
//!
//! Bytes → `rest|grpc` decode → [`inference::InferRequest`] → [`service::InferenceService`] → [`model::Model`] →
//! [`scheduler::Scheduler`] → [`engine::Engine`] → split → [`inference::InferResponse`] → encode. ARCHITECTURE.md has the map.

pub mod artifact;
pub mod batcher;
pub mod config;
pub mod engine;
pub mod inference;
pub mod metrics;
pub mod model;
pub mod repository;
pub mod scheduler;
pub mod service;
pub mod signature;
mod split;
pub mod tensor;
