//! The engine that serves: TorchScript on libtorch, on the CPU or on CUDA devices.
//!
//! [`TorchLoader`] loads an archive once for each device and makes instances of it; a `TorchEngine` is one of them, on its own
//! thread. Invariants: a stateful model has one instance, is never batched, shared or frozen, and warms up on a copy, so that its
//! first client finds it as it was saved; its outputs are copied, since a later call may write to them.

mod convert;
mod device;
mod schema;
mod warmup;

use std::{path::Path, time::Instant};

pub use device::{DeviceChoice, devices};
use schema::Binding;
use torch_shim::{Argument, Method, Module, ModuleFacts, Output, TorchError, TorchErrorKind};
use torchmodel_core::{
    config::ModelConfig,
    engine::{Engine, EngineError, EngineInput, EngineLoader, Execution, ExecutionTimings, LoadedModel},
    inference::NamedTensor,
    signature::Signature,
};
use torchmodel_crds::{Failure, FailurePhase, FailureReason};

/// Loads TorchScript archives onto devices.
pub struct TorchLoader {
    devices: Vec<tch::Device>,
}

impl TorchLoader {
    /// Loads onto each of `devices`.
    #[must_use]
    pub fn new(devices: Vec<tch::Device>) -> Self {
        Self { devices }
    }
}

impl EngineLoader for TorchLoader {
    fn load(&self, path: &Path, config: &ModelConfig) -> Result<LoadedModel, Failure> {
        let mut engines: Vec<Box<dyn Engine>> = Vec::new();
        let mut signature = None;
        for device in &self.devices {
            let module = Module::load(path, *device).map_err(|error| load_failure(&error))?;
            let facts = module.describe().map_err(|error| load_failure(&error))?;
            let binding = Binding::new(&facts, config)?;
            if signature.is_none() {
                announce(&facts, binding.method(), config, *device);
            }
            signature.get_or_insert_with(|| binding.signature().clone());
            let is_stateful = binding.method().is_stateful;
            let module = if config.freeze && !is_stateful {
                module.freeze(&config.method).map_err(|error| load_failure(&error))?
            } else {
                module
            };
            let count = if is_stateful { 1 } else { config.instances };
            for _ in 1..count {
                let module = module.share().map_err(|error| load_failure(&error))?;
                engines.push(Box::new(TorchEngine::new(module, binding.clone(), *device, config)));
            }
            engines.push(Box::new(TorchEngine::new(module, binding, *device, config)));
            if is_stateful {
                break;
            }
        }
        let signature = signature.ok_or_else(|| {
            Failure::new(FailurePhase::Load, FailureReason::SpecInvalid, "no device to load the model onto")
        })?;
        Ok(LoadedModel { signature, engines })
    }
}

fn announce(facts: &ModuleFacts, method: &Method, config: &ModelConfig, device: tch::Device) {
    let model = config.name.as_str();
    tracing::info!(
        model,
        device = device::name(device),
        method = method.name,
        parameters = facts.parameters.count,
        parameter_bytes = facts.parameters.size_bytes,
        "loaded the archive"
    );
    if method.is_stateful {
        tracing::warn!(
            model,
            "method '{}' writes to the model's own attributes: answers depend on earlier requests. It is served by one \
             instance, in order of arrival, without batching and freezing",
            method.name
        );
    }
    let foreign: Vec<_> =
        facts.constant_devices.iter().filter(|found| **found != device::name(device) && *found != "cpu").collect();
    if !foreign.is_empty() {
        tracing::warn!(
            model,
            "the code names devices {foreign:?}: it was traced there and may fail here; trace it on the CPU"
        );
    }
}

/// One instance.
struct TorchEngine {
    module: Module,
    binding: Binding,
    device: tch::Device,
    config: ModelConfig,
}

impl TorchEngine {
    fn new(module: Module, binding: Binding, device: tch::Device, config: &ModelConfig) -> Self {
        Self { module, binding, device, config: config.clone() }
    }

    fn intra_op_threads(&self) -> i32 {
        let instances = if self.binding.method().is_stateful { 1 } else { self.config.instances };
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let share =
            self.config.intra_op_threads.map_or(cpus / instances.max(1), |count| usize::try_from(count).unwrap_or(1));
        i32::try_from(share.max(1)).unwrap_or(i32::MAX)
    }
}

impl Engine for TorchEngine {
    fn start(&mut self) -> Result<Signature, Failure> {
        tch::set_num_threads(self.intra_op_threads());
        if self.device.is_cuda() {
            torch_shim::use_own_stream(self.device).map_err(|error| load_failure(&error))?;
        }
        let runs = warmup::plan(&self.config, self.binding.signature())?;
        if runs.is_empty() {
            return Ok(self.binding.signature().clone());
        }
        let started = Instant::now();
        let mut copy = None;
        if self.binding.method().is_stateful {
            copy = Some(self.module.deep_copy().map_err(|error| load_failure(&error))?);
        }
        let module = copy.as_mut().unwrap_or(&mut self.module);
        for inputs in &runs {
            for _ in 0..self.config.warmup.iterations {
                let execution = match execute(module, &self.binding, self.device, inputs) {
                    Ok(execution) => execution,
                    Err(EngineError::Refused(why)) if self.config.warmup.inputs.is_empty() => {
                        tracing::warn!(
                            model = self.config.name.as_str(),
                            "warm-up skipped: the model refuses zeros ({why}); give model.warmup.inputs values that it takes, or \
                             the first requests will be slow"
                        );
                        return Ok(self.binding.signature().clone());
                    }
                    Err(error) => return Err(warmup_failure(&error)),
                };
                self.binding.learn(&execution.outputs, inputs)?;
            }
        }
        let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(model = self.config.name.as_str(), runs = runs.len(), elapsed_ms, "warmed up");
        Ok(self.binding.signature().clone())
    }

