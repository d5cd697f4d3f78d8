//! From the table and the recorded values to the text of `GET /metrics`, by prometheus-client as in the operator.
//!
//! [`super::Metrics`] registers it once. The library's text form ends every counter's name with `_total`, which Triton's names do
//! not have: a counter of another name is told without a type (`unknown`), so that its name stays what dashboards ask for.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet},
    metrics::{MetricType, exemplar::Exemplar},
};

use super::{
    Protocol, State,
    series::FailureReason,
    table::{Metric, MetricKind, Source, TABLE},
    values::Histogram,
};
use crate::{
    model_key::{ModelKey, ModelName},
    outcome::Outcome,
};

/// What the text form puts behind a counter's name.
const COUNTER_SUFFIX: &str = "_total";

/// Walks the table at each scrape.
#[derive(Debug)]
pub(super) struct TableCollector(pub(super) Arc<State>);

impl Collector for TableCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        TABLE.iter().try_for_each(|metric| {
            let form = Form::of(metric);
            let help = metric.help.trim_end_matches('.');
            let encoder = encoder.encode_descriptor(form.name, help, None, form.metric_type)?;
            Samples { metric, form, encoder }.encode(&self.0)
        })
    }
}

/// How a metric is told.
struct Form {
    name: &'static str,
    metric_type: MetricType,
}

impl Form {
    fn of(metric: &Metric) -> Self {
        let metric_type = match metric.kind {
            MetricKind::Gauge => MetricType::Gauge,
            MetricKind::Histogram => MetricType::Histogram,
            MetricKind::Counter => match metric.name.strip_suffix(COUNTER_SUFFIX) {
                Some(name) => return Self { name, metric_type: MetricType::Counter },
                None => MetricType::Unknown,
            },
        };
        Self { name: metric.name, metric_type }
    }
}

/// The samples of one metric.
struct Samples<'a> {
    metric: &'a Metric,
    form: Form,
    encoder: MetricEncoder<'a>,
}

/// A sample's number.
#[derive(Clone, Copy)]
enum Number {
    Integer(u64),
    Float(f64),
}

impl Samples<'_> {
    fn encode(mut self, state: &State) -> fmt::Result {
        match self.metric.source {
            Source::BuildInfo => self.sample(&[("version", env!("CARGO_PKG_VERSION"))], Number::Integer(1)),
            Source::Answers | Source::AnswerDurations => self.answers(state),
            Source::Wire(read) => Protocol::ALL.into_iter().try_for_each(|protocol| {
                self.histogram(&[("protocol", protocol.as_str())], read(state.wire(protocol)))
            }),
            Source::Failures | Source::Count(_) | Source::Seconds(_) | Source::Histogram(_) => self.models(state),
        }
    }

    fn answers(&mut self, state: &State) -> fmt::Result {
        let registered = state.read();
        let named = registered.answers().map(|(name, answers)| (ModelName::as_str(name), answers));
        for (model, answers) in [("", &state.unknown)].into_iter().chain(named) {
            for protocol in Protocol::ALL {
                let (labels, series) =
                    ([("model", model), ("protocol", protocol.as_str())], protocol.of(answers.as_ref()));
                if matches!(self.metric.source, Source::AnswerDurations) {
                    self.histogram(&labels, &series.duration)?;
                    continue;
                }
                for (outcome, counter) in Outcome::ALL.iter().zip(&series.outcomes) {
                    let [model, protocol] = labels;
                    self.sample(&[model, protocol, ("code", outcome.as_str())], Number::Integer(counter.get()))?;
                }
            }
        }
        Ok(())
    }

    fn models(&mut self, state: &State) -> fmt::Result {
        for (ModelKey { name, version }, series) in state.read().models() {
            let version = version.to_string();
            let labels = [("model", name.as_str()), ("version", version.as_str())];
            match self.metric.source {
                Source::Count(read) => self.sample(&labels, Number::Integer(read(series)))?,
                Source::Seconds(read) => self.sample(&labels, Number::Float(read(series)))?,
                Source::Histogram(read) => self.histogram(&labels, read(series))?,
                Source::Failures => {
                    for (reason, counter) in FailureReason::ALL.iter().zip(&series.failures) {
                        let [model, version] = labels;
                        let labels = [model, version, ("reason", reason.as_str())];
                        self.sample(&labels, Number::Integer(counter.get()))?;
                    }
                }
                Source::BuildInfo | Source::Answers | Source::AnswerDurations | Source::Wire(_) => {}
            }
        }
        Ok(())
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: Number) -> fmt::Result {
        let is_counter = matches!(self.form.metric_type, MetricType::Counter);
        let mut encoder = self.encoder.encode_family(&labels)?;
        match value {
            Number::Integer(value) if is_counter => encoder.encode_counter(&value, None::<&Exemplar<NoLabelSet, u64>>),
            Number::Float(value) if is_counter => encoder.encode_counter(&value, None::<&Exemplar<NoLabelSet, u64>>),
            Number::Integer(value) => encoder.encode_gauge(&value),
            Number::Float(value) => encoder.encode_gauge(&value),
        }
    }

    fn histogram(&mut self, labels: &[(&str, &str)], histogram: &Histogram) -> fmt::Result {
        let snapshot = histogram.snapshot();
        let mut encoder = self.encoder.encode_family(&labels)?;
        encoder.encode_histogram::<NoLabelSet>(snapshot.sum, snapshot.count, &snapshot.buckets, None)
    }
}
