//! What a model is and where it comes from: the part of the API that the runtime reads too.
//!
//! A model configuration file for the runtime has exactly these two keys, `source` and `model`; a TorchModel's spec contains
//! them. Invariant: no field here depends on Kubernetes.

#[cfg(feature = "kubernetes")]
use kube::KubeSchema;
#[cfg(feature = "kubernetes")]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Duration;

/// Where the model's artifact comes from. Exactly one of `uri` and `volume`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "kubernetes", derive(KubeSchema), x_kube(
    validation = Rule::new("has(self.uri) != has(self.volume)").message("set exactly one of source.uri and source.volume"),
    validation = Rule::new("!has(self.uri) || self.uri.matches('^(s3|https|http)://')").message("source.uri must begin with s3://, https:// or http://"),
    validation = Rule::new("!has(self.uri) || !self.uri.startsWith('s3://') || self.uri.matches('^s3://[^/?# ]+/[^/]')").message("source.uri must name a bucket and a key: s3://BUCKET/KEY"),
    validation = Rule::new("!has(self.uri) || !self.uri.matches('^https?://') || self.uri.matches('^https?://[^/?#@ ]+/[^ ]+$')").message("source.uri must name a host and a path, without user name or password: https://HOST/PATH"),
    validation = Rule::new("!has(self.uri) || !self.uri.matches('^https?://') || has(self.sha256)").message("source.sha256 is required for an http:// or https:// source: anyone on the way could change the file (sha256sum FILE prints it)"),
    validation = Rule::new("!has(self.sha256) || self.sha256.matches('^[0-9a-f]{64}$')").message("source.sha256 must be 64 lower-case hexadecimal digits, as sha256sum prints them"),
    validation = Rule::new("!(has(self.credentials) || has(self.s3)) || (has(self.uri) && self.uri.startsWith('s3://'))").message("source.credentials and source.s3 apply to an s3:// source only"),
))]
pub struct ModelSource {
    /// URI of the TorchScript archive: `s3://BUCKET/KEY`, `https://…` or `http://…`. The pod itself fetches it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kubernetes", schemars(length(max = 2048)))]
    pub uri: Option<String>,
    /// A file on a PersistentVolumeClaim, in place of `uri`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeSource>,
    /// SHA-256 of the archive, 64 lower-case hexadecimal digits. Checked before the file is used; another digest is never
    /// served. Required for http and https.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kubernetes", schemars(length(max = 128)))]
    pub sha256: Option<String>,
    /// The Secret whose keys open the source. Left out: the pod's own identity and environment are used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<SecretReference>,
    /// Settings of an S3 server other than AWS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Spec>,
}

/// A file on a volume of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "kubernetes", derive(KubeSchema), x_kube(
    validation = Rule::new("self.path.matches('^[-A-Za-z0-9._@+=,]+(/[-A-Za-z0-9._@+=,]+)*$') && !self.path.matches('(^|/)[.][.]?(/|$)')").message("source.volume.path must be relative to the volume, without '.' or '..', of letters, digits and - . _ @ + = , /"),
))]
pub struct VolumeSource {
    /// Name of the PersistentVolumeClaim, in the TorchModel's namespace. It is mounted read-only.
    #[cfg_attr(feature = "kubernetes", schemars(length(min = 1, max = 253)))]
    pub claim_name: String,
    /// Path of the archive inside the volume.
    #[cfg_attr(feature = "kubernetes", schemars(length(min = 1, max = 1024)))]
    pub path: String,
}

/// Name of a Secret in the TorchModel's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kubernetes", derive(JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretReference {
    /// Name of the Secret. Its keys are `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and, if need be, `AWS_SESSION_TOKEN`; or
    /// `credentials`, a file in the form of `~/.aws/credentials`. The operator never reads it: kubelet mounts it into the pod.
    #[cfg_attr(feature = "kubernetes", schemars(length(min = 1, max = 253)))]
    pub secret_name: String,
}

/// How to reach an S3 server.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kubernetes", derive(JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct S3Spec {
    /// URL of the server, such as `https://minio.storage.svc:9000`. Left out: `AWS_ENDPOINT_URL` of the runtime's environment,
    /// else AWS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kubernetes", schemars(length(max = 2048)))]
    pub endpoint: Option<String>,
    /// Region to sign requests for. Left out: `AWS_REGION` of the runtime's environment, else `us-east-1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kubernetes", schemars(length(max = 64)))]
    pub region: Option<String>,
    /// Whether the bucket stands in the path rather than in the host name. Left out: true when an endpoint is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_style: Option<bool>,
}

