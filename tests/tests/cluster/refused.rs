//! What the API server refuses when a manifest is applied, and the sentence that a person reads.

use anyhow::Result;
use serde_json::{Value, json};
use torchmodel_tests::{Namespace, manifest};

pub async fn a_contradictory_manifest_is_refused_with_a_sentence(namespace: Namespace<'_>) -> Result<()> {
    let volume = json!({"claimName": "models", "path": "a.pt"});
    let cases: [(&str, Value, &str); 7] = [
        ("unknown scheme", json!({"uri": "ftp://host/a.pt"}), "source.uri must begin with s3://, https:// or http://"),
        (
            "two sources",
            json!({"uri": "s3://b/a.pt", "volume": volume}),
            "set exactly one of source.uri and source.volume",
        ),
        ("no source", json!({}), "set exactly one of source.uri and source.volume"),
        (
            "https without digest",
            json!({"uri": "https://host/a.pt"}),
            "source.sha256 is required for an http:// or https:// source",
        ),
        (
            "http without digest",
            json!({"uri": "http://host/a.pt"}),
            "source.sha256 is required for an http:// or https:// source",
        ),
        (
            "malformed digest",
            json!({"uri": "s3://b/a.pt", "sha256": "ABC"}),
            "source.sha256 must be 64 lower-case hexadecimal digits",
        ),
        ("unknown field", json!({"uri": "s3://b/a.pt", "digest": "abc"}), "unknown field \"spec.source.digest\""),
    ];
    for (case, source, sentence) in cases {
        let applied = namespace.kubectl_apply(&manifest("refused", &json!({"source": source}))).await;
        let said = applied.expect_err(case).to_string();
        assert!(said.contains(sentence), "{case}: expected {sentence:?} in: {said}");
    }
    assert_eq!(namespace.kubectl(&["get", "torchmodels", "--output=name"]).await?, "");
    Ok(())
}
