//! One event for each change of readiness: `kubectl describe` shows what happened and what to do.
//!
//! Invariant: an event that cannot be published never fails a reconcile.

use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    Resource as _,
    runtime::events::{Event, EventType},
};
use torchmodel_crds::{FailureReason, TorchModel};
use tracing::warn;

use crate::{
    controller::{Context, dereference::Dereferenced, error::Reason},
    metrics::Write,
};

/// Bytes that the API server accepts in an event's note.
const MAX_NOTE_BYTES: usize = 1024;

/// Publishes what `ready` says now. A rollout that merely runs is no event.
pub async fn publish(dereferenced: &Dereferenced, ready: &Condition, context: &Context) {
    let failure = failure_of(&ready.reason);
    let type_ = match (ready.status.as_str(), failure) {
        ("True", _) => EventType::Normal,
        (_, Some(_)) => EventType::Warning,
        (_, None) => return,
    };
    if let Some(reason) = failure {
        context.metrics.record_failure(reason.as_str());
    }
    let event = Event {
        type_,
        reason: ready.reason.clone(),
        note: Some(shortened(&ready.message)),
        action: "Reconcile".to_owned(),
        secondary: None,
    };
    match context.recorder.publish(&event, &reference(dereferenced)).await {
        Ok(()) => context.metrics.record_write("Event", Write::Create),
        Err(error) => warn!(%error, reason = ready.reason, "an event could not be published"),
    }
}

fn failure_of(reason: &str) -> Option<Reason> {
    let shared = FailureReason::ALL.iter().copied().map(Reason::Failure);
    shared.chain([Reason::ApiError]).find(|known| known.as_str() == reason)
}

fn reference(dereferenced: &Dereferenced) -> ObjectReference {
    ObjectReference {
        api_version: Some(TorchModel::api_version(&()).into_owned()),
        kind: Some(TorchModel::kind(&()).into_owned()),
        name: Some(dereferenced.name.clone()),
        namespace: Some(dereferenced.namespace.clone()),
        uid: Some(dereferenced.uid.clone()),
        resource_version: dereferenced.meta.resource_version.clone(),
        ..ObjectReference::default()
    }
}

/// At most [`MAX_NOTE_BYTES`]; the end, where the hint stands, is kept.
fn shortened(message: &str) -> String {
    const GAP: &str = " … ";
    if message.len() <= MAX_NOTE_BYTES {
        return message.to_owned();
    }
    let half = (MAX_NOTE_BYTES - GAP.len()) / 2;
    let head = (0..=half).rev().find_map(|end| message.get(..end)).unwrap_or_default();
    let tail = (message.len() - half..message.len()).find_map(|start| message.get(start..)).unwrap_or_default();
    format!("{head}{GAP}{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_note_keeps_its_beginning_and_the_hint_at_its_end() {
        let note = shortened(&format!("begin{}the hint", "ü".repeat(2000)));
        assert!(note.len() <= MAX_NOTE_BYTES && note.starts_with("begin") && note.ends_with("the hint"), "{note}");
    }

    #[test]
    fn every_failure_is_a_warning_and_progress_is_none() {
        assert!(FailureReason::ALL.iter().all(|reason| failure_of(reason.as_str()).is_some()));
        assert!(failure_of("RolloutInProgress").is_none() && failure_of("Serving").is_none());
    }
}
