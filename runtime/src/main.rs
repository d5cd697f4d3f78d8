//! Entry point of `torchmodel-runtime`.

use std::process::ExitCode;

use clap::Parser as _;
use torchmodel_runtime::{args::Arguments, run};

fn main() -> ExitCode {
    run(Arguments::parse())
}
