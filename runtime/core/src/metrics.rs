//! The runtime's metrics: one table of names, and the handles through which the other layers record.
//!
//! The scheduler records executions and finished requests, the protocols record answers, `GET /metrics` reads the text. The `nv_*`
//! names are Triton's, so that existing dashboards and autoscalers keep working. Invariants: a metric exists exactly when it stands
//! in [`TABLE`], and its labels come from closed sets; a model's name is a label only while a version of it is registered.

mod batch;
mod collector;
mod model;
mod series;
mod table;
mod timings;
mod values;

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
    time::{Duration, Instant},
};

use prometheus_client::{encoding::text, registry::Registry};

use self::{
    collector::TableCollector,
    series::{AnswerSeries, ModelSeries, WireSeries},
};
pub use self::{
    model::{InflightGuard, ModelMetrics, RegisteredSeries},
    table::{Metric, MetricKind, TABLE},
    timings::{ExecutionTimings, RequestTimings},
};
use crate::{
    model_key::{ModelKey, ModelName},
    outcome::Outcome,
};

/// Content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Which protocol a request came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// HTTP with JSON or binary tensors.
    Rest,
    /// gRPC.
    Grpc,
}

impl Protocol {
    /// Every protocol.
    pub const ALL: [Self; 2] = [Self::Rest, Self::Grpc];

    /// The label's value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rest => "rest",
            Self::Grpc => "grpc",
        }
    }

    const fn of<T>(self, both: &PerProtocol<T>) -> &T {
        match self {
            Self::Rest => &both.rest,
            Self::Grpc => &both.grpc,
        }
    }
}

/// One of something for each protocol.
#[derive(Debug)]
struct PerProtocol<T> {
    rest: T,
    grpc: T,
}

impl<T> PerProtocol<T> {
    fn new(make: fn() -> T) -> Self {
        Self { rest: make(), grpc: make() }
    }
}

type Answers = PerProtocol<AnswerSeries>;

/// The series of one version, and how many own them.
#[derive(Debug)]
struct Registration {
    series: Arc<ModelSeries>,
    owners: usize,
}

/// What is told of the versions that are in the repository.
#[derive(Debug, Default)]
struct Registered {
    models: BTreeMap<ModelKey, Registration>,
    /// One for each name in `models`.
    answers: BTreeMap<ModelName, Arc<Answers>>,
}

impl Registered {
    fn add(&mut self, key: &ModelKey) -> Arc<ModelSeries> {
        let new = || Registration { series: Arc::new(ModelSeries::new()), owners: 0 };
        let registration = self.models.entry(key.clone()).or_insert_with(new);
        registration.owners += 1;
        self.answers.entry(key.name.clone()).or_insert_with(|| Arc::new(Answers::new(AnswerSeries::new)));
        Arc::clone(&registration.series)
    }

    fn remove(&mut self, key: &ModelKey) {
        let Some(registration) = self.models.get_mut(key) else { return };
        registration.owners -= 1;
        if registration.owners > 0 {
            return;
        }
        self.models.remove(key);
        if !self.models.keys().any(|other| other.name == key.name) {
            self.answers.remove(key.name.as_str());
        }
    }

    fn models(&self) -> impl Iterator<Item = (&ModelKey, &ModelSeries)> {
        self.models.iter().map(|(key, registration)| (key, registration.series.as_ref()))
    }

    fn answers(&self) -> impl Iterator<Item = (&ModelName, &Arc<Answers>)> {
        self.answers.iter()
    }
}

#[derive(Debug)]
struct State {
    registered: RwLock<Registered>,
    /// For requests whose model is not served, or whose name was not read.
    unknown: Arc<Answers>,
    wire: PerProtocol<WireSeries>,
}

impl State {
    fn read(&self) -> RwLockReadGuard<'_, Registered> {
        self.registered.read().unwrap_or_else(PoisonError::into_inner)
    }

    const fn wire(&self, protocol: Protocol) -> &WireSeries {
        protocol.of(&self.wire)
    }
}

/// All metrics of the process; cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    state: Arc<State>,
    registry: Arc<Registry>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// No model, nothing recorded.
    #[must_use]
    pub fn new() -> Self {
        let state = Arc::new(State {
            registered: RwLock::default(),
            unknown: Arc::new(Answers::new(AnswerSeries::new)),
            wire: PerProtocol::new(WireSeries::new),
        });
        let mut registry = Registry::default();
        registry.register_collector(Box::new(TableCollector(Arc::clone(&state))));
        Self { state, registry: Arc::new(registry) }
    }

    /// Begins to tell of one version of a model, until the result is dropped.
    #[must_use]
    pub fn register(&self, key: ModelKey) -> RegisteredSeries {
        RegisteredSeries::new(key, Arc::clone(&self.state))
    }

    /// Counts one inference request of `model`, `None` where no name was read. A model of which no version is registered counts as
    /// the empty name, so that clients cannot invent labels.
    pub fn record_response(&self, protocol: Protocol, model: Option<&ModelName>, outcome: Outcome, duration: Duration) {
        let registered = self.state.read();
        let known = model.and_then(|model| registered.answers.get(model));
        let series = protocol.of(known.unwrap_or(&self.state.unknown));
        if let Some(counter) = series.outcomes.get(outcome.index()) {
            counter.add(1);
        }
        series.duration.observe_duration(duration);
    }

    /// Records how long an inference request took from its head to the last byte of its body.
    pub fn record_receive(&self, protocol: Protocol, duration: Duration) {
        self.state.wire(protocol).receive.observe_duration(duration);
    }

    /// Records how long an answer takes from now until the result is dropped: keep it with the answer's bytes until the last of them
    /// was given to the connection, or the client was given up.
    #[must_use]
    pub fn send_timer(&self, protocol: Protocol) -> SendTimer {
        SendTimer { state: Arc::clone(&self.state), protocol, started: Instant::now() }
    }

    /// The `OpenMetrics` text form, version 1.0.0.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut out = String::with_capacity(16 * 1024);
        // Writing to a String cannot fail.
        let _infallible = text::encode(&mut out, &self.registry);
        out
    }
}

/// An answer that is being sent; made by [`Metrics::send_timer`].
#[derive(Debug)]
pub struct SendTimer {
    state: Arc<State>,
    protocol: Protocol,
    started: Instant,
}

impl Drop for SendTimer {
    fn drop(&mut self) {
        self.state.wire(self.protocol).send.observe_duration(self.started.elapsed());
    }
}

#[cfg(test)]
mod tests;
