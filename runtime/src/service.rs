//! What both protocols call: health, metadata and inference, with one set of checks for REST and gRPC.

use std::sync::Arc;

use crate::{
    inference::{InferError, InferRequest, InferResponse, ModelMetadata, ServerMetadata},
    repository::ModelRepository,
};

/// The server's one operation set, cheap to clone.
#[derive(Clone)]
pub struct InferenceService {
    repository: Arc<ModelRepository>,
}

impl InferenceService {
    /// Whether the process works at all.
    #[must_use]
    pub fn is_live(&self) -> bool {
        todo!()
    }

    /// `Ok` when every model is loaded and warmed up and the server is not draining, else the reason.
    pub fn readiness(&self) -> Result<(), String> {
        todo!()
    }

    /// Facts about the server.
    #[must_use]
    pub fn server_metadata(&self) -> ServerMetadata {
        todo!()
    }

    /// Names of the models that this server knows.
    #[must_use]
    pub fn model_names(&self) -> Vec<String> {
        todo!()
    }

    /// `Ok` when this model (and version) is ready; `NotFound` or `NotReady` otherwise.
    pub fn model_readiness(&self, _model: &str, _version: Option<&str>) -> Result<(), InferError> {
        todo!()
    }

    /// Facts about a model.
    pub fn model_metadata(&self, _model: &str, _version: Option<&str>) -> Result<ModelMetadata, InferError> {
        todo!()
    }

    /// Checks the request against the model's signature, queues it and waits for the answer or the deadline.
    pub async fn infer(&self, _request: InferRequest) -> Result<InferResponse, InferError> {
        todo!()
    }
}
