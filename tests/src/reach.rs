//! How this machine reaches a Service or a pod: directly where a route leads to it, else through the API server.
//!
//! The local cluster has routes; of a cluster that KUBECONFIG names, a Service's address usually leads nowhere from outside. There a
//! port of this machine is forwarded, each connection to a ready pod, as `kubectl port-forward` and kube-proxy would together.
//! `TEST_PORT_FORWARD=1` chooses that everywhere.

use std::{env, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use tokio::{
    net::{TcpListener, TcpStream},
    time::interval,
};

use crate::wait::{PATIENCE, in_time};

/// Time to find out whether a route leads into the cluster.
const PROBE: Duration = Duration::from_secs(2);
/// Time between two tries to connect.
const RETRY: Duration = Duration::from_millis(50);

/// The way into a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Cluster addresses answer from here.
    Direct,
    /// Only the API server does.
    PortForward,
}

impl Reach {
    /// Tries the one Service that every cluster has.
    pub async fn probe(client: &Client) -> Result<Self> {
        if env::var_os("TEST_PORT_FORWARD").is_some() {
            return Ok(Self::PortForward);
        }
        let service = Api::<Service>::namespaced(client.clone(), "default").get("kubernetes").await?;
        let connect = TcpStream::connect(cluster_address(&service, 443)?);
        let is_reached = matches!(tokio::time::timeout(PROBE, connect).await, Ok(Ok(_)));
        Ok(if is_reached { Self::Direct } else { Self::PortForward })
    }

    /// Address at which a port of a Service answers.
    pub async fn service(self, client: &Client, (namespace, name): (&str, &str), port: u16) -> Result<SocketAddr> {
        let service = Api::<Service>::namespaced(client.clone(), namespace).get(name).await?;
        match self {
            Self::Direct => answering(cluster_address(&service, port)?).await,
            Self::PortForward => {
                let selector = service.spec.and_then(|spec| spec.selector).unwrap_or_default();
                let labels: Vec<String> = selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
                let pods = ListParams::default().labels(&labels.join(","));
                forward(Api::namespaced(client.clone(), namespace), pods, port).await
            }
        }
    }

    /// Address at which a port of a pod answers.
    pub async fn pod(self, client: &Client, (namespace, name): (&str, &str), port: u16) -> Result<SocketAddr> {
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        match self {
            Self::Direct => {
                let ip =
                    pods.get(name).await?.status.and_then(|status| status.pod_ip).context("the pod has no address")?;
                Ok(SocketAddr::new(ip.parse()?, port))
            }
            Self::PortForward => {
                forward(pods, ListParams::default().fields(&format!("metadata.name={name}")), port).await
            }
        }
    }
}

fn cluster_address(service: &Service, port: u16) -> Result<SocketAddr> {
    let ip = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()).context("the Service has no address")?;
    Ok(SocketAddr::new(ip.parse()?, port))
}

/// The address, once a connection to it is taken. A node may learn of a Service a moment after its pods are ready, and a first
/// packet that comes too early marks its whole connection as one that leads nowhere: so each try is a new one.
async fn answering(address: SocketAddr) -> Result<SocketAddr> {
    let mut tries = interval(RETRY);
    let connect = async {
        loop {
            tries.tick().await;
            if let Ok(Ok(_)) = tokio::time::timeout(PROBE, TcpStream::connect(address)).await {
                return;
            }
        }
    };
    in_time(&format!("{address} takes connections"), PATIENCE, connect).await?;
    Ok(address)
}

/// Listens on a free port; each connection goes to the next of the ready pods.
async fn forward(pods: Api<Pod>, selected: ListParams, port: u16) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        let mut turn = 0_usize;
        while let Ok((connection, _)) = listener.accept().await {
            turn = turn.wrapping_add(1);
            let (pods, selected) = (pods.clone(), selected.clone());
            tokio::spawn(async move {
                // The client sees a connection that ends, as it would of a network that fails.
                let _ = carry(connection, (&pods, &selected), port, turn).await;
            });
        }
    });
    Ok(address)
}

async fn carry(
    mut connection: TcpStream,
    (pods, selected): (&Api<Pod>, &ListParams),
    port: u16,
    turn: usize,
) -> Result<()> {
    let ready: Vec<Pod> = pods.list(selected).await?.items.into_iter().filter(is_ready).collect();
    let pod = ready.get(turn % ready.len().max(1)).context("no pod is ready")?;
    let mut forwarder = pods.portforward(&pod.name_any(), &[port]).await?;
    let mut stream = forwarder.take_stream(port).context("the port is not forwarded")?;
    tokio::io::copy_bidirectional(&mut connection, &mut stream).await?;
    drop(stream);
    forwarder.join().await?;
    Ok(())
}

/// Whether a pod would be behind a Service: ready and not about to end.
fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    let is_ready = conditions.clone().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    is_ready && pod.metadata.deletion_timestamp.is_none()
}
