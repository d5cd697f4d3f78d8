//! The runtime's metrics: one table of names, and the handles through which the other layers record.
//!
//! The scheduler records executions and finished requests, the protocols record answers, `GET /metrics` reads the text. The `nv_*`
//! names are Triton's, so that existing dashboards and autoscalers keep working. Invariant: a metric exists exactly when it stands
//! in [`TABLE`], and its labels come from closed sets; a model's name becomes a label only once [`Metrics::model`] has named it.

mod series;

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use series::{Counter, DurationCounter, Gauge, Histogram, Label, Number, write_histogram, write_sample};

/// Which protocol a request came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// HTTP with JSON or binary tensors.
    Rest,
    /// gRPC.
    Grpc,
}

impl Protocol {
    /// The label's value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rest => "rest",
            Self::Grpc => "grpc",
        }
    }
}

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

impl MetricKind {
    /// The word of the text format.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
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
    source: Source,
}

/// Where the samples of a metric come from: one sample for each member of the set.
#[derive(Clone, Copy, Debug)]
enum Source {
    BuildInfo,
    Answers,
    AnswerDurations,
    Failures,
    Count(fn(&ModelSeries) -> u64),
    Seconds(fn(&ModelSeries) -> f64),
    Histogram(fn(&ModelSeries) -> &Histogram),
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
    gauge("torchmodel_instances", "Instances of the model.", |m| m.instances.get()),
    Metric {
        name: "torchmodel_instance_busy_seconds_total",
        help: "Time that instances spent in executions; its rate divided by torchmodel_instances is the busy fraction.",
        kind: MetricKind::Counter,
        labels: MODEL,
        source: Source::Seconds(|m| m.busy.seconds()),
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
        m.request_time.microseconds()
    }),
    count("nv_inference_queue_duration_us", "Time of successful requests in the queue, all together.", |m| {
        m.queue_time.microseconds()
    }),
    count("nv_inference_compute_input_duration_us", "Time of successful requests in input handling, all together.", |m| {
        m.compute_input_time.microseconds()
    }),
    count("nv_inference_compute_infer_duration_us", "Time of successful requests in the model, all together.", |m| {
        m.compute_infer_time.microseconds()
    }),
    count(
        "nv_inference_compute_output_duration_us",
        "Time of successful requests in output handling, all together.",
        |m| m.compute_output_time.microseconds(),
    ),
    gauge("nv_inference_pending_request_count", "Requests that wait for an instance.", |m| m.queue_depth.get()),
];

/// Outcomes of an answer: `ok` and every `InferError::reason()`. Anything else is counted as the last.
const CODES: [&str; 10] = [
    "ok",
    "not_found",
    "invalid_request",
    "not_ready",
    "overloaded",
    "deadline_exceeded",
    "unsupported",
    "canceled",
    "internal",
    "other",
];

/// Triton's reasons of failure.
const FAILURE_REASONS: [&str; 4] = ["REJECTED", "CANCELED", "BACKEND", "OTHER"];

/// Which of [`FAILURE_REASONS`] an `InferError::reason()` is: refused by the queue, given up by the client, failed in the model.
fn failure_reason(reason: &str) -> usize {
    match reason {
        "overloaded" | "deadline_exceeded" => 0,
        "canceled" => 1,
        "internal" => 2,
        _ => 3,
    }
}

/// What is recorded for one version of a model.
#[derive(Debug)]
struct ModelSeries {
    queue: Histogram,
    compute_input: Histogram,
    compute_infer: Histogram,
    compute_output: Histogram,
    batch_rows: Histogram,
    batch_requests: Histogram,
    queue_depth: Gauge,
    inflight: Gauge,
    instances: Gauge,
    busy: DurationCounter,
    ready: Gauge,
    load_duration_ns: Gauge,
    artifact_size_bytes: Gauge,
    success: Counter,
    failures: [Counter; FAILURE_REASONS.len()],
    inferences: Counter,
    executions: Counter,
    request_time: DurationCounter,
    queue_time: DurationCounter,
    compute_input_time: DurationCounter,
    compute_infer_time: DurationCounter,
    compute_output_time: DurationCounter,
}

