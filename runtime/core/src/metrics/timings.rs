//! Where the time of a request and of an execution went.
//!
//! Measured by engines and the scheduler, recorded through [`super::ModelMetrics`].

use std::time::Duration;

/// Where one successful request's time went.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestTimings {
    /// From the request's arrival in the service to its answer.
    pub total: Duration,
    /// In the queue.
    pub queue: Duration,
    /// In input handling of its execution.
    pub compute_input: Duration,
    /// In the model.
    pub compute_infer: Duration,
    /// In output handling.
    pub compute_output: Duration,
    /// Rows of the request's batch dimension; 1 for a model without batching.
    pub rows: u64,
}

/// Where one execution's time went.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExecutionTimings {
    /// Laying out the inputs.
    pub compute_input: Duration,
    /// The model itself.
    pub compute_infer: Duration,
    /// Taking out the outputs.
    pub compute_output: Duration,
}