    fn run(&mut self, inputs: &[EngineInput]) -> Result<Execution, EngineError> {
        execute(&mut self.module, &self.binding, self.device, inputs)
    }
}

fn execute(
    module: &mut Module,
    binding: &Binding,
    device: tch::Device,
    inputs: &[EngineInput],
) -> Result<Execution, EngineError> {
    let started = Instant::now();
    let arguments = arguments(binding, device, inputs)?;
    let laid_out = Instant::now();
    let outputs =
        module.run(&binding.method().name, &arguments).map_err(|error| engine_error(&error, binding, device))?;
    let computed = Instant::now();
    let outputs = named_outputs(binding, outputs)?;
    let timings = ExecutionTimings {
        compute_input: laid_out - started,
        compute_infer: computed - laid_out,
        compute_output: computed.elapsed(),
    };
    Ok(Execution { outputs, timings })
}

fn arguments(binding: &Binding, device: tch::Device, inputs: &[EngineInput]) -> Result<Vec<Argument>, EngineError> {
    let mut arguments: Vec<Argument> = binding.method().arguments.iter().map(|_| Argument::Default).collect();
    // A stateful method may keep an input as an attribute and write to it in a later call.
    let must_copy = binding.method().mutates_inputs || binding.method().is_stateful;
    for input in inputs {
        let Some(parameter) = binding.parameters().get(input.index) else { continue };
        let argument = convert::argument(input, parameter.kind, device, must_copy)?;
        if let Some(slot) = arguments.get_mut(parameter.position) {
            *slot = argument;
        }
    }
    Ok(arguments)
}

fn named_outputs(binding: &Binding, outputs: Vec<Output>) -> Result<Vec<NamedTensor>, EngineError> {
    let names = binding.output_names(&outputs)?;
    let is_stateful = binding.method().is_stateful;
    names
        .into_iter()
        .zip(outputs)
        .map(|(name, output)| {
            let tensor = convert::output(output.value, is_stateful)
                .map_err(|message| EngineError::Failed(format!("output '{name}': {message}")))?;
            Ok(NamedTensor { name, tensor })
        })
        .collect()
}

fn engine_error(error: &TorchError, binding: &Binding, device: tch::Device) -> EngineError {
    match error.kind {
        TorchErrorKind::OutOfMemory => EngineError::OutOfMemory(last_line(&error.message)),
        // The text may be the request's own: only the device can say that it is lost.
        TorchErrorKind::Device if device.is_cuda() && torch_shim::is_device_lost(device) => {
            EngineError::DeviceLost(last_line(&error.message))
        }
        // An exception that the model raises, or an argument that its schema refuses, speaks of the request.
        TorchErrorKind::Raised | TorchErrorKind::Argument => EngineError::Refused(last_line(&error.message)),
        // An operator that fails may be the model's fault or the request's. Where datatypes and shapes were declared and
        // checked, it is the model's.
        _ if !binding.is_fully_declared() => EngineError::Refused(format!(
            "{}; declare datatype and shape in model.inputs to have requests checked before they run",
            last_line(&error.message)
        )),
        // An index out of range or a word that is not in the vocabulary looks like any other failed operator.
        _ if binding.depends_on_values() => EngineError::Refused(last_line(&error.message)),
        _ => {
            tracing::error!(method = binding.method().name, "the model failed: {}", error.message);
            EngineError::Failed(last_line(&error.message))
        }
    }
}

/// The interpreter puts a traceback of TorchScript source before the sentence that says what was wrong.
fn last_line(message: &str) -> String {
    let line = message.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or(message);
    line.trim().trim_start_matches("RuntimeError: ").to_owned()
}

fn load_failure(error: &TorchError) -> Failure {
    let reason = match error.kind {
        TorchErrorKind::Operator => FailureReason::UnsupportedOperator,
        TorchErrorKind::Version => FailureReason::TorchVersionTooNew,
        TorchErrorKind::OutOfMemory if error.message.contains("CUDA") => FailureReason::OutOfDeviceMemory,
        TorchErrorKind::OutOfMemory => FailureReason::OutOfHostMemory,
        TorchErrorKind::Device => FailureReason::DriverTooOld,
        TorchErrorKind::Archive | TorchErrorKind::Raised | TorchErrorKind::Argument | TorchErrorKind::Torch => {
            FailureReason::NotTorchScript
        }
    };
    Failure::new(FailurePhase::Load, reason, error.message.clone())
}

fn warmup_failure(error: &EngineError) -> Failure {
    let reason = match error {
        EngineError::OutOfMemory(message) if message.contains("CUDA") => FailureReason::OutOfDeviceMemory,
        EngineError::OutOfMemory(_) => FailureReason::OutOfHostMemory,
        _ => FailureReason::WarmupFailed,
    };
    Failure::new(FailurePhase::Warmup, reason, error.to_string())
}

/// Loads an archive on the CPU and tells what is in it, for `inspect`.
pub fn inspect(path: &Path) -> Result<ModuleFacts, Failure> {
    let module = Module::load(path, tch::Device::Cpu).map_err(|error| load_failure(&error))?;
    module.describe().map_err(|error| load_failure(&error))
}
