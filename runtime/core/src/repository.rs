//! The models of this process and their states: Loading → Ready → Unloading, or Failed.
//!
//! The service looks models up here; `serve` puts them in. A model's versions swap atomically: whoever holds a [`Version`] keeps it
//! until its answers are out. Invariant: a model is found by its exact name only, and only a Ready one is ever handed out.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use torchmodel_crds::Failure;

use crate::{
    inference::InferError,
    model_key::{ModelName, ModelVersion},
    version::Version,
};

/// What became of a model.
#[derive(Clone)]
pub enum ModelState {
    /// Its artifact is being fetched, loaded or warmed up.
    Loading,
    /// It answers.
    Ready(Arc<Version>),
    /// It never will, and why.
    Failed(Failure),
    /// It takes no more requests.
    Unloading,
}

/// Models by name.
#[derive(Default)]
pub struct ModelRepository {
    models: RwLock<BTreeMap<ModelName, ModelState>>,
}

impl ModelRepository {
    /// Sets a model's state.
    pub fn set(&self, name: &ModelName, state: ModelState) {
        self.models.write().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), state);
    }

    /// Every model's name and state.
    #[must_use]
    pub fn list(&self) -> Vec<(ModelName, ModelState)> {
        let models = self.models.read().unwrap_or_else(PoisonError::into_inner);
        models.iter().map(|(name, state)| (name.clone(), state.clone())).collect()
    }

    /// The model, if it is ready and has that version. Errors: `NotFound`, `NotReady`.
    pub fn get(&self, name: &ModelName, version: Option<ModelVersion>) -> Result<Arc<Version>, InferError> {
        let state = {
            let models = self.models.read().unwrap_or_else(PoisonError::into_inner);
            models.get(name).cloned()
        };
        let unknown = || InferError::NotFound(format!("Request for unknown model: '{name}' is not found"));
        let state = state.ok_or_else(unknown)?;
        if let Some(version) = version.filter(|version| *version != ModelVersion::FIRST) {
            return Err(InferError::NotFound(format!(
                "Request for unknown model: '{name}' version {version} is not found"
            )));
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
