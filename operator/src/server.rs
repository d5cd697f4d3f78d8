//! Health and metrics over HTTP: `/healthz`, `/readyz`, `/metrics`.
//!
//! `run` starts it before anything else, so that probes see a process that waits for the Lease as alive and ready. Invariant:
//! nothing here waits for the API server.

use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;
use tracing::{error, warn};

use crate::metrics::{CONTENT_TYPE, Metrics};

/// Linux's EAFNOSUPPORT, for which the standard library has no name: this kernel has no IPv6.
const ADDRESS_FAMILY_NOT_SUPPORTED: i32 = 97;

/// Binds the port, on IPv4 alone where `[::]` is asked for and the kernel has no IPv6.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let error = match TcpListener::bind(address).await {
        Err(error) => error,
        bound => return bound,
    };
    let Some(instead) = instead_of(address, &error) else { return Err(error) };
    warn!(%address, %instead, "there is no IPv6 here: health and metrics are served on IPv4");
    TcpListener::bind(instead).await
}

/// Every address of IPv4, if every one of IPv6 was wanted and there is none.
fn instead_of(address: SocketAddr, error: &io::Error) -> Option<SocketAddr> {
    let is_every_ipv6 = address.is_ipv6() && address.ip().is_unspecified();
    let has_no_ipv6 = error.raw_os_error() == Some(ADDRESS_FAMILY_NOT_SUPPORTED);
    (is_every_ipv6 && has_no_ipv6).then(|| SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port()))
}

/// Whether the process does its work.
#[derive(Debug, Default)]
pub struct Health(AtomicBool);

impl Health {
    /// The process takes part in the election: it is ready to take over.
    pub fn set_standby(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// The process leads and reads the cluster's state; it is not ready before it has it.
    pub fn set_reading(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// The process leads and has the cluster's state.
    pub fn set_leading(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_ready(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

type Shared = (Arc<Metrics>, Arc<Health>);

/// Serves until `stop` resolves.
pub async fn serve(listener: TcpListener, shared: Shared, stop: impl Future<Output = ()> + Send + 'static) {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(shared);
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stop).await {
        error!(%error, "health and metrics can no longer be served");
    }
}

async fn ready(State((_, health)): State<Shared>) -> (StatusCode, &'static str) {
    if health.is_ready() {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "reading the cluster's state\n")
    }
}

async fn metrics(State((metrics, _)): State<Shared>) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], metrics.encode()).into_response()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn every_address_takes_ipv4_too() {
        let port = bind("[::]:0".parse().unwrap()).await.unwrap();
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port.local_addr().unwrap().port());
        TcpStream::connect(address).await.unwrap();
    }

    #[test]
    fn ipv4_stands_in_for_every_address_where_there_is_no_ipv6_and_for_nothing_else() {
        let no_ipv6 = io::Error::from_raw_os_error(ADDRESS_FAMILY_NOT_SUPPORTED);
        let instead = |address: &str, error: &io::Error| instead_of(address.parse().unwrap(), error);
        assert_eq!(instead("[::]:8080", &no_ipv6), Some("0.0.0.0:8080".parse().unwrap()));
        assert_eq!(instead("[::1]:8080", &no_ipv6), None);
        assert_eq!(instead("0.0.0.0:8080", &no_ipv6), None);
        assert_eq!(instead("[::]:8080", &io::ErrorKind::AddrInUse.into()), None);
    }
}
