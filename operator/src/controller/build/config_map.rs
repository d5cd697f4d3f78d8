//! One revision of the model: an immutable ConfigMap with the file that the runtime reads.
//!
//! Its name ends with the hash of its content, so a changed model is a new ConfigMap and a rollout, and a model that is changed
//! back is the old one. Old revisions are deleted by `apply` once no pod needs them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use serde::Serialize;
use torchmodel_crds::{ModelSource, ModelSpec};

use super::{Error, REVISION_LABEL, content_hash, metadata, short};
use crate::controller::validate::ValidatedModel;

/// Name of the file.
pub const KEY: &str = "model.yaml";

/// A model configuration: the keys of a TorchModel's spec that the runtime reads.
#[derive(Serialize)]
struct ModelConfiguration<'a> {
    source: &'a ModelSource,
    model: &'a ModelSpec,
}

/// The revision that is desired.
pub fn build_config_map(model: &ValidatedModel) -> Result<ConfigMap, Error> {
    let configuration = ModelConfiguration { source: &model.source, model: &model.model };
    let hash = content_hash(&configuration)?;
    let text = serde_yaml::to_string(&configuration).map_err(Error::Yaml)?;
    let mut metadata = metadata(model, &format!("{}-{}", model.name, short(&hash)));
    metadata.labels.get_or_insert_default().insert(REVISION_LABEL.to_owned(), short(&hash).to_owned());
    Ok(ConfigMap {
        metadata,
        immutable: Some(true),
        data: Some(BTreeMap::from([(KEY.to_owned(), text)])),
        ..ConfigMap::default()
    })
}
