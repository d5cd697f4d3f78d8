//! The runtime's metrics: one table of names, and the handles through which the other layers record.
//!
//! The scheduler records executions and finished requests, the protocols record answers, `GET /metrics` reads the text. The `nv_*`
//! names are Triton's, so that existing dashboards and autoscalers keep working. Invariant: a metric exists exactly when it stands
//! in [`TABLE`], and its labels come from closed sets; a model's name becomes a label only once [`Metrics::model`] has named it.

mod series;
mod table;

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use crate::{
    model_key::{ModelKey, ModelName, ModelVersion},
    outcome::Outcome,
};

pub use self::table::{Metric, MetricKind, TABLE};
use self::{
    series::{Counter, DurationCounter, Gauge, Histogram, Label, Number, write_histogram, write_sample},
    table::Source,
};

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

/// Why an inference failed, in Triton's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FailureReason {
    Rejected,
    Canceled,
    Backend,
    Other,
}

impl FailureReason {
    const ALL: [Self; 4] = [Self::Rejected, Self::Canceled, Self::Backend, Self::Other];

    /// `None` for a request that did not fail.
    const fn of(outcome: Outcome) -> Option<Self> {
        match outcome {
            Outcome::Ok => None,
            Outcome::Overloaded | Outcome::DeadlineExceeded => Some(Self::Rejected),
            Outcome::Canceled => Some(Self::Canceled),
            Outcome::Internal => Some(Self::Backend),
            Outcome::NotFound | Outcome::InvalidRequest | Outcome::NotReady | Outcome::Unsupported => Some(Self::Other),
        }
    }

    const fn as_str(self) -> &'static str {
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
    failures: [Counter; FailureReason::ALL.len()],
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
    codes: [Counter; Outcome::ALL.len()],
    duration: Histogram,
}

impl AnswerSeries {
    fn new() -> Self {
        Self { codes: Default::default(), duration: Histogram::of_durations() }
    }
}

#[derive(Debug, Default)]
struct State {
    models: RwLock<BTreeMap<ModelKey, Arc<ModelSeries>>>,
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
    pub fn model(&self, model: &ModelName, version: ModelVersion) -> ModelMetrics {
        self.add_answer_series(model.as_str());
        let mut models = self.state.models.write().unwrap_or_else(PoisonError::into_inner);
        let key = ModelKey { name: model.clone(), version };
        let series = models.entry(key).or_insert_with(|| Arc::new(ModelSeries::new()));
        ModelMetrics { series: Arc::clone(series) }
    }

    /// Counts one inference request of `model`, `None` where no name was read. A model that no call of [`Metrics::model`] has named
    /// counts as the empty name, so that clients cannot invent labels.
    pub fn record_response(&self, protocol: Protocol, model: Option<&ModelName>, outcome: Outcome, duration: Duration) {
        let answers = self.state.answers.read().unwrap_or_else(PoisonError::into_inner);
        let known = model.and_then(|model| answers.get(model.as_str()));
        let Some([rest, grpc]) = known.or_else(|| answers.get("")) else { return };
        let series = match protocol {
            Protocol::Rest => rest,
            Protocol::Grpc => grpc,
        };
        if let Some(counter) = series.codes.get(outcome.index()) {
            counter.add(1);
        }
        series.duration.observe_duration(duration);
    }

    /// The Prometheus text format, version 0.0.4.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut out = String::with_capacity(16 * 1024);
        for metric in TABLE {
            for line in
                [["# HELP ", metric.name, " ", metric.help], ["# TYPE ", metric.name, " ", metric.kind.as_str()]]
            {
                out.extend(line);
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
                for (outcome, counter) in Outcome::ALL.iter().zip(&series.codes) {
                    let [model, protocol] = labels;
                    write_sample(
                        out,
                        metric.name,
                        &[model, protocol, ("code", outcome.as_str())],
                        Number::Integer(counter.get()),
                    );
                }
            }
        }
    }

    fn encode_models(&self, out: &mut String, metric: &Metric) {
        let models = self.state.models.read().unwrap_or_else(PoisonError::into_inner);
        for (ModelKey { name, version }, series) in models.iter() {
            let version = version.to_string();
            let labels: [Label<'_>; 2] = [("model", name.as_str()), ("version", &version)];
            match metric.source {
                Source::Count(read) => write_sample(out, metric.name, &labels, Number::Integer(read(series))),
                Source::Seconds(read) => write_sample(out, metric.name, &labels, Number::Float(read(series))),
                Source::Histogram(read) => write_histogram(out, metric.name, &labels, read(series)),
                Source::Failures => {
                    for (reason, counter) in FailureReason::ALL.iter().zip(&series.failures) {
                        let [model, version] = labels;
                        let labels = [model, version, ("reason", reason.as_str())];
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
    /// Counts one finished request: its timings, or how it failed.
    pub fn record_request(&self, outcome: Result<&RequestTimings, Outcome>) {
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
            Err(outcome) => {
                let reason = FailureReason::of(outcome);
                if let Some(counter) = reason.and_then(|reason| series.failures.get(reason as usize)) {
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
mod tests;
