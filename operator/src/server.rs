//! Health and metrics over HTTP: `/healthz`, `/readyz`, `/metrics`.
//!
//! `run` starts it before anything else, so that probes see a process that waits for the Lease as alive and ready. Invariant:
//! nothing here waits for the API server.

use std::{
    future::Future,
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
use tracing::error;

use crate::metrics::{CONTENT_TYPE, Metrics};

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
