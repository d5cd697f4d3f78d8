//! Why a model does not serve stands in its status and in an event, within seconds.

use std::time::Instant;

use k8s_openapi::api::{core::v1::Pod, events::v1::Event};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use torchmodel_crds::{Failure, FailurePhase, FailureReason};

use super::user;
use crate::cluster::{User, condition, in_time, revision};

const SECONDS: u64 = 5;

/// Status of a pod whose container ended with this termination message and is about to be started again.
fn crashed(message: &str) -> Value {
    json!({"status": {"phase": "Running", "containerStatuses": [{"name": "runtime", "image": "runtime", "imageID": "", "ready": false,
        "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 20s"}},
        "lastState": {"terminated": {"exitCode": 12, "reason": "Error", "message": message}}}]}})
}

/// The event of that reason about the model.
async fn event(user: &User, reason: &str) -> Event {
    let api: Api<Event> = user.api();
    let find = async {
        let mut turns = tokio::time::interval(std::time::Duration::from_millis(50));
        loop {
            turns.tick().await;
            let events = api.list(&kube::api::ListParams::default()).await.unwrap();
            if let Some(event) = events.into_iter().find(|event| event.reason.as_deref() == Some(reason)) {
                return event;
            }
        }
    };
    in_time(&format!("an event {reason}"), find).await
}

#[tokio::test]
async fn what_the_runtime_writes_as_it_ends_is_in_status_and_event_within_seconds_and_a_fix_recovers() {
    let user = user("crash").await;
    user.apply("vad", json!({"source": {"uri": "s3://models/absent.pt"}, "replicas": 2})).await.unwrap();
    let deployment = user.deployment("vad", "").await;
    for pod in ["vad-a", "vad-b"] {
        user.create_pod(&deployment, pod).await;
    }
    let started = Instant::now();
    let failure = Failure::new(FailurePhase::Fetch, FailureReason::NotFound, "s3://models/absent.pt: no such key");
    for pod in ["vad-a", "vad-b"] {
        user.patch_status::<Pod>(pod, crashed(&failure.to_line())).await;
    }
    let status = user
        .status("vad", "both pods' failure", |status| {
            status.last_failure.as_ref().is_some_and(|failure| failure.count == 2)
        })
        .await;
    assert!(started.elapsed().as_secs() < SECONDS, "{:?}", started.elapsed());
    for type_ in ["Ready", "ArtifactReady"] {
        assert_eq!(condition(&status, type_), "False NotFound");
    }
    assert_eq!(condition(&status, "Degraded"), "True NotFound");
    assert_eq!(condition(&status, "ModelLoaded"), "Unknown WaitingForPod");
    let failure = status.last_failure.unwrap();
    assert_eq!((failure.pod.as_deref(), failure.exit_code), (Some("vad-a"), Some(12)));
    let message = "s3://models/absent.pt: no such key; check the URI's bucket and key; the name is case-sensitive";
    assert_eq!(status.conditions[0].message, message);

    let warning = event(&user, "NotFound").await;
    assert_eq!(warning.type_.as_deref(), Some("Warning"));
    assert_eq!(warning.note.as_deref(), Some(message));
    assert_eq!(warning.regarding.unwrap().kind.as_deref(), Some("TorchModel"));

    user.apply("vad", json!({"source": {"uri": "s3://models/present.pt"}, "replicas": 2})).await.unwrap();
    let fixed = user.deployment("vad", &revision(&deployment)).await;
    let status = user.status("vad", "the old failure is gone", |status| status.last_failure.is_none()).await;
    assert_eq!(condition(&status, "Ready"), "False RolloutInProgress");
    user.roll_out(&fixed).await;
    user.status("vad", "Ready", |status| condition(status, "Ready") == "True Serving").await;
    assert_eq!(event(&user, "Serving").await.type_.as_deref(), Some("Normal"));
}

#[tokio::test]
async fn a_failing_new_revision_leaves_the_old_one_available_and_the_model_degraded() {
    let user = user("rollout").await;
    user.apply("vad", json!({"source": {"uri": "s3://models/1.pt"}})).await.unwrap();
    let first = user.deployment("vad", "").await;
    user.roll_out(&first).await;
    user.status("vad", "Ready", |status| condition(status, "Ready") == "True Serving").await;

    user.apply("vad", json!({"source": {"uri": "s3://models/broken.pt"}})).await.unwrap();
    let second = user.deployment("vad", &revision(&first)).await;
    user.create_pod(&second, "vad-new").await;
    let failure =
        Failure::new(FailurePhase::Load, FailureReason::UnsupportedOperator, "Unknown builtin op: torchvision::nms");
    user.patch_status::<Pod>("vad-new", crashed(&failure.to_line())).await;
    let status =
        user.status("vad", "the failure", |status| condition(status, "Ready") == "False UnsupportedOperator").await;
    assert_eq!(condition(&status, "Available"), "True MinimumAvailable");
    assert_eq!(condition(&status, "Degraded"), "True UnsupportedOperator");
    assert_eq!(condition(&status, "ModelLoaded"), "False UnsupportedOperator");
    assert_eq!(condition(&status, "ArtifactReady"), "True Fetched");

    // Back to what served: nothing else needs to be done.
    user.apply("vad", json!({"source": {"uri": "s3://models/1.pt"}})).await.unwrap();
    let third = user.deployment("vad", &revision(&second)).await;
    assert_eq!(revision(&third), revision(&first));
    user.roll_out(&third).await;
    let status = user.status("vad", "Ready", |status| condition(status, "Ready") == "True Serving").await;
    assert!(status.last_failure.is_none());
}

#[tokio::test]
async fn a_pod_that_no_node_takes_is_named_with_what_is_lacking() {
    let user = user("schedule").await;
    user.apply("vad", json!({"source": {"uri": "s3://models/1.pt"}, "accelerator": {}})).await.unwrap();
    let deployment = user.deployment("vad", "").await;
    let pod = user.create_pod(&deployment, "vad-a").await;
    let message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.";
    let unscheduled = json!({"status": {"conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]}});
    user.patch_status::<Pod>(&pod.name_any(), unscheduled).await;
    let status =
        user.status("vad", "no accelerator", |status| condition(status, "Ready") == "False InsufficientGPU").await;
    assert_eq!(status.last_failure.unwrap().message, message);

    // Placed at last: what kept it from that is over at once.
    let scheduled = json!({"status": {"conditions": [{"type": "PodScheduled", "status": "True"}]}});
    user.patch_status::<Pod>(&pod.name_any(), scheduled).await;
    let status = user.status("vad", "placed", |status| condition(status, "Ready") == "False RolloutInProgress").await;
    assert!(status.last_failure.is_none());
}

#[tokio::test]
async fn what_the_api_server_refuses_of_a_deployment_is_the_specs_fault_and_says_so() {
    let user = user("refused").await;
    let spec = json!({"source": {"uri": "s3://models/1.pt"}, "runtime": {"env": [{"name": "A=B", "value": "1"}]},
        "accelerator": {"nodeSelector": {"not a label": "x"}}});
    user.apply("vad", spec).await.unwrap();
    let status = user.status("vad", "refused", |status| condition(status, "Ready") == "False SpecInvalid").await;
    assert_eq!(condition(&status, "Stalled"), "True SpecInvalid");
    assert!(status.conditions[0].message.contains("nodeSelector"), "{}", status.conditions[0].message);
    user.apply("vad", json!({"source": {"uri": "s3://models/1.pt"}})).await.unwrap();
    user.deployment("vad", "").await;
}
