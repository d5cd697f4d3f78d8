//! Engines and models for tests that need no libtorch: one of plain functions, and one with a [`device`] of literal delays.
//!
//! [`FakeModel`] describes a model and starts it, in a repository or alone in a scheduler. Invariant: a fake goes through the same scheduler, checks and
//! splitting as a real model.

pub mod device;

use std::sync::Arc;

use torchmodel_crds::{BatchingSpec, DataType, Failure, FailurePhase, FailureReason, ModelSpec};

use self::device::FakeDevice;
use crate::{
    binding::Binding,
    config::ModelConfig,
    engine::{BoxedInstance, EngineError, EngineInput, Execution, ExecutionTimings, Instance, boxed},
    inference::NamedTensor,
    interface::{Interface, MethodInterface, ValueType},
    loader::LoadedModel,
    metrics::Metrics,
    model_key::{ModelKey, ModelVersion},
    plan::{DeviceKind, ExecutionPlan, Machine},
    repository::{LoadContext, LoadRequest, LoadedVersion, ModelRepository},
    scheduler::{Scheduler, SchedulerConfig},
    signature::{InputSignature, OutputSignature, Signature},
    tensor::Tensor,
    warmup::Warmup,
};

/// What a plan gives no threads of connections a handle for.
const FEW_CPUS: usize = 2;

/// What a fake model computes: the inputs that are there, in the signature's order, to its outputs.
pub type Compute = dyn Fn(&[EngineInput]) -> Result<Vec<NamedTensor>, EngineError> + Send + Sync;

type MakeInstance = dyn Fn() -> BoxedInstance + Send + Sync;

/// A model made of a function.
pub struct FakeModel {
    name: String,
    signature: Signature,
    spec: ModelSpec,
    instance: Arc<MakeInstance>,
    cpus: usize,
    duration_depends_on_values: bool,
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
) -> Arc<MakeInstance> {
    let compute: Arc<Compute> = Arc::new(compute);
    Arc::new(move || boxed(FakeInstance { compute: Arc::clone(&compute) }))
}

impl FakeModel {
    /// A model without inputs and outputs that computes nothing.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let signature = Signature { are_outputs_known: true, ..Signature::default() };
        let instance = instances_of(|_| Ok(Vec::new()));
        let (spec, cpus, duration_depends_on_values) = (ModelSpec::default(), FEW_CPUS, false);
        Self { name: name.into(), signature, spec, instance, cpus, duration_depends_on_values }
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

    /// Plans for a machine of so many processors, whatever this one has.
    #[must_use]
    pub fn cpus(self, cpus: usize) -> Self {
        Self { cpus, ..self }
    }

    /// Says that values may decide how long it computes.
    #[must_use]
    pub fn duration_depends_on_values(self) -> Self {
        Self { duration_depends_on_values: true, ..self }
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
            duration_depends_on_values: self.duration_depends_on_values,
        };
        let interface = Interface { methods: vec![method.clone()] };
        let plan = ExecutionPlan::of(&interface, config, &Machine { cpus: self.cpus, devices: vec![DeviceKind::Cpu] })?;
        let instances: Vec<BoxedInstance> = plan.handles().map(|_| (self.instance)()).collect();
        let binding = Binding::of_signature(method, self.signature);
        Ok(LoadedModel { binding, plan, warmup: Warmup::default(), instances })
    }

    /// Starts it in a scheduler of its own, with a plan that differs by `change` from what the configuration says. `on_fatal` hears of
    /// an instance that can never work again.
    ///
    /// # Errors
    /// The configuration's, the plan's or the instances'.
    pub fn start(
        self,
        change: impl FnOnce(&mut ExecutionPlan),
        on_fatal: impl Fn(Failure) + Send + Sync + 'static,
    ) -> Result<Scheduler, Failure> {
        let config = self
            .config()
            .map_err(|message| Failure::new(FailurePhase::Configure, FailureReason::SpecInvalid, message))?;
        let mut loaded = self.load(&config)?;
        change(&mut loaded.plan);
        let key = ModelKey { name: config.name.clone(), version: ModelVersion::FIRST };
        let metrics = Metrics::new().register(key).handle();
        Scheduler::start(loaded, SchedulerConfig { model: config.name, metrics, on_fatal: Arc::new(on_fatal) })
    }

    /// What a repository loads it with.
    ///
    /// # Errors
    /// The configuration's.
    pub fn into_request(self, version: ModelVersion) -> Result<LoadRequest, String> {
        let config = self.config()?;
        let served_as = config.clone();
        let load = Box::new(move |_: &LoadContext| {
            Ok(LoadedVersion { model: self.load(&served_as)?, artifact_size_bytes: 0, lease: Box::new(()) })
        });
        Ok(LoadRequest { version, config, load })
    }

    /// Loads the model into `repository` and waits until it is ready.
    ///
    /// # Errors
    /// The configuration's, or why it could not be loaded.
    pub fn serve(self, repository: &ModelRepository) -> Result<(), String> {
        let pending = repository.load(self.into_request(ModelVersion::FIRST)?).map_err(|error| error.to_string())?;
        pending.wait_blocking().map_err(|error| error.to_string())
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
