//! From a model's files to instances that a scheduler runs.
//!
//! A [`Loader`] opens files as a [`Program`], which says what it is; from that [`ExecutionPlan`] decides how it is run, and the
//! program becomes its instances. `torchmodel-torch` implements both. Invariant: nothing is decided in an engine that the plan
//! decides.

use std::{fs::File, path::PathBuf, sync::Arc};

use torchmodel_crds::Failure;

use crate::{
    binding::Binding,
    config::ModelConfig,
    engine::{BoxedInstance, EngineInput},
    interface::Interface,
    plan::{ExecutionPlan, Machine},
    signature::Signature,
    warmup::Warmup,
};

/// The files of one model, local and verified.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    /// The archive, open: the descriptor whose bytes were verified. An engine reads this, by position, and not the path.
    pub archive: Arc<File>,
    /// Where the archive is, for words.
    pub path: PathBuf,
}

/// A program in memory, before it is decided how it runs.
pub trait Program: Send {
    /// What it says about itself.
    fn interface(&self) -> &Interface;

    /// Whether running `inputs` shows that the method keeps state that its interface does not tell: memory of the program changes,
    /// or the same inputs get another answer. The program is as it was opened afterwards. An engine that cannot look says no.
    fn shows_state(&mut self, binding: &Binding, inputs: &[EngineInput]) -> Result<bool, Failure> {
        let _ = (binding, inputs);
        Ok(false)
    }

    /// Its instances and what they share it with: one for each of the plan's handles, in that order.
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
        let mut program = self.open(files, config)?;
        let machine = self.machine();
        let mut decided = decide(program.interface(), config, &machine)?;
        let (plan, binding, warmup) = &decided;
        let is_open = config.is_stateful.is_none() && !plan.is_stateful;
        if is_open
            && let Some(inputs) = warmup.runs().first()
            && program.shows_state(binding, inputs)?
        {
            tracing::warn!(
                model = config.name.as_str(),
                "method '{}' keeps something from one call to the next, which its code does not tell: it is served as stateful, by \
                 one instance, in order of arrival, without batching and freezing. If its answers do not depend on earlier \
                 requests, set model.stateful: false",
                config.method
            );
            decided = decide(&program.interface().clone().with_state(&config.method), config, &machine)?;
        }
        let (plan, binding, warmup) = decided;
        let instances = program.instances(&plan, &binding)?;
        Ok(LoadedModel { binding, plan, warmup, instances })
    }
}

fn decide(
    interface: &Interface,
    config: &ModelConfig,
    machine: &Machine,
) -> Result<(ExecutionPlan, Binding, Warmup), Failure> {
    let plan = ExecutionPlan::of(interface, config, machine)?;
    let binding = Binding::new(interface, config, &plan)?;
    let warmup = Warmup::of(config, binding.signature(), &plan)?;
    Ok((plan, binding, warmup))
}

/// A model in memory, before its instances run. Made by [`Loader::load`], used up by [`crate::scheduler::Scheduler::start`].
pub struct LoadedModel {
    /// How the protocol reaches the program.
    pub binding: Binding,
    /// How it is run.
    pub plan: ExecutionPlan,
    /// The inferences that run before it is ready.
    pub warmup: Warmup,
    /// Its instances, and after them the spare handles.
    pub instances: Vec<BoxedInstance>,
}

impl LoadedModel {
    /// What the model takes and gives, as far as is known before it ran.
    #[must_use]
    pub fn signature(&self) -> &Signature {
        self.binding.signature()
    }
}

#[cfg(test)]
mod tests {
    use torchmodel_crds::ModelSpec;

    use super::*;
    use crate::{
        interface::{ArgumentInterface, MethodInterface, ValueType},
        plan::DeviceKind,
    };

    /// A program of one method, which says that it keeps nothing; what a run shows is another matter.
    struct Opened {
        interface: Interface,
        shows_state: bool,
    }

    impl Loader for Opened {
        fn machine(&self) -> Machine {
            Machine { cpus: 4, devices: vec![DeviceKind::Cpu] }
        }

        fn open(&self, _: &ModelFiles, _: &ModelConfig) -> Result<Box<dyn Program>, Failure> {
            Ok(Box::new(Self { interface: self.interface.clone(), ..*self }))
        }
    }

    impl Program for Opened {
        fn interface(&self) -> &Interface {
            &self.interface
        }

        fn shows_state(&mut self, _: &Binding, inputs: &[EngineInput]) -> Result<bool, Failure> {
            assert_eq!(inputs.iter().map(|input| &input.shape[..]).collect::<Vec<_>>(), [[1, 2]]);
            Ok(self.shows_state)
        }

        fn instances(self: Box<Self>, _: &ExecutionPlan, _: &Binding) -> Result<Vec<BoxedInstance>, Failure> {
            Ok(Vec::new())
        }
    }

    fn loaded(shows_state: bool, stateful: Option<bool>, iterations: u32) -> LoadedModel {
        let argument = ArgumentInterface { name: "x".into(), value_type: ValueType::Tensor, has_default: false };
        let method = MethodInterface {
            name: "forward".into(),
            arguments: vec![argument],
            returns: ValueType::Tensor,
            is_stateful: false,
            mutates_inputs: false,
            duration_depends_on_values: false,
        };
        let spec = serde_json::json!({
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
            "batching": {"maxBatchSize": 8},
            "stateful": stateful,
            "warmup": {"iterations": iterations},
        });
        let spec: ModelSpec = serde_json::from_value(spec).unwrap();
        let config = ModelConfig::check(&spec, Some("m".into())).unwrap();
        let files = ModelFiles { archive: Arc::new(File::open("/dev/null").unwrap()), path: PathBuf::new() };
        let loader = Opened { interface: Interface { methods: vec![method] }, shows_state };
        loader.load(&files, &config).unwrap()
    }

    #[test]
    fn a_program_that_shows_state_when_it_runs_is_served_as_stateful() {
        let model = loaded(true, None, 3);
        assert!(model.plan.is_stateful && model.signature().is_stateful);
        assert_eq!(model.signature().max_batch_size, None);
        assert!(!model.signature().inputs[0].is_batched);
        assert_eq!(loaded(false, None, 3).signature().max_batch_size, Some(8));
    }

    #[test]
    fn what_the_configuration_says_is_not_looked_for() {
        assert!(!loaded(true, Some(false), 3).plan.is_stateful);
        assert!(loaded(false, Some(true), 3).plan.is_stateful);
        assert!(!loaded(true, None, 0).plan.is_stateful, "without a warm-up nothing is run");
    }
}
