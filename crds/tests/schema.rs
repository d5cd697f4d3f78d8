//! What the schema accepts, and with which sentence it refuses the rest.
//!
//! The operator's integration tests send the same table (`manifests.yaml`) to a real API server.

use serde::Deserialize;
use serde_json::{Value, json};
use torchmodel_crds::{
    TorchModelSpec,
    schema::{configuration_violations, violations},
};

/// One row of `manifests.yaml`.
#[derive(Deserialize)]
struct Row {
    case: String,
    name: String,
    spec: Value,
    /// Part of the sentence; absent when the manifest is accepted.
    refused: Option<String>,
    /// The same of the check in-process, where the API server's is its own.
    in_process: Option<String>,
}

fn rows() -> Vec<Row> {
    serde_yaml::from_str(include_str!("manifests.yaml")).unwrap()
}

fn manifest() -> Value {
    json!({
        "apiVersion": "serving.torchmodel.dev/v1alpha1",
        "kind": "TorchModel",
        "metadata": {"name": "resnet50"},
        "spec": {"source": {"uri": "s3://models/resnet50.pt"}},
    })
}

/// The sentences about a manifest in which the value at `pointer` is another, or was added.
fn sentences(pointer: &str, value: Value) -> Vec<String> {
    let mut manifest = manifest();
    let (holder, key) = pointer.rsplit_once('/').unwrap();
    manifest.pointer_mut(holder).unwrap().as_object_mut().unwrap().insert(key.to_owned(), value);
    violations(&manifest).iter().map(ToString::to_string).collect()
}

fn configuration(yaml: &str) -> Vec<String> {
    configuration_violations(&serde_yaml::from_str(yaml).unwrap()).iter().map(ToString::to_string).collect()
}

#[test]
fn every_manifest_is_accepted_or_refused_with_its_sentence() {
    for Row { case, name, spec, refused, in_process } in rows() {
        let mut manifest = manifest();
        manifest["metadata"]["name"] = name.into();
        manifest["spec"] = spec;
        let found: Vec<String> = violations(&manifest).iter().map(ToString::to_string).collect();
        match in_process.or(refused) {
            None => assert!(found.is_empty(), "{case}: refused: {found:?}"),
            Some(sentence) => assert!(found.iter().any(|message| message.contains(&sentence)), "{case}: {found:?}"),
        }
    }
}

#[test]
fn what_the_schema_accepts_can_be_read() {
    for Row { case, spec, .. } in rows().into_iter().filter(|row| row.refused.is_none()) {
        let read: Result<TorchModelSpec, _> = serde_json::from_value(spec);
        assert!(read.is_ok(), "{case}: {read:?}");
    }
}

#[test]
fn a_key_beside_spec_is_refused_and_told_where_it_belongs() {
    assert_eq!(sentences("/model", json!({"name": "m"})), ["model: is not a field here: it belongs below `spec`"]);
    let found = sentences("/specs", json!({}));
    assert_eq!(
        found,
        ["specs: is not a field here: remove it, or write one of apiVersion, kind, metadata, spec, status"]
    );
    let found = sentences("/metadata/label", json!({}));
    assert!(found.concat().starts_with("metadata.label: is not a field here"), "{found:?}");
}

#[test]
fn another_version_is_refused_with_the_right_one() {
    let found = sentences("/apiVersion", json!("serving.torchmodel.dev/v1"));
    assert_eq!(found, ["apiVersion: must be serving.torchmodel.dev/v1alpha1, not 'serving.torchmodel.dev/v1'"]);
    let found =
        violations(&json!({"kind": "TorchModel", "metadata": {"name": "m"}, "spec": {"source": {"uri": "s3://b/k"}}}));
    assert_eq!(found.len(), 1);
    assert_eq!(
        found.first().unwrap().to_string(),
        "apiVersion: is required: add `apiVersion: serving.torchmodel.dev/v1alpha1`"
    );
}

#[test]
fn a_manifest_needs_a_name_and_may_carry_what_a_cluster_wrote() {
    assert_eq!(sentences("/metadata", json!({})), ["metadata.name: is required: add it"]);
    let found = sentences("/metadata/labels", json!({"a": 1}));
    assert_eq!(found, ["metadata.labels.a: must be a string, not an integer: put it in quotes"]);
    let metadata = json!({"name": "m", "labels": {"a": "b"}, "creationTimestamp": null, "uid": "1", "generation": 3});
    assert!(sentences("/metadata", metadata).is_empty());
    assert!(sentences("/status", json!({"replicas": "many"})).is_empty());
}

