//! One module on one device: arguments laid out, the method run, what it returned brought to the host.
//!
//! Each step waits for its work, on the CPU as on a device. Invariants: a method is run in inference mode, with the instance's own
//! number of threads on whatever thread it runs; memory is shared with requests and responses only where the plan allows it.

use std::{
    cell::Cell,
    sync::Arc,
    time::{Duration, Instant},
};

use torch_shim::{Argument, Module, Output};
use torchmodel_core::{
    binding::Binding,
    engine::{BoxedInstance, EngineError, EngineInput, Execution, ExecutionTimings, Instance, boxed},
    inference::NamedTensor,
    plan::{Copies, ExecutionPlan},
};
use torchmodel_crds::Failure;

use crate::{convert, fault::FaultContext, load_failure, print};

thread_local! {
    /// What this thread last told libtorch; the setting is a thread's own.
    static THREADS: Cell<usize> = const { Cell::new(0) };
}

/// One instance.
pub struct TorchInstance {
    module: Module,
    device: tch::Device,
    binding: Arc<Binding>,
    copies: Copies,
    threads: usize,
    /// Whose print it is.
    model: Arc<str>,
}

/// Arguments, and how long it took to lay them out.
pub struct Staged {
    arguments: Vec<Argument>,
    elapsed: Duration,
}

/// What the method returned, and where the time went.
pub struct Ticket {
    outputs: Vec<Output>,
    timings: ExecutionTimings,
}

impl TorchInstance {
    pub fn new(module: Module, device: tch::Device, model: &Arc<str>, how: (&ExecutionPlan, &Binding)) -> Self {
        let (plan, binding) = how;
        let (binding, model) = (Arc::new(binding.clone()), Arc::clone(model));
        Self { module, device, binding, copies: plan.copies, threads: 1, model }
    }

    fn fault(&self) -> FaultContext<'_> {
        FaultContext { device: self.device, binding: &self.binding }
    }

    /// Tells libtorch how many threads an operator may use that this thread calls, and the log whose model it runs.
    fn enter(&self) {
        print::enter(&self.model);
        if THREADS.replace(self.threads) != self.threads {
            tch::set_num_threads(i32::try_from(self.threads).unwrap_or(i32::MAX));
        }
    }
}

impl Instance for TorchInstance {
    type Staged = Staged;
    type Ticket = Ticket;

    fn attach(&mut self) -> Result<(), Failure> {
        if self.device.is_cuda() {
            torch_shim::use_own_stream(self.device).map_err(|error| load_failure(&error))?;
        }
        Ok(())
    }

    fn set_threads(&mut self, count: usize) {
        self.threads = count.max(1);
    }

    fn copy(&self) -> Result<Option<BoxedInstance>, Failure> {
        let module = self.module.deep_copy().map_err(|error| load_failure(&error))?;
        Ok(Some(boxed(Self { module, binding: Arc::clone(&self.binding), model: Arc::clone(&self.model), ..*self })))
    }

    fn stage(&mut self, inputs: Vec<EngineInput>) -> Result<Staged, EngineError> {
        let started = Instant::now();
        let mut arguments: Vec<Argument> = self.binding.method().arguments.iter().map(|_| Argument::Default).collect();
        for input in &inputs {
            let Some(parameter) = self.binding.parameters().get(input.index) else { continue };
            let argument = convert::argument(input, parameter.kind, self.device, self.copies.inputs)
                .map_err(|error| self.fault().of_conversion(error))?;
            if let Some(slot) = arguments.get_mut(parameter.position) {
                *slot = argument;
            }
        }
        Ok(Staged { arguments, elapsed: started.elapsed() })
    }

    fn launch(&mut self, staged: Staged) -> Result<Ticket, EngineError> {
        self.enter();
        let started = Instant::now();
        let outputs = self
            .module
            .run(&self.binding.method().name, &staged.arguments)
            .map_err(|error| self.fault().of_call(&error))?;
        let timings = ExecutionTimings {
            compute_input: staged.elapsed,
            compute_infer: started.elapsed(),
            compute_output: Duration::ZERO,
        };
        Ok(Ticket { outputs, timings })
    }

    fn finish(&mut self, ticket: Ticket) -> Result<Execution, EngineError> {
        let started = Instant::now();
        let tensors = ticket.outputs.into_iter().map(|Output { path, value }| {
            let tensor = convert::output(value, self.copies.outputs);
            let tensor = tensor.map_err(|error| self.fault().of_conversion(error.of_output(&path)))?;
            Ok(NamedTensor { name: path, tensor })
        });
        let outputs = tensors.collect::<Result<_, EngineError>>()?;
        Ok(Execution { outputs, timings: ExecutionTimings { compute_output: started.elapsed(), ..ticket.timings } })
    }
}
