//! The Open Inference Protocol over REST and gRPC: serves the three ports until shutdown, then drains.
//!
//! The program calls [`serve`] with bound listeners. Health and metrics have a thread of their own, so that probes are answered
//! whatever the others do. Invariant: no connection can end the server or hold it up past the drain timeout, and each costs a bounded
//! time to refuse.

mod activity;
pub mod admission;
mod blocking;
mod compression;
mod connection;
pub mod grpc;
mod http2;
mod io_threads;
mod port;
pub mod protocol;
mod request_count;
mod reserved;
pub mod rest;
mod socket;

use std::{io, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use torchmodel_core::{metrics::Metrics, service::InferenceService};

use self::{
    compression::Compressor,
    connection::Port,
    grpc::GrpcHandler,
    io_threads::IoThreads,
    port::{Seats, serve_port},
    rest::{RestService, Routes},
};
use crate::{admission::Admission, protocol::Limits};

/// The most connections served at one time, for each port; more wait in the system's backlog.
const MAX_CONNECTIONS: u64 = 4096;
/// Open files that are left for everything else: libraries, logs, fetching.
const OTHER_FILES: u64 = 128;
/// The ports.
const PORTS: u64 = 3;
/// How often idle buffers are looked at.
const TRIM_INTERVAL: Duration = Duration::from_secs(10);
/// How long the port for metrics may take to end.
const ADMIN_STOP_TIMEOUT: Duration = Duration::from_secs(1);

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
    /// Threads that serve the connections of both inference ports.
    pub io_threads: usize,
    /// How long requests in flight may take after `shutdown`.
    pub drain_timeout: Duration,
    /// Gives memory that the allocator keeps back to the system. Called on a thread that may block, when little is in flight after much.
    pub release_memory: fn(),
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
    let compressor = Compressor::new();
    let rest = RestService::new(Routes::Inference, &serving, compressor.clone());
    let admin = RestService::new(Routes::Admin, &serving, compressor.clone());
    let grpc = Port { handler: Arc::new(GrpcHandler::new(&serving, compressor)), rest: None };
    let Serving { admission, max_connections, io_threads, drain_timeout, release_memory, .. } = serving;
    let (stop, stopped) = watch::channel(false);
    let admin = AdminThread::start(listeners.admin, rest_port(admin), max_connections);
    let rest = rest_port(rest);
    let threads = IoThreads::start(io_threads).inspect_err(|error| {
        tracing::error!(%error, "no threads for connections could be started: they share one");
    });
    let seats = Seats { threads: threads.ok().map(Arc::new), max_connections };
    let mut inference = JoinSet::new();
    inference.spawn(serve_port(listeners.rest, rest, seats.clone(), stopped.clone()));
    inference.spawn(serve_port(listeners.grpc, grpc, seats, stopped));
    let trim = tokio::spawn(trim(admission, release_memory));
    shutdown.await;
    stop.send_replace(true);
    let is_drained = timeout(drain_timeout, async { while inference.join_next().await.is_some() {} }).await.is_ok();
    // Dropping a port's task ends its connections.
    drop(inference);
    trim.abort();
    match admin {
        Ok(admin) => admin.stop().await,
        Err(error) => tracing::error!(%error, "the port for metrics was not served: no thread for it"),
    }
    is_drained
}

fn rest_port(rest: RestService) -> Port<RestService> {
    Port { handler: Arc::new(rest.clone()), rest: Some(rest) }
}

/// Gives idle buffers back while there are some, and then what the allocator keeps; sleeps while there is nothing to give.
async fn trim(admission: Admission, release_memory: fn()) {
    loop {
        tokio::select! {
            () = admission.pool().became_idle() => {}
            () = admission.rose() => {}
        }
        loop {
            sleep(TRIM_INTERVAL).await;
            admission.pool().trim();
            if admission.is_quiet() {
                break;
            }
        }
        // Where it panics there is nothing to be done about it.
        drop(tokio::task::spawn_blocking(release_memory).await);
    }
}

/// The thread that serves health and metrics.
struct AdminThread {
    stop: watch::Sender<bool>,
    ended: oneshot::Receiver<()>,
}

impl AdminThread {
    fn start(listener: TcpListener, port: Port<RestService>, max_connections: usize) -> io::Result<Self> {
        let listener = listener.into_std()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = watch::channel(false);
        let (end, ended) = oneshot::channel();
        std::thread::Builder::new().name("admin".into()).spawn(move || {
            runtime.block_on(async {
                match TcpListener::from_std(listener) {
                    Ok(listener) => serve_port(listener, port, Seats { threads: None, max_connections }, stopped).await,
                    Err(error) => tracing::error!(%error, "the port for metrics was not served"),
                }
            });
            // Nobody may wait for it any more.
            let _ = end.send(());
        })?;
        Ok(Self { stop, ended })
    }

    /// Ends its connections and waits for it, but not for long.
    async fn stop(self) {
        self.stop.send_replace(true);
        // It is dropped without an answer only where it panicked, which was reported there.
        drop(timeout(ADMIN_STOP_TIMEOUT, self.ended).await);
    }
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
