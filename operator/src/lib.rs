//! The operator: turns TorchModels into Deployments of the inference runtime and says in their status how these fare.
//!
//! `main` and the tests call [`run`]. The controller's five steps stand in `controller`; what surrounds them (leader election,
//! health and metrics) in the other modules. Invariant: the operator reads no Secret, and a reconcile that finds everything as
//! it should be writes nothing.

mod args;
mod controller;
mod leadership;
pub mod metrics;
mod server;

use std::{future::Future, sync::Arc};

use kube::Client;
use tokio::{net::TcpListener, sync::watch};
use tracing::info;

pub use self::args::Args;
use self::{controller::Controllers, leadership::Leadership, metrics::Metrics, server::Health};

/// What the libraries below log of their own accord, silenced: the operator says it itself, once, where it acts on it.
pub const QUIET_LIBRARIES: &str = "kube_runtime=warn,kube_client=off";
/// Field manager of every child object.
pub const FIELD_MANAGER: &str = "torchmodel-operator";
/// Field manager of a TorchModel's status.
pub const STATUS_FIELD_MANAGER: &str = "torchmodel-operator/status";

/// What the operator's process owns: given by `main`, or by a test.
pub struct Process {
    /// Connection to the API server.
    pub client: Client,
    /// Where health and metrics are served.
    pub listener: TcpListener,
    /// The command line.
    pub args: Args,
}

/// Why the operator ended before it was to shut down.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Lease could not be read or written.
    #[error("electing a leader through the Lease {namespace}/{name}")]
    Election {
        /// Namespace of the Lease.
        namespace: String,
        /// Its name.
        name: String,
        /// What the API server said.
        #[source]
        source: kube_lease_manager::LeaseManagerError,
    },
    /// Another process holds the Lease now. Ending makes sure that two never write at the same time.
    #[error("the Lease was lost to another process")]
    LeadershipLost,
}

/// Runs the operator until `shutdown` resolves: elects a leader, reconciles, and on the way out lets running reconciles finish
/// and releases the Lease.
pub async fn run(process: Process, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<(), Error> {
    let Process { client, listener, args } = process;
    let metrics = Arc::new(Metrics::new());
    let health = Arc::new(Health::default());
    let (stop_sender, mut stop) = watch::channel(false);
    tokio::spawn(async move {
        shutdown.await;
        info!("shutting down: running reconciles finish, then the Lease is released");
        stop_sender.send_replace(true);
    });
    let server = tokio::spawn(server::serve(listener, (metrics.clone(), health.clone()), stopped(stop.clone())));

    let mut leadership = Leadership::campaign(&client, &args).await?;
    health.set_standby();
    let result = tokio::select! {
        () = stopped(stop.clone()) => Ok(()),
        elected = leadership.elected() => match elected {
            Ok(()) => {
                metrics.set_leader(true);
                let controllers = Controllers { client, args: &args, metrics: metrics.clone(), health };
                tokio::select! {
                    () = controllers.run(stop.clone()) => Ok(()),
                    () = leadership.lost() => Err(Error::LeadershipLost),
                }
            }
            Err(error) => Err(error),
        },
    };
    metrics.set_leader(false);
    leadership.release().await;
    if result.is_ok() {
        // The health port answers until everything else has ended.
        let _ = stop.wait_for(|stopped| *stopped).await;
        let _ = server.await;
    } else {
        server.abort();
    }
    result
}

/// Resolves once the sender said so, or is gone.
async fn stopped(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stopped| *stopped).await;
}
