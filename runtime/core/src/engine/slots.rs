//! An [`Instance`] behind one object-safe face that keeps what is staged and launched.
//!
//! Every engine implements [`Instance`] with its own types; [`boxed`] wraps it for the scheduler, which then needs no box for each
//! step. Invariant: a step that fails, or panics, has used up its batch.

use std::collections::VecDeque;

use torchmodel_crds::Failure;

use super::{EngineError, EngineInput, Execution, Instance};
use crate::tensor::DataLocation;

/// An instance of any engine.
pub type BoxedInstance = Box<dyn DynInstance>;

/// What the scheduler and the warm-up call: [`Instance`] without its types. At most one batch is staged; those that are launched
/// are finished in the order in which they were.
pub trait DynInstance: Send {
    /// See [`Instance::attach`].
    fn attach(&mut self) -> Result<(), Failure>;
    /// See [`Instance::is_asynchronous`].
    fn is_asynchronous(&self) -> bool;
    /// See [`Instance::accepts`].
    fn accepts(&self, location: DataLocation) -> bool;
    /// See [`Instance::set_threads`].
    fn set_threads(&mut self, count: usize);
    /// See [`Instance::copy`].
    fn copy(&self) -> Result<Option<BoxedInstance>, Failure>;
    /// Stages a batch. One that was staged before is discarded.
    fn stage(&mut self, inputs: Vec<EngineInput>) -> Result<(), EngineError>;
    /// Gives up the batch that is staged.
    fn discard(&mut self);
    /// Launches the batch that is staged.
    fn launch(&mut self) -> Result<(), EngineError>;
    /// Finishes the batch that was launched first.
    fn finish(&mut self) -> Result<Execution, EngineError>;
}

impl dyn DynInstance + '_ {
    /// Runs one batch from its first step to its last; nothing else may be under way.
    pub fn execute(&mut self, inputs: Vec<EngineInput>) -> Result<Execution, EngineError> {
        self.stage(inputs)?;
        self.launch()?;
        self.finish()
    }
}

struct Slots<I: Instance> {
    instance: I,
    staged: Option<I::Staged>,
    launched: VecDeque<I::Ticket>,
}

/// Makes an instance ready for the scheduler.
pub fn boxed<I: Instance + 'static>(instance: I) -> BoxedInstance {
    Box::new(Slots { instance, staged: None, launched: VecDeque::new() })
}

fn missing(step: &str) -> EngineError {
    EngineError::Failed(format!("there is no batch to {step}"))
}

impl<I: Instance> DynInstance for Slots<I> {
    fn attach(&mut self) -> Result<(), Failure> {
        self.instance.attach()
    }

    fn is_asynchronous(&self) -> bool {
        self.instance.is_asynchronous()
    }

    fn accepts(&self, location: DataLocation) -> bool {
        self.instance.accepts(location)
    }

    fn set_threads(&mut self, count: usize) {
        self.instance.set_threads(count);
    }

    fn copy(&self) -> Result<Option<BoxedInstance>, Failure> {
        self.instance.copy()
    }

    fn stage(&mut self, inputs: Vec<EngineInput>) -> Result<(), EngineError> {
        self.staged = None;
        self.staged = Some(self.instance.stage(inputs)?);
        Ok(())
    }

    fn discard(&mut self) {
        self.staged = None;
    }

    fn launch(&mut self) -> Result<(), EngineError> {
        let staged = self.staged.take().ok_or_else(|| missing("launch"))?;
        let ticket = self.instance.launch(staged)?;
        self.launched.push_back(ticket);
        Ok(())
    }

    fn finish(&mut self) -> Result<Execution, EngineError> {
        let ticket = self.launched.pop_front().ok_or_else(|| missing("finish"))?;
        self.instance.finish(ticket)
    }
}
