//! Fifth step: says in the TorchModel's status how it fares, and in an event when that changes.
//!
//! [`compute_status`] is pure; [`update`] writes its result when it differs. Invariants: every condition is set from the first
//! visit on, with the generation that it speaks of; its transition time changes with its status only.

mod conditions;
mod event;
mod failure;
mod rollout;

use jiff::Timestamp;
use k8s_openapi::{api::apps::v1::Deployment, apimachinery::pkg::apis::meta::v1::Time};
use kube::{
    Api, ResourceExt as _,
    api::{DynamicObject, Patch, PatchParams},
    core::ApiResource,
};
use serde_json::json;
use torchmodel_crds::{ArtifactStatus, EndpointsStatus, FailurePhase, MODEL_LABEL, TorchModel, TorchModelStatus};
use tracing::info;

use self::conditions::Facts;
pub use self::rollout::Rollout;
use super::{
    Context,
    build::{Applied, Children, GRPC_PORT, HTTP_PORT, METRICS_PORT, TEMPLATE_LABEL},
    dereference::Dereferenced,
    error::Error as ReconcileError,
};
use crate::STATUS_FIELD_MANAGER;

/// The status could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading the status that stands.
    #[error("reading the TorchModel's status")]
    Read(#[source] kube::Error),
    /// Writing the new one.
    #[error("writing the TorchModel's status")]
    Write(#[source] kube::Error),
}

/// How the steps before this one ended.
pub type Outcome<'a> = Result<&'a Children<Applied>, &'a ReconcileError>;

/// Computes the status and writes it when it differs from what stands.
pub async fn update(dereferenced: &Dereferenced, outcome: Outcome<'_>, context: &Context) -> Result<(), Error> {
    let now = now();
    if let Ok(model) = &dereferenced.model {
        let previous = model.status.clone().unwrap_or_default();
        if compute_status(dereferenced, outcome, &previous, &now) == previous {
            return Ok(());
        }
    }
    // The store may be a moment behind our own last write: compare with what stands before writing.
    let resource = ApiResource::erase::<TorchModel>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), &dereferenced.namespace, &resource);
    let Some(fresh) = api.get_opt(&dereferenced.name).await.map_err(Error::Read)? else { return Ok(()) };
    if fresh.uid().as_deref() != Some(&dereferenced.uid) {
        return Ok(());
    }
    let previous = fresh.data.get("status").and_then(|status| serde_json::from_value(status.clone()).ok());
    let previous: TorchModelStatus = previous.unwrap_or_default();
    let status = compute_status(dereferenced, outcome, &previous, &now);
    if status == previous || previous.observed_generation > status.observed_generation {
        return Ok(());
    }
    let patch = json!({"apiVersion": resource.api_version, "kind": resource.kind, "status": status});
    let parameters = PatchParams::apply(STATUS_FIELD_MANAGER).force();
    match api.patch_status(&dereferenced.name, &parameters, &Patch::Apply(&patch)).await {
        Ok(_) => {}
        Err(kube::Error::Api(error)) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(Error::Write(error)),
    }
    report_transition(dereferenced, (&previous, &status), context).await;
    Ok(())
}

/// One log line and one event for each change of why the model is, or is not, ready.
async fn report_transition(
    dereferenced: &Dereferenced,
    (previous, status): (&TorchModelStatus, &TorchModelStatus),
    context: &Context,
) {
    let Some(ready) = conditions::find(&status.conditions, conditions::READY) else { return };
    let before = conditions::find(&previous.conditions, conditions::READY);
    if before.is_some_and(|before| before.reason == ready.reason && before.status == ready.status) {
        return;
    }
    info!(ready = ready.status, reason = ready.reason, message = ready.message, "the TorchModel's readiness changed");
    event::publish(dereferenced, ready, context).await;
}

