//! Leader election through a Lease, so that several replicas of the operator never write at the same time.
//!
//! `run` campaigns at start and releases the Lease at the end. Invariants: a process that lost the Lease ends; it never waits
//! for another term, since its view of the cluster may be old. One that waits learns from a watch that the Lease was released.

use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client, runtime::wait::await_condition};
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder, LeaseManagerError, LeaseParams};
use tokio::{sync::watch, task::JoinHandle};
use tracing::{info, warn};

use crate::{Args, Error, FIELD_MANAGER};

/// The leader renews the Lease this part of its duration before it ends.
const GRACE_DIVISOR: u64 = 3;

/// Leadership, or the candidacy for it.
pub struct Leadership(Option<Campaign>);

struct Campaign {
    client: Client,
    namespace: String,
    name: String,
    parameters: LeaseParams,
    is_leader: watch::Receiver<bool>,
    task: JoinHandle<Result<LeaseManager, LeaseManagerError>>,
}

impl Leadership {
    /// Starts to compete for the Lease; with `--leader-elect=false` the process leads at once.
    pub async fn campaign(client: &Client, args: &Args) -> Result<Self, Error> {
        if !args.leader_elect {
            return Ok(Self(None));
        }
        let namespace = args.lease_namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
        let identity = args.identity.clone().unwrap_or_else(random_identity);
        let duration = args.lease_duration_s;
        let parameters = LeaseParams::new(&identity, duration, duration.div_ceil(GRACE_DIVISOR))
            .with_field_manager(format!("{FIELD_MANAGER}-{identity}"));
        info!(lease = %args.lease_name, %namespace, %identity, "waiting to become the leader");
        let (is_leader, task) = compete(client, (&namespace, &args.lease_name), &parameters).await?;
        let (client, name) = (client.clone(), args.lease_name.clone());
        Ok(Self(Some(Campaign { client, namespace, name, parameters, is_leader, task })))
    }

    /// Resolves when this process leads, or can no longer compete.
    pub async fn elected(&mut self) -> Result<(), Error> {
        let Some(campaign) = &mut self.0 else { return Ok(()) };
        loop {
            let leases: Api<Lease> = Api::namespaced(campaign.client.clone(), &campaign.namespace);
            tokio::select! {
                leads = campaign.is_leader.wait_for(|leads| *leads) => {
                    let elected = leads.map(drop).map_err(|_| Error::LeadershipLost);
                    if elected.is_ok() {
                        info!("this process is the leader");
                    }
                    return elected;
                }
                () = released(leases, &campaign.name) => {}
            }
            // The manager itself would look again only when the last term would have expired.
            campaign.task.abort();
            let lease = (campaign.namespace.as_str(), campaign.name.as_str());
            (campaign.is_leader, campaign.task) = compete(&campaign.client, lease, &campaign.parameters).await?;
        }
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

    /// Releases the Lease, so that the next leader need not wait for it to expire.
    pub async fn release(self) {
        let Some(Campaign { is_leader, task, .. }) = self.0 else { return };
        drop(is_leader);
        match task.await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => warn!(%error, "releasing the Lease failed; it expires by itself"),
            Err(error) => warn!(%error, "the election ended early"),
        }
    }
}

type Competition = (watch::Receiver<bool>, JoinHandle<Result<LeaseManager, LeaseManagerError>>);

async fn compete(
    client: &Client,
    (namespace, name): (&str, &str),
    parameters: &LeaseParams,
) -> Result<Competition, Error> {
    let builder = LeaseManagerBuilder::new(client.clone(), name).with_namespace(namespace);
    let manager = builder.with_parameters(parameters.clone()).build().await;
    let error = |source| Error::Election { namespace: namespace.to_owned(), name: name.to_owned(), source };
    Ok(manager.map_err(error)?.watch().await)
}

/// Resolves when the Lease was held and is free. Never, when it cannot be watched: then it is free when it expires.
async fn released(leases: Api<Lease>, name: &str) {
    let is_held = |lease: Option<&Lease>| {
        lease.is_some_and(|lease| lease.spec.as_ref().is_some_and(|spec| spec.holder_identity.is_some()))
    };
    let held_then_free = async {
        await_condition(leases.clone(), name, is_held).await?;
        await_condition(leases, name, |lease: Option<&Lease>| !is_held(lease)).await
    };
    if let Err(error) = held_then_free.await {
        warn!(%error, "the Lease cannot be watched");
        std::future::pending::<()>().await;
    }
}

/// Two processes of one pod never run at the same time, and elsewhere the time tells them apart.
fn random_identity() -> String {
    let started = jiff::Timestamp::now().as_nanosecond();
    format!("{}-{started:x}", std::process::id())
}
