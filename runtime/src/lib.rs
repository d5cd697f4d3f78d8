//! The inference runtime: pulls a TorchScript artifact and serves it over the Open Inference Protocol.
//!
//! Bytes → `rest|grpc` decode → [`inference::InferRequest`] → [`service::InferenceService`] → [`model::Model`] →
//! [`scheduler::Scheduler`] → [`engine::Engine`] → split → [`inference::InferResponse`] → encode. ARCHITECTURE.md has the map.

pub mod args;
pub mod artifact;
pub mod batcher;
mod command;
pub mod config;
pub mod engine;
pub mod grpc;
pub mod inference;
#[cfg(feature = "torch")]
pub mod inspect;
pub mod intake;
mod machine;
pub mod metrics;
pub mod model;
pub mod protocol;
pub mod repository;
pub mod rest;
pub mod scheduler;
pub mod serve;
pub mod server;
pub mod service;
pub mod signature;
mod split;
pub mod telemetry;
pub mod tensor;

use std::process::ExitCode;

use torchmodel_crds::Failure;

use args::{Arguments, Command};

/// Runs the program: the exit status is 0, or 1 after a failure that the log explains.
#[must_use]
pub fn run(arguments: Arguments) -> ExitCode {
    if let Err(error) = telemetry::init(arguments.log_format, &arguments.log) {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    let termination_message = match &arguments.command {
        Command::Serve(serve) => Some(serve.termination_message.clone()),
        Command::Inspect(_) | Command::Pull(_) => None,
    };
    let result = command::run(arguments.command);
    if let Err(failure) = &result {
        serve::report(failure, termination_message.as_deref());
    }
    // `serve` may leave a thread inside an inference or a load that never ends, so nothing may wait for it.
    #[cfg(feature = "torch")]
    if termination_message.is_some() {
        torch_shim::exit_now(i32::from(result.is_err()));
    }
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A command line, or a machine, with which the program cannot start.
fn misused(message: String) -> Failure {
    Failure::new(torchmodel_crds::FailurePhase::Configure, torchmodel_crds::FailureReason::SpecInvalid, message)
        .with_hint("correct the flag, or the environment variable that sets it; --help lists them")
}
