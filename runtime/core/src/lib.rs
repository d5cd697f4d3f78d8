//! The serving core: from a checked request to its answer, without a protocol, an engine or a place where models come from.
//!
//! `torchmodel-server` decodes requests and calls [`service::InferenceService`]; `torchmodel-torch` implements [`engine::EngineLoader`].
//! A request passes [`signature`] (checks), [`batcher`] and [`scheduler`] (waits, joins a batch, runs), and is cut out of its batch again.

pub mod batcher;
pub mod config;
pub mod engine;
pub mod inference;
pub mod metadata;
pub mod metrics;
pub mod model_key;
pub mod outcome;
pub mod repository;
pub mod scheduler;
pub mod service;
pub mod signature;
pub mod slab;
mod split;
pub mod tensor;
pub mod version;
