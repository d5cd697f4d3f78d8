//! `torchmodel-bench`: what a request costs an inference server, over gRPC and REST.
//!
//! `load` puts one load on a running server; `wire` starts servers and compares them in one run. A load is encoded once
//! (`request`), sent again and again by few threads (`generator` over `grpc` and `http`), every answer checked (`answer`), and what
//! it cost read from /proc (`process`). It knows no other crate of the workspace: it measures programs, not code.

mod allocations;
mod answer;
pub mod archive;
pub mod args;
mod case;
mod counters;
mod cpus;
mod exchange;
#[cfg(test)]
mod fake;
mod figures;
mod generator;
mod grpc;
mod http;
pub mod load;
pub mod measure;
mod process;
mod profile;
pub mod report;
mod request;
pub mod server;
pub mod tensor;
pub mod wire;
