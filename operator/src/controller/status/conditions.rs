//! The conditions, from facts alone.
//!
//! Six are always there; `Reconciling` and `Stalled` only while true, as kstatus reads them. Invariants: each has a reason and a
//! sentence, also when true; what is not known is `Unknown`, not `False`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use torchmodel_crds::{FailurePhase, FailureReason, LastFailure};

use super::Rollout;
use crate::controller::error::{Error, Reason, chain};

/// The desired spec is what serves, with enough pods.
pub const READY: &str = "Ready";
/// Someone can call the model, though a rollout may run or fail.
const AVAILABLE: &str = "Available";
/// A rollout runs.
const PROGRESSING: &str = "Progressing";
/// The desired artifact was fetched and is what its digest says.
const ARTIFACT_READY: &str = "ArtifactReady";
/// The desired model was loaded and warmed up.
const MODEL_LOADED: &str = "ModelLoaded";
/// Something is wrong.
const DEGRADED: &str = "Degraded";
/// The status is not yet what is desired (kstatus).
const RECONCILING: &str = "Reconciling";
/// It will not become so without a change (kstatus).
const STALLED: &str = "Stalled";

/// Longest message of a condition, in characters.
const MAX_MESSAGE: usize = 2048;

/// What the conditions are computed from.
pub struct Facts<'a> {
    pub generation: i64,
    /// Why the reconcile failed.
    pub error: Option<&'a Error>,
    /// Of the Deployment as it is, if there is one.
    pub rollout: Option<&'a Rollout>,
    /// Of the desired pods, now.
    pub failure: Option<&'a LastFailure>,
    /// Whether a desired pod serves.
    pub has_ready_pod: bool,
    /// Whether the manifest names a digest.
    pub has_digest: bool,
    /// Name of the desired revision.
    pub revision: Option<String>,
}

/// One condition's status, reason and sentence.
type Verdict = (&'static str, &'static str, String);

/// The condition of that type.
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Every condition, sorted as documented.
pub fn compute(facts: &Facts<'_>, previous: &[Condition], now: &Time) -> Vec<Condition> {
    let ready = ready(facts);
    let stalled = stalled(facts);
    let mut verdicts = vec![
        (AVAILABLE, available(facts)),
        (PROGRESSING, progressing(facts)),
        (ARTIFACT_READY, artifact_ready(facts)),
        (MODEL_LOADED, model_loaded(facts)),
        (DEGRADED, degraded(facts)),
    ];
    match stalled {
        Some(stalled) => verdicts.push((STALLED, stalled)),
        None if ready.0 != "True" => verdicts.push((RECONCILING, ("True", ready.1, ready.2.clone()))),
        None => {}
    }
    verdicts.insert(0, (READY, ready));
    verdicts.into_iter().map(|(type_, verdict)| condition(type_, verdict, (facts.generation, previous, now))).collect()
}

fn condition(
    type_: &str,
    (status, reason, message): Verdict,
    (generation, previous, now): (i64, &[Condition], &Time),
) -> Condition {
    let since = find(previous, type_)
        .filter(|before| before.status == status)
        .map(|before| before.last_transition_time.clone());
    Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.chars().take(MAX_MESSAGE).collect(),
        observed_generation: Some(generation),
        last_transition_time: since.unwrap_or_else(|| now.clone()),
    }
}

/// Reason and sentence of what is wrong, if anything is: the reconcile's own error goes first.
fn trouble(facts: &Facts<'_>) -> Option<(&'static str, String)> {
    let with_hint = |reason: Reason, message: &str, hint: &str| {
        let message = message.trim_end_matches('.');
        (reason.as_str(), if hint.is_empty() { message.to_owned() } else { format!("{message}; {hint}") })
    };
    if let Some(error) = facts.error {
        return Some(with_hint(error.reason(), &chain(error), error.reason().hint()));
    }
    let failure = facts.failure?;
    Some(with_hint(Reason::Failure(failure.reason), &failure.message, &failure.hint))
}

fn is_serving(facts: &Facts<'_>) -> bool {
    facts.error.is_none() && facts.rollout.is_some_and(|rollout| rollout.is_complete)
}

fn revision<'a>(facts: &'a Facts<'_>) -> &'a str {
    facts.revision.as_deref().unwrap_or("the desired revision")
}

