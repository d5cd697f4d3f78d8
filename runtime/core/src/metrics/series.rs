//! What is recorded together: for a version, for the answers of a protocol, for a protocol's bytes.
//!
//! Used by `metrics` only. Invariant: everything here is made of atomics, so that whoever has a series records without a lock.

use super::{
    batch::BatchSeries,
    values::{Counter, DurationCounter, Gauge, Histogram},
};
use crate::outcome::Outcome;

/// Why an inference failed, in Triton's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailureReason {
    Rejected,
    Canceled,
    Backend,
    Other,
}

impl FailureReason {
    pub(super) const ALL: [Self; 4] = [Self::Rejected, Self::Canceled, Self::Backend, Self::Other];

    /// `None` for a request that did not fail.
    pub(super) const fn of(outcome: Outcome) -> Option<Self> {
        match outcome {
            Outcome::Ok => None,
            Outcome::Overloaded | Outcome::DeadlineExceeded => Some(Self::Rejected),
            Outcome::Canceled => Some(Self::Canceled),
            Outcome::Internal => Some(Self::Backend),
            Outcome::NotFound | Outcome::InvalidRequest | Outcome::NotReady | Outcome::Unsupported => Some(Self::Other),
        }
    }

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "REJECTED",
            Self::Canceled => "CANCELED",
            Self::Backend => "BACKEND",
            Self::Other => "OTHER",
        }
    }
}

/// What is recorded for one version of a model.
#[derive(Debug)]
pub(super) struct ModelSeries {
    pub(super) queue: Histogram,
    pub(super) compute_input: Histogram,
    pub(super) compute_infer: Histogram,
    pub(super) compute_output: Histogram,
    pub(super) batch_rows: Histogram,
    pub(super) batch_requests: Histogram,
    pub(super) batches: BatchSeries,
    pub(super) queue_depth: Gauge,
    pub(super) inflight: Gauge,
    pub(super) instances: Gauge,
    pub(super) busy: DurationCounter,
    pub(super) ready: Gauge,
    pub(super) load_duration_ns: Gauge,
    pub(super) artifact_size_bytes: Gauge,
    pub(super) last_inference_ms: Gauge,
    pub(super) success: Counter,
    pub(super) failures: [Counter; FailureReason::ALL.len()],
    pub(super) failure_time: DurationCounter,
    pub(super) inferences: Counter,
    pub(super) executions: Counter,
    pub(super) request_time: DurationCounter,
    pub(super) queue_time: DurationCounter,
    pub(super) compute_input_time: DurationCounter,
    pub(super) compute_infer_time: DurationCounter,
    pub(super) compute_output_time: DurationCounter,
}

impl ModelSeries {
    pub(super) fn new() -> Self {
        Self {
            queue: Histogram::of_durations(),
            compute_input: Histogram::of_durations(),
            compute_infer: Histogram::of_durations(),
            compute_output: Histogram::of_durations(),
            batch_rows: Histogram::of_sizes(),
            batch_requests: Histogram::of_sizes(),
            batches: BatchSeries::default(),
            queue_depth: Gauge::default(),
            inflight: Gauge::default(),
            instances: Gauge::default(),
            busy: DurationCounter::default(),
            ready: Gauge::default(),
            load_duration_ns: Gauge::default(),
            artifact_size_bytes: Gauge::default(),
            last_inference_ms: Gauge::default(),
            success: Counter::default(),
            failures: Default::default(),
            failure_time: DurationCounter::default(),
            inferences: Counter::default(),
            executions: Counter::default(),
            request_time: DurationCounter::default(),
            queue_time: DurationCounter::default(),
            compute_input_time: DurationCounter::default(),
            compute_infer_time: DurationCounter::default(),
            compute_output_time: DurationCounter::default(),
        }
    }
}

/// What is recorded for the answers of one protocol about one model.
#[derive(Debug)]
pub(super) struct AnswerSeries {
    pub(super) outcomes: [Counter; Outcome::ALL.len()],
    pub(super) duration: Histogram,
}

impl AnswerSeries {
    pub(super) fn new() -> Self {
        Self { outcomes: Default::default(), duration: Histogram::of_durations() }
    }
}

/// What is recorded of one protocol's bytes.
#[derive(Debug)]
pub(super) struct WireSeries {
    pub(super) receive: Histogram,
    pub(super) send: Histogram,
}

impl WireSeries {
    pub(super) fn new() -> Self {
        Self { receive: Histogram::of_durations(), send: Histogram::of_durations() }
    }
}
