//! Leader election through a Lease, so that several replicas of the operator never write at the same time.
//!
//! `run` campaigns at start and gives the Lease back at the end. Invariant: a process that lost the Lease ends; it never waits
//! for another term, since its view of the cluster may be old.

use kube::Client;
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder, LeaseManagerError, LeaseParams};
use tokio::{sync::watch, task::JoinHandle};
use tracing::{info, warn};

use crate::{Args, Error, FIELD_MANAGER};

/// A seat, or the wait for one.
pub struct Leadership(Option<Campaign>);

struct Campaign {
    is_leader: watch::Receiver<bool>,
    task: JoinHandle<Result<LeaseManager, LeaseManagerError>>,
}

impl Leadership {
    /// Starts to compete for the Lease; with `--leader-elect=false` the seat is taken at once.
    pub async fn campaign(client: &Client, args: &Args) -> Result<Self, Error> {
        if !args.leader_elect {
            return Ok(Self(None));
        }
        let namespace = args.lease_namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
        let mut builder = LeaseManagerBuilder::new(client.clone(), &args.lease_name).with_namespace(&namespace);
        if let Some(identity) = &args.identity {
            let duration = args.lease_duration_s;
            let manager = format!("{FIELD_MANAGER}-{identity}");
            builder = builder.with_parameters(LeaseParams::new(identity, duration, duration / 3).with_field_manager(manager));
        }
        let builder = builder.with_duration(args.lease_duration_s).with_grace(args.lease_duration_s / 3);
        info!(lease = %args.lease_name, %namespace, "waiting to become the leader");
        let manager = builder.build().await.map_err(|source| Error::Election {
            namespace,
            name: args.lease_name.clone(),
            source,
        })?;
        let (is_leader, task) = manager.watch().await;
        Ok(Self(Some(Campaign { is_leader, task })))
    }

    /// Resolves when this process leads; false when it never will.
    pub async fn elected(&mut self) -> bool {
        let Some(campaign) = &mut self.0 else { return true };
        let elected = campaign.is_leader.wait_for(|leads| *leads).await.is_ok();
        if elected {
            info!("this process is the leader");
        }
        elected
    }

    /// Resolves when this process no longer leads.
    pub async fn lost(&mut self) {
        match &mut self.0 {
            Some(campaign) => {
                let _ = campaign.is_leader.wait_for(|leads| !*leads).await;
            }
            None => std::future::pending().await,
        }
    }

    /// Gives the Lease back, so that the next leader need not wait for it to expire.
    pub async fn release(self) {
        let Some(Campaign { is_leader, task }) = self.0 else { return };
        drop(is_leader);
        match task.await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => warn!(%error, "giving the Lease back failed; it expires by itself"),
            Err(error) => warn!(%error, "the election ended early"),
        }
    }
}
