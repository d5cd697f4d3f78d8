//! The TorchModel API: the types that people write, that the operator reconciles and that the runtime reads.
//!
//! `torchmodels.yaml` beside this crate is generated from these types (`make generate`) and checked by a test. A field exists
//! here only when something acts on it; its doc comment is what `kubectl explain` shows.
//!
//! Invariant: [`ModelSource`] and [`ModelSpec`] are the only description of a model, for the cluster and for a laptop alike.

#![expect(clippy::doc_markdown, reason = "`kubectl explain` shows these comments, where backticks would only be noise")]

mod crd;
mod duration;
mod failure;
mod model;
mod quantity;
#[cfg(feature = "cel")]
mod rules;
mod spec;
mod status;

pub use crd::{chart_yaml, crd, crd_yaml};
pub use duration::{Duration, ParseDurationError};
pub use failure::{Failure, FailurePhase, FailureReason};
pub use model::{
    BatchingSpec, DataType, LimitsSpec, ModelSource, ModelSpec, OptimizeSpec, S3Spec, SecretReference, TensorSpec,
    VolumeSource, WarmupInput, WarmupSpec,
};
#[cfg(feature = "cel")]
pub use rules::violations;
pub use spec::{AcceleratorSpec, DrainSpec, RolloutSpec, RuntimeSpec, TorchModel, TorchModelSpec};
pub use status::{ArtifactStatus, EndpointsStatus, LastFailure, TorchModelStatus};

/// API group of every kind defined here.
pub const GROUP: &str = "serving.torchmodel.dev";
/// Served version of the API.
pub const VERSION: &str = "v1alpha1";
/// Label that every child of a TorchModel carries; its value is the TorchModel's name.
pub const MODEL_LABEL: &str = "serving.torchmodel.dev/model";
