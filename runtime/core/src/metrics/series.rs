//! The values behind the table of metrics, and their text form: counters, gauges and histograms made of atomics.
//!
//! Used by `metrics` only. Invariant: recording takes no lock and allocates nothing, since it stands on every request's way.

use std::{
    fmt::{self, Write},
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

    pub(super) fn microseconds(&self) -> u64 {
        self.0.load(Relaxed) / 1000
    }

    pub(super) fn seconds(&self) -> f64 {
        Duration::from_nanos(self.0.load(Relaxed)).as_secs_f64()
    }
}

/// A number that is set.
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

    fn in_unit(&self, value: u64) -> Number {
        match self.unit {
            Unit::Nanoseconds => Number::Float(Duration::from_nanos(value).as_secs_f64()),
            Unit::Plain => Number::Integer(value),
        }
    }
}

/// A sample's number.
#[derive(Clone, Copy, Debug)]
pub(super) enum Number {
    Integer(u64),
    Float(f64),
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(n) => n.fmt(f),
            Self::Float(x) => x.fmt(f),
        }
    }
}

/// A label with a value; the values are escaped as the text format asks.
pub(super) type Label<'a> = (&'static str, &'a str);

/// Writes `name{labels} value`.
pub(super) fn write_sample(out: &mut String, name: &str, labels: &[Label<'_>], value: Number) {
    out.push_str(name);
    write_labels(out, labels, None);
    writeln!(out, " {value}").expect("a String takes every text");
}

/// Writes the `_bucket`, `_sum` and `_count` samples of a histogram. The count is the sum of the buckets read here, so that a
/// scrape beside a recording is consistent in itself.
pub(super) fn write_histogram(out: &mut String, name: &str, labels: &[Label<'_>], histogram: &Histogram) {
    let mut total = 0;
    for (position, count) in histogram.counts.iter().enumerate() {
        total += count.load(Relaxed);
        let bound = histogram.bounds.get(position).map(|bound| histogram.in_unit(*bound).to_string());
        out.push_str(name);
        out.push_str("_bucket");
        write_labels(out, labels, Some(bound.as_deref().unwrap_or("+Inf")));
        writeln!(out, " {total}").expect("a String takes every text");
    }
    write_sample(out, &format!("{name}_sum"), labels, histogram.in_unit(histogram.sum.load(Relaxed)));
    write_sample(out, &format!("{name}_count"), labels, Number::Integer(total));
}

fn write_labels(out: &mut String, labels: &[Label<'_>], bound: Option<&str>) {
    let mut separator = '{';
    for (name, value) in labels.iter().copied().chain(bound.map(|bound| ("le", bound))) {
        out.push(separator);
        separator = ',';
        out.push_str(name);
        out.push_str("=\"");
        for character in value.chars() {
            match character {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                other => out.push(other),
            }
        }
        out.push('"');
    }
    if separator == ',' {
        out.push('}');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_a_bound_belongs_to_its_own_bucket() {
        let histogram = Histogram::of_sizes();
        for value in [1, 2, 3, 5000] {
            histogram.observe(value);
        }
        let mut text = String::new();
        write_histogram(&mut text, "x", &[("model", "m")], &histogram);
        assert!(text.contains("x_bucket{model=\"m\",le=\"1\"} 1\n"), "{text}");
        assert!(text.contains("x_bucket{model=\"m\",le=\"2\"} 2\n"), "{text}");
        assert!(text.contains("x_bucket{model=\"m\",le=\"4\"} 3\n"), "{text}");
        assert!(text.contains("x_bucket{model=\"m\",le=\"1024\"} 3\n"), "{text}");
        assert!(text.contains("x_bucket{model=\"m\",le=\"+Inf\"} 4\n"), "{text}");
        assert!(text.contains("x_sum{model=\"m\"} 5006\n"), "{text}");
        assert!(text.contains("x_count{model=\"m\"} 4\n"), "{text}");
    }

    #[test]
    fn durations_are_told_in_seconds() {
        let histogram = Histogram::of_durations();
        histogram.observe_duration(Duration::from_millis(1500));
        let mut text = String::new();
        write_histogram(&mut text, "x", &[], &histogram);
        assert!(text.contains("x_bucket{le=\"0.0001\"} 0\n"), "{text}");
        assert!(text.contains("x_bucket{le=\"2.5\"} 1\n"), "{text}");
        assert!(text.contains("x_sum 1.5\n"), "{text}");
    }

    #[test]
    fn label_values_are_escaped() {
        let mut text = String::new();
        write_sample(&mut text, "x", &[("model", "a\"b\\c\nd")], Number::Integer(1));
        assert_eq!(text, "x{model=\"a\\\"b\\\\c\\nd\"} 1\n");
    }
}
