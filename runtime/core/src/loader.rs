//! From a model's files to instances that a scheduler runs.
//!
//! A [`Loader`] opens files as a [`Program`], which says what it is; from that [`ExecutionPlan`] decides how it is run, and the
//! program becomes its instances. `torchmodel-torch` implements both. Invariant: nothing is decided in an engine that the plan
//! decides.

use std::path::PathBuf;

use torchmodel_crds::Failure;

use crate::{
    binding::Binding,
    config::ModelConfig,
    engine::BoxedInstance,
    interface::Interface,
    plan::{ExecutionPlan, Machine},
    signature::Signature,
    warmup::Warmup,
};

/// The files of one model, local and verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFiles {
    /// The archive.
    pub path: PathBuf,
}

/// A program in memory, before it is decided how it runs.
pub trait Program: Send {
    /// What it says about itself.
    fn interface(&self) -> &Interface;

    /// Its instances, one for each of the plan's placements, in that order.
    fn instances(self: Box<Self>, plan: &ExecutionPlan, binding: &Binding) -> Result<Vec<BoxedInstance>, Failure>;
}

/// Loads models.
pub trait Loader: Send + Sync {
    /// The processors and devices that it loads onto.
    fn machine(&self) -> Machine;

    /// Reads `files` into memory. Blocks; called on a thread of its own.
    fn open(&self, files: &ModelFiles, config: &ModelConfig) -> Result<Box<dyn Program>, Failure>;

    /// Opens `files`, decides how the program is run and makes its instances. Blocks.
    fn load(&self, files: &ModelFiles, config: &ModelConfig) -> Result<LoadedModel, Failure> {
        let program = self.open(files, config)?;
        let plan = ExecutionPlan::of(program.interface(), config, &self.machine())?;
        let binding = Binding::new(program.interface(), config, &plan)?;
        let warmup = Warmup::of(config, binding.signature(), &plan)?;
        let instances = program.instances(&plan, &binding)?;
        Ok(LoadedModel { binding, plan, warmup, instances })
    }
}

/// A model in memory, before its instances run. Made by [`Loader::load`], used up by [`crate::scheduler::Scheduler::start`].
pub struct LoadedModel {
    /// How the protocol reaches the program.
    pub binding: Binding,
    /// How it is run.
    pub plan: ExecutionPlan,
    /// The inferences that run before it is ready.
    pub warmup: Warmup,
    /// Its instances.
    pub instances: Vec<BoxedInstance>,
}

impl LoadedModel {
    /// What the model takes and gives, as far as is known before it ran.
    #[must_use]
    pub fn signature(&self) -> &Signature {
        self.binding.signature()
    }
}
