//! Why pods of the desired revision do not serve, from what the kubelet and the runtime wrote into the pods' status.
//!
//! Pure. The runtime's own word (one JSON line in the termination message) goes before what can be concluded from the outside.
//! Invariants: a pod that is ready has not failed; the most frequent reason of all pods wins; a failure that stays the same keeps
//! its time, so that a crash loop does not change the status at every turn.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod, PodCondition, PodStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::ResourceExt as _;
use torchmodel_crds::{Failure, FailurePhase, FailureReason, LastFailure, TorchModelStatus, redact_uris};

use super::Rollout;
use crate::controller::build::{CONTAINER, TEMPLATE_LABEL};

/// One pod's failure.
struct PodFailure<'a> {
    failure: Failure,
    exit_code: Option<i32>,
    pod: &'a Pod,
}

/// The failure of the pods that were made from `template`; that of the rollout when no pod says more.
pub fn find(
    pods: &[Arc<Pod>],
    template: Option<&str>,
    rollout: Option<&Rollout>,
    (previous, now): (&TorchModelStatus, &Time),
) -> Option<LastFailure> {
    let mut by_reason: BTreeMap<FailureReason, Vec<PodFailure<'_>>> = BTreeMap::new();
    let is_late = rollout.is_some_and(|rollout| rollout.deadline_exceeded.is_some());
    for failure in of_template(pods, template).filter_map(|pod| diagnose(pod).or_else(|| still_unready(pod, is_late))) {
        by_reason.entry(failure.failure.reason).or_default().push(failure);
    }
    let most = by_reason
        .into_values()
        .max_by_key(|failures| (failures.len(), Reverse(failures.first().map(|f| f.failure.reason))));
    let found = match most {
        Some(mut failures) => {
            failures.sort_by_key(|failure| failure.pod.name_any());
            let count = u32::try_from(failures.len()).unwrap_or(u32::MAX);
            let PodFailure { failure, exit_code, pod } = failures.into_iter().next()?;
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
            report(failure, now, |report| LastFailure { pod: Some(pod.name_any()), node, exit_code, count, ..report })
        }
        None => report(of_rollout(rollout?)?, now, |report| report),
    };
    Some(settle(found, previous))
}

/// How many pods that were made from `template` are ready.
pub fn ready_pods(pods: &[Arc<Pod>], template: Option<&str>) -> usize {
    of_template(pods, template).filter(|pod| is_ready(pod)).count()
}

fn of_template<'a>(pods: &'a [Arc<Pod>], template: Option<&'a str>) -> impl Iterator<Item = &'a Pod> {
    pods.iter().map(|pod| &**pod).filter(move |pod| {
        pod.metadata.deletion_timestamp.is_none()
            && template.is_some()
            && pod.labels().get(TEMPLATE_LABEL).map(String::as_str) == template
    })
}

fn report(failure: Failure, now: &Time, complete: impl FnOnce(LastFailure) -> LastFailure) -> LastFailure {
    let Failure { phase, reason, message, hint } = failure;
    complete(LastFailure {
        phase,
        reason,
        message: redact_uris(&message),
        hint: redact_uris(&hint),
        pod: None,
        node: None,
        exit_code: None,
        count: 1,
        time: now.clone(),
    })
}

/// Keeps the time of a failure that is still the same, and the details that a kubelet says only every other time.
fn settle(mut found: LastFailure, previous: &TorchModelStatus) -> LastFailure {
    if let Some(before) = &previous.last_failure
        && (before.phase, before.reason, &before.pod) == (found.phase, found.reason, &found.pod)
    {
        if found.reason == FailureReason::ImagePullFailed && found.message.starts_with("Back-off") {
            found.message.clone_from(&before.message);
        }
        if found.message == before.message {
            found.time = before.time.clone();
        }
    }
    found
}

/// What is wrong with one pod, if anything is.
fn diagnose(pod: &Pod) -> Option<PodFailure<'_>> {
    if is_ready(pod) {
        return None;
    }
    let status = pod.status.as_ref()?;
    let with = |failure, exit_code| Some(PodFailure { failure, exit_code, pod });
    if let Some(container) = container(status)
        && let Some((failure, exit_code)) = of_container(container)
    {
        return with(failure, exit_code);
    }
    if let Some(failure) = evicted(status).or_else(|| unscheduled(pod, status)) {
        return with(failure, None);
    }
    None
}

