//! The CRD's own rules, run in-process: what the API server would say to this object, without one.
//!
//! Used by the operator, since an object may be older than a rule, and by tests. Invariant: the rules are those of [`crd`], read
//! from the very schema that is installed.

use std::sync::LazyLock;

use kube::core::cel::{CompiledSchema, compile_schema, validate_compiled};

use crate::{TorchModel, crd};

static SCHEMA: LazyLock<Option<CompiledSchema>> = LazyLock::new(|| {
    let crd = crd();
    let schema = crd.spec.versions.into_iter().next()?.schema?.open_api_v3_schema?;
    Some(compile_schema(&serde_json::to_value(schema).ok()?))
});

/// The sentences of the rules that `model` breaks; empty when it breaks none.
#[must_use]
pub fn violations(model: &TorchModel) -> Vec<String> {
    let Some(schema) = SCHEMA.as_ref() else { return vec!["the CRD has no schema".to_owned()] };
    let Ok(object) = serde_json::to_value(model) else { return vec!["the object is not JSON".to_owned()] };
    match validate_compiled(schema, &object, None) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.into_vec().into_iter().map(|error| error.message).collect(),
    }
}
