//! The engine that serves: TorchScript on libtorch, on the CPU or on CUDA devices.
//!
//! [`TorchLoader`] opens an archive, `interface` says what is in it in the core's words, and `instance` runs it as the core's plan
//! says. Invariant: nothing is decided here that the plan decides.

mod convert;
mod device;
mod fault;
mod instance;
pub mod interface;
mod observe;
mod print;

use std::{fs::File, sync::Arc};

use torch_shim::{Module, ModuleFacts, TorchError, TorchErrorKind};
use torchmodel_core::{
    binding::Binding,
    config::ModelConfig,
    engine::{BoxedInstance, EngineInput, boxed},
    interface::Interface,
    loader::{Loader, ModelFiles, Program},
    plan::{DeviceKind, ExecutionPlan, Machine},
};
use torchmodel_crds::{Failure, FailurePhase, FailureReason};

pub use self::device::{DeviceChoice, devices};
use self::instance::{Model, TorchInstance};

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

impl Loader for TorchLoader {
    fn machine(&self) -> Machine {
        let kind = |device: &tch::Device| if device.is_cuda() { DeviceKind::Accelerator } else { DeviceKind::Cpu };
        Machine::with_devices(self.devices.iter().map(kind).collect())
    }

    fn open(&self, files: &ModelFiles, config: &ModelConfig) -> Result<Box<dyn Program>, Failure> {
        let device = self.devices.first().copied().unwrap_or(tch::Device::Cpu);
        let module = Module::load_from(&files.archive, device).map_err(|error| load_failure(&error))?;
        let facts = module.describe().map_err(|error| load_failure(&error))?;
        announce(&facts, config, device);
        let interface = interface::of(&facts);
        print::handle();
        let model = Arc::new(Model { name: config.name.as_str().into() });
        let archive = Arc::clone(&files.archive);
        let is_random = facts.method(&config.method).is_some_and(|method| method.is_random);
        let devices = self.devices.clone();
        Ok(Box::new(TorchProgram { archive, devices, module, interface, is_random, model }))
    }
}

/// An archive on the first of its devices.
struct TorchProgram {
    archive: Arc<File>,
    devices: Vec<tch::Device>,
    module: Module,
    interface: Interface,
    /// Whether two equal calls of the served method may differ without any state.
    is_random: bool,
    /// The last field, so that the module is gone when it is dropped.
    model: Arc<Model>,
}

impl Program for TorchProgram {
    fn interface(&self) -> &Interface {
        &self.interface
    }

    fn shows_state(&mut self, binding: &Binding, inputs: &[EngineInput]) -> Result<bool, Failure> {
        let device = self.devices.first().copied().unwrap_or(tch::Device::Cpu);
        print::enter(&self.model.name);
        let found = observe::shows_state(&mut self.module, device, binding, (inputs, self.is_random));
        let found = found.map_err(|error| load_failure(&error))?;
        if found {
            // The one that was run is no longer what was saved.
            self.module = Module::load_from(&self.archive, device).map_err(|error| load_failure(&error))?;
        }
        Ok(found)
    }

    fn instances(self: Box<Self>, plan: &ExecutionPlan, binding: &Binding) -> Result<Vec<BoxedInstance>, Failure> {
        let Self { model, archive, devices, module, .. } = *self;
        let mut opened = Some(module);
        let mut instances = Vec::with_capacity(plan.handles().count());
        for (index, device) in devices.into_iter().enumerate() {
            let count = plan.handles().filter(|handle| *handle == index).count();
            if count == 0 {
                continue;
            }
            let module = match opened.take().filter(|_| index == 0) {
                Some(module) => module,
                None => Module::load_from(&archive, device).map_err(|error| load_failure(&error))?,
            };
            for module in copies(module, count, plan, binding).map_err(|error| load_failure(&error))? {
                instances.push(boxed(TorchInstance::new(module, device, &model, (plan, binding))));
            }
        }
        Ok(instances)
    }
}

/// So many handles on the module's weights, as the plan wants them.
fn copies(module: Module, count: usize, plan: &ExecutionPlan, binding: &Binding) -> Result<Vec<Module>, TorchError> {
    let method = binding.method();
    let mut module = if plan.is_frozen { module.freeze(&method.name)? } else { module };
    // A method that writes to the module, whatever the configuration says of it, has weights of its own on each thread.
    let mut copy = || if method.is_stateful { module.deep_copy() } else { module.share(&method.name) };
    let mut modules = (1..count).map(|_| copy()).collect::<Result<Vec<_>, _>>()?;
    modules.push(module);
    Ok(modules)
}

fn announce(facts: &ModuleFacts, config: &ModelConfig, device: tch::Device) {
    let model = config.name.as_str();
    tracing::info!(
        model,
        device = device::name(device),
        method = config.method,
        parameters = facts.parameters.count,
        parameter_bytes = facts.parameters.size_bytes,
        "loaded the archive"
    );
    if facts.method(&config.method).is_some_and(|method| method.is_stateful) {
        let method = &config.method;
        if config.is_stateful == Some(false) {
            tracing::warn!(
                model,
                "method '{method}' may write to the model itself; model.stateful: false has it served as if not"
            );
        } else {
            tracing::warn!(
                model,
                "method '{method}' may write to the model itself: answers depend on earlier requests. It is served by one \
                 instance, in order of arrival, without batching and freezing"
            );
        }
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

fn load_failure(error: &TorchError) -> Failure {
    let reason = match error.kind {
        TorchErrorKind::Operator => FailureReason::UnsupportedOperator,
        TorchErrorKind::Version => FailureReason::TorchVersionTooNew,
        TorchErrorKind::OutOfMemory if error.message.contains("CUDA") => FailureReason::OutOfDeviceMemory,
        TorchErrorKind::OutOfMemory => FailureReason::OutOfHostMemory,
        TorchErrorKind::Device => FailureReason::DriverTooOld,
        TorchErrorKind::Archive
        | TorchErrorKind::Raised
        | TorchErrorKind::Argument
        | TorchErrorKind::Shape
        | TorchErrorKind::Datatype
        | TorchErrorKind::Index
        | TorchErrorKind::Torch => FailureReason::NotTorchScript,
    };
    Failure::new(FailurePhase::Load, reason, error.message.clone())
}

/// Loads an archive on the CPU and tells what is in it, for `inspect`.
pub fn inspect(archive: &File) -> Result<ModuleFacts, Failure> {
    let module = Module::load_from(archive, tch::Device::Cpu).map_err(|error| load_failure(&error))?;
    module.describe().map_err(|error| load_failure(&error))
}
