//! Second step: the spec and the operator's defaults become a model in which everything is decided.
//!
//! Pure, and the only reader of `spec`: later steps see [`ValidatedModel`] alone. Invariant: the CRD's own schema is asked again
//! here, since an object may be older than a rule.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    api::core::v1::{EnvVar, ResourceRequirements},
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::OwnerReference},
};
use kube::Resource as _;
use torchmodel_crds::{
    AcceleratorSpec, ModelSource, ModelSpec, TorchModel, TorchModelSpec,
    schema::{Violation, violations},
};

use super::dereference::Dereferenced;
use crate::Args;

/// Where the source's volume is mounted.
pub const SOURCE_MOUNT: &str = "/mnt/source";
const DEFAULT_PROGRESS_DEADLINE: Duration = Duration::from_secs(600);
const DEFAULT_ACCELERATOR: &str = "nvidia.com/gpu";

/// What the operator's command line says about pods.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// Image of pods without an accelerator.
    pub image: String,
    /// Image of pods with one.
    pub cuda_image: String,
    /// Environment of every pod.
    pub env: Vec<(String, String)>,
}

impl From<&Args> for Defaults {
    fn from(args: &Args) -> Self {
        let mut env = args.runtime_env.clone();
        env.sort();
        Self { image: args.runtime_image.clone(), cuda_image: args.runtime_cuda_image.clone(), env }
    }
}

/// A TorchModel with every default filled in and every contradiction refused.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidatedModel {
    /// Name of the TorchModel, the Deployment, the Service and the label.
    pub name: String,
    /// Namespace of everything.
    pub namespace: String,
    /// The reference that each child carries.
    pub owner: OwnerReference,
    /// What the runtime reads as `source`; a volume has become a file URI.
    pub source: ModelSource,
    /// What the runtime reads as `model`, with its name.
    pub model: ModelSpec,
    /// `PersistentVolumeClaim` to mount at [`SOURCE_MOUNT`].
    pub claim_name: Option<String>,
    /// Secret to mount.
    pub credentials: Option<String>,
    /// The container.
    pub container: Container,
    /// Labels that a node must have.
    pub node_selector: BTreeMap<String, String>,
    /// Number of pods.
    pub replicas: i32,
    /// Time that requests have to finish. `None`: what the pod's environment says.
    pub drain_timeout: Option<Duration>,
    /// Time within which a rollout must make progress, seconds.
    pub progress_deadline_s: i32,
    /// ServiceAccount of the pods.
    pub service_account: ServiceAccountChoice,
}

/// What runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    /// Image.
    pub image: String,
    /// Arguments after the operator's own.
    pub args: Vec<String>,
    /// The operator's environment, which the next wins over.
    pub default_env: Vec<(String, String)>,
    /// The manifest's environment.
    pub env: Vec<EnvVar>,
    /// Requests and limits, accelerators included.
    pub resources: Option<ResourceRequirements>,
    /// Whether there are accelerators among them.
    pub has_accelerator: bool,
}

/// Whose identity the pods have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceAccountChoice {
    /// One of the TorchModel's name, made and owned by the operator.
    Own,
    /// One that exists.
    Named(String),
}

/// Why the spec cannot be acted on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What the CRD's schema refuses.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Violations(Vec<Violation>),
    /// The stored object is not a TorchModel of this version.
    #[error("the stored object cannot be read: {0}")]
    Unreadable(String),
    /// Numbers that no Deployment can hold.
    #[error("{field} is out of range")]
    OutOfRange {
        /// Field of the spec.
        field: &'static str,
    },
    /// The accelerator is asked for twice.
    #[error("{0} stands in spec.resources and in spec.accelerator; leave it to spec.accelerator")]
    AcceleratorTwice(String),
    /// An object without a UID owns nothing.
    #[error("the stored object has no name or UID")]
    NoIdentity,
}

