//! The handle through which a version's executions and requests are recorded, and the ownership of its series.
//!
//! The repository owns a [`RegisteredSeries`] for each version that it holds; the scheduler and the version record through the
//! [`ModelMetrics`] made of it. Invariant: recording takes no lock; a version that is gone is told no more.

use std::{
    sync::{Arc, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    State,
    series::{FailureReason, ModelSeries},
    timings::{ExecutionTimings, RequestTimings},
    values::Counter,
};
use crate::{
    model_key::ModelKey,
    outcome::Outcome,
    statistics::{InferStatistics, ModelStatistics, StatisticDuration},
};

/// Handle of one version of a model; cheap to clone, records without a lock.
#[derive(Clone, Debug)]
pub struct ModelMetrics {
    series: Arc<ModelSeries>,
}

impl ModelMetrics {
    /// Counts one request that was answered.
    pub(crate) fn record_success(&self, timings: &RequestTimings) {
        let series = &self.series;
        series.success.add(1);
        series.inferences.add(timings.rows);
        series.queue.observe_duration(timings.queue);
        series.request_time.add(timings.total);
        series.queue_time.add(timings.queue);
        series.compute_input_time.add(timings.compute_input);
        series.compute_infer_time.add(timings.compute_infer);
        series.compute_output_time.add(timings.compute_output);
    }

    /// Counts one request that ended as `outcome`, without an answer, after `duration`.
    pub(crate) fn record_failure(&self, outcome: Outcome, duration: Duration) {
        let reason = FailureReason::of(outcome);
        if let Some(counter) = reason.and_then(|reason| self.series.failures.get(reason as usize)) {
            counter.add(1);
            self.series.failure_time.add(duration);
        }
    }

    /// Counts one run of the engine over `rows` rows of `requests` requests.
    pub(crate) fn record_execution(&self, rows: u64, timings: &ExecutionTimings, requests: u64) {
        let series = &self.series;
        series.executions.add(1);
        series.batch_rows.observe(rows);
        series.batch_requests.observe(requests);
        series.batches.record(rows, timings);
        series.compute_input.observe_duration(timings.compute_input);
        series.compute_infer.observe_duration(timings.compute_infer);
        series.compute_output.observe_duration(timings.compute_output);
        series.busy.add(timings.compute_input + timings.compute_infer + timings.compute_output);
        // A clock before 1970 is none.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        series.last_inference_ms.set(u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
    }

    /// Sets how many requests wait.
    pub(crate) fn set_queue_depth(&self, depth: usize) {
        self.series.queue_depth.set(depth as u64);
    }

    /// Counts a request as in flight until the guard is dropped.
    #[must_use]
    pub fn inflight_guard(&self) -> InflightGuard {
        self.series.inflight.increment();
        InflightGuard { series: Arc::clone(&self.series) }
    }

    /// Sets how many instances there are.
    pub(crate) fn set_instances(&self, n: usize) {
        self.series.instances.set(n as u64);
    }

    /// Sets whether the model answers.
    pub(crate) fn set_ready(&self, ready: bool) {
        self.series.ready.set(u64::from(ready));
    }

    /// Sets how long the load took, warm-up included.
    pub(crate) fn set_load_duration(&self, d: Duration) {
        self.series.load_duration_ns.set(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Sets how large the model's file is.
    pub(crate) fn set_artifact_size_bytes(&self, n: u64) {
        self.series.artifact_size_bytes.set(n);
    }

    /// What was recorded, as the statistics of `key`.
    #[must_use]
    pub fn statistics(&self, key: ModelKey) -> ModelStatistics {
        let series = &self.series;
        let statistic = |count, total| StatisticDuration { count, total };
        let success = series.success.get();
        let failures = series.failures.iter().map(Counter::get).sum();
        ModelStatistics {
            key,
            last_inference_ms: series.last_inference_ms.get(),
            inference_count: series.inferences.get(),
            execution_count: series.executions.get(),
            inference_stats: InferStatistics {
                success: statistic(success, series.request_time.get()),
                fail: statistic(failures, series.failure_time.get()),
                queue: statistic(success, series.queue_time.get()),
                compute_input: statistic(success, series.compute_input_time.get()),
                compute_infer: statistic(success, series.compute_infer_time.get()),
                compute_output: statistic(success, series.compute_output_time.get()),
            },
            batch_stats: series.batches.statistics(),
        }
    }
}

/// One request in flight; made by [`ModelMetrics::inflight_guard`].
#[derive(Debug)]
pub struct InflightGuard {
    series: Arc<ModelSeries>,
}

impl Drop for InflightGuard {
    fn drop(&mut self) {
        self.series.inflight.decrement();
    }
}

/// The series of one version for as long as it is in the repository: told by `GET /metrics` until this is dropped.
///
/// Made by [`super::Metrics::register`]. Two owners of one version, such as while it is swapped, share what is recorded.
#[derive(Debug)]
pub struct RegisteredSeries {
    key: ModelKey,
    metrics: ModelMetrics,
    state: Arc<State>,
}

impl RegisteredSeries {
    pub(super) fn new(key: ModelKey, state: Arc<State>) -> Self {
        let series = {
            let mut registered = state.registered.write().unwrap_or_else(PoisonError::into_inner);
            registered.add(&key)
        };
        Self { key, metrics: ModelMetrics { series }, state }
    }

    /// A handle to record through.
    #[must_use]
    pub fn handle(&self) -> ModelMetrics {
        self.metrics.clone()
    }
}

impl Drop for RegisteredSeries {
    fn drop(&mut self) {
        self.state.registered.write().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}
