//! What a version has done since it was loaded, in the form of Triton's statistics extension.
//!
//! Read from the series that `metrics` records; both protocols encode it. Invariant: the numbers are those of `GET /metrics`, not
//! a second count beside them.

use std::time::Duration;

use crate::model_key::ModelKey;

/// How often something happened and how long it took, all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatisticDuration {
    /// How often.
    pub count: u64,
    /// All together.
    pub total: Duration,
}

impl StatisticDuration {
    /// The time in the wire's unit, at most `u64::MAX` (584 years).
    #[must_use]
    pub fn ns(&self) -> u64 {
        u64::try_from(self.total.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Where the time of a version's requests went. The stages count the requests that succeeded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InferStatistics {
    /// Requests that were answered.
    pub success: StatisticDuration,
    /// Requests that were not.
    pub fail: StatisticDuration,
    /// Waiting for an instance.
    pub queue: StatisticDuration,
    /// Laying out inputs.
    pub compute_input: StatisticDuration,
    /// The model itself.
    pub compute_infer: StatisticDuration,
    /// Taking out outputs.
    pub compute_output: StatisticDuration,
}

/// The executions of one batch size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchStatistics {
    /// Rows of the batch.
    pub batch_size: u64,
    /// Laying out inputs.
    pub compute_input: StatisticDuration,
    /// The model itself.
    pub compute_infer: StatisticDuration,
    /// Taking out outputs.
    pub compute_output: StatisticDuration,
}

/// What one version has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelStatistics {
    /// The version.
    pub key: ModelKey,
    /// When the last execution ended, in milliseconds since 1970; 0 for never.
    pub last_inference_ms: u64,
    /// Rows of all requests that succeeded.
    pub inference_count: u64,
    /// Executions; a batch is one.
    pub execution_count: u64,
    /// By stage.
    pub inference_stats: InferStatistics,
    /// By batch size, the smallest first; sizes that never ran are left out.
    pub batch_stats: Vec<BatchStatistics>,
}