/// How the model is called and served. Every field may be left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "kubernetes", derive(KubeSchema), x_kube(
    validation = Rule::new("!has(self.inputs) || self.inputs.all(a, self.inputs.exists_one(b, b.name == a.name))").message("model.inputs must have different names"),
    validation = Rule::new("!has(self.outputs) || self.outputs.all(a, self.outputs.exists_one(b, b.name == a.name))").message("model.outputs must have different names"),
    validation = Rule::new("!has(self.name) || self.name.matches('^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$')").message("model.name must be of letters, digits and - _ . since it stands in the path of requests"),
))]
pub struct ModelSpec {
    /// Name in the inference protocol's paths. Default: the TorchModel's name, or the file's name without its extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kubernetes", schemars(length(min = 1, max = 253)))]
    pub name: Option<String>,
    /// Method of the TorchScript module that answers requests. Default: `forward`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kubernetes", schemars(length(min = 1, max = 253)))]
    pub method: Option<String>,
    /// Inputs, where the TorchScript schema does not say enough: it names arguments and tells tensors from numbers, but knows
    /// neither datatype nor shape of a tensor. What is declared here is checked in each request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "kubernetes", schemars(length(max = 64)))]
    pub inputs: Vec<TensorSpec>,
    /// Outputs, in the order in which the method returns them (by key where it returns a dict). Left out: one output is called
    /// `output`, several `output_0`, `output_1` and so on, those of a named tuple or dict by their keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "kubernetes", schemars(length(max = 64)))]
    pub outputs: Vec<TensorSpec>,
    /// Dynamic batching. Left out: each request runs alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batching: Option<BatchingSpec>,
    /// Copies of the model that run at the same time on each device, at most 64. Default: 1, and on a CPU with four or more processors
    /// as many more as there are threads for connections, for requests that take less than 200 µs and are not batched. A stateful
    /// model always has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kubernetes", schemars(range(min = 1, max = 64)))]
    pub instances: Option<u32>,
    /// Whether answers depend on earlier requests. A stateful model is served by one instance, one request at a time in order of
    /// arrival, and never batched or frozen. Left out: the runtime finds out, on the side of caution, from the model's code and
    /// from two equal inferences at load; the log says what it found. false: requests are batched and instances run side by
    /// side although the model writes to its own attributes, and each instance keeps what it writes to itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stateful: Option<bool>,
    /// Optimisations at load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimize: Option<OptimizeSpec>,
    /// Inferences that must pass before the model is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup: Option<WarmupSpec>,
    /// Limits on what waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsSpec>,
}

/// Name, datatype and shape of an input or output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kubernetes", derive(JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TensorSpec {
    /// For an input the argument's name in the TorchScript schema; for an output the name that clients see.
    #[cfg_attr(feature = "kubernetes", schemars(length(min = 1, max = 253)))]
    pub name: String,
    /// Datatype in the Open Inference Protocol's words. Left out: any that the model takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datatype: Option<DataType>,
    /// Whole shape, the batch dimension included; -1 for a dimension of any size. Left out: any shape.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kubernetes", schemars(length(max = 32), inner(range(min = -1))))]
    pub shape: Option<Vec<i64>>,
}

/// Element type of a tensor, as the Open Inference Protocol names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "kubernetes", derive(JsonSchema))]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "the protocol's own names")]
pub enum DataType {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
    Bytes,
}

/// Dynamic batching: requests that wait at the same time run as one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kubernetes", derive(JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BatchingSpec {
    /// Most rows in one execution; each request's first dimension counts. 1: requests carry a batch dimension but run alone.
    #[cfg_attr(feature = "kubernetes", schemars(range(min = 1, max = 65536)))]
    pub max_batch_size: u32,
    /// How long the first request of a batch may wait for company while an instance is free. Default: 0s, a free instance
    /// starts at once with what is there and batches form while it is busy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_delay: Option<Duration>,
}

/// Optimisations at load.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kubernetes", derive(JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OptimizeSpec {
    /// Whether weights are folded into the graph (`torch.jit.freeze`). Default: false. A stateful model is never frozen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<bool>,
    /// Threads inside one operator on the CPU, for each instance. Default: the container's CPU share divided by the instances,
    /// at least 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kubernetes", schemars(range(min = 1, max = 1024)))]
    pub intra_op_threads: Option<u32>,
}

/// Inferences that must pass before the model is ready.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "kubernetes", derive(KubeSchema), x_kube(
    validation = Rule::new("!has(self.inputs) || self.inputs.all(a, self.inputs.exists_one(b, b.name == a.name))").message("model.warmup.inputs must have different names"),
))]
pub struct WarmupSpec {
    /// Inferences for each batch size. Default: 3. 0 turns warm-up off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kubernetes", schemars(range(min = 0, max = 1000)))]
    pub iterations: Option<u32>,
    /// Batch sizes to run. Default: 1 and, with batching, `maxBatchSize`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "kubernetes", schemars(length(max = 64), inner(range(min = 1, max = 65536))))]
    pub batch_sizes: Vec<u32>,
    /// Shapes and values of the inputs. Left out: zeros in the declared shapes; when these leave a dimension other than the
    /// first open, warm-up is skipped and the log says so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "kubernetes", schemars(length(max = 64)))]
    pub inputs: Vec<WarmupInput>,
}

/// One input of a warm-up inference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kubernetes", derive(JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WarmupInput {
    /// Name of the input.
    #[cfg_attr(feature = "kubernetes", schemars(length(min = 1, max = 253)))]
    pub name: String,
    /// Shape; with batching its first dimension is replaced by the batch size. Left out: the declared shape.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kubernetes", schemars(length(max = 32), inner(range(min = 0))))]
    pub shape: Option<Vec<i64>>,
    /// Value of every element, written as text: `"16000"`, `"0.5"`, `"true"`. Left out: zero, false or the empty string.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kubernetes", schemars(length(max = 1024)))]
    pub fill: Option<String>,
}

/// Limits on what waits. A request beyond them is refused at once, so that the client can go elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "kubernetes", derive(KubeSchema), x_kube(
    validation = Rule::new("!has(self.requestTimeout) || (duration(self.requestTimeout) >= duration('1ms') && duration(self.requestTimeout) <= duration('24h'))").message("model.limits.requestTimeout must be between 1ms and 24h"),
))]
pub struct LimitsSpec {
    /// Most requests that wait for an instance, from 1 to 1000000. Default: 512. One more is answered 503 with Retry-After.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kubernetes", schemars(range(min = 1, max = 1_000_000)))]
    pub max_queue: Option<u32>,
    /// Longest time from arrival to answer, from 1ms to 24h. Default: 60s. A client's own shorter deadline wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_timeout: Option<Duration>,
}
