//! Whole children from minimal manifests, through the real earlier steps.

use serde::Serialize;
use serde_json::json;

use super::*;
use crate::controller::{
    dereference::{Dereferenced, testing::dereferenced},
    validate::{Defaults, testing::defaults, validate},
};

fn children(spec: &Value) -> Children<Prepared> {
    let dereferenced: Dereferenced = dereferenced("vad", spec);
    build(&validate(&dereferenced, &defaults()).unwrap()).unwrap()
}

fn yaml<T: Serialize>(child: &T) -> String {
    serde_yaml::to_string(child).unwrap()
}

#[test]
fn the_simplest_manifest_gives_these_children() {
    let children = children(&json!({"source": {"uri": "s3://models/vad.pt"}}));
    insta::assert_snapshot!("simplest_deployment", yaml(&children.deployment));
    insta::assert_snapshot!("simplest_service", yaml(&children.service));
    insta::assert_snapshot!("simplest_config_map", yaml(&children.config_map));
    insta::assert_snapshot!("simplest_service_account", yaml(&children.service_account));
}

#[test]
fn a_manifest_that_says_everything_gives_this_deployment_and_revision() {
    let children = children(&json!({
        "source": {"uri": "s3://models/vad.pt", "sha256": "a".repeat(64), "credentials": {"secretName": "s3"},
            "s3": {"endpoint": "http://10.0.0.1:7070"}},
        "model": {"name": "speech", "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 512]}],
            "batching": {"maxBatchSize": 8, "maxDelay": "2ms"}},
        "runtime": {"image": "mine:1", "args": ["--log-format=json"], "env": [{"name": "AWS_REGION", "value": "eu-west-1"}]},
        "resources": {"requests": {"cpu": "2"}, "limits": {"memory": "4Gi"}},
        "accelerator": {"count": 2, "nodeSelector": {"pool": "gpu"}},
        "replicas": 3,
        "rollout": {"progressDeadline": "5m"},
        "drain": {"timeout": "1m30s"},
        "serviceAccountName": "models",
    }));
    assert!(children.service_account.is_none());
    insta::assert_snapshot!("everything_deployment", yaml(&children.deployment));
    insta::assert_snapshot!("everything_config_map", yaml(&children.config_map));
}

#[test]
fn a_volume_is_mounted_and_the_runtime_reads_a_file() {
    let children = children(&json!({"source": {"volume": {"claimName": "models", "path": "vad/1.pt"}}}));
    assert_eq!(
        children.config_map.data.unwrap()["model.yaml"],
        "source:\n  uri: file:///mnt/source/vad/1.pt\nmodel:\n  name: vad\n"
    );
    let pod = children.deployment.spec.unwrap().template.spec.unwrap();
    let volume = pod.volumes.unwrap().into_iter().find(|volume| volume.name == "source").unwrap();
    assert_eq!(volume.persistent_volume_claim.unwrap().claim_name, "models");
    let mount = pod.containers[0].volume_mounts.as_ref().unwrap().iter().find(|mount| mount.name == "source").unwrap();
    assert_eq!((mount.mount_path.as_str(), mount.read_only), ("/mnt/source", Some(true)));
}

/// The grace period of the pods of a manifest with this drain timeout, environment and these arguments, where the operator's
/// flags say `flags`.
fn grace_s(drain: Option<&str>, env: &[(&str, &str)], args: &[&str], flags: &[(&str, &str)]) -> i64 {
    let env: Vec<_> = env.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    let spec = json!({
        "source": {"uri": "s3://models/vad.pt"}, "drain": {"timeout": drain}, "runtime": {"env": env, "args": args},
    });
    let env = flags.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let defaults = Defaults { env, ..defaults() };
    let children = build(&validate(&dereferenced("vad", &spec), &defaults).unwrap()).unwrap();
    let pod = children.deployment.spec.unwrap().template.spec.unwrap();
    pod.termination_grace_period_seconds.unwrap()
}