/// A pod that had the rollout's whole time, runs, and has neither become ready nor ended.
fn still_unready(pod: &Pod, is_late: bool) -> Option<PodFailure<'_>> {
    let state = container(pod.status.as_ref()?)?.state.as_ref()?;
    if !is_late || is_ready(pod) || state.running.is_none() {
        return None;
    }
    let message = "the container runs, but its readiness probe did not succeed within spec.rollout.progressDeadline";
    Some(PodFailure {
        failure: Failure::new(FailurePhase::Configure, FailureReason::ProbeFailed, message),
        exit_code: None,
        pod,
    })
}

fn container(status: &PodStatus) -> Option<&ContainerStatus> {
    status.container_statuses.iter().flatten().find(|container| container.name == CONTAINER)
}

fn is_ready(pod: &Pod) -> bool {
    pod.status
        .as_ref()
        .and_then(|status| condition(status, "Ready"))
        .is_some_and(|condition| condition.status == "True")
}

fn condition<'a>(status: &'a PodStatus, type_: &str) -> Option<&'a PodCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == type_)
}

fn of_container(container: &ContainerStatus) -> Option<(Failure, Option<i32>)> {
    let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    match container.state.as_ref() {
        Some(ContainerState { terminated: Some(terminated), .. }) => Some(of_terminated(terminated)),
        Some(ContainerState { waiting: Some(waiting), .. }) => {
            let reason = waiting.reason.as_deref().unwrap_or_default();
            let text = waiting.message.clone().unwrap_or_else(|| reason.to_owned());
            let (phase, kind) = match reason {
                "ErrImagePull"
                | "ImagePullBackOff"
                | "InvalidImageName"
                | "ErrImageNeverPull"
                | "ImageInspectError"
                | "RegistryUnavailable"
                | "SignatureValidationFailed" => (FailurePhase::Schedule, FailureReason::ImagePullFailed),
                "CreateContainerConfigError" => (FailurePhase::Configure, FailureReason::SpecInvalid),
                "CrashLoopBackOff" => return Some(last.map_or_else(|| crash_loop(text, None), of_terminated)),
                "CreateContainerError" | "RunContainerError" => return Some(crash_loop(text, None)),
                // Starting: what ended the container before still stands.
                _ => return last.map(of_terminated),
            };
            Some((Failure::new(phase, kind, text), None))
        }
        // Running and not ready: another try of what failed before.
        _ => last.map(of_terminated),
    }
}

fn of_terminated(terminated: &ContainerStateTerminated) -> (Failure, Option<i32>) {
    let text = terminated.message.as_deref().unwrap_or_default();
    let code = terminated.exit_code;
    if let Some(failure) = Failure::from_line(text) {
        return (failure, Some(code));
    }
    let reason = terminated.reason.as_deref().unwrap_or_default();
    if reason == "OOMKilled" {
        let message = "the kernel ended the container because it used more memory than its limit";
        return (Failure::new(FailurePhase::Load, FailureReason::OutOfHostMemory, message), Some(code));
    }
    let details = if text.is_empty() { reason } else { text };
    crash_loop(format!("the container ended with exit code {code}: {details}"), Some(code))
}

/// Nothing is known of how far the model came.
fn crash_loop(message: String, exit_code: Option<i32>) -> (Failure, Option<i32>) {
    (Failure::new(FailurePhase::Configure, FailureReason::CrashLoop, message), exit_code)
}

fn evicted(status: &PodStatus) -> Option<Failure> {
    let message = status.message.as_deref().unwrap_or_default();
    let is_full = message.contains("EmptyDir") || message.contains("ephemeral");
    (status.reason.as_deref() == Some("Evicted") && is_full)
        .then(|| Failure::new(FailurePhase::Fetch, FailureReason::CacheFull, message))
}

fn unscheduled(pod: &Pod, status: &PodStatus) -> Option<Failure> {
    let condition = condition(status, "PodScheduled")?;
    if condition.status != "False" || condition.reason.as_deref() != Some("Unschedulable") {
        return None;
    }
    let message = condition.message.clone().unwrap_or_default();
    let lacks = |resource: &String| resource.contains('/') && message.contains(&format!("Insufficient {resource}"));
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let is_accelerator = containers
        .filter_map(|container| container.resources.as_ref()?.limits.as_ref())
        .any(|limits| limits.keys().any(lacks));
    let reason = if is_accelerator { FailureReason::InsufficientGPU } else { FailureReason::Unschedulable };
    Some(Failure::new(FailurePhase::Schedule, reason, message))
}

fn of_rollout(rollout: &Rollout) -> Option<Failure> {
    if let Some(message) = &rollout.pods_refused {
        return Some(Failure::new(FailurePhase::Schedule, FailureReason::Unschedulable, message));
    }
    let message = rollout.deadline_exceeded.as_ref()?;
    Some(Failure::new(FailurePhase::Schedule, FailureReason::ProgressDeadlineExceeded, message))
}
