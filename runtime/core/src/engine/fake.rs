//! An engine of plain functions: models for tests that need no libtorch.
//!
//! [`FakeModel`] describes one and starts it in a repository. Invariant: a fake goes through the same scheduler, checks and
//! splitting as a real model.

use std::{sync::Arc, time::Duration};

use torchmodel_crds::{BatchingSpec, DataType, Failure, ModelSpec};

use crate::{
    config::ModelConfig,
    engine::{Engine, EngineError, EngineInput, Execution, ExecutionTimings, LoadedModel},
    inference::NamedTensor,
    metrics::Metrics,
    model_key::ModelVersion,
    repository::{ModelRepository, ModelState},
    signature::{InputSignature, OutputSignature, Signature},
    tensor::Tensor,
    version::Version,
};

/// What a fake model computes: the inputs that are there, in the signature's order, to its outputs.
pub type Compute = dyn Fn(&[EngineInput]) -> Result<Vec<NamedTensor>, EngineError> + Send + Sync;

/// A model made of a function.
pub struct FakeModel {
    name: String,
    signature: Signature,
    spec: ModelSpec,
    compute: Arc<Compute>,
}

struct FakeEngine {
    signature: Signature,
    compute: Arc<Compute>,
}

impl Engine for FakeEngine {
    fn start(&mut self) -> Result<Signature, Failure> {
        Ok(self.signature.clone())
    }

    fn run(&mut self, inputs: &[EngineInput]) -> Result<Execution, EngineError> {
        let timings = ExecutionTimings {
            compute_input: Duration::ZERO,
            compute_infer: Duration::ZERO,
            compute_output: Duration::ZERO,
        };
        Ok(Execution { outputs: (self.compute)(inputs)?, timings })
    }
}

impl FakeModel {
    /// A model without inputs and outputs that computes nothing.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let signature = Signature { are_outputs_known: true, ..Signature::default() };
        Self { name: name.into(), signature, spec: ModelSpec::default(), compute: Arc::new(|_| Ok(Vec::new())) }
    }

    /// A model that gives its one input `input` back as `output`.
    #[must_use]
    pub fn identity(name: &str, datatype: DataType, shape: &[i64]) -> Self {
        Self::new(name).input("input", datatype, shape).output("output", datatype, shape).compute(|inputs| {
            inputs.iter().map(|input| Ok(NamedTensor { name: "output".into(), tensor: join(input)? })).collect()
        })
    }

    /// Adds a required input.
    #[must_use]
    pub fn input(mut self, name: &str, datatype: DataType, shape: &[i64]) -> Self {
        let (datatype, shape) = (Some(datatype), Some(shape.to_vec()));
        let input = InputSignature { name: name.into(), datatype, shape, is_optional: false, is_batched: false };
        self.signature.inputs.push(input);
        self
    }

    /// Adds an output.
    #[must_use]
    pub fn output(mut self, name: &str, datatype: DataType, shape: &[i64]) -> Self {
        let output = OutputSignature { name: name.into(), datatype: Some(datatype), shape: Some(shape.to_vec()) };
        self.signature.outputs.push(output);
        self
    }

    /// Makes the first dimension of every input a batch of at most that many rows.
    #[must_use]
    pub fn batching(mut self, max_batch_size: u32) -> Self {
        self.signature.max_batch_size = Some(u64::from(max_batch_size));
        self.signature.inputs.iter_mut().for_each(|input| input.is_batched = true);
        self.spec.batching = Some(BatchingSpec { max_batch_size, max_delay: None });
        self
    }

    /// Sets the rest of the configuration.
    #[must_use]
    pub fn spec(mut self, change: impl FnOnce(&mut ModelSpec)) -> Self {
        change(&mut self.spec);
        self
    }

    /// Sets the function.
    #[must_use]
    pub fn compute(
        mut self,
        compute: impl Fn(&[EngineInput]) -> Result<Vec<NamedTensor>, EngineError> + Send + Sync + 'static,
    ) -> Self {
        self.compute = Arc::new(compute);
        self
    }

    /// Starts the model's instances and puts it into `repository`.
    ///
    /// # Errors
    /// The configuration's, or the thread's that could not start.
    pub fn serve(self, repository: &ModelRepository, metrics: &Metrics) -> Result<(), String> {
        let config = ModelConfig::check(&self.spec, Some(self.name.clone()))?;
        let name = config.name.clone();
        let engines = (0..config.instances)
            .map(|_| {
                let engine = FakeEngine { signature: self.signature.clone(), compute: Arc::clone(&self.compute) };
                Box::new(engine) as Box<dyn Engine>
            })
            .collect();
        let loaded = LoadedModel { signature: self.signature, engines };
        let model = Version::start(loaded, config, metrics.model(&name, ModelVersion::FIRST), Arc::new(|_| {}));
        let model = model.map_err(|failure| failure.message)?;
        repository.set(&name, ModelState::Ready(Arc::new(model)));
        Ok(())
    }
}

/// The parts of an input as one tensor.
///
/// # Errors
/// `Failed` when they do not fit its shape, which would be the scheduler's mistake.
pub fn join(input: &EngineInput) -> Result<Tensor, EngineError> {
    let data = match input.parts.as_slice() {
        [only] => only.clone(),
        parts => parts.concat().into(),
    };
    Tensor::new(input.datatype, input.shape.clone(), data).map_err(|error| EngineError::Failed(error.to_string()))
}
