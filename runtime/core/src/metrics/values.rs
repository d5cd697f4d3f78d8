//! The values behind the table of metrics: counters, gauges and histograms made of atomics.
//!
//! Used by `metrics` only. Invariant: recording takes no lock and allocates nothing, since it stands on every request's way.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Upper bounds of the duration histograms, in nanoseconds: 100 µs to 60 s, about 2.5 times from one to the next.
const DURATION_BOUNDS_NS: &[u64] = &[
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
    60_000_000_000,
];

/// Upper bounds of the histograms that count rows or requests of a batch.
const SIZE_BOUNDS: &[u64] = &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];

/// Nanoseconds of a duration, at most `u64::MAX` (584 years).
fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Time that only grows.
#[derive(Debug, Default)]
pub(super) struct DurationCounter(AtomicU64);

impl DurationCounter {
    pub(super) fn add(&self, duration: Duration) {
        self.0.fetch_add(nanoseconds(duration), Relaxed);
    }

    pub(super) fn get(&self) -> Duration {
        Duration::from_nanos(self.0.load(Relaxed))
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub(super) struct Gauge(AtomicU64);

impl Gauge {
    pub(super) fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    pub(super) fn increment(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    pub(super) fn decrement(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What one unit of a histogram's values is in the text.
#[derive(Clone, Copy, Debug)]
enum Unit {
    Nanoseconds,
    Plain,
}

/// How often values fell under each of some bounds, and their sum.
#[derive(Debug)]
pub(super) struct Histogram {
    bounds: &'static [u64],
    unit: Unit,
    /// One more than there are bounds: the last holds what is above them all.
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
}

/// A histogram's numbers at one moment, in the text's unit.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct HistogramSnapshot {
    /// Sum of what was observed.
    pub(super) sum: f64,
    /// How often something was observed: the sum of the buckets read here, so that a scrape beside a recording is consistent in itself.
    pub(super) count: u64,
    /// Each bucket's upper bound, and how many fell into it alone; the last bound is infinite.
    pub(super) buckets: Vec<(f64, u64)>,
}

impl Histogram {
    fn new(bounds: &'static [u64], unit: Unit) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, unit, counts, sum: AtomicU64::new(0) }
    }

    /// An empty histogram of durations, told in seconds.
    pub(super) fn of_durations() -> Self {
        Self::new(DURATION_BOUNDS_NS, Unit::Nanoseconds)
    }

    /// An empty histogram of batch sizes.
    pub(super) fn of_sizes() -> Self {
        Self::new(SIZE_BOUNDS, Unit::Plain)
    }

    pub(super) fn observe_duration(&self, duration: Duration) {
        self.observe(nanoseconds(duration));
    }

    pub(super) fn observe(&self, value: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Relaxed);
        }
        self.sum.fetch_add(value, Relaxed);
    }

    pub(super) fn snapshot(&self) -> HistogramSnapshot {
        let bounds = self.bounds.iter().map(|bound| self.in_unit(*bound)).chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(self.counts.iter().map(|count| count.load(Relaxed))).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        HistogramSnapshot { sum: self.in_unit(self.sum.load(Relaxed)), count, buckets }
    }

    #[expect(clippy::cast_precision_loss, reason = "sizes beyond 2^53 do not occur")]
    fn in_unit(&self, value: u64) -> f64 {
        match self.unit {
            Unit::Nanoseconds => Duration::from_nanos(value).as_secs_f64(),
            Unit::Plain => value as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_own_bucket() {
        let histogram = Histogram::of_sizes();
        for value in [1, 2, 3, 5000] {
            histogram.observe(value);
        }
        let HistogramSnapshot { sum, count, buckets } = histogram.snapshot();
        assert_eq!((sum, count), (5006.0, 4));
        let filled: Vec<_> = buckets.into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(filled, [(1.0, 1), (2.0, 1), (4.0, 1), (f64::INFINITY, 1)]);
    }

    #[test]
    fn durations_are_told_in_seconds() {
        let histogram = Histogram::of_durations();
        histogram.observe_duration(Duration::from_millis(1500));
        let snapshot = histogram.snapshot();
        assert_eq!((snapshot.sum, snapshot.count), (1.5, 1));
        assert!(snapshot.buckets.contains(&(2.5, 1)) && snapshot.buckets.contains(&(0.0001, 0)), "{snapshot:?}");
    }
}
