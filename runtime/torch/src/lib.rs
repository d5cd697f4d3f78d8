//! The engine that serves: TorchScript on libtorch, on the CPU or on CUDA devices.
//!
//! [`TorchLoader`] opens an archive, [`interface`] says what is in it in the core's words, and [`instance`] runs it as the core's plan
//! says. Invariant: nothing is decided here that the plan decides.

mod convert;
mod device;
mod instance;
mod interface;

use std::path::{Path, PathBuf};

use torch_shim::{Module, ModuleFacts, TorchError, TorchErrorKind};
use torchmodel_core::{
    binding::Binding,
    config::ModelConfig,
    engine::{BoxedInstance, boxed},
    interface::Interface,
    loader::{Loader, ModelFiles, Program},
    plan::{DeviceKind, ExecutionPlan, Machine},
};
use torchmodel_crds::{Failure, FailurePhase, FailureReason};

pub use self::device::{DeviceChoice, devices};
use self::instance::TorchInstance;

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
        let module = Module::load(&files.path, device).map_err(|error| load_failure(&error))?;
        let facts = module.describe().map_err(|error| load_failure(&error))?;
        announce(&facts, config, device);
        let interface = interface::of(&facts);
        Ok(Box::new(TorchProgram { path: files.path.clone(), devices: self.devices.clone(), module, interface }))
    }
}

/// An archive on the first of its devices.
struct TorchProgram {
    path: PathBuf,
    devices: Vec<tch::Device>,
    module: Module,
    interface: Interface,
}

impl Program for TorchProgram {
    fn interface(&self) -> &Interface {
        &self.interface
    }

    fn instances(self: Box<Self>, plan: &ExecutionPlan, binding: &Binding) -> Result<Vec<BoxedInstance>, Failure> {
        let Self { path, devices, module, .. } = *self;
        let mut opened = Some(module);
        let mut instances = Vec::with_capacity(plan.placements.len());
        for (index, device) in devices.into_iter().enumerate() {
            let count = plan.placements.iter().filter(|placement| **placement == index).count();
            if count == 0 {
                continue;
            }
            let module = match opened.take().filter(|_| index == 0) {
                Some(module) => module,
                None => Module::load(&path, device).map_err(|error| load_failure(&error))?,
            };
            for module in copies(module, count, plan, binding).map_err(|error| load_failure(&error))? {
                instances.push(boxed(TorchInstance::new(module, device, plan, binding)));
            }
        }
        Ok(instances)
    }
}

/// So many handles on the module's weights, as the plan wants them.
fn copies(module: Module, count: usize, plan: &ExecutionPlan, binding: &Binding) -> Result<Vec<Module>, TorchError> {
    let module = if plan.is_frozen { module.freeze(&binding.method().name)? } else { module };
    let mut modules = (1..count).map(|_| module.share()).collect::<Result<Vec<_>, _>>()?;
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
        tracing::warn!(
            model,
            "method '{}' writes to the model's own attributes: answers depend on earlier requests. It is served by one \
             instance, in order of arrival, without batching and freezing",
            config.method
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

/// Loads an archive on the CPU and tells what is in it, for `inspect`.
pub fn inspect(path: &Path) -> Result<ModuleFacts, Failure> {
    let module = Module::load(path, tch::Device::Cpu).map_err(|error| load_failure(&error))?;
    module.describe().map_err(|error| load_failure(&error))
}
