//! The TorchModel kind: what a person writes under `spec`.
//!
//! The operator's `validate` step is the only reader. Invariant: everything but `source` may be left out, and each field's
//! doc comment says what happens then.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{EnvVar, ResourceRequirements};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Duration, ModelSource, ModelSpec, TorchModelStatus, quantity};

/// A TorchScript model, served over the Open Inference Protocol.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[kube(
    group = "serving.torchmodel.dev",
    version = "v1alpha1",
    kind = "TorchModel",
    plural = "torchmodels",
    singular = "torchmodel",
    shortname = "tm",
    category = "all",
    namespaced,
    doc = "A TorchScript model, served over the Open Inference Protocol (REST and gRPC) by pods that fetch, verify, load and warm it up before they take requests.",
    status = "TorchModelStatus",
    derive = "PartialEq",
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$')").message("metadata.name must be at most 63 lower-case letters, digits and '-', begin with a letter and not end with '-': the model's Service takes this name"),
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Replicas", type_ = "string", json_path = ".status.replicasSummary", description = "ready/desired"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Digest", type_ = "string", json_path = ".status.artifact.digest", priority = 1),
    printcolumn(name = "URL", type_ = "string", json_path = ".status.url", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1)
)]
pub struct TorchModelSpec {
    /// Where the model's artifact comes from.
    pub source: ModelSource,
    /// How the model is called and served. Left out: everything is derived from the TorchScript archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelSpec>,
    /// The container that serves. Left out: the operator's default image, one for CPU and one for CUDA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<RuntimeSpec>,
    /// Resources of the container, without accelerators. Left out: none are requested.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "quantity::resources")]
    pub resources: Option<ResourceRequirements>,
    /// Accelerators for each pod. Left out: the model runs on the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<AcceleratorSpec>,
    /// Number of pods. Default: 1. `kubectl scale` and a HorizontalPodAutoscaler write it through the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10000))]
    pub replicas: Option<i32>,
    /// How a changed model replaces the running one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutSpec>,
    /// How a pod stops.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainSpec>,
    /// ServiceAccount of the pods. Left out: one of the TorchModel's own name, without any permission, is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: Option<String>,
}

/// The container that serves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RuntimeSpec {
    /// Image. Left out: the operator's default for CPU or CUDA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub image: Option<String>,
    /// More arguments for `torchmodel-runtime serve`, after the operator's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub args: Vec<String>,
    /// More environment variables; one set here wins over the operator's of the same name.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "quantity::environment")]
    #[schemars(length(max = 256))]
    pub env: Vec<EnvVar>,
}

/// Accelerators for each pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.resource) || self.resource.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$')").message("accelerator.resource must be an extended resource with its domain, such as nvidia.com/gpu"),
)]
pub struct AcceleratorSpec {
    /// Number of devices for each pod. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub count: Option<u32>,
    /// Name of the extended resource. Default: `nvidia.com/gpu`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub resource: Option<String>,
    /// Labels that a node must have, such as `nvidia.com/gpu.product: NVIDIA-L4`. Left out: any node with the resource.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub node_selector: BTreeMap<String, String>,
}

/// How a changed model replaces the running one: a new pod must be ready before an old one stops.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.progressDeadline) || (duration(self.progressDeadline) >= duration('1s') && duration(self.progressDeadline) <= duration('24h'))").message("rollout.progressDeadline must be between 1s and 24h"),
)]
pub struct RolloutSpec {
    /// Time within which a rollout must make progress before it counts as failed. Default: 10m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress_deadline: Option<Duration>,
}

/// How a pod stops.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.timeout) || duration(self.timeout) <= duration('1h')").message("drain.timeout must be at most 1h"),
)]
pub struct DrainSpec {
    /// Time that requests in flight have to finish once the pod is terminating. Default: what the operator's flags say
    /// (the chart's `runtime.env.TORCHMODEL_DRAIN_TIMEOUT`), or else 30s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
}
