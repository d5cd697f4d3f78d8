//! Each CEL rule, run in-process: what is accepted, and with which sentence the rest is refused.
//!
//! The operator's integration tests send the same table (`manifests.yaml`) to a real API server.

use serde::Deserialize;
use torchmodel_crds::{TorchModel, violations};

/// One row of `manifests.yaml`.
#[derive(Deserialize)]
struct Row {
    case: String,
    name: String,
    spec: serde_yaml::Value,
    /// Part of the sentence; absent when the manifest is accepted.
    refused: Option<String>,
    /// Whether the schema itself refuses it, which only an API server checks.
    #[serde(default)]
    by_schema: bool,
}

#[test]
fn every_manifest_is_accepted_or_refused_with_its_sentence() {
    let cases: Vec<Row> = serde_yaml::from_str(include_str!("manifests.yaml")).unwrap();
    for Row { case, name, spec, refused, by_schema } in cases {
        if by_schema {
            continue;
        }
        let model = TorchModel::new(&name, serde_yaml::from_value(spec).unwrap());
        let found = violations(&model);
        match refused {
            None => assert!(found.is_empty(), "{case}: refused: {found:?}"),
            Some(sentence) => assert!(found.iter().any(|message| message.contains(&sentence)), "{case}: {found:?}"),
        }
    }
}
