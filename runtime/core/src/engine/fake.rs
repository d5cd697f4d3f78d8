//! Engines for tests that need no libtorch: one of plain functions, and one with a [`device`] of literal delays.
//!
//! [`FakeModel`] describes a model and starts it in a repository. Invariant: a fake goes through the same scheduler, checks and
//! splitting as a real model.

pub mod device;

use std::sync::Arc;

use torchmodel_crds::{BatchingSpec, DataType, Failure, ModelSpec};

use self::device::FakeDevice;
use crate::{
    binding::Binding,
    config::ModelConfig,
    engine::{BoxedInstance, EngineError, EngineInput, Execution, ExecutionTimings, Instance, boxed},
    inference::NamedTensor,
    interface::{Interface, MethodInterface, ValueType},
    loader::LoadedModel,
    metrics::Metrics,
    model_key::ModelVersion,
    plan::{DeviceKind, ExecutionPlan, Machine},
    repository::{ModelRepository, ModelState},
    signature::{InputSignature, OutputSignature, Signature},
    tensor::Tensor,
    version::Version,
    warmup::Warmup,
};

/// What a fake model computes: the inputs that are there, in the signature's order, to its outputs.
pub type Compute = dyn Fn(&[EngineInput]) -> Result<Vec<NamedTensor>, EngineError> + Send + Sync;

/// A model made of a function.
pub struct FakeModel {
    name: String,
    signature: Signature,
    spec: ModelSpec,
    instance: Arc<dyn Fn() -> BoxedInstance>,
}

struct FakeInstance {
    compute: Arc<Compute>,
}

impl Instance for FakeInstance {
    type Staged = Vec<EngineInput>;
    type Ticket = Vec<NamedTensor>;

    fn stage(&mut self, inputs: Vec<EngineInput>) -> Result<Self::Staged, EngineError> {
        Ok(inputs)
    }

    fn launch(&mut self, staged: Self::Staged) -> Result<Self::Ticket, EngineError> {
        (self.compute)(&staged)
    }

    fn finish(&mut self, outputs: Self::Ticket) -> Result<Execution, EngineError> {
        Ok(Execution { outputs, timings: ExecutionTimings::default() })
    }
}

fn instances_of(
    compute: impl Fn(&[EngineInput]) -> Result<Vec<NamedTensor>, EngineError> + Send + Sync + 'static,
) -> Arc<dyn Fn() -> BoxedInstance> {
    let compute: Arc<Compute> = Arc::new(compute);
    Arc::new(move || boxed(FakeInstance { compute: Arc::clone(&compute) }))
}

impl FakeModel {
    /// A model without inputs and outputs that computes nothing.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let signature = Signature { are_outputs_known: true, ..Signature::default() };
        Self { name: name.into(), signature, spec: ModelSpec::default(), instance: instances_of(|_| Ok(Vec::new())) }
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
        let input = InputSignature {
            name: name.into(),
            datatype,
            shape,
            is_optional: false,
            is_batched: false,
            is_flattened: false,
        };
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
        self.instance = instances_of(compute);
        self
    }

    /// Computes on `device`, which gives the inputs back as outputs.
    #[must_use]
    pub fn on(mut self, device: &FakeDevice) -> Self {
        let device = device.clone();
        self.instance = Arc::new(move || device.instance());
        self
    }

    /// The configuration, every default filled in.
    ///
    /// # Errors
    /// The configuration's.
    pub fn config(&self) -> Result<ModelConfig, String> {
        ModelConfig::check(&self.spec, Some(self.name.clone()))
    }

    /// The model in memory, without a warm-up, as `config` says.
    ///
    /// # Errors
    /// The plan's.
    pub fn load(self, config: &ModelConfig) -> Result<LoadedModel, Failure> {
        let method = MethodInterface {
            name: config.method.clone(),
            arguments: Vec::new(),
            returns: ValueType::Tensor,
            is_stateful: self.signature.is_stateful,
            mutates_inputs: false,
        };
        let interface = Interface { methods: vec![method.clone()] };
        let plan = ExecutionPlan::of(&interface, config, &Machine::with_devices(vec![DeviceKind::Cpu]))?;
        let instances: Vec<BoxedInstance> = plan.placements.iter().map(|_| (self.instance)()).collect();
        let binding = Binding::of_signature(method, self.signature);
        Ok(LoadedModel { binding, plan, warmup: Warmup::default(), instances })
    }

    /// Starts the model's instances and puts it into `repository`.
    ///
    /// # Errors
    /// The configuration's, or the thread's that could not start.
    pub fn serve(self, repository: &ModelRepository, metrics: &Metrics) -> Result<(), String> {
        let config = self.config()?;
        let name = config.name.clone();
        let loaded = self.load(&config).map_err(|failure| failure.message)?;
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
    let failed = |why: String| EngineError::Failed(why);
    let parts: Option<Vec<_>> = input.parts.iter().map(|part| part.host()).collect();
    let data = match parts.as_deref() {
        Some([only]) => (*only).clone(),
        Some(parts) => parts.iter().flat_map(|part| part.iter().copied()).collect::<Vec<u8>>().into(),
        None => return Err(failed(format!("input {} is not in the host's memory", input.index))),
    };
    Tensor::new(input.datatype, input.shape.clone(), data).map_err(|error| failed(error.to_string()))
}
