//! The inference runtime: pulls a TorchScript artifact and serves it over the Open Inference Protocol.
//!
//! The program alone: its arguments, its commands, and the wiring of the crates below it. ARCHITECTURE.md has the map.

mod admission;
pub mod args;
mod command;
pub mod inspect;
mod machine;
pub mod manifest;
mod openmp;
mod ports;
pub mod serve;
mod source;
mod termination;

use std::process::ExitCode;

use torchmodel_crds::Failure;
use torchmodel_process::log;

use self::args::{Arguments, Command};

/// Runs the program: the exit status is 0, or 1 after a failure that the log explains.
#[must_use]
pub fn run(arguments: Arguments) -> ExitCode {
    let log = log::init(&arguments.log, "");
    let termination_message = match &arguments.command {
        Command::Serve(serve) => Some(serve.termination_message.clone()),
        Command::Inspect(_) | Command::Pull(_) => None,
    };
    let result = command::run(arguments.command);
    termination::report(&result, termination_message.as_deref());
    // What it holds back is written before the program leaves.
    drop(log);
    termination::exit(&result, termination_message.is_some())
}

/// A command line, or a machine, with which the program cannot start.
fn misused(message: String) -> Failure {
    Failure::new(torchmodel_crds::FailurePhase::Configure, torchmodel_crds::FailureReason::SpecInvalid, message)
        .with_hint("correct the flag, or the environment variable that sets it; --help lists them")
}
