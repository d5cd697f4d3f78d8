//! Counts a request and its times, whatever becomes of it.
//!
//! Both protocols make one when a request's head is there. Invariant: every request is counted once, when its count is dropped, which
//! is also what happens when the client leaves; until its handler knows better, that is what it is taken for.

use std::time::Instant;

use torchmodel_core::{
    metrics::{Metrics, Protocol},
    model_key::ModelName,
    outcome::Outcome,
};

/// One request that is being answered.
pub(crate) struct RequestCount<'a> {
    metrics: &'a Metrics,
    protocol: Protocol,
    /// When its head was there, and once it has been received when that was.
    start: Instant,
    /// `None` until the name was read.
    pub(crate) model: Option<ModelName>,
    pub(crate) outcome: Outcome,
}

impl<'a> RequestCount<'a> {
    /// A request whose head is there.
    pub(crate) fn new(metrics: &'a Metrics, protocol: Protocol) -> Self {
        Self { metrics, protocol, start: Instant::now(), model: None, outcome: Outcome::Canceled }
    }

    /// Its last byte is there: how long that took is the client's time, and what follows the server's.
    pub(crate) fn received(&mut self) {
        self.metrics.record_receive(self.protocol, self.start.elapsed());
        self.start = Instant::now();
    }
}

impl Drop for RequestCount<'_> {
    fn drop(&mut self) {
        self.metrics.record_response(self.protocol, self.model.as_ref(), self.outcome, self.start.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The value of the one line of `text` that has both.
    fn value(text: &str, name: &str, label: &str) -> f64 {
        let mut lines = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
        let value = lines.next().and_then(|line| line.rsplit_once(' ')).and_then(|(_, value)| value.parse().ok());
        value.unwrap_or_else(|| panic!("no {name} with {label} in {text}"))
    }

    #[test]
    fn the_time_that_a_client_takes_to_send_is_not_the_servers() {
        for (protocol, label) in [(Protocol::Rest, "\"rest\""), (Protocol::Grpc, "\"grpc\"")] {
            let metrics = Metrics::new();
            let mut count = RequestCount::new(&metrics, protocol);
            count.start -= Duration::from_secs(60);
            count.received();
            count.outcome = Outcome::Ok;
            drop(count);
            let text = metrics.encode();
            assert!(value(&text, "torchmodel_request_receive_duration_seconds_sum", label) >= 60.0);
            assert!(value(&text, "torchmodel_request_duration_seconds_sum", label) < 60.0);
        }
    }

    #[test]
    fn a_request_whose_client_leaves_is_counted_as_canceled() {
        let metrics = Metrics::new();
        drop(RequestCount::new(&metrics, Protocol::Grpc));
        let text = metrics.encode();
        let canceled = |label| value(&text, "torchmodel_request_total", label);
        assert!(canceled("protocol=\"grpc\",code=\"canceled\"") > canceled("protocol=\"rest\",code=\"canceled\""));
    }
}
