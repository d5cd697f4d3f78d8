//! The Open Inference Protocol over REST and gRPC: serves the three ports until shutdown, then drains.
//!
//! The program calls [`serve`] with bound listeners. One accept loop serves HTTP/1.1 and HTTP/2 alike; REST and gRPC are routers on
//! it. Invariant: no connection can end the server or hold it up past the drain timeout, and each costs a bounded time to refuse.

pub mod admission;
mod connection;
pub mod grpc;
pub mod intake;
pub mod protocol;
mod rest;

use std::{sync::Arc, time::Duration};

use axum::Router;
use hyper_util::{rt::TokioExecutor, server::conn::auto::Builder};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use torchmodel_core::{metrics::Metrics, service::InferenceService};

use self::connection::Versions;
use crate::{admission::Admission, intake::Intake, protocol::Limits};

/// The most connections served at one time, for each port; more wait in the system's backlog.
const MAX_CONNECTIONS: u64 = 4096;
/// Open files that are left for everything else: libraries, logs, fetching.
const OTHER_FILES: u64 = 128;
/// The ports.
const PORTS: u64 = 3;
/// Wait after the system refused to accept, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The ports, bound.
#[derive(Debug)]
pub struct Listeners {
    /// For REST inference.
    pub rest: TcpListener,
    /// For gRPC.
    pub grpc: TcpListener,
    /// For metrics and health.
    pub admin: TcpListener,
}

/// What is served, and within which limits.
#[derive(Clone)]
pub struct Serving {
    /// Answers the requests.
    pub service: InferenceService,
    /// Counts them.
    pub metrics: Metrics,
    /// Bounds them.
    pub limits: Limits,
    /// Bounds what they take together.
    pub admission: Admission,
    /// Connections at one time, for each port.
    pub max_connections: usize,
    /// How long requests in flight may take after `shutdown`.
    pub drain_timeout: Duration,
}

/// How many connections each port may serve where so many files may be open: health must answer when clients take all they can.
#[must_use]
pub fn connections_within(open_files: u64) -> usize {
    let each = open_files.saturating_sub(OTHER_FILES) / PORTS;
    usize::try_from(each.clamp(1, MAX_CONNECTIONS)).unwrap_or(1)
}

/// Serves until `shutdown` completes; then accepts nothing more, answers what is in flight for at most the drain timeout, and
/// closes the metrics port last. Returns whether everything in flight was answered.
pub async fn serve(listeners: Listeners, serving: Serving, shutdown: impl Future<Output = ()>) -> bool {
    let Serving { service, metrics, limits, admission, max_connections, drain_timeout } = serving;
    let intake = Intake::new(admission);
    let rest = rest::router(service.clone(), metrics.clone(), limits);
    let rest = intake.bound(rest, "/v2/", Into::into);
    let grpc = grpc::routes(service.clone(), metrics.clone(), limits).prepare().into_axum_router();
    let grpc = intake.bound(grpc, grpc::SERVICE_PREFIX, grpc::refuse);
    let admin = rest::admin_router(service, metrics);
    let (stop, stopped) = watch::channel(false);
    let (stop_admin, admin_stopped) = watch::channel(false);
    let mut inference = JoinSet::new();
    let port = |listener, router, versions, stopped| {
        let permits = Arc::new(Semaphore::new(max_connections));
        serve_port(listener, router, connection::builder(versions), permits, stopped)
    };
    inference.spawn(port(listeners.rest, rest, Versions::Both, stopped.clone()));
    inference.spawn(port(listeners.grpc, grpc, Versions::Two, stopped));
    let admin = tokio::spawn(port(listeners.admin, admin, Versions::Both, admin_stopped));
    shutdown.await;
    stop.send_replace(true);
    let is_drained = timeout(drain_timeout, async { while inference.join_next().await.is_some() {} }).await.is_ok();
    // Dropping a port's task ends its connections.
    drop(inference);
    stop_admin.send_replace(true);
    let abort = admin.abort_handle();
    if timeout(Duration::from_secs(1), admin).await.is_err() {
        abort.abort();
    }
    is_drained
}

/// Accepts connections until `stopped`, then waits for those that are open.
async fn serve_port(
    listener: TcpListener,
    router: Router,
    builder: Builder<TokioExecutor>,
    permits: Arc<Semaphore>,
    mut stopped: watch::Receiver<bool>,
) {
    let builder = Arc::new(builder);
    let mut connections = JoinSet::new();
    loop {
        let accept = async {
            let permit = Arc::clone(&permits).acquire_owned().await;
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            accepted = accept => accepted,
            Some(_) = connections.join_next() => continue,
            _ = stopped.wait_for(|is_stopped| *is_stopped) => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let (builder, router, stopped) = (Arc::clone(&builder), router.clone(), stopped.clone());
                connections.spawn(async move {
                    connection::serve(stream, &builder, router, stopped).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ports_share_the_files_that_may_be_open() {
        for (open_files, connections) in [(0, 1), (1024, 298), (12_416, 4096), (u64::MAX, 4096)] {
            assert_eq!(connections_within(open_files), connections, "{open_files}");
        }
    }
}