#[test]
fn a_pod_has_time_for_the_delay_the_drain_and_a_rest() {
    const DELAY: &str = "TORCHMODEL_SHUTDOWN_DELAY";
    assert_eq!(grace_s(None, &[], &[], &[]), 3 + 30 + 10);
    assert_eq!(grace_s(Some("1m"), &[], &[], &[]), 73);
    assert_eq!(grace_s(Some("1m"), &[(DELAY, "20s")], &[], &[]), 90);
    assert_eq!(grace_s(Some("500ms"), &[(DELAY, "1500ms")], &[], &[]), 12);
    assert_eq!(grace_s(Some("30s"), &[(DELAY, "soon")], &[], &[]), 43);
    assert_eq!(grace_s(Some("30s"), &[(DELAY, "2000000h")], &[], &[]), 7_200_000_040);
}

#[test]
fn a_pod_has_the_time_that_its_runtime_will_take_whoever_says_so() {
    const DRAIN: &str = "TORCHMODEL_DRAIN_TIMEOUT";
    let flags = [(DRAIN, "2m")];
    // Each wins over those before: the operator's flags, the field, the manifest's environment, the runtime's flag.
    assert_eq!(grace_s(None, &[], &[], &flags), 3 + 120 + 10);
    assert_eq!(grace_s(Some("1m"), &[], &[], &flags), 73);
    assert_eq!(grace_s(Some("1m"), &[(DRAIN, "5m")], &[], &flags), 313);
    assert_eq!(grace_s(Some("1m"), &[(DRAIN, "5m")], &["--drain-timeout=10m"], &flags), 613);
    assert_eq!(grace_s(None, &[], &["--log-format", "json", "--drain-timeout", "10m"], &[]), 613);
    assert_eq!(grace_s(None, &[], &["--shutdown-delay=1m", "--drain-timeout", "10m"], &[]), 670);
    // What is not that flag, or what the runtime refuses, changes nothing.
    assert_eq!(grace_s(None, &[], &["--drain-timeouts=10m", "--drain-timeout"], &[]), 43);
    assert_eq!(grace_s(None, &[], &["--drain-timeout=soon"], &[]), 43);
}

/// Label of the pod template and name of the revision.
fn identity(spec: &Value) -> (String, String) {
    let children = children(spec);
    let template = children.deployment.spec.unwrap().template;
    (template.metadata.unwrap().labels.unwrap()[TEMPLATE_LABEL].clone(), children.config_map.metadata.name.unwrap())
}

#[test]
fn the_template_changes_with_what_the_pods_need_and_with_nothing_else() {
    let base = json!({"source": {"uri": "s3://models/vad.pt"}});
    let (template, revision) = identity(&base);
    assert_eq!(identity(&base), (template.clone(), revision.clone()));
    let scaled = identity(
        &json!({"source": {"uri": "s3://models/vad.pt"}, "replicas": 5, "rollout": {"progressDeadline": "1m"}}),
    );
    assert_eq!(scaled, (template.clone(), revision.clone()));
    let other_model = identity(&json!({"source": {"uri": "s3://models/other.pt"}}));
    assert!(other_model.0 != template && other_model.1 != revision);
    let other_image = identity(&json!({"source": {"uri": "s3://models/vad.pt"}, "runtime": {"image": "mine:2"}}));
    assert!(other_image.0 != template && other_image.1 == revision);
}

#[test]
fn a_variable_of_the_manifest_wins_and_stands_once() {
    let env = json!([{"name": "AWS_REGION", "value": "mine"}, {"name": "HOME", "value": "/home"}]);
    let children = children(&json!({"source": {"uri": "s3://models/vad.pt"}, "runtime": {"env": env}}));
    let env = children.deployment.spec.unwrap().template.spec.unwrap().containers[0].env.clone().unwrap();
    let values = |name: &str| {
        env.iter().filter(|entry| entry.name == name).map(|entry| entry.value.clone().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(values("AWS_REGION"), ["mine"]);
    assert_eq!(values("HOME"), ["/home"]);
}
