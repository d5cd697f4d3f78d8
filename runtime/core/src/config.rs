//! How a model is called and served, every default filled in.
//!
//! Made from the API's [`ModelSpec`] by [`ModelConfig::check`], which a manifest, a bare archive and tests call alike. Invariant: a
//! [`ModelConfig`] needs no further defaults, and what it contradicts was refused with the field's name.

use std::time::Duration;

use torchmodel_crds::{ModelSpec, TensorSpec, WarmupInput};

use crate::model_key::ModelName;

/// Most requests that wait, where the configuration says nothing.
pub const DEFAULT_MAX_QUEUE: usize = 512;
/// Longest time from arrival to answer, where the configuration says nothing.
pub const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Fewest warm-up inferences for each batch size, where the configuration says nothing. TorchScript's profiling executor settles
/// after its second run.
pub const DEFAULT_WARMUP_ITERATIONS: u32 = 3;

/// Batching, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batching {
    /// Most rows in one execution, at least 1.
    pub max_batch_size: u64,
    /// How long the first request may wait for company.
    pub max_delay: Duration,
}

/// Warm-up, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warmup {
    /// Fewest inferences for each batch size; 0 for none at all.
    pub iterations: u32,
    /// Batch sizes to run besides those that the plan runs anyway, each at least 1.
    pub batch_sizes: Vec<u32>,
    /// Shapes and values, by input.
    pub inputs: Vec<WarmupInput>,
}

/// How a model is called and served, every default filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelConfig {
    /// Name in the protocol.
    pub name: ModelName,
    /// Method that answers.
    pub method: String,
    /// Declared inputs.
    pub inputs: Vec<TensorSpec>,
    /// Declared outputs.
    pub outputs: Vec<TensorSpec>,
    /// Batching, if requests carry a batch dimension.
    pub batching: Option<Batching>,
    /// Instances on the device.
    pub instances: Option<usize>,
    /// Whether answers depend on earlier requests; `None` to find out.
    pub is_stateful: Option<bool>,
    /// Whether to freeze.
    pub freeze: bool,
    /// Threads inside one operator; `None` for a share of the CPUs.
    pub intra_op_threads: Option<u32>,
    /// Warm-up.
    pub warmup: Warmup,
    /// Most requests that wait.
    pub max_queue: usize,
    /// Longest time from arrival to answer.
    pub request_timeout: Duration,
}

impl ModelConfig {
    /// Fills in the defaults. `name` is what the model is called when `spec.name` says nothing.
    pub fn check(spec: &ModelSpec, name: Option<String>) -> Result<Self, String> {
        let name = spec.name.clone().or(name).filter(|name| !name.is_empty());
        let name = name.ok_or("model.name is missing and nothing else names the model")?;
        let name = name.parse().map_err(|_| format!("model.name '{name}' must not contain '/' or NUL"))?;
        unique(spec.inputs.iter().map(|input| &input.name), "model.inputs")?;
        unique(spec.outputs.iter().map(|output| &output.name), "model.outputs")?;
        check_shapes(&spec.inputs, "model.inputs")?;
        check_shapes(&spec.outputs, "model.outputs")?;
        let limits = spec.limits.clone().unwrap_or_default();
        let optimize = spec.optimize.clone().unwrap_or_default();
        let batching = spec.batching.as_ref().map(|batching| Batching {
            max_batch_size: u64::from(batching.max_batch_size.max(1)),
            max_delay: batching.max_delay.map_or(Duration::ZERO, torchmodel_crds::Duration::get),
        });
        let request_timeout = limits.request_timeout.map_or(DEFAULT_REQUEST_TIMEOUT, torchmodel_crds::Duration::get);
        if batching.is_some_and(|batching| batching.max_delay >= request_timeout) {
            return Err(
                "model.batching.maxDelay must be shorter than model.limits.requestTimeout (60s by default)".into()
            );
        }
        Ok(Self {
            name,
            method: spec.method.clone().unwrap_or_else(|| "forward".into()),
            inputs: spec.inputs.clone(),
            outputs: spec.outputs.clone(),
            batching,
            instances: spec.instances.map(|count| usize::try_from(count.max(1)).unwrap_or(1)),
            is_stateful: spec.stateful,
            freeze: optimize.freeze.unwrap_or(false),
            intra_op_threads: optimize.intra_op_threads,
            warmup: check_warmup(spec, batching)?,
            max_queue: limits.max_queue.map_or(DEFAULT_MAX_QUEUE, |most| usize::try_from(most).unwrap_or(usize::MAX)),
            request_timeout,
        })
    }
}

fn check_warmup(spec: &ModelSpec, batching: Option<Batching>) -> Result<Warmup, String> {
    let warmup = spec.warmup.clone().unwrap_or_default();
    unique(warmup.inputs.iter().map(|input| &input.name), "model.warmup.inputs")?;
    let maximum = batching.map_or(1, |batching| batching.max_batch_size);
    if let Some(size) = warmup.batch_sizes.iter().find(|size| u64::from(**size) > maximum || **size == 0) {
        return Err(format!(
            "model.warmup.batchSizes holds {size}, which is not between 1 and maxBatchSize ({maximum})"
        ));
    }
    Ok(Warmup {
        iterations: warmup.iterations.unwrap_or(DEFAULT_WARMUP_ITERATIONS),
        batch_sizes: warmup.batch_sizes,
        inputs: warmup.inputs,
    })
}

fn check_shapes(tensors: &[TensorSpec], field: &str) -> Result<(), String> {
    for tensor in tensors {
        if tensor.shape.as_ref().is_some_and(|shape| shape.iter().any(|dim| *dim < -1)) {
            return Err(format!("{field}: the shape of '{}' has a dimension below -1", tensor.name));
        }
    }
    Ok(())
}

fn unique<'a>(names: impl Iterator<Item = &'a String>, field: &str) -> Result<(), String> {
    let mut seen = std::collections::BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(format!("{field} names '{name}' twice"));
        }
    }
    Ok(())
}
