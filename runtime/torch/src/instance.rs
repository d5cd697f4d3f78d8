//! One module on one device: arguments laid out, the method run, what it returned brought to the host.
//!
//! Each step waits for its work, on the CPU as on a device. Invariants: a method is run in inference mode, with the instance's own
//! number of threads on whatever thread it runs; memory is shared with requests and responses only where the plan allows it.

use std::{
    cell::Cell,
    sync::Arc,
    time::{Duration, Instant},
};

use torch_shim::{Argument, ConstantValues, Module, Output};
use torchmodel_core::{
    binding::Binding,
    engine::{BoxedInstance, EngineError, EngineInput, Execution, ExecutionTimings, Instance, boxed},
    plan::{Copies, ExecutionPlan},
};
use torchmodel_crds::Failure;

use crate::{convert, fault::FaultContext, load_failure, print};

thread_local! {
    /// What this thread last told libtorch; the setting is a thread's own.
    static THREADS: Cell<usize> = const { Cell::new(0) };
}

/// One instance. Dropped by the thread that ran it, and a copy by the warm-up before its original serves.
pub struct TorchInstance {
    module: Module,
    device: tch::Device,
    binding: Arc<Binding>,
    copies: Copies,
    threads: usize,
    /// In a copy: what it shares with the module that it is a copy of.
    _restored: Option<RestoredOnDrop>,
    /// The last field, so that the module is gone when it is dropped.
    model: Arc<Model>,
}

/// What a program and its instances have in common. When the last of them is gone, the memory of the weights goes back to the system.
#[derive(Debug)]
pub struct Model {
    /// Whose print it is.
    pub name: Arc<str>,
}

impl Drop for Model {
    fn drop(&mut self) {
        torch_shim::release_free_memory();
    }
}

/// Constants of a module's code, which hold again what they held when whoever wrote to them is gone.
struct RestoredOnDrop(ConstantValues);

impl Drop for RestoredOnDrop {
    fn drop(&mut self) {
        if let Err(error) = self.0.restore() {
            tracing::error!("the constants that a warm-up may have written to could not be put back: {error}");
        }
    }
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
    pub fn new(module: Module, device: tch::Device, model: &Arc<Model>, how: (&ExecutionPlan, &Binding)) -> Self {
        let (plan, binding) = how;
        let (binding, model) = (Arc::new(binding.clone()), Arc::clone(model));
        Self { module, device, binding, copies: plan.copies, threads: 1, _restored: None, model }
    }

    fn fault(&self) -> FaultContext<'_> {
        FaultContext { device: self.device, binding: &self.binding }
    }

    /// Tells libtorch how many threads an operator may use that this thread calls, and the log whose model it runs.
    fn enter(&self) {
        print::enter(&self.model.name);
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
        let restored = RestoredOnDrop(self.module.keep_constants().map_err(|error| load_failure(&error))?);
        let module = self.module.deep_copy().map_err(|error| load_failure(&error))?;
        let (binding, model) = (Arc::clone(&self.binding), Arc::clone(&self.model));
        Ok(Some(boxed(Self { module, binding, _restored: Some(restored), model, ..*self })))
    }

    fn stage(&mut self, inputs: Vec<EngineInput>) -> Result<Staged, EngineError> {
        let started = Instant::now();
        let arguments = convert::arguments(&self.binding, &inputs, self.device, self.copies.inputs)
            .map_err(|error| self.fault().of_conversion(error))?;
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
        let outputs =
            convert::outputs(ticket.outputs, self.copies.outputs).map_err(|error| self.fault().of_conversion(error))?;
        Ok(Execution { outputs, timings: ExecutionTimings { compute_output: started.elapsed(), ..ticket.timings } })
    }
}
