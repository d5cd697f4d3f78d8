//! Statuses from pods and Deployments, as tables.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use torchmodel_crds::{Failure, FailurePhase, FailureReason, schema::Violation};

use super::*;
use crate::controller::{
    build::{CONTAINER, build},
    dereference::testing::dereferenced,
    validate::{self, testing::defaults, validate},
};

fn time(second: i64) -> Time {
    Time(Timestamp::from_second(1_800_000_000 + second).unwrap())
}

/// A model of generation 3, its Deployment with that status, and its pods with those; the status as it was before.
struct World {
    dereferenced: Dereferenced,
    children: Children<Applied>,
    previous: TorchModelStatus,
}

impl World {
    fn new(deployment_status: Value, pods: &[Value]) -> Self {
        let mut dereferenced =
            dereferenced("vad", &json!({"source": {"uri": "s3://models/vad.pt"}, "accelerator": {}}));
        let Children { service_account, config_map, service, mut deployment, stage: _ } =
            build(&validate(&dereferenced, &defaults()).unwrap()).unwrap();
        deployment.metadata.generation = Some(7);
        deployment.status = serde_json::from_value(deployment_status).unwrap();
        let template = template_of(&deployment).unwrap().to_owned();
        let limits = &deployment.spec.as_ref().unwrap().template.spec;
        dereferenced.pods = pods
            .iter()
            .enumerate()
            .map(|(index, status)| {
                let pod = json!({"metadata": {"name": format!("vad-{index}"), "labels": {TEMPLATE_LABEL: template}},
                    "spec": limits, "status": status});
                Arc::new(serde_json::from_value::<Pod>(pod).unwrap())
            })
            .collect();
        let children = Children { service_account, config_map, service, deployment, stage: std::marker::PhantomData };
        Self { dereferenced, children, previous: TorchModelStatus::default() }
    }

    fn status(&self, second: i64) -> TorchModelStatus {
        compute_status(&self.dereferenced, Ok(&self.children), &self.previous, &time(second))
    }
}

fn deployment(total: i32, updated: i32, ready: i32) -> Value {
    json!({"observedGeneration": 7, "replicas": total, "updatedReplicas": updated, "readyReplicas": ready, "availableReplicas": ready})
}

/// "Type=Status Reason" of each condition.
fn summary(status: &TorchModelStatus) -> Vec<String> {
    status.conditions.iter().map(|c| format!("{}={} {}", c.type_, c.status, c.reason)).collect()
}

fn container(state: &Value) -> Value {
    json!({"containerStatuses": [{"name": CONTAINER, "image": "", "imageID": "", "ready": false, "restartCount": 1,
        "state": state.get("state"), "lastState": state.get("lastState")}]})
}

fn terminated(message: &str, reason: &str) -> Value {
    json!({"terminated": {"exitCode": 1, "reason": reason, "message": message}})
}

#[test]
fn a_rollout_that_is_complete_serves_and_one_that_is_not_does_not() {
    let status = World::new(deployment(1, 1, 1), &[]).status(0);
    let serving = [
        "Ready=True Serving",
        "Available=True MinimumAvailable",
        "Progressing=False RolloutComplete",
        "ArtifactReady=True Fetched",
        "ModelLoaded=True WarmedUp",
        "Degraded=False AsExpected",
    ];
    assert_eq!(summary(&status), serving);
    assert!(status.conditions.iter().all(|condition| condition.observed_generation == Some(3)));

    let status = World::new(deployment(2, 1, 1), &[]).status(0);
    let rolling = [
        "Ready=False RolloutInProgress",
        "Available=True MinimumAvailable",
        "Progressing=True RolloutInProgress",
        "ArtifactReady=Unknown WaitingForPod",
        "ModelLoaded=Unknown WaitingForPod",
        "Degraded=False AsExpected",
        "Reconciling=True RolloutInProgress",
    ];
    assert_eq!(summary(&status), rolling);

    let mut unseen = World::new(deployment(1, 1, 1), &[]);
    unseen.children.deployment.metadata.generation = Some(8);
    assert_eq!(summary(&unseen.status(0))[0], "Ready=False RolloutInProgress");
}

#[test]
fn a_transition_time_changes_with_the_status_only() {
    let mut world = World::new(deployment(1, 1, 0), &[]);
    world.previous = world.status(0);
    assert_eq!(world.status(10), world.previous, "nothing changed, so nothing is to be written");
    world.children.deployment.status = serde_json::from_value(deployment(1, 1, 1)).unwrap();
    let after = world.status(20);
    let since = |type_: &str| conditions::find(&after.conditions, type_).unwrap().last_transition_time.clone();
    assert_eq!((since("Ready"), since("Degraded")), (time(20), time(0)));
}