impl ModelSeries {
    fn new() -> Self {
        Self {
            queue: Histogram::of_durations(),
            compute_input: Histogram::of_durations(),
            compute_infer: Histogram::of_durations(),
            compute_output: Histogram::of_durations(),
            batch_rows: Histogram::of_sizes(),
            batch_requests: Histogram::of_sizes(),
            queue_depth: Gauge::default(),
            inflight: Gauge::default(),
            instances: Gauge::default(),
            busy: DurationCounter::default(),
            ready: Gauge::default(),
            load_duration_ns: Gauge::default(),
            artifact_size_bytes: Gauge::default(),
            success: Counter::default(),
            failures: Default::default(),
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

/// What is recorded for one protocol and model.
#[derive(Debug)]
struct AnswerSeries {
    codes: [Counter; CODES.len()],
    duration: Histogram,
}

impl AnswerSeries {
    fn new() -> Self {
        Self { codes: Default::default(), duration: Histogram::of_durations() }
    }
}

#[derive(Debug, Default)]
struct State {
    models: RwLock<BTreeMap<(String, String), Arc<ModelSeries>>>,
    /// By model, then protocol; the empty name stands for every name that is not served.
    answers: RwLock<BTreeMap<String, [Arc<AnswerSeries>; 2]>>,
}

/// All metrics of the process; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    state: Arc<State>,
}

impl Metrics {
    /// No model, nothing recorded.
    #[must_use]
    pub fn new() -> Self {
        let metrics = Self::default();
        metrics.add_answer_series("");
        metrics
    }

    fn add_answer_series(&self, model: &str) {
        let mut answers = self.state.answers.write().unwrap_or_else(PoisonError::into_inner);
        if !answers.contains_key(model) {
            answers.insert(model.to_owned(), [Arc::new(AnswerSeries::new()), Arc::new(AnswerSeries::new())]);
        }
    }

    /// The handle of one version of a model, made on first use. From then on the name may be a label.
    #[must_use]
    pub fn model(&self, model: &str, version: &str) -> ModelMetrics {
        self.add_answer_series(model);
        let mut models = self.state.models.write().unwrap_or_else(PoisonError::into_inner);
        let series = models.entry((model.to_owned(), version.to_owned())).or_insert_with(|| Arc::new(ModelSeries::new()));
        ModelMetrics { series: Arc::clone(series) }
    }

    /// Forgets one version of a model that is no longer served; handles that are still held record into nothing.
    pub fn remove_model(&self, model: &str, version: &str) {
        let mut models = self.state.models.write().unwrap_or_else(PoisonError::into_inner);
        models.remove(&(model.to_owned(), version.to_owned()));
    }

    /// Counts one answered inference request. `outcome` is `ok` or an `InferError::reason()`; a `model` that no call of
    /// [`Metrics::model`] has named counts as the empty name, so that clients cannot invent labels.
    pub fn record_response(&self, protocol: Protocol, model: &str, outcome: &str, duration: Duration) {
        let answers = self.state.answers.read().unwrap_or_else(PoisonError::into_inner);
        let Some(series) = answers.get(model).or_else(|| answers.get("")) else { return };
        let [rest, grpc] = series;
        let series = match protocol {
            Protocol::Rest => rest,
            Protocol::Grpc => grpc,
        };
        let code = CODES.iter().position(|code| *code == outcome);
        if let Some(counter) = code.and_then(|code| series.codes.get(code)).or(series.codes.last()) {
            counter.add(1);
        }
        series.duration.observe_duration(duration);
    }

    /// The Prometheus text format, version 0.0.4.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut out = String::with_capacity(16 * 1024);
        for metric in TABLE {
            for line in [["# HELP ", metric.name, " ", metric.help], ["# TYPE ", metric.name, " ", metric.kind.as_str()]] {
                line.iter().for_each(|part| out.push_str(part));
                out.push('\n');
            }
            match metric.source {
                Source::BuildInfo => {
                    let labels = [("version", env!("CARGO_PKG_VERSION"))];
                    write_sample(&mut out, metric.name, &labels, Number::Integer(1));
                }
                Source::Answers | Source::AnswerDurations => self.encode_answers(&mut out, metric),
                _ => self.encode_models(&mut out, metric),
            }
        }
        out
    }

    fn encode_answers(&self, out: &mut String, metric: &Metric) {
        let answers = self.state.answers.read().unwrap_or_else(PoisonError::into_inner);
        for (model, series) in answers.iter() {
            for (protocol, series) in [Protocol::Rest, Protocol::Grpc].iter().zip(series) {
                let labels = [("model", model.as_str()), ("protocol", protocol.as_str())];
                if matches!(metric.source, Source::AnswerDurations) {
                    write_histogram(out, metric.name, &labels, &series.duration);
                    continue;
                }
                for (code, counter) in CODES.iter().zip(&series.codes) {
                    let [model, protocol] = labels;
                    write_sample(out, metric.name, &[model, protocol, ("code", code)], Number::Integer(counter.get()));
                }
            }
        }
    }

    fn encode_models(&self, out: &mut String, metric: &Metric) {
        let models = self.state.models.read().unwrap_or_else(PoisonError::into_inner);
        for ((model, version), series) in models.iter() {
            let labels: [Label<'_>; 2] = [("model", model), ("version", version)];
            match metric.source {
                Source::Count(read) => write_sample(out, metric.name, &labels, Number::Integer(read(series))),
                Source::Seconds(read) => write_sample(out, metric.name, &labels, Number::Float(read(series))),
                Source::Histogram(read) => write_histogram(out, metric.name, &labels, read(series)),
                Source::Failures => {
                    for (reason, counter) in FAILURE_REASONS.iter().zip(&series.failures) {
                        let [model, version] = labels;
                        let labels = [model, version, ("reason", *reason)];
                        write_sample(out, metric.name, &labels, Number::Integer(counter.get()));
                    }
                }
                Source::BuildInfo | Source::Answers | Source::AnswerDurations => {}
            }
        }
    }
}

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

/// Handle of one version of a model; cheap to clone, records without a lock.
#[derive(Clone, Debug)]
pub struct ModelMetrics {
    series: Arc<ModelSeries>,
}

impl ModelMetrics {
    /// Counts one finished request: its timings, or the `InferError::reason()` it failed for.
    pub fn record_request(&self, outcome: Result<&RequestTimings, &'static str>) {
        let series = &self.series;
        match outcome {
            Ok(timings) => {
                series.success.add(1);
                series.inferences.add(timings.rows);
                series.queue.observe_duration(timings.queue);
                series.request_time.add(timings.total);
                series.queue_time.add(timings.queue);
                series.compute_input_time.add(timings.compute_input);
                series.compute_infer_time.add(timings.compute_infer);
                series.compute_output_time.add(timings.compute_output);
            }
            Err(reason) => {
                if let Some(counter) = series.failures.get(failure_reason(reason)) {
                    counter.add(1);
                }
            }
        }
    }

    /// Counts one run of the engine over `rows` rows of `requests` requests.
    pub fn record_execution(&self, rows: u64, timings: &ExecutionTimings, requests: u64) {
        let series = &self.series;
        series.executions.add(1);
        series.batch_rows.observe(rows);
        series.batch_requests.observe(requests);
        series.compute_input.observe_duration(timings.compute_input);
        series.compute_infer.observe_duration(timings.compute_infer);
        series.compute_output.observe_duration(timings.compute_output);
        series.busy.add(timings.compute_input + timings.compute_infer + timings.compute_output);
    }

    /// Sets how many requests wait.
    pub fn set_queue_depth(&self, depth: usize) {
        self.series.queue_depth.set(depth as u64);
    }

    /// Counts a request as in flight until the guard is dropped.
    #[must_use]
    pub fn inflight_guard(&self) -> InflightGuard {
        self.series.inflight.increment();
        InflightGuard { series: Arc::clone(&self.series) }
    }

    /// Sets how many instances there are.
    pub fn set_instances(&self, n: usize) {
        self.series.instances.set(n as u64);
    }

    /// Sets whether the model answers.
    pub fn set_ready(&self, ready: bool) {
        self.series.ready.set(u64::from(ready));
    }

    /// Sets how long the load took, warm-up included.
    pub fn set_load_duration(&self, d: Duration) {
        self.series.load_duration_ns.set(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Sets how large the model's file is.
    pub fn set_artifact_size_bytes(&self, n: u64) {
        self.series.artifact_size_bytes.set(n);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_of_the_table_is_told_with_its_labels() {
        let metrics = Metrics::new();
        let model = metrics.model("m", "1");
        model.record_request(Ok(&RequestTimings { rows: 3, queue: Duration::from_millis(2), ..Default::default() }));
        model.record_request(Err("overloaded"));
        let timings = ExecutionTimings { compute_infer: Duration::from_millis(5), ..Default::default() };
        model.record_execution(3, &timings, 1);
        model.set_ready(true);
        let text = metrics.encode();
        for metric in TABLE {
            assert!(text.contains(&format!("# TYPE {} {}\n", metric.name, metric.kind.as_str())), "{}", metric.name);
            let sample = text
                .lines()
                .find(|line| line.starts_with(metric.name) && !line.starts_with('#'))
                .unwrap_or_else(|| panic!("{} has no sample", metric.name));
            for label in metric.labels {
                assert!(sample.contains(&format!("{label}=\"")), "{sample} lacks {label}");
            }
        }
        assert!(text.contains("nv_inference_count{model=\"m\",version=\"1\"} 3\n"), "{text}");
        assert!(text.contains("nv_inference_request_failure{model=\"m\",version=\"1\",reason=\"REJECTED\"} 1\n"));
        assert!(text.contains("nv_inference_queue_duration_us{model=\"m\",version=\"1\"} 2000\n"));
        assert!(text.contains("torchmodel_instance_busy_seconds_total{model=\"m\",version=\"1\"} 0.005\n"));
    }

    #[test]
    fn a_name_that_is_not_served_never_becomes_a_label() {
        let metrics = Metrics::new();
        let _model = metrics.model("m", "1");
        metrics.record_response(Protocol::Rest, "m", "ok", Duration::ZERO);
        metrics.record_response(Protocol::Rest, "invented", "not_found", Duration::ZERO);
        metrics.record_response(Protocol::Grpc, "m", "no such reason", Duration::ZERO);
        let text = metrics.encode();
        assert!(!text.contains("invented"));
        assert!(text.contains("torchmodel_request_total{model=\"m\",protocol=\"rest\",code=\"ok\"} 1\n"), "{text}");
        assert!(text.contains("torchmodel_request_total{model=\"\",protocol=\"rest\",code=\"not_found\"} 1\n"));
        assert!(text.contains("torchmodel_request_total{model=\"m\",protocol=\"grpc\",code=\"other\"} 1\n"));
    }

    #[test]
    fn a_request_is_in_flight_until_its_guard_is_dropped() {
        let metrics = Metrics::new();
        let guard = metrics.model("m", "1").inflight_guard();
        assert!(metrics.encode().contains("torchmodel_inflight_requests{model=\"m\",version=\"1\"} 1\n"));
        drop(guard);
        assert!(metrics.encode().contains("torchmodel_inflight_requests{model=\"m\",version=\"1\"} 0\n"));
    }

    #[test]
    fn a_removed_version_is_no_longer_told() {
        let metrics = Metrics::new();
        let _model = metrics.model("m", "1");
        metrics.remove_model("m", "1");
        assert!(!metrics.encode().contains("version=\"1\""));
    }
}
