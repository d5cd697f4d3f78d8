//! What is refused, and what is filled in.

use serde_json::{Value, json};

use super::{testing::defaults, *};
use crate::controller::dereference::testing::dereferenced;

fn check(spec: &Value) -> Result<ValidatedModel, Error> {
    validate(&dereferenced("vad", spec), &defaults())
}

#[test]
fn defaults_are_filled_in() {
    let model = check(&json!({"source": {"uri": "s3://models/vad.pt"}})).unwrap();
    assert_eq!(model.model.name.as_deref(), Some("vad"));
    assert_eq!((model.replicas, model.progress_deadline_s, model.drain_timeout), (1, 600, None));
    assert_eq!(model.container.image, "torchmodel-runtime:1");
    assert_eq!(model.service_account, ServiceAccountChoice::Own);
}

#[test]
fn an_accelerator_takes_the_cuda_image_and_becomes_a_limit() {
    let model = check(&json!({"source": {"uri": "s3://models/vad.pt"}, "accelerator": {}})).unwrap();
    assert_eq!(model.container.image, "torchmodel-runtime-cuda:1");
    assert_eq!(model.container.resources.unwrap().limits.unwrap()["nvidia.com/gpu"], Quantity("1".to_owned()));
}

#[test]
fn an_object_older_than_a_rule_is_refused_with_the_rules_sentence() {
    let error = check(&json!({"source": {"uri": "https://example.com/vad.pt"}})).unwrap_err();
    assert!(
        error.to_string().starts_with("spec.source: source.sha256 is required for an http:// or https:// source"),
        "{error}"
    );
    let error = check(&json!({"source": {}, "drain": {"timeout": "2h"}})).unwrap_err().to_string();
    assert!(error.contains("exactly one") && error.contains("drain.timeout must be at most 1h"), "{error}");
}

#[test]
fn an_accelerator_that_stands_twice_is_refused() {
    let spec = json!({"source": {"uri": "s3://models/vad.pt"}, "accelerator": {}, "resources": {"limits": {"nvidia.com/gpu": "2"}}});
    assert!(matches!(check(&spec), Err(Error::AcceleratorTwice(resource)) if resource == "nvidia.com/gpu"));
}

#[test]
fn an_object_that_cannot_be_read_is_refused_with_the_reason() {
    let mut dereferenced = dereferenced("vad", &json!({"source": {"uri": "s3://models/vad.pt"}}));
    dereferenced.model = Err("unknown field `replica`".to_owned());
    let error = validate(&dereferenced, &defaults()).unwrap_err();
    assert_eq!(error.to_string(), "the stored object cannot be read: unknown field `replica`");
}
