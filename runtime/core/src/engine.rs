//! The seam between the scheduler and whatever computes: instances that stage, launch and finish batches.
//!
//! libtorch's engine is the crate `torchmodel-torch`; [`crate::fake`] has one of plain functions and one with a device of literal delays,
//! for tests. [`crate::loader`] makes instances. Invariant: an instance is driven by one thread at a time, and its batches are
//! finished in the order in which they were launched.

use torchmodel_crds::Failure;

use crate::{
    inference::NamedTensor,
    tensor::{DataLocation, DataType, TensorData},
};

mod slots;

pub use self::slots::{BoxedInstance, DynInstance, boxed};
pub use crate::metrics::ExecutionTimings;

/// One input of a batch: the parts of its requests, to be joined along the first dimension.
#[derive(Clone, Debug)]
pub struct EngineInput {
    /// Position in [`crate::signature::Signature::inputs`].
    pub index: usize,
    /// Datatype of every part.
    pub datatype: DataType,
    /// Shape of the whole: the first dimension is the sum over the parts.
    pub shape: Vec<i64>,
    /// Row-major data, one part for each request.
    pub parts: Vec<TensorData>,
}

/// What one execution gave.
#[derive(Debug)]
pub struct Execution {
    /// The leaves of what the program returned, in order, each under its path inside it: empty for the value itself, `1.key` inside
    /// a tuple of dicts. [`crate::binding::Binding::named`] gives them the names that clients see.
    pub outputs: Vec<NamedTensor>,
    /// Where the time went, by the engine's own clock: on a device from events, not from the return of an asynchronous call.
    pub timings: ExecutionTimings,
}

/// Why an execution gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The model raised an exception of its own, or refused inputs whose form nobody declared: the client's fault.
    #[error("the model refused the request: {0}")]
    Refused(String),
    /// Memory of the host or device ran out; a smaller request may pass.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// The model failed.
    #[error("the model failed: {0}")]
    Failed(String),
    /// The device is lost until the process ends.
    #[error("the device is lost: {0}")]
    DeviceLost(String),
}

/// The steps of one batch through an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Inputs go to where they are computed on.
    Stage,
    /// The computation starts.
    Launch,
    /// Outputs are waited for.
    Finish,
}

impl Step {
    /// A word for logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stage => "stage",
            Self::Launch => "launch",
            Self::Finish => "finish",
        }
    }
}

/// One instance of a program.
///
/// Made by [`crate::loader::Program::instances`], given to the scheduler and dropped by its thread. A batch passes the three steps in order. An engine
/// that can do nothing at once computes in `launch` and says that it is not asynchronous; the scheduler then never has a second
/// batch under way. An asynchronous one returns from `stage` and `launch` while copies and kernels are under way, and is given the
/// next batch meanwhile: at most two are launched and one more is staged. Whatever of a batch is dropped early (a `Staged` whose
/// requests were all cancelled, what is left after an error) must give back what it holds.
pub trait Instance: Send {
    /// A batch whose inputs are on their way in.
    type Staged: Send;
    /// A batch whose computation and copies out are on their way.
    type Ticket: Send;

    /// Called once, on the thread that the scheduler gives to this instance, before all else: binds devices and streams to it. An
    /// instance that is not asynchronous may later run on other threads too, never on two at once.
    fn attach(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    /// Whether `stage` and `launch` return before their work is done.
    fn is_asynchronous(&self) -> bool {
        false
    }

    /// Whether inputs may lie there. Others are refused before they reach the instance.
    fn accepts(&self, location: DataLocation) -> bool {
        matches!(location, DataLocation::Host | DataLocation::Pinned)
    }

    /// Sets how many threads one operator may use from the next batch on. An engine without such threads ignores it.
    fn set_threads(&mut self, count: usize) {
        let _ = count;
    }

    /// An instance with state of its own that shares what is compiled with this one, so that what warms it warms both. `None` from
    /// an engine whose programs have no state.
    fn copy(&self) -> Result<Option<BoxedInstance>, Failure> {
        Ok(None)
    }

    /// Lays out the inputs of one batch and begins to copy them in. An input that is missing takes its default.
    fn stage(&mut self, inputs: Vec<EngineInput>) -> Result<Self::Staged, EngineError>;

    /// Begins to compute, and to copy the outputs out.
    fn launch(&mut self, staged: Self::Staged) -> Result<Self::Ticket, EngineError>;

    /// Waits until both are done.
    fn finish(&mut self, ticket: Self::Ticket) -> Result<Execution, EngineError>;
}
