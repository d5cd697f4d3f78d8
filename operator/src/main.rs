//! The operator's process: arguments, logs, a client and a listener, handed to the library.

use anyhow::Context as _;
use clap::Parser as _;
use torchmodel_operator::{Args, Process, bind, run, shutdown_signal, telemetry};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    telemetry::init(&args).map_err(anyhow::Error::msg)?;
    let client = kube::Client::try_default().await.context("connecting to the Kubernetes API server")?;
    let listener = bind(args.listen).await.with_context(|| format!("binding --listen {}", args.listen))?;
    run(Process { client, listener, args }, shutdown_signal()).await.context("running the operator")
}
