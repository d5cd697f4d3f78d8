//! The pods of a model: a Deployment that starts a new pod and waits until it is ready before it stops an old one.

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        core::v1::ConfigMap,
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use kube::ResourceExt as _;

use super::{Error, TEMPLATE_LABEL, content_hash, metadata, pod::build_pod_template, selector, short};
use crate::controller::validate::ValidatedModel;

/// Old templates kept: the desired one and the one before.
const REVISION_HISTORY: i32 = 2;

/// A Deployment of the model's name, whose pods read `config_map`.
pub fn build_deployment(model: &ValidatedModel, config_map: &ConfigMap) -> Result<Deployment, Error> {
    let mut template = build_pod_template(model, &config_map.name_any());
    let hash = content_hash(&template)?;
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(TEMPLATE_LABEL.to_owned(), short(&hash).to_owned());
    Ok(Deployment {
        metadata: metadata(model, &model.name),
        spec: Some(DeploymentSpec {
            replicas: Some(model.replicas),
            selector: LabelSelector { match_labels: Some(selector(model)), ..LabelSelector::default() },
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::Int(1)),
                    max_unavailable: Some(IntOrString::Int(0)),
                }),
            }),
            progress_deadline_seconds: Some(model.progress_deadline_s),
            revision_history_limit: Some(REVISION_HISTORY),
            template,
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    })
}
