//! Requests, responses and errors: the only words between the protocols, the service and the scheduler.
//!
//! Both protocols decode into [`InferRequest`] and encode from [`InferResponse`]; neither decides what is valid for a model.
//! Invariant: [`InferError`] is the closed list of what a user can be told, mapped once per protocol.

use std::{collections::BTreeMap, time::Instant};

use crate::{
    model_key::{ModelName, ModelNameError, ModelVersion, ModelVersionError},
    outcome::Outcome,
    tensor::Tensor,
};

/// Value of a request or response parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Parameter {
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Int64(i64),
    /// A whole number beyond `i64`.
    Uint64(u64),
    /// A number.
    Double(f64),
    /// A text.
    String(String),
}

/// Parameters by name.
pub type Parameters = BTreeMap<String, Parameter>;

/// A tensor with the name that the protocol gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// Name of the input or output.
    pub name: String,
    /// Its value.
    pub tensor: Tensor,
}

/// One inference, as a client asked for it.
#[derive(Clone, Debug, PartialEq)]
pub struct InferRequest {
    /// Name of the model.
    pub model: ModelName,
    /// Version asked for; `None` for the newest that is ready.
    pub version: Option<ModelVersion>,
    /// The client's own id, echoed; empty for none.
    pub id: String,
    /// Inputs in the client's order; a name stands once.
    pub inputs: Vec<NamedTensor>,
    /// Names of the outputs asked for, in the order wanted; empty for all.
    pub outputs: Vec<String>,
    /// Parameters that the protocol layer did not use up.
    pub parameters: Parameters,
    /// The instant after which nobody waits for the answer.
    pub deadline: Option<Instant>,
}

impl InferRequest {
    /// Bytes of the inputs' data.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.inputs.iter().map(|input| input.tensor.content().size_bytes()).sum()
    }
}

/// The answer to an [`InferRequest`].
#[derive(Clone, Debug, PartialEq)]
pub struct InferResponse {
    /// Name of the model that answered.
    pub model: ModelName,
    /// Its version.
    pub version: ModelVersion,
    /// The request's id.
    pub id: String,
    /// Outputs, in the order that the request asked for.
    pub outputs: Vec<NamedTensor>,
    /// Parameters of the response.
    pub parameters: Parameters,
}

/// What a client can be told went wrong. The texts are whole sentences for users.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InferError {
    /// No such model or version: 404, `NOT_FOUND`.
    #[error("{0}")]
    NotFound(String),
    /// The request contradicts the protocol or the model's signature: 400, `INVALID_ARGUMENT`.
    #[error("{0}")]
    InvalidRequest(String),
    /// The model is loading or has failed to load: 503, UNAVAILABLE.
    #[error("{0}")]
    NotReady(String),
    /// The queue is full: 503 with Retry-After, UNAVAILABLE.
    #[error("{0}")]
    Overloaded(String),
    /// The deadline passed before an answer was there: 504, `DEADLINE_EXCEEDED`.
    #[error("{0}")]
    DeadlineExceeded(String),
    /// Legal, but not something this server does: 501, UNIMPLEMENTED.
    #[error("{0}")]
    Unsupported(String),
    /// The server's or the model's fault: 500, INTERNAL.
    #[error("{0}")]
    Internal(String),
}

impl InferError {
    /// How a request that failed for this ended.
    #[must_use]
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::NotFound(_) => Outcome::NotFound,
            Self::InvalidRequest(_) => Outcome::InvalidRequest,
            Self::NotReady(_) => Outcome::NotReady,
            Self::Overloaded(_) => Outcome::Overloaded,
            Self::DeadlineExceeded(_) => Outcome::DeadlineExceeded,
            Self::Unsupported(_) => Outcome::Unsupported,
            Self::Internal(_) => Outcome::Internal,
        }
    }
}

impl From<ModelNameError> for InferError {
    /// A name that no model can have is one that is not served.
    fn from(ModelNameError(name): ModelNameError) -> Self {
        Self::NotFound(format!("Request for unknown model: '{name}' is not found"))
    }
}

impl From<ModelVersionError> for InferError {
    fn from(error: ModelVersionError) -> Self {
        Self::InvalidRequest(error.to_string())
    }
}
