//! The CustomResourceDefinition, from the types.
//!
//! `cargo run -p torchmodel-crds --bin crd` prints it; `make generate` writes it to the repository and the chart. Invariants: no
//! field is `nullable`, so the API server refuses an explicit null and `has()` means what it says; the types
//! that Kubernetes itself defines carry no descriptions, so the whole stays small.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;
use serde_json::Value;

use crate::{QUANTITY_PATTERN, TorchModel};

/// First line of every generated file.
const HEADER: &str = "# Generated from crds/src by `make generate`; do not edit.\n";
/// Formats that the API server knows; it warns at every `kubectl apply` about any other.
const FORMATS: [&str; 3] = ["int32", "int64", "date-time"];
/// Fields whose types are Kubernetes' own: `kubectl explain pod.spec.containers` describes what is below.
const KUBERNETES_TYPES: [&str; 2] = ["/spec/resources", "/spec/runtime/env"];

/// The CustomResourceDefinition of [`TorchModel`].
///
/// # Panics
/// Never: the schema is a constant of the program, and a test builds it.
#[must_use]
pub fn crd() -> CustomResourceDefinition {
    let mut value = serde_json::to_value(TorchModel::crd()).expect("the derived CRD is JSON");
    strip(&mut value);
    for field in KUBERNETES_TYPES {
        let path = field.replace('/', "/properties/");
        if let Some(schema) = value.pointer_mut(&format!("/spec/versions/0/schema/openAPIV3Schema{path}")) {
            let description = schema.get("description").cloned();
            strip_descriptions(schema);
            if let (Some(description), Some(schema)) = (description, schema.as_object_mut()) {
                schema.insert("description".to_owned(), description);
            }
        }
    }
    for field in ["limits", "requests"] {
        let path =
            format!("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/resources/properties/{field}");
        if let Some(quantity) =
            value.pointer_mut(&format!("{path}/additionalProperties")).and_then(Value::as_object_mut)
        {
            quantity.insert("pattern".to_owned(), QUANTITY_PATTERN.into());
        }
    }
    serde_json::from_value(value).expect("a CRD without `nullable` is still a CRD")
}

/// The same as YAML, with a first line that says where it comes from.
///
/// # Panics
/// Never, for the same reason.
#[must_use]
pub fn crd_yaml() -> String {
    let yaml = serde_yaml::to_string(&crd()).expect("the derived CRD is YAML");
    format!("{HEADER}{yaml}")
}

/// The same as a template of the Helm chart, which the values `crds.enabled` and `crds.keep` govern.
#[must_use]
pub fn chart_yaml() -> String {
    let yaml = crd_yaml();
    let yaml = yaml.strip_prefix(HEADER).unwrap_or(&yaml).replacen(
        "metadata:\n",
        "metadata:\n  labels:\n    {{- include \"torchmodel.labels\" . | nindent 4 }}\n  {{- if .Values.crds.keep }}\n  annotations:\n    helm.sh/resource-policy: keep\n  {{- end }}\n",
        1,
    );
    format!("{HEADER}{{{{- if .Values.crds.enabled }}}}\n{yaml}{{{{- end }}}}\n")
}

/// Removes `nullable` and the formats that only Rust knows.
fn strip(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, value| match (key.as_str(), &*value) {
                ("nullable", Value::Bool(_)) => false,
                ("format", Value::String(format)) => FORMATS.contains(&format.as_str()),
                _ => true,
            });
            map.values_mut().for_each(strip);
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}

/// Removes every description that is a text; a property of that name is a schema and stays.
fn strip_descriptions(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.get("description").is_some_and(Value::is_string) {
                map.remove("description");
            }
            map.values_mut().for_each(strip_descriptions);
        }
        Value::Array(items) => items.iter_mut().for_each(strip_descriptions),
        _ => {}
    }
}
