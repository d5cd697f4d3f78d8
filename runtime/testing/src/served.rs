//! A server in this process, on free ports of the loopback address.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use torchmodel_core::{metrics::Metrics, repository::ModelRepository, service::InferenceService};
use torchmodel_server::{Listeners, Serving, admission::Admission, protocol::Limits, serve};

/// What bounds the server.
pub struct Bounds {
    /// What one request may be.
    pub limits: Limits,
    /// Bytes of all requests.
    pub admission: Admission,
    /// Connections of each port.
    pub max_connections: usize,
    /// How long requests in flight may take when it stops.
    pub drain_timeout: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            admission: Admission::new(usize::MAX),
            max_connections: 1000,
            drain_timeout: Duration::from_secs(20),
        }
    }
}

/// A server that runs until it is stopped or dropped.
pub struct Served {
    /// Where it speaks REST.
    pub rest: SocketAddr,
    /// Where it speaks gRPC.
    pub grpc: SocketAddr,
    /// Where it serves health and metrics.
    pub admin: SocketAddr,
    /// What answers its requests.
    pub service: InferenceService,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<bool>>,
}

impl Served {
    /// Serves the repository's models.
    pub async fn start(repository: Arc<ModelRepository>, metrics: Metrics, bounds: Bounds) -> Self {
        let service = InferenceService::new(repository);
        let bind = async || TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listeners = Listeners { rest: bind().await, grpc: bind().await, admin: bind().await };
        let address = |listener: &TcpListener| listener.local_addr().unwrap();
        let (rest, grpc, admin) = (address(&listeners.rest), address(&listeners.grpc), address(&listeners.admin));
        let serving = Serving {
            service: service.clone(),
            metrics,
            limits: bounds.limits,
            admission: bounds.admission,
            max_connections: bounds.max_connections,
            io_threads: 2,
            drain_timeout: bounds.drain_timeout,
            release_memory: || {},
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(serve(listeners, serving, async { drop(stopped.await) }));
        Self { rest, grpc, admin, service, stop: Some(stop), task: Some(task) }
    }

    /// Asks the server to stop; the task gives whether everything in flight was answered.
    pub fn stop(&mut self) -> JoinHandle<bool> {
        drop(self.stop.take());
        self.task.take().expect("it is stopped once")
    }
}
