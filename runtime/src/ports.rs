//! The three ports of `serve`, bound before anything is fetched, so that a taken port is told at once.
//!
//! Called by `serve`. Invariant: a port that cannot be bound is named with the flag that changes it.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use rustix::io::Errno;
use tokio::net::{TcpListener, TcpSocket};
use torchmodel_crds::Failure;
use torchmodel_server::Listeners;

use crate::{args::ServeArguments, misused};

/// Connections that the system keeps while they are not accepted, so that a burst of clients is not turned away.
const BACKLOG: u32 = 1024;

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restarted server gets its port back at once.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Binds them all.
pub fn bind(arguments: &ServeArguments) -> Result<Listeners, Failure> {
    let bind = |address: SocketAddr, flag: &str| {
        let mut listener = listen(address);
        // "Every address" means those of IPv4 where the kernel has no IPv6.
        let has_no_ipv6 = |error: &io::Error| error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error());
        if address.ip() == Ipv6Addr::UNSPECIFIED && listener.as_ref().is_err_and(has_no_ipv6) {
            let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
            listener = listen(address);
        }
        listener
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
