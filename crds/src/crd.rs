//! The CustomResourceDefinition, from the types.
//!
//! `cargo run -p torchmodel-crds --bin crd` prints it; `make generate` writes it to the repository and the chart. Invariant: no
//! field is `nullable`, so the API server drops an explicit null before any rule runs and `has()` means what it says.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;
use serde_json::Value;

use crate::TorchModel;

/// The CustomResourceDefinition of [`TorchModel`].
///
/// # Panics
/// Never: the schema is a constant of the program, and a test builds it.
#[must_use]
pub fn crd() -> CustomResourceDefinition {
    let mut value = serde_json::to_value(TorchModel::crd()).expect("the derived CRD is JSON");
    strip_nullable(&mut value);
    serde_json::from_value(value).expect("a CRD without `nullable` is still a CRD")
}

/// The same as YAML, with a first line that says where it comes from.
///
/// # Panics
/// Never, for the same reason.
#[must_use]
pub fn crd_yaml() -> String {
    let yaml = serde_yaml::to_string(&crd()).expect("the derived CRD is YAML");
    format!("# Generated from crds/src by `make generate`; do not edit.\n{yaml}")
}

fn strip_nullable(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.get("nullable") == Some(&Value::Bool(true)) {
                map.remove("nullable");
            }
            map.values_mut().for_each(strip_nullable);
        }
        Value::Array(items) => items.iter_mut().for_each(strip_nullable),
        _ => {}
    }
}
