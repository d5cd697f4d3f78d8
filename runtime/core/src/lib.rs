//! The serving core: from a checked request to its answer, without a protocol, an engine or a place where models come from.
//!
//! `torchmodel-server` decodes requests and calls [`service::InferenceService`]; `torchmodel-torch` implements [`loader::Loader`]
//! and [`engine::Instance`]. A request passes [`signature`] (checks), `batcher` and [`scheduler`] (waits, joins a batch, runs), is
//! cut out of its batch again and answered through [`reply`].

mod batcher;
pub mod binding;
pub mod config;
pub mod configuration;
pub mod engine;
pub mod fake;
pub mod freedom;
pub mod inference;
pub mod interface;
pub mod loader;
pub mod metadata;
pub mod metrics;
pub mod model_key;
pub mod outcome;
pub mod plan;
pub mod reply;
pub mod repository;
pub mod scheduler;
pub mod service;
pub mod signature;
pub mod slab;
mod split;
pub mod statistics;
mod sync;
pub mod tensor;
pub mod version;
mod warmup;
