//! Serves the three ports until told to stop, then drains.
//!
//! `main` calls [`serve`] with bound listeners. One accept loop serves HTTP/1.1 and HTTP/2 alike; REST and gRPC are routers on
//! it. Invariant: no connection can end the server or hold it up past the drain timeout, and each costs a bounded time to refuse.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::Router;
use hyper::service::{Service, service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{grpc, metrics::Metrics, protocol::Limits, rest, service::InferenceService};

/// How long a request's head may take, and a kept-alive connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// How long a new connection may take to begin its first request.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How often an HTTP/2 peer that says nothing is asked whether it is there, and how long it has for the answer.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Connections served at one time, for each port; more wait in the system's backlog.
const MAX_CONNECTIONS: usize = 4096;
/// Requests at one time on an HTTP/2 connection.
const MAX_STREAMS: u32 = 1024;
/// Bytes of a request's head.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// What an HTTP/2 peer may send before it must wait for us: for one request, and for a connection.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Largest HTTP/2 frame that we take.
const MAX_FRAME_BYTES: u32 = 1 << 20;
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
    /// How long requests in flight may take after `shutdown`.
    pub drain_timeout: Duration,
}

/// Which versions of HTTP a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Versions {
    /// 1.1, and 2 without TLS by prior knowledge.
    Both,
    /// 2 only, as gRPC asks.
    Two,
}

/// Serves until `shutdown` completes; then accepts nothing more, answers what is in flight for at most the drain timeout, and
/// closes the metrics port last. Returns whether everything in flight was answered.
pub async fn serve(listeners: Listeners, serving: Serving, shutdown: impl Future<Output = ()>) -> bool {
    let Serving { service, metrics, limits, drain_timeout } = serving;
    let rest = rest::router(service.clone(), metrics.clone(), limits);
    let grpc = grpc::routes(service.clone(), metrics.clone(), limits).prepare().into_axum_router();
    let admin = rest::admin_router(service, metrics);
    let (stop, stopped) = watch::channel(false);
    let (stop_admin, admin_stopped) = watch::channel(false);
    let mut inference = JoinSet::new();
    inference.spawn(serve_port(listeners.rest, rest, Versions::Both, stopped.clone()));
    inference.spawn(serve_port(listeners.grpc, grpc, Versions::Two, stopped));
    let admin = tokio::spawn(serve_port(listeners.admin, admin, Versions::Both, admin_stopped));
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
async fn serve_port(listener: TcpListener, router: Router, versions: Versions, mut stopped: watch::Receiver<bool>) {
    let builder = Arc::new(connection_builder(versions));
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
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
                    serve_connection(stream, &builder, router, stopped).await;
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

fn connection_builder(versions: Versions) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    if versions == Versions::Two {
        builder = builder.http2_only();
    }
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .pipeline_flush(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME_BYTES)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX))
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    builder
}

/// Serves one connection to its end. A connection that breaks the protocol ends; nobody else notices.
async fn serve_connection(
    stream: TcpStream,
    builder: &Builder<TokioExecutor>,
    router: Router,
    mut stopped: watch::Receiver<bool>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "could not set TCP_NODELAY");
    }
    let has_begun = Arc::new(AtomicBool::new(false));
    let begins = Arc::clone(&has_begun);
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |request| {
        begins.store(true, Relaxed);
        let answer = router.call(request);
        async move { Ok::<_, Infallible>(answer.await.unwrap_or_else(|never| match never {})) }
    });
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut first_request = std::pin::pin!(sleep(FIRST_REQUEST_TIMEOUT));
    let (mut is_closing, mut is_waiting) = (false, true);
    loop {
        tokio::select! {
            result = connection.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(error, "a connection ended early");
                }
                return;
            }
            _ = stopped.wait_for(|is_stopped| *is_stopped), if !is_closing => {
                is_closing = true;
                connection.as_mut().graceful_shutdown();
            }
            () = &mut first_request, if is_waiting => {
                is_waiting = false;
                if !has_begun.load(Relaxed) && !is_closing {
                    is_closing = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}