fn ready(facts: &Facts<'_>) -> Verdict {
    if let Some(rollout) = facts.rollout.filter(|_| is_serving(facts)) {
        return match rollout.desired {
            0 => ("True", "ScaledToZero", "no pods are desired and none run".to_owned()),
            desired => ("True", "Serving", format!("{} of {desired} pods serve {}", rollout.ready, revision(facts))),
        };
    }
    if let Some((reason, message)) = trouble(facts) {
        return ("False", reason, message);
    }
    ("False", "RolloutInProgress", rollout_message(facts))
}

fn rollout_message(facts: &Facts<'_>) -> String {
    match facts.rollout {
        Some(rollout) if rollout.updated >= rollout.desired && rollout.total > rollout.updated => {
            format!(
                "{} old pods still have to stop before {} alone serves",
                rollout.total - rollout.updated,
                revision(facts)
            )
        }
        Some(rollout) => format!(
            "rolling out {}: {} of {} pods made, {} ready",
            revision(facts),
            rollout.updated,
            rollout.desired,
            rollout.ready
        ),
        None => "the Deployment does not exist yet".to_owned(),
    }
}

fn available(facts: &Facts<'_>) -> Verdict {
    match facts.rollout {
        Some(rollout) if rollout.ready > 0 => {
            ("True", "MinimumAvailable", format!("{} pods take requests", rollout.ready))
        }
        Some(rollout) if rollout.desired == 0 => ("False", "ScaledToZero", "no pods are desired".to_owned()),
        Some(_) => ("False", "NoPodReady", "no pod takes requests".to_owned()),
        None if facts.error.is_some() => ("False", "NoPodReady", "there are no pods".to_owned()),
        None => ("Unknown", "DeploymentUnknown", "the Deployment does not exist yet".to_owned()),
    }
}

fn progressing(facts: &Facts<'_>) -> Verdict {
    if is_serving(facts) {
        return ("False", "RolloutComplete", format!("every pod is of {}", revision(facts)));
    }
    if let Some(error) = facts.error {
        return ("False", error.reason().as_str(), chain(error));
    }
    if let Some(message) = facts.rollout.and_then(|rollout| rollout.deadline_exceeded.as_ref()) {
        return ("False", FailureReason::ProgressDeadlineExceeded.as_str(), message.clone());
    }
    ("True", "RolloutInProgress", rollout_message(facts))
}

fn has_served(facts: &Facts<'_>) -> bool {
    facts.error.is_none()
        && (facts.has_ready_pod || facts.rollout.is_some_and(|rollout| rollout.is_complete && rollout.ready > 0))
}

fn artifact_ready(facts: &Facts<'_>) -> Verdict {
    let is_there = || {
        if facts.has_digest {
            ("True", "Verified", "the artifact is the one that source.sha256 names".to_owned())
        } else {
            ("True", "Fetched", "the artifact was fetched; without source.sha256 its content is not pinned".to_owned())
        }
    };
    match facts.failure {
        Some(failure) if matches!(failure.phase, FailurePhase::Fetch | FailurePhase::Verify) => {
            ("False", failure.reason.as_str(), failure.message.clone())
        }
        Some(failure) if matches!(failure.phase, FailurePhase::Load | FailurePhase::Warmup | FailurePhase::Serve) => {
            is_there()
        }
        _ if has_served(facts) => is_there(),
        _ => ("Unknown", "WaitingForPod", "no pod of the desired revision has fetched the artifact yet".to_owned()),
    }
}

fn model_loaded(facts: &Facts<'_>) -> Verdict {
    match facts.failure {
        Some(failure) if matches!(failure.phase, FailurePhase::Load | FailurePhase::Warmup) => {
            ("False", failure.reason.as_str(), failure.message.clone())
        }
        _ if has_served(facts) => ("True", "WarmedUp", "the model was loaded and warmed up".to_owned()),
        _ => ("Unknown", "WaitingForPod", "no pod of the desired revision has loaded the model yet".to_owned()),
    }
}

fn degraded(facts: &Facts<'_>) -> Verdict {
    match trouble(facts) {
        Some((reason, message)) => ("True", reason, message),
        None => ("False", "AsExpected", "nothing is wrong".to_owned()),
    }
}

/// What does not end without a change by somebody.
fn stalled(facts: &Facts<'_>) -> Option<Verdict> {
    if let Some(error) = facts.error {
        let is_final = error.requeue() == crate::controller::error::Requeue::AwaitChange;
        return is_final.then(|| ("True", error.reason().as_str(), chain(error)));
    }
    let message = facts.rollout.filter(|rollout| !rollout.is_complete)?.deadline_exceeded.clone()?;
    Some(("True", FailureReason::ProgressDeadlineExceeded.as_str(), message))
}
