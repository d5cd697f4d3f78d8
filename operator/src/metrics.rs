//! The table of the operator's metrics: every name, label and help text stands here and nowhere else.
//!
//! Names that begin with `controller_runtime_` and `leader_election_` are those of controller-runtime, so that existing
//! dashboards and alerts work. Invariant: labels come from closed sets.

use std::{sync::Mutex, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// Content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const CONTROLLER: &str = "torchmodel";
/// Seconds; a reconcile that writes nothing takes well under a millisecond, one that waits for the API server may take long.
const RECONCILE_BUCKETS: [f64; 11] = [0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ControllerLabels {
    controller: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResultLabels {
    controller: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct LeaseLabels {
    name: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WriteLabels {
    kind: String,
    operation: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

/// How a write changed the cluster: a label of `torchmodel_operator_writes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// An object that was not there.
    Create,
    /// An object that differed from what is desired.
    Change,
    /// An object that is no longer desired.
    Delete,
}

/// Every metric of the process.
pub struct Metrics {
    registry: Mutex<Registry>,
    reconciles: Family<ResultLabels, Counter>,
    reconcile_errors: Family<ControllerLabels, Counter>,
    reconcile_seconds: Family<ControllerLabels, Histogram, fn() -> Histogram>,
    leader: Family<LeaseLabels, Gauge>,
    writes: Family<WriteLabels, Counter>,
    failures: Family<ReasonLabels, Counter>,
    watch_errors: Counter,
}

impl Metrics {
    /// The table, with every value at zero.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a table that is made by accident would count for nobody")]
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let reconciles = Family::default();
        registry.register("controller_runtime_reconcile", "Reconciles, by result", reconciles.clone());
        let reconcile_errors = Family::default();
        registry.register("controller_runtime_reconcile_errors", "Reconciles that failed", reconcile_errors.clone());
        let reconcile_seconds: Family<_, _, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(RECONCILE_BUCKETS));
        registry.register(
            "controller_runtime_reconcile_time_seconds",
            "Time of a reconcile",
            reconcile_seconds.clone(),
        );
        let leader = Family::default();
        registry.register("leader_election_master_status", "Whether this process leads: 1 or 0", leader.clone());
        let writes = Family::default();
        registry.register("torchmodel_operator_writes", "Objects written to the API server", writes.clone());
        let failures = Family::default();
        registry.register(
            "torchmodel_operator_failures",
            "Times that a TorchModel began to fail, by reason",
            failures.clone(),
        );
        let watch_errors = Counter::default();
        registry.register("torchmodel_operator_watch_errors", "Errors of watches, each retried", watch_errors.clone());
        let metrics = Self {
            registry: Mutex::new(registry),
            reconciles,
            reconcile_errors,
            reconcile_seconds,
            leader,
            writes,
            failures,
            watch_errors,
        };
        metrics.set_leader(false);
        metrics
    }

    /// A reconcile ended after `elapsed`.
    pub fn record_reconcile(&self, elapsed: Duration, is_success: bool) {
        let labels = ControllerLabels { controller: CONTROLLER };
        self.reconcile_seconds.get_or_create(&labels).observe(elapsed.as_secs_f64());
        let result = if is_success { "success" } else { "error" };
        self.reconciles.get_or_create(&ResultLabels { controller: CONTROLLER, result }).inc();
        if !is_success {
            self.reconcile_errors.get_or_create(&labels).inc();
        }
    }

    /// This process took or lost the lead.
    pub fn set_leader(&self, leads: bool) {
        self.leader.get_or_create(&LeaseLabels { name: crate::FIELD_MANAGER }).set(i64::from(leads));
    }

    /// An object of `kind` was written.
    pub fn record_write(&self, kind: &str, write: Write) {
        let operation = match write {
            Write::Create => "create",
            Write::Change => "change",
            Write::Delete => "delete",
        };
        self.writes.get_or_create(&WriteLabels { kind: kind.to_owned(), operation }).inc();
    }

    /// A TorchModel began to fail; `reason` is from the closed list.
    pub fn record_failure(&self, reason: &'static str) {
        self.failures.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// A watch failed and is retried.
    pub fn record_watch_error(&self) {
        self.watch_errors.inc();
    }

    /// The table in the `OpenMetrics` text form.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        if let Ok(registry) = self.registry.lock() {
            // Writing to a String cannot fail.
            let _ = encode(&mut text, &registry);
        }
        text
    }
}