#[test]
fn each_way_in_which_a_pod_fails_has_its_reason() {
    use FailureReason as R;
    let line = Failure::new(FailurePhase::Load, R::NotTorchScript, "not a zip archive").to_line();
    let waiting = |reason: &str| container(&json!({"state": {"waiting": {"reason": reason, "message": "m"}}}));
    let unschedulable = |message: &str| {
        json!({"conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]})
    };
    for (case, pod, expected) in [
        ("ended with a word", container(&json!({"state": terminated(&line, "Error")})), Some(R::NotTorchScript)),
        (
            "ended with other output before it",
            container(&json!({"state": terminated(&format!("warning\n{line}\n"), "Error")})),
            Some(R::NotTorchScript),
        ),
        (
            "backing off",
            container(&json!({"state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": terminated(&line, "Error")})),
            Some(R::NotTorchScript),
        ),
        (
            "trying again",
            container(&json!({"state": {"running": {}}, "lastState": terminated(&line, "Error")})),
            Some(R::NotTorchScript),
        ),
        ("ended without a word", container(&json!({"state": terminated("", "Error")})), Some(R::CrashLoop)),
        ("out of memory", container(&json!({"state": terminated("", "OOMKilled")})), Some(R::OutOfHostMemory)),
        ("no image", waiting("ImagePullBackOff"), Some(R::ImagePullFailed)),
        ("no such image name", waiting("InvalidImageName"), Some(R::ImagePullFailed)),
        ("a bad environment", waiting("CreateContainerConfigError"), Some(R::SpecInvalid)),
        ("no such program", waiting("RunContainerError"), Some(R::CrashLoop)),
        ("starting", waiting("ContainerCreating"), None),
        ("running for the first time", container(&json!({"state": {"running": {}}})), None),
        (
            "no accelerator",
            unschedulable("0/2 nodes are available: 2 Insufficient nvidia.com/gpu."),
            Some(R::InsufficientGPU),
        ),
        ("no memory", unschedulable("0/2 nodes are available: 2 Insufficient memory."), Some(R::Unschedulable)),
        (
            "disk full",
            json!({"phase": "Failed", "reason": "Evicted", "message": "Usage of EmptyDir volume \"cache\" exceeds"}),
            Some(R::CacheFull),
        ),
        (
            "evicted for memory",
            json!({"phase": "Failed", "reason": "Evicted", "message": "node was low on memory"}),
            None,
        ),
        ("nothing known yet", json!({}), None),
    ] {
        let status = World::new(deployment(1, 1, 0), &[pod]).status(0);
        assert_eq!(status.last_failure.as_ref().map(|failure| failure.reason), expected, "{case}");
        let ready = expected.map_or("RolloutInProgress", FailureReason::as_str);
        assert_eq!(summary(&status)[0], format!("Ready=False {ready}"), "{case}");
    }
}

#[test]
fn a_pod_that_is_ready_or_of_another_template_has_not_failed() {
    let line = Failure::new(FailurePhase::Load, FailureReason::NotTorchScript, "m").to_line();
    let mut recovered = container(&json!({"state": {"running": {}}, "lastState": terminated(&line, "Error")}));
    recovered["conditions"] = json!([{"type": "Ready", "status": "True"}]);
    assert!(World::new(deployment(2, 2, 1), &[recovered]).status(0).last_failure.is_none());

    let mut world = World::new(deployment(1, 1, 0), &[container(&json!({"state": terminated(&line, "Error")}))]);
    let old = Arc::make_mut(&mut world.dereferenced.pods[0]);
    old.metadata.labels.as_mut().unwrap().insert(TEMPLATE_LABEL.to_owned(), "old".to_owned());
    assert!(world.status(0).last_failure.is_none());
}

#[test]
fn the_most_frequent_reason_wins_and_is_counted() {
    let failed = |reason| {
        container(&json!({"state": terminated(&Failure::new(FailurePhase::Fetch, reason, "m").to_line(), "Error")}))
    };
    let pods =
        [failed(FailureReason::AccessDenied), failed(FailureReason::FetchTimeout), failed(FailureReason::FetchTimeout)];
    let failure = World::new(deployment(3, 3, 0), &pods).status(0).last_failure.unwrap();
    assert_eq!(
        (failure.reason, failure.count, failure.pod.as_deref()),
        (FailureReason::FetchTimeout, 2, Some("vad-1"))
    );
}

#[test]
fn each_phase_says_how_far_the_model_came() {
    let cases = [
        (FailurePhase::Fetch, "ArtifactReady=False NotFound", "ModelLoaded=Unknown WaitingForPod"),
        (FailurePhase::Verify, "ArtifactReady=False NotFound", "ModelLoaded=Unknown WaitingForPod"),
        (FailurePhase::Load, "ArtifactReady=True Fetched", "ModelLoaded=False NotFound"),
        (FailurePhase::Warmup, "ArtifactReady=True Fetched", "ModelLoaded=False NotFound"),
        (FailurePhase::Configure, "ArtifactReady=Unknown WaitingForPod", "ModelLoaded=Unknown WaitingForPod"),
    ];
    for (phase, artifact, loaded) in cases {
        let line = Failure::new(phase, FailureReason::NotFound, "m").to_line();
        let status =
            World::new(deployment(1, 1, 0), &[container(&json!({"state": terminated(&line, "Error")}))]).status(0);
        assert_eq!(&summary(&status)[3..6], [artifact, loaded, "Degraded=True NotFound"], "{phase}");
    }
}

#[test]
fn a_failure_keeps_its_time_through_a_crash_loop_and_goes_when_the_model_serves() {
    let line = Failure::new(FailurePhase::Load, FailureReason::NotTorchScript, "m").to_line();
    let mut world = World::new(deployment(1, 1, 0), &[container(&json!({"state": terminated(&line, "Error")}))]);
    world.previous = world.status(0);
    assert_eq!(world.status(60), world.previous);

    // The pod was deleted and the next has not failed yet: still in sight, but no longer what Ready says.
    let pods = std::mem::take(&mut world.dereferenced.pods);
    let between = world.status(70);
    assert_eq!(between.last_failure, world.previous.last_failure);
    assert_eq!(summary(&between)[0], "Ready=False RolloutInProgress");
    world.dereferenced.pods = pods;

    world.children.deployment.status = serde_json::from_value(deployment(1, 1, 1)).unwrap();
    assert!(world.status(80).last_failure.is_none());
}

#[test]
fn a_rollout_past_its_deadline_is_stalled_and_one_whose_pods_are_refused_says_why() {
    let mut late = deployment(1, 1, 0);
    late["conditions"] = json!([{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "timed out"}]);
    let status = World::new(late.clone(), &[]).status(0);
    let found = summary(&status);
    assert_eq!(found[0], "Ready=False ProgressDeadlineExceeded");
    assert_eq!(found[6], "Stalled=True ProgressDeadlineExceeded");
    let status = World::new(late, &[container(&json!({"state": {"running": {}}}))]).status(0);
    assert_eq!(summary(&status)[0], "Ready=False ProbeFailed");
    assert_eq!(status.last_failure.unwrap().pod.as_deref(), Some("vad-0"));

    let mut refused = deployment(0, 0, 0);
    refused["conditions"] =
        json!([{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota"}]);
    let status = World::new(refused, &[]).status(0);
    assert_eq!(status.last_failure.unwrap().message, "exceeded quota");
}

#[test]
fn an_invalid_spec_is_stalled_while_what_ran_stays_available() {
    let mut world = World::new(deployment(1, 1, 1), &[]);
    world.dereferenced.existing.deployment = Some(Arc::new(world.children.deployment.clone()));
    let violation = Violation { path: "spec.source".to_owned(), message: "set exactly one of them".to_owned() };
    let error = ReconcileError::Validate(validate::Error::Violations(vec![violation]));
    let status = compute_status(&world.dereferenced, Err(&error), &world.previous, &time(0));
    let expected = [
        "Ready=False SpecInvalid",
        "Available=True MinimumAvailable",
        "Progressing=False SpecInvalid",
        "ArtifactReady=Unknown WaitingForPod",
        "ModelLoaded=Unknown WaitingForPod",
        "Degraded=True SpecInvalid",
        "Stalled=True SpecInvalid",
    ];
    assert_eq!(summary(&status), expected);
    let ready = conditions::find(&status.conditions, conditions::READY).unwrap();
    assert_eq!(
        ready.message,
        "spec.source: set exactly one of them; correct the manifest; the message names the field"
    );
}

#[test]
fn a_presigned_uri_is_shown_without_its_signature() {
    let uri = "https://user:hunter2@store/vad.pt?X-Amz-Signature=hunter2";
    let said = Failure::new(FailurePhase::Fetch, FailureReason::AccessDenied, format!("GET {uri}: 403 Forbidden"));
    let terminated = json!({"state": {"terminated": {"exitCode": 20, "message": said.to_line()}}});
    let mut world = World::new(deployment(0, 0, 0), &[container(&terminated)]);
    let source = &mut world.dereferenced.model.as_mut().unwrap().spec.source;
    (source.uri, source.sha256) = (Some(uri.to_owned()), Some("a".repeat(64)));
    let status = world.status(0);
    assert_eq!(status.artifact.as_ref().unwrap().uri, "https://store/vad.pt");
    assert_eq!(status.last_failure.as_ref().unwrap().message, "GET https://store/vad.pt: 403 Forbidden");
    assert!(!serde_json::to_string(&status).unwrap().contains("hunter2"));
}
