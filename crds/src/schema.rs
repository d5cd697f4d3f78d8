//! What the CustomResourceDefinition says of a manifest, without an API server: every violation, with its path and what to do.
//!
//! The runtime refuses by it what `serve -f` is given; the operator an object that is older than a rule. Invariant: the schema is
//! the one that is installed, `torchmodels.yaml`, and what an API server refuses under strict validation is refused here too.

mod structure;

use std::{fmt, sync::LazyLock};

use kube_cel::{CompiledSchema, compile_schema, validate_compiled};
use serde_json::{Value, json};

use self::structure::Node;
use crate::{GROUP, KIND, VERSION};

/// The committed CustomResourceDefinition, which a test compares with the types.
const CRD: &str = include_str!("../torchmodels.yaml");

/// One thing that the schema refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Where, such as `spec.model.inputs[0].datatype`; empty for the whole document.
    pub path: String,
    /// What is wrong there and what to do about it. It never quotes a text that could be a secret.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() { f.write_str(&self.message) } else { write!(f, "{}: {}", self.path, self.message) }
    }
}

/// A schema, ready to check with: fields and values by [`Node`], the CEL rules by what kube itself runs them with.
struct Schema {
    structure: Node,
    rules: CompiledSchema,
}

/// A TorchModel manifest.
static MANIFEST: LazyLock<Schema> = LazyLock::new(|| Schema::of(manifest_schema()));
/// A model configuration: the keys `source` and `model` of a TorchModel's spec.
static CONFIGURATION: LazyLock<Schema> = LazyLock::new(|| {
    let spec = &manifest_schema()["properties"]["spec"]["properties"];
    Schema::of(json!({
        "type": "object",
        "properties": {"source": spec["source"], "model": spec["model"]},
        "required": ["source"],
    }))
});

impl Schema {
    fn of(schema: Value) -> Self {
        let rules = compile_schema(&schema);
        Self { structure: serde_json::from_value(schema).expect("the schema has known keywords only"), rules }
    }

    /// As on an API server, rules wait until fields and values are right.
    fn violations(&self, object: &Value) -> Vec<Violation> {
        let mut found = Vec::new();
        self.structure.check(object, "", &mut found);
        if !found.is_empty() {
            return found;
        }
        let broken = validate_compiled(&self.rules, object, None).err().into_iter().flatten();
        broken.map(|error| Violation { path: error.field_path, message: error.message }).collect()
    }
}

/// What is wrong with a TorchModel, as JSON; empty when nothing is. Its `status`, which the operator writes, is passed over.
///
/// # Panics
/// Never: the schema is a constant of the program, and a test reads it.
#[must_use]
pub fn violations(torchmodel: &Value) -> Vec<Violation> {
    MANIFEST.violations(torchmodel)
}

/// What is wrong with a model configuration: an object with the keys `source` and `model`, which mean what they mean in a
/// TorchModel's spec. In place of a volume it may name a file of this machine: a URI of another scheme than a TorchModel may have,
/// or of none, is left to whoever opens it.
///
/// # Panics
/// Never, for the same reason.
#[must_use]
pub fn configuration_violations(configuration: &Value) -> Vec<Violation> {
    let uri = configuration.pointer("/source/uri").and_then(Value::as_str);
    let is_remote = |uri: &str| ["s3://", "https://", "http://"].iter().any(|scheme| uri.starts_with(scheme));
    let has_volume = configuration.pointer("/source/volume").is_some();
    if uri.is_none_or(is_remote) || has_volume {
        return CONFIGURATION.violations(configuration);
    }
    let mut on_a_volume = configuration.clone();
    if let Some(source) = on_a_volume.pointer_mut("/source").and_then(Value::as_object_mut) {
        source.remove("uri");
        source.insert("volume".to_owned(), json!({"claimName": "this-machine", "path": "file"}));
    }
    CONFIGURATION.violations(&on_a_volume)
}

/// The schema of the CustomResourceDefinition with what it leaves to Kubernetes: kind, version and metadata.
fn manifest_schema() -> Value {
    let crd: Value = serde_yaml::from_str(CRD).expect("the committed CRD is YAML");
    let mut schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
    let anything = json!({"x-kubernetes-preserve-unknown-fields": true});
    let texts = json!({"type": "object", "additionalProperties": {"type": "string"}});
    schema["properties"]["apiVersion"] = json!({"type": "string", "enum": [format!("{GROUP}/{VERSION}")]});
    schema["properties"]["kind"] = json!({"type": "string", "enum": [KIND]});
    schema["properties"]["status"] = anything.clone();
    schema["properties"]["metadata"] = json!({
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"type": "string"},
            "namespace": {"type": "string"},
            "labels": texts,
            "annotations": texts,
            "creationTimestamp": anything,
            "deletionGracePeriodSeconds": anything,
            "deletionTimestamp": anything,
            "finalizers": anything,
            "generateName": anything,
            "generation": anything,
            "managedFields": anything,
            "ownerReferences": anything,
            "resourceVersion": anything,
            "selfLink": anything,
            "uid": anything,
        },
    });
    schema["required"] = json!(["apiVersion", "kind", "metadata", "spec"]);
    schema
}
