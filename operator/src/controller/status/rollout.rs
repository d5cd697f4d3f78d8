//! How far a Deployment's rollout is: numbers and verdicts, from its status alone.
//!
//! Used by `status`, and by `apply` to know when old revisions can go. Invariant: a Deployment whose controller has not seen the
//! newest spec is never complete.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition};

/// A Deployment's rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rollout {
    /// Pods desired.
    pub desired: i32,
    /// Pods that exist.
    pub total: i32,
    /// Pods of the newest template.
    pub updated: i32,
    /// Pods that are ready, of any template.
    pub ready: i32,
    /// Whether every pod is new and ready, and no old one is left.
    pub is_complete: bool,
    /// Why it counts as failed, if it does.
    pub deadline_exceeded: Option<String>,
    /// Why pods cannot even be created, if so.
    pub pods_refused: Option<String>,
}

impl Rollout {
    /// Reads it off.
    pub fn of(deployment: &Deployment) -> Self {
        let desired = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        let status = deployment.status.clone().unwrap_or_default();
        let total = status.replicas.unwrap_or_default();
        let updated = status.updated_replicas.unwrap_or_default();
        let available = status.available_replicas.unwrap_or_default();
        let is_observed =
            status.observed_generation.is_some() && status.observed_generation >= deployment.metadata.generation;
        let conditions = status.conditions.unwrap_or_default();
        let message = |type_: &str, status: &str, reason: Option<&str>| {
            let is_it = |condition: &&DeploymentCondition| {
                condition.type_ == type_
                    && condition.status == status
                    && reason.is_none_or(|reason| condition.reason.as_deref() == Some(reason))
            };
            conditions.iter().find(is_it).map(|condition| condition.message.clone().unwrap_or_default())
        };
        Self {
            desired,
            total,
            updated,
            ready: status.ready_replicas.unwrap_or_default(),
            is_complete: is_observed && updated == desired && total == desired && available >= desired,
            deadline_exceeded: message("Progressing", "False", Some("ProgressDeadlineExceeded"))
                .filter(|_| is_observed),
            pods_refused: message("ReplicaFailure", "True", None).filter(|_| is_observed),
        }
    }
}
