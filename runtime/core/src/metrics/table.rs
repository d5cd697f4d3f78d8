//! The table of the runtime's metrics: every name, what it says, its labels, and where its samples come from.
//!
//! `collector` walks it to write the text, and the documentation is made from it. Invariant: names and labels are written here and
//! nowhere else; a row that has no source does not compile.

use std::time::Duration;

use super::{
    series::{ModelSeries, WireSeries},
    values::{DurationCounter, Histogram},
};

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts observations by size.
    Histogram,
}

/// One row of [`TABLE`].
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name, whole.
    pub name: &'static str,
    /// What it says, for people.
    pub help: &'static str,
    /// How it behaves.
    pub kind: MetricKind,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    pub(super) source: Source,
}

/// Where the samples of a metric come from: one sample for each member of the set.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    BuildInfo,
    Answers,
    AnswerDurations,
    Failures,
    Count(fn(&ModelSeries) -> u64),
    Seconds(fn(&ModelSeries) -> f64),
    Histogram(fn(&ModelSeries) -> &Histogram),
    Wire(fn(&WireSeries) -> &Histogram),
}

const MODEL: &[&str] = &["model", "version"];

const fn count(name: &'static str, help: &'static str, read: fn(&ModelSeries) -> u64) -> Metric {
    Metric { name, help, kind: MetricKind::Counter, labels: MODEL, source: Source::Count(read) }
}

const fn gauge(name: &'static str, help: &'static str, read: fn(&ModelSeries) -> u64) -> Metric {
    Metric { name, help, kind: MetricKind::Gauge, labels: MODEL, source: Source::Count(read) }
}

const fn histogram(name: &'static str, help: &'static str, read: fn(&ModelSeries) -> &Histogram) -> Metric {
    Metric { name, help, kind: MetricKind::Histogram, labels: MODEL, source: Source::Histogram(read) }
}

/// Whole microseconds, as Triton tells times.
fn microseconds(time: &DurationCounter) -> u64 {
    u64::try_from(time.get().as_micros()).unwrap_or(u64::MAX)
}

/// Every metric of the runtime, in the order in which they are told.
pub const TABLE: &[Metric] = &[
    Metric {
        name: "torchmodel_build_info",
        help: "The runtime's version; the value is always 1.",
        kind: MetricKind::Gauge,
        labels: &["version"],
        source: Source::BuildInfo,
    },
    Metric {
        name: "torchmodel_request_total",
        help: "Inference requests answered, by protocol and outcome; model is empty for names that are not served.",
        kind: MetricKind::Counter,
        labels: &["model", "protocol", "code"],
        source: Source::Answers,
    },
    Metric {
        name: "torchmodel_request_duration_seconds",
        help: "Time from the request's last byte to its answer, as the protocol layer sees it.",
        kind: MetricKind::Histogram,
        labels: &["model", "protocol"],
        source: Source::AnswerDurations,
    },
    Metric {
        name: "torchmodel_request_receive_duration_seconds",
        help: "Time from a request's head to the last byte of its body.",
        kind: MetricKind::Histogram,
        labels: &["protocol"],
        source: Source::Wire(|wire| &wire.receive),
    },
    Metric {
        name: "torchmodel_request_send_duration_seconds",
        help: "Time from an answer's head to its last byte given to the connection.",
        kind: MetricKind::Histogram,
        labels: &["protocol"],
        source: Source::Wire(|wire| &wire.send),
    },
    histogram("torchmodel_queue_duration_seconds", "Time that a request waited for an instance.", |m| &m.queue),
    histogram("torchmodel_compute_input_duration_seconds", "Time to lay out the inputs of one execution.", |m| {
        &m.compute_input
    }),
    histogram("torchmodel_compute_infer_duration_seconds", "Time of the model itself in one execution.", |m| {
        &m.compute_infer
    }),
    histogram("torchmodel_compute_output_duration_seconds", "Time to take out the outputs of one execution.", |m| {
        &m.compute_output
    }),
    histogram("torchmodel_batch_size", "Rows of one execution.", |m| &m.batch_rows),
    histogram("torchmodel_batch_requests", "Requests joined into one execution.", |m| &m.batch_requests),
    gauge("torchmodel_queue_depth", "Requests that wait for an instance.", |m| m.queue_depth.get()),
    gauge("torchmodel_inflight_requests", "Requests taken and not yet answered.", |m| m.inflight.get()),
    gauge("torchmodel_instances", "Executions of the model that can run at one time.", |m| m.instances.get()),
    Metric {
        name: "torchmodel_instance_busy_seconds_total",
        help: "Time that instances spent in executions; its rate divided by torchmodel_instances is the busy fraction.",
        kind: MetricKind::Counter,
        labels: MODEL,
        source: Source::Seconds(|m| m.busy.get().as_secs_f64()),
    },
    gauge("torchmodel_model_ready", "1 when the model answers requests, else 0.", |m| m.ready.get()),
    Metric {
        name: "torchmodel_model_load_duration_seconds",
        help: "Time from the start of the load to ready, warm-up included.",
        kind: MetricKind::Gauge,
        labels: MODEL,
        source: Source::Seconds(|m| Duration::from_nanos(m.load_duration_ns.get()).as_secs_f64()),
    },
    gauge("torchmodel_artifact_size_bytes", "Size of the model's file.", |m| m.artifact_size_bytes.get()),
    count("nv_inference_request_success", "Requests that succeeded.", |m| m.success.get()),
    Metric {
        name: "nv_inference_request_failure",
        help: "Requests that failed, by reason.",
        kind: MetricKind::Counter,
        labels: &["model", "version", "reason"],
        source: Source::Failures,
    },
    count("nv_inference_count", "Inferences, each row of a batch counted.", |m| m.inferences.get()),
    count("nv_inference_exec_count", "Executions; a batch is one.", |m| m.executions.get()),
    count("nv_inference_request_duration_us", "Time of successful requests, all together.", |m| {
        microseconds(&m.request_time)
    }),
    count("nv_inference_queue_duration_us", "Time of successful requests in the queue, all together.", |m| {
        microseconds(&m.queue_time)
    }),
    count(
        "nv_inference_compute_input_duration_us",
        "Time of successful requests in input handling, all together.",
        |m| microseconds(&m.compute_input_time),
    ),
    count("nv_inference_compute_infer_duration_us", "Time of successful requests in the model, all together.", |m| {
        microseconds(&m.compute_infer_time)
    }),
    count(
        "nv_inference_compute_output_duration_us",
        "Time of successful requests in output handling, all together.",
        |m| microseconds(&m.compute_output_time),
    ),
    gauge("nv_inference_pending_request_count", "Requests that wait for an instance.", |m| m.queue_depth.get()),
];
