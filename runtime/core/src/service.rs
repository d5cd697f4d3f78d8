//! What both protocols call: health, metadata and inference, with one set of checks for REST and gRPC.
//!
//! Invariant: nothing here knows a protocol; a fault is an [`InferError`] and each protocol maps it once.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crate::{
    inference::{InferError, InferRequest, InferResponse},
    metadata::{ModelMetadata, ServerMetadata},
    model_key::{ModelName, ModelVersion},
    repository::{ModelRepository, ModelState},
};

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

    /// `Ok` when every model is loaded and warmed up and the server is not draining, else the reason.
    pub fn readiness(&self) -> Result<(), String> {
        if !self.is_live() {
            return Err("the server failed and waits to be restarted".into());
        }
        if self.is_draining() {
            return Err("the server is draining".into());
        }
        let models = self.repository.list();
        if models.is_empty() {
            return Err("no model is loaded yet".into());
        }
        for (name, state) in models {
            match state {
                ModelState::Ready(_) => {}
                ModelState::Loading => return Err(format!("model '{name}' is loading")),
                ModelState::Failed(failure) => return Err(format!("model '{name}' failed: {}", failure.reason)),
                ModelState::Unloading => return Err(format!("model '{name}' is being unloaded")),
            }
        }
        Ok(())
    }

    /// Facts about the server.
    #[must_use]
    pub fn server_metadata(&self) -> ServerMetadata {
        ServerMetadata {
            name: "torchmodel-runtime".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            extensions: vec!["binary_tensor_data".into(), "parameters".into()],
        }
    }

    /// Names of the models that this server knows, ready or not.
    #[must_use]
    pub fn model_names(&self) -> Vec<ModelName> {
        self.repository.list().into_iter().map(|(name, _)| name).collect()
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
        Ok(self.repository.get(model, version)?.metadata())
    }

    /// Checks the request against the model's signature, queues it and waits for the answer or the deadline.
    pub async fn infer(&self, request: InferRequest) -> Result<InferResponse, InferError> {
        let model = self.repository.get(&request.model, request.version)?;
        model.infer(request).await
    }
}
