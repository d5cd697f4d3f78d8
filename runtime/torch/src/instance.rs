//! One module on one device: arguments laid out, the method run, what it returned brought to the host.
//!
//! Each step waits for its work, on the CPU as on a device. Invariants: a method is run in inference mode, with the instance's own
//! number of threads on whatever thread it runs; memory is shared with requests and responses only where the plan allows it.

use std::{
    cell::Cell,
    sync::Arc,
    time::{Duration, Instant},
};

use torch_shim::{Argument, Module, Output, TorchError, TorchErrorKind};
use torchmodel_core::{
    binding::Binding,
    engine::{BoxedInstance, EngineError, EngineInput, Execution, ExecutionTimings, Instance, boxed},
    inference::NamedTensor,
    plan::{Copies, ExecutionPlan},
};
use torchmodel_crds::Failure;

use crate::{convert, load_failure};

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
    pub fn new(module: Module, device: tch::Device, plan: &ExecutionPlan, binding: &Binding) -> Self {
        Self { module, device, binding: Arc::new(binding.clone()), copies: plan.copies, threads: 1 }
    }

    /// Tells libtorch how many threads an operator may use that this thread calls.
    fn apply_threads(&self) {
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
        Ok(Some(boxed(Self { module, binding: Arc::clone(&self.binding), ..*self })))
    }

    fn stage(&mut self, inputs: Vec<EngineInput>) -> Result<Staged, EngineError> {
        let started = Instant::now();
        let mut arguments: Vec<Argument> = self.binding.method().arguments.iter().map(|_| Argument::Default).collect();
        for input in &inputs {
            let Some(parameter) = self.binding.parameters().get(input.index) else { continue };
            let argument = convert::argument(input, parameter.kind, self.device, self.copies.inputs)?;
            if let Some(slot) = arguments.get_mut(parameter.position) {
                *slot = argument;
            }
        }
        Ok(Staged { arguments, elapsed: started.elapsed() })
    }

    fn launch(&mut self, staged: Staged) -> Result<Ticket, EngineError> {
        self.apply_threads();
        let started = Instant::now();
        let outputs = self
            .module
            .run(&self.binding.method().name, &staged.arguments)
            .map_err(|error| engine_error(&error, &self.binding, self.device))?;
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
            let tensor = tensor.map_err(|message| EngineError::Failed(format!("output '{path}': {message}")))?;
            Ok(NamedTensor { name: path, tensor })
        });
        let outputs = tensors.collect::<Result<_, EngineError>>()?;
        Ok(Execution { outputs, timings: ExecutionTimings { compute_output: started.elapsed(), ..ticket.timings } })
    }
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
