//! Requests, responses and errors: the only words between the protocols, the service and the scheduler.
//!
//! Both protocols decode into [`InferRequest`] and encode from [`InferResponse`]; neither decides what is valid for a model.
//! Invariant: [`InferError`] is the closed list of what a user can be told, mapped once per protocol.

use std::{collections::BTreeMap, time::Instant};

use crate::tensor::{DataType, Tensor};

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
    pub model: String,
    /// Version asked for; `None` for the newest.
    pub version: Option<String>,
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

/// The answer to an [`InferRequest`].
#[derive(Clone, Debug, PartialEq)]
pub struct InferResponse {
    /// Name of the model that answered.
    pub model: String,
    /// Its version.
    pub version: String,
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
    /// A word from a closed list, for metrics.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "not_found",
            Self::InvalidRequest(_) => "invalid_request",
            Self::NotReady(_) => "not_ready",
            Self::Overloaded(_) => "overloaded",
            Self::DeadlineExceeded(_) => "deadline_exceeded",
            Self::Unsupported(_) => "unsupported",
            Self::Internal(_) => "internal",
        }
    }
}

/// What the protocol tells about one input or output of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMetadata {
    /// Its name.
    pub name: String,
    /// Its datatype; `None` where any is taken or nobody knows before the first inference.
    pub datatype: Option<DataType>,
    /// Its whole shape, -1 for any size; `None` where any number of dimensions is taken.
    pub shape: Option<Vec<i64>>,
    /// Whether a request may leave it out.
    pub is_optional: bool,
}

/// What the protocol tells about a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelMetadata {
    /// Name of the model.
    pub name: String,
    /// Versions that are served.
    pub versions: Vec<String>,
    /// `pytorch_torchscript`, by the Open Inference Protocol's list.
    pub platform: String,
    /// Inputs, in the method's order.
    pub inputs: Vec<TensorMetadata>,
    /// Outputs, in the method's order.
    pub outputs: Vec<TensorMetadata>,
    /// More facts, such as `stateful: true`; gRPC's `properties`, REST's `properties`.
    pub properties: BTreeMap<String, String>,
}

/// What the protocol tells about the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerMetadata {
    /// Name of the server.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Protocol extensions that it serves.
    pub extensions: Vec<String>,
}
