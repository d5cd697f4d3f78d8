//! Third step: the children that a validated model needs, one file each.
//!
//! Pure: the same model gives the same children, byte for byte, whatever the cluster holds. Invariant: a pod template depends on
//! the manifest and the operator's flags only, so an upgrade of the operator restarts no pod.

mod config_map;
mod deployment;
mod pod;
mod service;
mod service_account;

use std::{collections::BTreeMap, marker::PhantomData};

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Service, ServiceAccount},
};
use kube::core::ObjectMeta;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use torchmodel_crds::MODEL_LABEL;

use super::validate::{ServiceAccountChoice, ValidatedModel};
use crate::FIELD_MANAGER;

/// Label of a revision's objects: the hash of its model configuration.
pub const REVISION_LABEL: &str = "serving.torchmodel.dev/revision";
/// Label of a pod: the hash of the template that it was made from.
pub const TEMPLATE_LABEL: &str = "serving.torchmodel.dev/pod-template";
/// Name of the container that serves.
pub const CONTAINER: &str = "runtime";
/// Port of REST.
pub const HTTP_PORT: i32 = 8080;
/// Port of gRPC.
pub const GRPC_PORT: i32 = 8081;
/// Port of metrics.
pub const METRICS_PORT: i32 = 8082;

/// Children that are described but not yet written.
#[derive(Clone, Copy, Debug)]
pub enum Prepared {}
/// Children as the API server holds them.
#[derive(Clone, Copy, Debug)]
pub enum Applied {}

/// Every child of a TorchModel.
#[derive(Clone, Debug)]
pub struct Children<Stage> {
    /// Identity of the pods; absent when the manifest names one.
    pub service_account: Option<ServiceAccount>,
    /// The desired revision: what the runtime reads.
    pub config_map: ConfigMap,
    /// The address.
    pub service: Service,
    /// The pods.
    pub deployment: Deployment,
    /// Whether they were written.
    pub stage: PhantomData<Stage>,
}

/// A child could not be described.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model configuration has no text form.
    #[error("writing the model configuration as YAML")]
    Yaml(#[source] serde_yaml::Error),
    /// A child has no JSON form.
    #[error("writing a child as JSON")]
    Json(#[source] serde_json::Error),
}

/// Describes every child.
pub fn build(model: &ValidatedModel) -> Result<Children<Prepared>, Error> {
    let config_map = config_map::build_config_map(model)?;
    Ok(Children {
        service_account: match model.service_account {
            ServiceAccountChoice::Own => Some(service_account::build_service_account(model)),
            ServiceAccountChoice::Named(_) => None,
        },
        service: service::build_service(model),
        deployment: deployment::build_deployment(model, &config_map)?,
        config_map,
        stage: PhantomData,
    })
}

/// Labels of every child and pod.
fn labels(model: &ValidatedModel) -> BTreeMap<String, String> {
    [
        (MODEL_LABEL, model.name.as_str()),
        ("app.kubernetes.io/name", "torchmodel-runtime"),
        ("app.kubernetes.io/instance", model.name.as_str()),
        ("app.kubernetes.io/component", "model-server"),
        ("app.kubernetes.io/part-of", "torchmodel"),
        ("app.kubernetes.io/managed-by", FIELD_MANAGER),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

/// Labels that select a model's pods.
fn selector(model: &ValidatedModel) -> BTreeMap<String, String> {
    BTreeMap::from([(MODEL_LABEL.to_owned(), model.name.clone())])
}

/// Metadata of a child.
fn metadata(model: &ValidatedModel, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(model.namespace.clone()),
        labels: Some(labels(model)),
        owner_references: Some(vec![model.owner.clone()]),
        ..ObjectMeta::default()
    }
}

/// Name of the ServiceAccount of the pods.
fn service_account_name(model: &ValidatedModel) -> &str {
    match &model.service_account {
        ServiceAccountChoice::Own => &model.name,
        ServiceAccountChoice::Named(name) => name,
    }
}

/// SHA-256 of the value's JSON with sorted keys, 64 hexadecimal digits: it does not depend on the order in which a library
/// writes fields.
pub fn content_hash<T: Serialize>(content: &T) -> Result<String, Error> {
    let mut value = serde_json::to_value(content).map_err(Error::Json)?;
    value.sort_all_objects();
    Ok(hex::encode(Sha256::digest(value_text(&value).as_bytes())))
}

/// The first ten digits, as names and labels show it.
pub fn short(hash: &str) -> &str {
    hash.get(..10).unwrap_or(hash)
}

fn value_text(value: &Value) -> String {
    value.to_string()
}

#[cfg(test)]
mod tests;
