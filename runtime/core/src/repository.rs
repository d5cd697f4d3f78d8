//! The models of this process and their states: Loading → Ready → Unloading, or Failed.
//!
//! The service looks models up here; `serve` puts them in. A model's versions swap atomically: whoever holds a [`Model`] keeps it
//! until its answers are out. Invariant: a model is found by its exact name only, and only a Ready one is ever handed out.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use torchmodel_crds::Failure;

use crate::{inference::InferError, model::Model};

/// What became of a model.
#[derive(Clone)]
pub enum ModelState {
    /// Its artifact is being fetched, loaded or warmed up.
    Loading,
    /// It answers.
    Ready(Arc<Model>),
    /// It never will, and why.
    Failed(Failure),
    /// It takes no more requests.
    Unloading,
}

/// Models by name.
#[derive(Default)]
pub struct ModelRepository {
    models: RwLock<BTreeMap<String, ModelState>>,
}

impl ModelRepository {
    /// Sets a model's state.
    pub fn set(&self, name: &str, state: ModelState) {
        self.models.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), state);
    }

    /// Every model's name and state.
    #[must_use]
    pub fn list(&self) -> Vec<(String, ModelState)> {
        let models = self.models.read().unwrap_or_else(PoisonError::into_inner);
        models.iter().map(|(name, state)| (name.clone(), state.clone())).collect()
    }

    /// The model, if it is ready and has that version. Errors: `NotFound`, `NotReady`, `InvalidRequest` for a version that is not
    /// a number above zero.
    pub fn get(&self, name: &str, version: Option<&str>) -> Result<Arc<Model>, InferError> {
        let state = {
            let models = self.models.read().unwrap_or_else(PoisonError::into_inner);
            models.get(name).cloned()
        };
        let unknown = || InferError::NotFound(format!("Request for unknown model: '{name}' is not found"));
        let state = state.ok_or_else(unknown)?;
        let version = version.filter(|version| !version.is_empty());
        if let Some(version) = version {
            check_version(name, version)?;
        }
        match state {
            ModelState::Ready(model) => Ok(model),
            ModelState::Loading => Err(InferError::NotReady(format!("model '{name}' is loading; try again later"))),
            ModelState::Failed(failure) => Err(InferError::NotReady(format!(
                "model '{name}' failed to load: {}: {}",
                failure.reason, failure.message
            ))),
            ModelState::Unloading => Err(InferError::NotReady(format!("model '{name}' is being unloaded"))),
        }
    }
}

/// The one version that a TorchModel has.
pub const VERSION: &str = "1";

fn check_version(name: &str, version: &str) -> Result<(), InferError> {
    let is_number =
        version.bytes().all(|byte| byte.is_ascii_digit()) && version.parse::<i64>().is_ok_and(|number| number > 0);
    if !is_number {
        return Err(InferError::InvalidRequest(format!(
            "failed to get model version from specified version string '{version}': it should be an integral value > 0"
        )));
    }
    if version == VERSION {
        return Ok(());
    }
    Err(InferError::NotFound(format!("Request for unknown model: '{name}' version {version} is not found")))
}
