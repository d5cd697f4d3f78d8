//! What both protocols call: health, metadata and inference, with one set of checks for REST and gRPC.
//!
//! Invariant: nothing here knows a protocol; a fault is an [`InferError`] and each protocol maps it once.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crate::{
    configuration::ModelConfiguration,
    inference::{InferError, InferRequest, InferResponse},
    metadata::{ModelMetadata, ServerMetadata},
    model_key::{ModelName, ModelVersion},
    repository::{IndexEntry, ModelRepository},
    statistics::ModelStatistics,
};

/// The protocol extensions that are served whole. Of `model_repository` only the index is, so it is not among them.
const EXTENSIONS: [&str; 4] = ["binary_tensor_data", "parameters", "statistics", "model_configuration"];

/// The server's one set of operations, cheap to clone.
#[derive(Clone)]
pub struct InferenceService {
    repository: Arc<ModelRepository>,
    health: Arc<Health>,
}

#[derive(Default)]
struct Health {
    is_draining: AtomicBool,
    is_dead: AtomicBool,
}

impl InferenceService {
    /// Serves the models of `repository`.
    #[must_use]
    pub fn new(repository: Arc<ModelRepository>) -> Self {
        Self { repository, health: Arc::default() }
    }

    /// From now on not ready, so that no new traffic is sent here; requests are still answered.
    pub fn start_draining(&self) {
        self.health.is_draining.store(true, Ordering::Release);
    }

    /// Whether no new traffic should come here.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.health.is_draining.load(Ordering::Acquire)
    }

    /// From now on not live: the process can only be restarted.
    pub fn set_dead(&self) {
        self.health.is_dead.store(true, Ordering::Release);
    }

    /// Whether the process works at all.
    #[must_use]
    pub fn is_live(&self) -> bool {
        !self.health.is_dead.load(Ordering::Acquire)
    }

    /// `Ok` when every model that was asked for at the start answers and the server is not draining, else the reason. A model that is swapped
    /// answers all the time.
    pub fn readiness(&self) -> Result<(), String> {
        if !self.is_live() {
            return Err("the server failed and waits to be restarted".into());
        }
        if self.is_draining() {
            return Err("the server is draining".into());
        }
        self.repository.readiness()
    }

    /// Facts about the server.
    #[must_use]
    pub fn server_metadata(&self) -> ServerMetadata {
        ServerMetadata {
            name: "torchmodel-runtime".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            extensions: EXTENSIONS.map(str::to_owned).into(),
        }
    }

    /// Names of the models that this server knows, ready or not.
    #[must_use]
    pub fn model_names(&self) -> Vec<ModelName> {
        let mut names: Vec<_> = self.repository.index().into_iter().map(|entry| entry.key.name).collect();
        names.dedup();
        names
    }

    /// `Ok` when this model (and version) is ready and the server is not draining; `NotFound` or `NotReady` otherwise.
    pub fn model_readiness(&self, model: &ModelName, version: Option<ModelVersion>) -> Result<(), InferError> {
        self.repository.get(model, version)?;
        if self.is_draining() { Err(InferError::NotReady("the server is draining".into())) } else { Ok(()) }
    }

    /// Facts about a model. Errors: `NotFound` or `NotReady`.
    pub fn model_metadata(
        &self,
        model: &ModelName,
        version: Option<ModelVersion>,
    ) -> Result<ModelMetadata, InferError> {
        let mut metadata = self.repository.get(model, version)?.metadata();
        metadata.versions = self.repository.ready_versions(model).iter().map(|version| version.key().version).collect();
        Ok(metadata)
    }

    /// How a version is served. Errors: `NotFound` or `NotReady`.
    pub fn model_configuration(
        &self,
        model: &ModelName,
        version: Option<ModelVersion>,
    ) -> Result<ModelConfiguration, InferError> {
        Ok(self.repository.get(model, version)?.configuration())
    }

    /// What the ready versions have done: all of them, those of one model, or one. Errors: `NotFound` or `NotReady` for a model or
    /// version that was asked for.
    pub fn statistics(
        &self,
        model: Option<&ModelName>,
        version: Option<ModelVersion>,
    ) -> Result<Vec<ModelStatistics>, InferError> {
        let versions = match (model, version) {
            (None, _) => self.model_names().iter().flat_map(|name| self.repository.ready_versions(name)).collect(),
            (Some(model), Some(_)) => vec![self.repository.get(model, version)?],
            (Some(model), None) => {
                // For its error.
                self.repository.get(model, None)?;
                self.repository.ready_versions(model)
            }
        };
        Ok(versions.iter().map(|version| version.statistics()).collect())
    }

    /// Every version that is known, and what became of it.
    #[must_use]
    pub fn repository_index(&self) -> Vec<IndexEntry> {
        self.repository.index()
    }

    /// Checks the request against the model's signature, queues it and waits for the answer or the deadline.
    pub async fn infer(&self, request: InferRequest) -> Result<InferResponse, InferError> {
        let version = self.repository.get(&request.model, request.version)?;
        version.infer(request).await
    }
}