#[test]
fn what_is_no_object_at_all_is_refused() {
    for value in [json!(null), json!(3), json!("spec"), json!([])] {
        let found: Vec<String> = violations(&value).iter().map(ToString::to_string).collect();
        assert!(matches!(found.as_slice(), [only] if only.starts_with("must be an object, not ")), "{found:?}");
    }
}

#[test]
fn every_violation_of_a_manifest_is_told_up_to_a_limit() {
    let found = sentences("/spec/model", json!({"instances": 0, "name": 5, "limits": {"maxQueue": 0}, "batching": {}}));
    let paths: Vec<&str> = found.iter().filter_map(|sentence| sentence.split(": ").next()).collect();
    let expected =
        ["batching.maxBatchSize", "instances", "limits.maxQueue", "name"].map(|path| format!("spec.model.{path}"));
    assert_eq!(paths, expected);
    let many: serde_json::Map<String, Value> = (0..1000).map(|index| (format!("key{index}"), json!(1))).collect();
    assert_eq!(sentences("/spec/model", Value::Object(many)).len(), 32);
}

#[test]
fn no_secret_of_a_source_stands_in_a_sentence() {
    let secret = "https://user:hunter2@store/m.pt?X-Amz-Signature=hunter2";
    for source in [
        json!({"uri": secret}),
        json!(secret),
        json!({"uri": format!("{secret}{}", "a".repeat(4096)), "s3": {"endpoint": [secret]}}),
        json!({"uri": [secret], "volume": secret}),
    ] {
        let found = sentences("/spec/source", source.clone());
        assert!(!found.is_empty() && !found.concat().contains("hunter2"), "{source}: {found:?}");
    }
}

#[test]
fn a_configuration_is_checked_by_the_same_schema() {
    assert!(configuration("source: {uri: 's3://b/k.pt'}\nmodel: {name: m, instances: 2}\n").is_empty());
    for (yaml, expected) in [
        (
            "source: {uri: 's3://b/k.pt'}\nspec: {}\n",
            "spec: is not a field here: remove it, or write one of model, source",
        ),
        ("source: {uri: 's3://b/k.pt'}\nname: m\n", "name: is not a field here: it belongs below `model`"),
        ("model: {}\n", "source: is required: add it"),
        ("source: {}\n", "source: set exactly one of source.uri and source.volume"),
        ("source: {uri: 's3://b'}\n", "source: source.uri must name a bucket and a key"),
        ("source: {uri: 'https://h/m.pt'}\n", "source: source.sha256 is required for an http:// or https:// source"),
        (
            "source: {uri: 's3://b/k.pt'}\nmodel: {limits: {maxQueue: 0}}\n",
            "model.limits.maxQueue: is 0; it must be at least 1",
        ),
        (
            "source: {uri: 's3://b/k.pt'}\nmodel: {limits: {requestTimeout: 0s}}\n",
            "model.limits: model.limits.requestTimeout must be between 1ms",
        ),
        (
            "source: {uri: 's3://b/k.pt'}\nmodel: {limits: {requestTimeout: 5}}\n",
            "model.limits.requestTimeout: must be a string, not an integer: write a number and a unit, such as 500us",
        ),
        ("source: {uri: 's3://b/k.pt'}\nmodel: {instances: 1000}\n", "model.instances: is 1000; it must be at most 64"),
        ("source: {uri: 's3://b/k.pt'}\nmodel:\n", "model: must be an object, not null: leave the field out"),
    ] {
        let found = configuration(yaml);
        assert!(found.concat().contains(expected), "{yaml}: {found:?}");
    }
}

#[test]
fn a_configuration_may_name_a_file_of_this_machine() {
    for uri in ["file:///mnt/source/m.pt", "/srv/m.pt", "model.pt"] {
        assert!(configuration(&format!("source: {{uri: '{uri}', sha256: {}}}", "a".repeat(64))).is_empty(), "{uri}");
    }
    for (yaml, expected) in [
        ("source: {uri: /m.pt, sha256: abc}", "source.sha256 must be 64 lower-case hexadecimal digits"),
        ("source: {uri: /m.pt, s3: {region: r}}", "apply to an s3:// source only"),
        ("source: {uri: /m.pt, volume: {claimName: c, path: p}}", "set exactly one of source.uri and source.volume"),
    ] {
        let found = configuration(yaml);
        assert!(found.concat().contains(expected), "{yaml}: {found:?}");
    }
}
