//! The three ports of `serve`, bound before anything is fetched, so that a taken port is told at once.
//!
//! Called by `serve`. Invariant: a port that cannot be bound is named with the flag that changes it.

use std::net::SocketAddr;

use tokio::net::TcpListener;
use torchmodel_crds::Failure;
use torchmodel_process::listen;
use torchmodel_server::Listeners;

use crate::{args::ServeArguments, misused};

/// Binds them all.
pub fn bind(arguments: &ServeArguments) -> Result<Listeners, Failure> {
    let bind = |address: SocketAddr, flag: &str| {
        listen(address)
            .map_err(|error| misused(format!("listening on {address}: {error}; choose another address with {flag}")))
    };
    let listeners = Listeners {
        rest: bind(arguments.http_address, "--http-address")?,
        grpc: bind(arguments.grpc_address, "--grpc-address")?,
        admin: bind(arguments.metrics_address, "--metrics-address")?,
    };
    let shown = |listener: &TcpListener| listener.local_addr().map(|address| address.to_string()).unwrap_or_default();
    tracing::info!(
        http = shown(&listeners.rest),
        grpc = shown(&listeners.grpc),
        metrics = shown(&listeners.admin),
        "listening"
    );
    Ok(listeners)
}