/// Checks and completes.
pub fn validate(dereferenced: &Dereferenced, defaults: &Defaults) -> Result<ValidatedModel, Error> {
    let model = dereferenced.model.as_ref().map_err(|error| Error::Unreadable(error.clone()))?;
    let object = serde_json::to_value(model).map_err(|error| Error::Unreadable(error.to_string()))?;
    let violations = violations(&object);
    if !violations.is_empty() {
        return Err(Error::Violations(violations));
    }
    let spec = &model.spec;
    let (source, claim_name) = source(spec);
    Ok(ValidatedModel {
        name: dereferenced.name.clone(),
        namespace: dereferenced.namespace.clone(),
        owner: owner(model)?,
        credentials: spec.source.credentials.as_ref().map(|secret| secret.secret_name.clone()),
        source,
        model: named(model),
        claim_name,
        container: container(spec, defaults)?,
        node_selector: spec
            .accelerator
            .as_ref()
            .map(|accelerator| accelerator.node_selector.clone())
            .unwrap_or_default(),
        replicas: spec.replicas.unwrap_or(1),
        drain_timeout: spec.drain.as_ref().and_then(|drain| drain.timeout).map(torchmodel_crds::Duration::get),
        progress_deadline_s: progress_deadline_s(spec)?,
        service_account: match &spec.service_account_name {
            Some(name) => ServiceAccountChoice::Named(name.clone()),
            None => ServiceAccountChoice::Own,
        },
    })
}

/// Children go first when the TorchModel is deleted in the foreground.
fn owner(model: &TorchModel) -> Result<OwnerReference, Error> {
    let reference = model.controller_owner_ref(&()).ok_or(Error::NoIdentity)?;
    Ok(OwnerReference { block_owner_deletion: Some(true), ..reference })
}

/// The source as the runtime reads it, and the claim to mount for it.
fn source(spec: &TorchModelSpec) -> (ModelSource, Option<String>) {
    match &spec.source.volume {
        None => (spec.source.clone(), None),
        Some(volume) => {
            let uri = format!("file://{SOURCE_MOUNT}/{}", volume.path);
            let source = ModelSource { uri: Some(uri), sha256: spec.source.sha256.clone(), ..ModelSource::default() };
            (source, Some(volume.claim_name.clone()))
        }
    }
}

fn named(model: &TorchModel) -> ModelSpec {
    let mut spec = model.spec.model.clone().unwrap_or_default();
    spec.name = spec.name.or_else(|| model.metadata.name.clone());
    spec
}

fn container(spec: &TorchModelSpec, defaults: &Defaults) -> Result<Container, Error> {
    let runtime = spec.runtime.clone().unwrap_or_default();
    let default_image = if spec.accelerator.is_some() { &defaults.cuda_image } else { &defaults.image };
    Ok(Container {
        image: runtime.image.unwrap_or_else(|| default_image.clone()),
        args: runtime.args,
        default_env: defaults.env.clone(),
        env: runtime.env,
        resources: resources(spec)?,
        has_accelerator: spec.accelerator.is_some(),
    })
}

fn resources(spec: &TorchModelSpec) -> Result<Option<ResourceRequirements>, Error> {
    let Some(accelerator) = &spec.accelerator else { return Ok(spec.resources.clone()) };
    let AcceleratorSpec { count, resource, node_selector: _ } = accelerator;
    let resource = resource.as_deref().unwrap_or(DEFAULT_ACCELERATOR);
    let mut resources = spec.resources.clone().unwrap_or_default();
    let limits = resources.limits.get_or_insert_default();
    if limits.insert(resource.to_owned(), Quantity(count.unwrap_or(1).to_string())).is_some() {
        return Err(Error::AcceleratorTwice(resource.to_owned()));
    }
    Ok(Some(resources))
}

fn progress_deadline_s(spec: &TorchModelSpec) -> Result<i32, Error> {
    let deadline = spec
        .rollout
        .as_ref()
        .and_then(|rollout| rollout.progress_deadline)
        .map_or(DEFAULT_PROGRESS_DEADLINE, torchmodel_crds::Duration::get);
    i32::try_from(deadline.as_secs()).map_err(|_| Error::OutOfRange { field: "spec.rollout.progressDeadline" })
}

#[cfg(test)]
mod tests;

#[cfg(test)]
pub mod testing {
    //! The operator's flags as tests have them.

    use super::Defaults;

    /// Images of version 1 and one variable.
    pub fn defaults() -> Defaults {
        Defaults {
            image: "torchmodel-runtime:1".to_owned(),
            cuda_image: "torchmodel-runtime-cuda:1".to_owned(),
            env: vec![("AWS_REGION".to_owned(), "us-east-1".to_owned())],
        }
    }
}
