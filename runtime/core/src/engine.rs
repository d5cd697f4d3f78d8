//! The seam between the scheduler and whatever computes: a loaded model's signature and its instances.
//!
//! libtorch's engine is the crate `torchmodel-torch`; [`fake`] is one of plain functions, for tests. Invariant: an [`Engine`] is driven by one
//! thread, from [`Engine::start`] to its drop.

use std::path::Path;

use bytes::Bytes;
use torchmodel_crds::Failure;

use crate::{config::ModelConfig, inference::NamedTensor, signature::Signature, tensor::DataType};

pub mod fake;

pub use crate::metrics::ExecutionTimings;

/// One input of a batch: the parts of its requests, to be joined along the first dimension.
#[derive(Clone, Debug)]
pub struct EngineInput {
    /// Position in [`Signature::inputs`].
    pub index: usize,
    /// Datatype of every part.
    pub datatype: DataType,
    /// Shape of the whole: the first dimension is the sum over the parts.
    pub shape: Vec<i64>,
    /// Row-major data, one part for each request.
    pub parts: Vec<Bytes>,
}

/// What one execution gave.
#[derive(Debug)]
pub struct Execution {
    /// Outputs in the signature's order.
    pub outputs: Vec<NamedTensor>,
    /// Where the time went.
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

/// One instance of a model.
pub trait Engine: Send {
    /// Called once, on the thread that will call [`Self::run`]: binds devices and warms up. Gives the signature with what the
    /// warm-up taught about the outputs.
    fn start(&mut self) -> Result<Signature, Failure>;

    /// Runs the inputs of one batch. An input that is missing takes its default.
    fn run(&mut self, inputs: &[EngineInput]) -> Result<Execution, EngineError>;
}

/// A model in memory, before its instances run.
pub struct LoadedModel {
    /// What the model takes and gives.
    pub signature: Signature,
    /// Its instances.
    pub engines: Vec<Box<dyn Engine>>,
}

/// Loads models.
pub trait EngineLoader: Send + Sync {
    /// Loads the archive at `path` as `config` says. Blocks; called on a thread of its own.
    fn load(&self, path: &Path, config: &ModelConfig) -> Result<LoadedModel, Failure>;
}
