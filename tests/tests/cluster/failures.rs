//! Models that cannot be served: within seconds status, condition, event and `kubectl get` say why, and correcting the manifest is
//! all that it takes to recover.

use std::time::Duration;

use anyhow::Result;
use k8s_openapi::api::core::v1::Event;
use kube::runtime::watcher;
use serde_json::{Value, json};
use torchmodel_crds::{FailurePhase, FailureReason};
use torchmodel_tests::{Namespace, condition, eventually_any};

/// Time within which a failure must be told.
const SECONDS: Duration = Duration::from_secs(30);
const NAME: &str = "model";

/// A failure and how it is told.
struct Expected<'a> {
    phase: FailurePhase,
    reason: FailureReason,
    /// Part of the message.
    message: &'a str,
}

async fn fails_then_recovers(namespace: Namespace<'_>, bad: &Value, expected: Expected<'_>) -> Result<()> {
    let Expected { phase, reason, message } = expected;
    let told = reason.as_str();
    namespace.apply(NAME, bad).await?;
    let is_told = (format!("Ready is False because of {told}"), SECONDS);
    let status = namespace
        .status(NAME, (&is_told.0, is_told.1), |status| condition(status, "Ready") == Some(("False", told)))
        .await?;
    let failure = status.last_failure.as_ref().expect("a failure is in the status");
    assert_eq!((failure.phase, failure.reason), (phase, reason), "{failure:?}");
    assert!(failure.message.contains(message), "expected {message:?} in {:?}", failure.message);
    assert!(!failure.hint.is_empty() && failure.pod.is_some(), "{failure:?}");
    assert_eq!(condition(&status, "Degraded"), Some(("True", told)));
    assert_eq!(condition(&status, "Available").map(|(status, _)| status), Some("False"));

    let config = watcher::Config::default().fields(&format!("involvedObject.name={NAME},reason={told}"));
    let event = eventually_any(&namespace.api::<Event>(), config, &format!("an event says {told}"), |_| true).await?;
    assert_eq!(event.type_.as_deref(), Some("Warning"));
    assert!(event.message.as_deref().is_some_and(|note| note.contains(&failure.hint)), "{event:?}");
    let table = namespace.kubectl(&["get", "torchmodels"]).await?;
    assert!(table.contains(told) && table.contains("False"), "{table}");

    let status = namespace.serve(NAME, &namespace.cluster.stock.double.spec()).await?;
    assert!(status.last_failure.is_none(), "{status:?}");
    assert_eq!(condition(&status, "Degraded"), Some(("False", "AsExpected")));
    Ok(())
}

/// The good spec with one part of `source` replaced.
fn with_source(namespace: Namespace<'_>, changes: &Value) -> Value {
    let mut spec = namespace.cluster.stock.double.spec();
    for (key, value) in changes.as_object().expect("an object") {
        spec["source"][key] = value.clone();
    }
    spec
}

pub async fn absent_object(namespace: Namespace<'_>) -> Result<()> {
    let bad = with_source(namespace, &json!({"uri": namespace.cluster.stock.absent}));
    let expected = Expected { phase: FailurePhase::Fetch, reason: FailureReason::NotFound, message: "absent.pt" };
    fails_then_recovers(namespace, &bad, expected).await
}

pub async fn wrong_keys(namespace: Namespace<'_>) -> Result<()> {
    namespace.secret("wrong-keys", "TMWRONG", "wrong").await?;
    let bad = with_source(namespace, &json!({"credentials": {"secretName": "wrong-keys"}}));
    let expected = Expected { phase: FailurePhase::Fetch, reason: FailureReason::AccessDenied, message: "double.pt" };
    fails_then_recovers(namespace, &bad, expected).await
}

pub async fn missing_secret(namespace: Namespace<'_>) -> Result<()> {
    let bad = with_source(namespace, &json!({"credentials": {"secretName": "no-such-secret"}}));
    let expected = Expected { phase: FailurePhase::Fetch, reason: FailureReason::CredentialsMissing, message: "" };
    fails_then_recovers(namespace, &bad, expected).await
}

pub async fn other_digest(namespace: Namespace<'_>) -> Result<()> {
    let other = "0".repeat(64);
    let bad = with_source(namespace, &json!({"sha256": other}));
    let expected = Expected { phase: FailurePhase::Verify, reason: FailureReason::DigestMismatch, message: &other };
    fails_then_recovers(namespace, &bad, expected).await
}

pub async fn truncated_upload(namespace: Namespace<'_>) -> Result<()> {
    let stock = &namespace.cluster.stock;
    let with_digest = with_source(namespace, &json!({"uri": stock.truncated.uri}));
    let expected = Expected {
        phase: FailurePhase::Verify,
        reason: FailureReason::DigestMismatch,
        message: &stock.truncated.sha256,
    };
    fails_then_recovers(namespace, &with_digest, expected).await?;
    let mut without_digest = stock.truncated.spec();
    without_digest["source"].as_object_mut().expect("an object").remove("sha256");
    let expected = Expected { phase: FailurePhase::Load, reason: FailureReason::NotTorchScript, message: "" };
    namespace.kubectl(&["delete", "torchmodel", NAME]).await?;
    fails_then_recovers(namespace, &without_digest, expected).await
}

pub async fn text_instead_of_a_model(namespace: Namespace<'_>) -> Result<()> {
    let bad = namespace.cluster.stock.text.spec();
    let expected = Expected { phase: FailurePhase::Load, reason: FailureReason::NotTorchScript, message: "" };
    fails_then_recovers(namespace, &bad, expected).await
}

pub async fn unknown_operator(namespace: Namespace<'_>) -> Result<()> {
    let bad = namespace.cluster.stock.unknown_operator.spec();
    let expected =
        Expected { phase: FailurePhase::Load, reason: FailureReason::UnsupportedOperator, message: "aten::rely" };
    fails_then_recovers(namespace, &bad, expected).await
}

pub async fn unreachable_server(namespace: Namespace<'_>) -> Result<()> {
    // Nothing listens on this port of the pod's own.
    let bad = with_source(namespace, &json!({"s3": {"endpoint": "http://127.0.0.1:9"}}));
    let expected = Expected { phase: FailurePhase::Fetch, reason: FailureReason::FetchTimeout, message: "127.0.0.1" };
    fails_then_recovers(namespace, &bad, expected).await
}