/// The second, since statuses hold no fractions.
fn now() -> Time {
    let now = Timestamp::now();
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// What the status should say.
pub fn compute_status(
    dereferenced: &Dereferenced,
    outcome: Outcome<'_>,
    previous: &TorchModelStatus,
    now: &Time,
) -> TorchModelStatus {
    let generation = dereferenced.meta.generation.unwrap_or_default();
    let live = outcome.ok().map(|children| &children.deployment).or(dereferenced.existing.deployment.as_deref());
    let rollout = live.map(Rollout::of);
    let is_complete = rollout.as_ref().is_some_and(|rollout| rollout.is_complete);
    let failure = outcome.ok().filter(|_| !is_complete).and_then(|children| {
        failure::find(&dereferenced.pods, template_of(&children.deployment), rollout.as_ref(), (previous, now))
    });
    let serving =
        outcome.ok().map_or(0, |children| failure::ready_pods(&dereferenced.pods, template_of(&children.deployment)));
    let facts = Facts {
        generation,
        error: outcome.err(),
        rollout: rollout.as_ref(),
        failure: failure.as_ref(),
        has_ready_pod: serving > 0,
        has_digest: digest(dereferenced).is_some(),
        revision: outcome.ok().map(|children| children.config_map.name_any()),
    };
    let conditions = conditions::compute(&facts, &previous.conditions, now);
    let last_failure = failure.clone().or_else(|| remembered(previous, generation, &facts));
    let (http, grpc, metrics) = (HTTP_PORT, GRPC_PORT, METRICS_PORT);
    let host = format!("{}.{}.svc", dereferenced.name, dereferenced.namespace);
    TorchModelStatus {
        observed_generation: Some(generation),
        replicas: Some(rollout.as_ref().map_or(0, |rollout| rollout.total)),
        replicas_summary: Some(
            rollout
                .as_ref()
                .map_or_else(|| "0/0".to_owned(), |rollout| format!("{}/{}", rollout.ready, rollout.desired)),
        ),
        ready_replicas: Some(rollout.as_ref().map_or(0, |rollout| rollout.ready)),
        updated_replicas: Some(rollout.as_ref().map_or(0, |rollout| rollout.updated)),
        selector: Some(format!("{MODEL_LABEL}={}", dereferenced.name)),
        url: Some(format!("http://{host}:{http}")),
        endpoints: Some(EndpointsStatus {
            http: format!("{host}:{http}"),
            grpc: format!("{host}:{grpc}"),
            metrics: format!("{host}:{metrics}"),
        }),
        artifact: artifact(dereferenced).or_else(|| previous.artifact.clone()),
        update_revision: facts.revision.clone().or_else(|| previous.update_revision.clone()),
        last_failure,
        conditions,
    }
}

/// A failure stays in sight until the desired revision serves, also while the next try runs. What kept a pod from being placed
/// does not: once it is placed, that is over.
fn remembered(previous: &TorchModelStatus, generation: i64, facts: &Facts<'_>) -> Option<torchmodel_crds::LastFailure> {
    let failure = previous.last_failure.clone()?;
    let is_over = facts.rollout.is_some_and(|rollout| rollout.is_complete) || facts.has_ready_pod;
    let is_same_spec = previous.observed_generation == Some(generation) && facts.error.is_none();
    (is_same_spec && !is_over && failure.phase != FailurePhase::Schedule).then_some(failure)
}

fn template_of(deployment: &Deployment) -> Option<&str> {
    let template = &deployment.spec.as_ref()?.template;
    template.metadata.as_ref()?.labels.as_ref()?.get(TEMPLATE_LABEL).map(String::as_str)
}

fn digest(dereferenced: &Dereferenced) -> Option<String> {
    let source = &dereferenced.model.as_ref().ok()?.spec.source;
    source.sha256.as_ref().map(|digest| format!("sha256:{digest}"))
}

fn artifact(dereferenced: &Dereferenced) -> Option<ArtifactStatus> {
    let source = &dereferenced.model.as_ref().ok()?.spec.source;
    let is_named = source.uri.is_some() || source.volume.is_some();
    is_named.then(|| ArtifactStatus { uri: source.to_string(), digest: digest(dereferenced) })
}

#[cfg(test)]
mod tests;
