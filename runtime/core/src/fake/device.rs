//! A device of literal delays on a clock of its own: what overlaps, in which order, and what happens when a step fails.
//!
//! Three units work beside each other, as on a GPU: one copies in, one computes, one copies out; each takes batches in order, one at
//! a time. Waiting for the device moves the clock, nothing else does, so that a test reads exact times and never sleeps. Invariant:
//! outputs are the inputs, named by their position.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::join;
use crate::{
    engine::{BoxedInstance, EngineError, EngineInput, Execution, ExecutionTimings, Instance, Step, boxed},
    inference::NamedTensor,
};

/// How long the device takes for each part of a batch; no time at all by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delays {
    /// To copy inputs in.
    pub stage: Duration,
    /// To compute.
    pub compute: Duration,
    /// To copy outputs out.
    pub finish: Duration,
}

/// What goes wrong in a step.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It gives this error.
    Error(EngineError),
    /// It panics.
    Panic,
}

/// A step that was called: which one, for which batch (by the order of staging), and the rows that it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// The step.
    pub step: Step,
    /// Number of the batch, from 0.
    pub batch: usize,
    /// Rows of its first input; 0 without one.
    pub rows: i64,
}

/// Called before a step is carried out, on the thread that does: a test holds the scheduler there, or acts between two steps.
pub type Hook = dyn Fn(Call) + Send + Sync;

#[derive(Default)]
struct State {
    now: Duration,
    /// When each unit is free again.
    free: BTreeMap<&'static str, Duration>,
    staged: usize,
    calls: Vec<Call>,
    faults: VecDeque<(Call, Fault)>,
}

/// A device, shared by a test and the instances on it.
#[derive(Clone)]
pub struct FakeDevice {
    delays: Delays,
    is_asynchronous: bool,
    state: Arc<Mutex<State>>,
    hook: Arc<Hook>,
}

impl FakeDevice {
    /// A device whose steps return before their work is done.
    #[must_use]
    pub fn asynchronous(delays: Delays) -> Self {
        Self { delays, is_asynchronous: true, state: Arc::default(), hook: Arc::new(|_| {}) }
    }

    /// A device whose steps each wait for their work.
    #[must_use]
    pub fn synchronous(delays: Delays) -> Self {
        Self { is_asynchronous: false, ..Self::asynchronous(delays) }
    }

    /// Calls `hook` before each step.
    #[must_use]
    pub fn with_hook(mut self, hook: impl Fn(Call) + Send + Sync + 'static) -> Self {
        self.hook = Arc::new(hook);
        self
    }

    /// Lets `step` of the batch with that number go wrong.
    #[must_use]
    pub fn with_fault(self, step: Step, batch: usize, fault: Fault) -> Self {
        self.lock().faults.push_back((Call { step, batch, rows: 0 }, fault));
        self
    }

    /// An instance on this device.
    #[must_use]
    pub fn instance(&self) -> BoxedInstance {
        boxed(DeviceInstance { device: self.clone() })
    }

    /// The time that has passed for whoever waits for the device.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.lock().now
    }

    /// Every step that was called, in order.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the call, and carries out the fault that was ordered for it.
    fn call(&self, call: Call) -> Result<(), EngineError> {
        (self.hook)(call);
        let mut state = self.lock();
        state.calls.push(call);
        let position = state.faults.iter().position(|(at, _)| (at.step, at.batch) == (call.step, call.batch));
        let fault = position.and_then(|position| state.faults.remove(position));
        drop(state);
        match fault {
            None => Ok(()),
            Some((_, Fault::Error(error))) => Err(error),
            Some((_, Fault::Panic)) => panic!("the fake device panics in {}, as it was told to", call.step.as_str()),
        }
    }

    /// Gives work that can begin at `earliest` to a unit; when it is done.
    fn work(&self, unit: &'static str, earliest: Duration, takes: Duration) -> Duration {
        let mut state = self.lock();
        let begin = state.free.get(unit).copied().unwrap_or_default().max(earliest).max(state.now);
        let done = begin + takes;
        state.free.insert(unit, done);
        if !self.is_asynchronous {
            state.now = done;
        }
        done
    }
}

struct DeviceInstance {
    device: FakeDevice,
}

/// A batch on its way: its number, its data, and when the device is done with it.
struct OnDevice {
    call: Call,
    inputs: Vec<EngineInput>,
    done: Duration,
}

impl OnDevice {
    fn at(&self, step: Step) -> Call {
        Call { step, ..self.call }
    }
}

impl Instance for DeviceInstance {
    type Staged = OnDevice;
    type Ticket = OnDevice;

    fn is_asynchronous(&self) -> bool {
        self.device.is_asynchronous
    }

    fn stage(&mut self, inputs: Vec<EngineInput>) -> Result<OnDevice, EngineError> {
        let batch = {
            let mut state = self.device.lock();
            state.staged += 1;
            state.staged - 1
        };
        let rows = inputs.first().and_then(|input| input.shape.first()).copied().unwrap_or_default();
        let call = Call { step: Step::Stage, batch, rows };
        self.device.call(call)?;
        let done = self.device.work("copy in", Duration::ZERO, self.device.delays.stage);
        Ok(OnDevice { call, inputs, done })
    }

    fn launch(&mut self, staged: OnDevice) -> Result<OnDevice, EngineError> {
        self.device.call(staged.at(Step::Launch))?;
        let computed = self.device.work("compute", staged.done, self.device.delays.compute);
        let done = self.device.work("copy out", computed, self.device.delays.finish);
        Ok(OnDevice { done, ..staged })
    }

    fn finish(&mut self, ticket: OnDevice) -> Result<Execution, EngineError> {
        self.device.call(ticket.at(Step::Finish))?;
        let mut state = self.device.lock();
        state.now = state.now.max(ticket.done);
        drop(state);
        let outputs =
            ticket.inputs.iter().map(|input| Ok(NamedTensor { name: input.index.to_string(), tensor: join(input)? }));
        let delays = self.device.delays;
        let timings = ExecutionTimings {
            compute_input: delays.stage,
            compute_infer: delays.compute,
            compute_output: delays.finish,
        };
        Ok(Execution { outputs: outputs.collect::<Result<_, EngineError>>()?, timings })
    }
}
