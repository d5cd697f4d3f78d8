//! The operator's process: arguments, logs, a client and a listener, handed to the library.

use anyhow::Context as _;
use clap::Parser as _;
use torchmodel_operator::{Args, Process, run, shutdown_signal, telemetry};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    telemetry::init(&args);
    let client = kube::Client::try_default().await.context("connecting to the Kubernetes API server")?;
    let listener = tokio::net::TcpListener::bind(args.listen).await.context("binding the health and metrics port")?;
    run(Process { client, listener, args }, shutdown_signal()).await.context("running the operator")
}
