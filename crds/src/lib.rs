//! The TorchModel API: the types that people write, that the operator reconciles and that the runtime reads.
//!
//! `torchmodels.yaml` beside this crate is generated from these types (`make generate`) and checked by a test. A field exists
//! here only when something acts on it; its doc comment is what `kubectl explain` shows.
//!
//! Invariant: [`ModelSource`] and [`ModelSpec`] are the only description of a model, for the cluster and for a laptop alike. They
//! know nothing of Kubernetes: what does is behind the feature `kubernetes`. The feature `schema` checks a manifest as an API server
//! would.

#![cfg_attr(
    any(feature = "kubernetes", feature = "schema"),
    expect(
        clippy::doc_markdown,
        reason = "`kubectl explain` shows these comments, where backticks would only be noise"
    )
)]

#[cfg(feature = "kubernetes")]
mod crd;
mod duration;
mod failure;
mod model;
#[cfg(feature = "kubernetes")]
mod quantity;
mod redact;
#[cfg(feature = "schema")]
pub mod schema;
#[cfg(feature = "kubernetes")]
mod spec;
#[cfg(feature = "kubernetes")]
mod status;

#[cfg(feature = "kubernetes")]
pub use crd::{chart_yaml, crd, crd_yaml};
pub use duration::{Duration, ParseDurationError};
pub use failure::{Failure, FailurePhase, FailureReason};
pub use model::{
    BatchingSpec, DataType, LimitsSpec, ModelSource, ModelSpec, OptimizeSpec, S3Spec, SecretReference, TensorSpec,
    VolumeSource, WarmupInput, WarmupSpec,
};
pub use redact::{redact_uri, redact_uris};
#[cfg(feature = "kubernetes")]
pub use spec::{AcceleratorSpec, DrainSpec, RolloutSpec, RuntimeSpec, TorchModel, TorchModelSpec};
#[cfg(feature = "kubernetes")]
pub use status::{ArtifactStatus, EndpointsStatus, LastFailure, TorchModelStatus};

/// The kind that is defined here.
pub const KIND: &str = "TorchModel";
/// API group of every kind defined here.
pub const GROUP: &str = "serving.torchmodel.dev";
/// Served version of the API.
pub const VERSION: &str = "v1alpha1";
/// Label that every child of a TorchModel carries; its value is the TorchModel's name.
pub const MODEL_LABEL: &str = "serving.torchmodel.dev/model";
/// What Kubernetes accepts as a quantity, as a regular expression, so that a mistake is refused when the TorchModel is applied.
pub const QUANTITY_PATTERN: &str = r"^(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE][+-]?[0-9]+))?$";
