//! The operator's process: arguments, logs, a client and a listener, handed to the library.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use torchmodel_operator::{Args, Process, QUIET_LIBRARIES, run};
use torchmodel_process::{Signals, error_chain, listen, log};

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let _log = log::init(&args.log, QUIET_LIBRARIES);
    let Err(error) = operate(args).await else { return ExitCode::SUCCESS };
    tracing::error!("{}", error_chain(error.as_ref()));
    ExitCode::FAILURE
}

async fn operate(args: Args) -> anyhow::Result<()> {
    let mut signals = Signals::listen().context("listening for signals")?;
    let client = kube::Client::try_default().await.context("connecting to the Kubernetes API server")?;
    let listener = listen(args.listen).with_context(|| format!("listening on --listen {}", args.listen))?;
    let shutdown = async move {
        signals.next().await;
    };
    run(Process { client, listener, args }, shutdown).await.context("running the operator")
}
