//! The figures of a run, and over rounds their medians and the medians of their ratios between servers.
//!
//! `measure` makes them, `report` writes them. Invariant: a figure that could not be measured is NaN and shown as such, never zero.

use crate::{
    generator::Measured,
    process::{Usage, real},
};

/// Decimal billions of bytes, as network speeds are told.
const GB: f64 = 1e9;

/// What is told of a run, in the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// Requests answered in a second.
    RequestsPerSecond,
    /// GB of request bodies in a second.
    InGbPerSecond,
    /// GB of answer bodies in a second.
    OutGbPerSecond,
    /// Median time of a request, in microseconds.
    P50Us,
    /// 90th percentile.
    P90Us,
    /// 99th percentile.
    P99Us,
    /// CPU time of the server for each request, in microseconds.
    CpuUs,
    /// GB of request bodies for each second of the server's CPU.
    InGbPerCpuSecond,
    /// GB of answer bodies for each second of the server's CPU.
    OutGbPerCpuSecond,
    /// The most memory that the server held, in MB.
    PeakRssMb,
    /// Page faults of the server for each request.
    Faults,
    /// Times that a sleeping thread of the server was woken, for each request.
    WakeUps,
    /// CPUs that the generator kept busy: near its threads, it is the generator that limits.
    GeneratorCpus,
    /// CPUs that everything else on the machine kept busy: far from zero, times are not to be compared.
    OtherCpus,
}

impl Figure {
    /// Every figure.
    pub const ALL: [Self; 14] = [
        Self::RequestsPerSecond,
        Self::InGbPerSecond,
        Self::OutGbPerSecond,
        Self::P50Us,
        Self::P90Us,
        Self::P99Us,
        Self::CpuUs,
        Self::InGbPerCpuSecond,
        Self::OutGbPerCpuSecond,
        Self::PeakRssMb,
        Self::Faults,
        Self::WakeUps,
        Self::GeneratorCpus,
        Self::OtherCpus,
    ];

    /// Head of its column.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::RequestsPerSecond => "req/s",
            Self::InGbPerSecond => "in GB/s",
            Self::OutGbPerSecond => "out GB/s",
            Self::P50Us => "p50 µs",
            Self::P90Us => "p90 µs",
            Self::P99Us => "p99 µs",
            Self::CpuUs => "CPU µs/req",
            Self::InGbPerCpuSecond => "in GB/CPU-s",
            Self::OutGbPerCpuSecond => "out GB/CPU-s",
            Self::PeakRssMb => "peak RSS MB",
            Self::Faults => "faults/req",
            Self::WakeUps => "wake-ups/req",
            Self::GeneratorCpus => "generator CPUs",
            Self::OtherCpus => "other CPUs",
        }
    }
}

/// What a run cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Cost {
    /// The server; `None` if its process is not known.
    pub server: Option<Usage>,
    /// This program.
    pub generator: Usage,
    /// CPU time of the whole machine, in seconds.
    pub machine_seconds: f64,
    /// How far each counter went; `None` where the server has none of that name.
    pub counters: Vec<Option<f64>>,
}

/// The figures of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    values: Vec<f64>,
    /// How far each counter went for each request.
    pub counters: Vec<f64>,
    /// Whether the answers were compressed.
    pub is_compressed: bool,
}

impl Figures {
    /// The figures of what was measured.
    #[must_use]
    pub fn new(measured: &Measured, cost: &Cost, is_compressed: bool) -> Self {
        let mut latencies = measured.latencies_ns.clone();
        latencies.sort_unstable();
        let requests = real(latencies.len() as u64);
        let seconds = measured.elapsed.as_secs_f64();
        let (sent, received) = (real(measured.sent_bytes) / GB, real(measured.received_bytes) / GB);
        let server = cost.server;
        let of_server = |field: fn(Usage) -> f64| server.map_or(f64::NAN, field);
        let cpu_seconds = of_server(|usage| usage.cpu_seconds);
        let percentile_us = |permille| percentile(&latencies, permille).map_or(f64::NAN, |time| real(time) / 1e3);
        let value = |figure| match figure {
            Figure::RequestsPerSecond => requests / seconds,
            Figure::InGbPerSecond => sent / seconds,
            Figure::OutGbPerSecond => received / seconds,
            Figure::P50Us => percentile_us(500),
            Figure::P90Us => percentile_us(900),
            Figure::P99Us => percentile_us(990),
            Figure::CpuUs => cpu_seconds * 1e6 / requests,
            Figure::InGbPerCpuSecond => sent / cpu_seconds,
            Figure::OutGbPerCpuSecond => received / cpu_seconds,
            Figure::PeakRssMb => of_server(|usage| usage.peak_rss_bytes) / 1e6,
            Figure::Faults => of_server(|usage| usage.minor_faults) / requests,
            Figure::WakeUps => of_server(|usage| usage.wake_ups) / requests,
            Figure::GeneratorCpus => cost.generator.cpu_seconds / seconds,
            Figure::OtherCpus => {
                let other = (cost.machine_seconds - cpu_seconds - cost.generator.cpu_seconds) / seconds;
                // Ticks are coarse, so it may fall below zero; what is not known stays so.
                if other < 0.0 { 0.0 } else { other }
            }
        };
        Self {
            values: Figure::ALL.into_iter().map(value).collect(),
            counters: cost
                .counters
                .iter()
                .map(|counter| counter.map_or(f64::NAN, |counter| counter / requests))
                .collect(),
            is_compressed,
        }
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, figure: Figure) -> f64 {
        self.values.get(figure as usize).copied().unwrap_or(f64::NAN)
    }

    /// All in the order of [`Figure::ALL`], then the counters.
    pub fn columns(&self) -> impl Iterator<Item = f64> {
        self.values.iter().chain(&self.counters).copied()
    }
}

/// The median of each column over rounds.
#[must_use]
pub fn medians(rounds: &[Figures]) -> Vec<f64> {
    medians_of(&rounds.iter().map(|round| round.columns().collect()).collect::<Vec<_>>())
}

/// The median of each column's ratio of `new` to `old` in the same round: what slows the machine for a while slows both.
#[must_use]
pub fn median_ratios(new: &[Figures], old: &[Figures]) -> Vec<f64> {
    let round =
        |(new, old): (&Figures, &Figures)| new.columns().zip(old.columns()).map(|(new, old)| new / old).collect();
    medians_of(&new.iter().zip(old).map(round).collect::<Vec<_>>())
}

fn medians_of(rounds: &[Vec<f64>]) -> Vec<f64> {
    let columns = rounds.first().map_or(0, Vec::len);
    let column = |index| median(rounds.iter().filter_map(|round| round.get(index).copied()).collect());
    (0..columns).map(column).collect()
}

/// The value below or at which `permille` of a thousand lie (nearest rank); `sorted` ascends.
#[must_use]
pub fn percentile(sorted: &[u64], permille: usize) -> Option<u64> {
    let rank = (sorted.len() * permille).div_ceil(1000);
    sorted.get(rank.saturating_sub(1)).copied()
}

/// The middle value, or the mean of the two in the middle; NaN if one of them is.
#[must_use]
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let at = |index| values.get(index).copied().unwrap_or(f64::NAN);
    if values.len().is_multiple_of(2) { f64::midpoint(at(middle.wrapping_sub(1)), at(middle)) } else { at(middle) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn is_near(actual: f64, expected: f64) -> bool {
        (actual - expected).abs() < 1e-9 * expected.abs().max(1.0)
    }

    #[test]
    fn percentiles_are_those_of_the_nearest_rank() {
        let hundred: Vec<u64> = (1..=100).collect();
        for (permille, expected) in
            [(0, 1), (10, 1), (500, 50), (505, 51), (900, 90), (990, 99), (991, 100), (1000, 100)]
        {
            assert_eq!(percentile(&hundred, permille), Some(expected), "{permille}");
        }
        assert_eq!(percentile(&[7], 990), Some(7));
        assert_eq!(percentile(&[], 500), None);
    }

    #[test]
    fn a_median_lies_in_the_middle() {
        assert!(is_near(median(vec![3.0, 1.0, 2.0]), 2.0));
        assert!(is_near(median(vec![4.0, 1.0, 3.0, 2.0]), 2.5));
        assert!(median(vec![]).is_nan());
        assert!(median(vec![f64::NAN]).is_nan());
    }

    #[test]
    fn figures_are_told_for_each_request_and_second() {
        let measured = Measured {
            latencies_ns: vec![4000, 1000, 2000, 3000],
            elapsed: Duration::from_millis(500),
            sent_bytes: 4_000_000_000,
            received_bytes: 1_000_000_000,
        };
        let server =
            Usage { cpu_seconds: 0.25, minor_faults: 8.0, wake_ups: 12.0, peak_rss_bytes: 5e6, ..Usage::default() };
        let generator = Usage { cpu_seconds: 1.0, ..Usage::default() };
        let cost = Cost { server: Some(server), generator, machine_seconds: 2.0, counters: vec![Some(40.0), None] };
        let figures = Figures::new(&measured, &cost, false);
        for (figure, expected) in [
            (Figure::RequestsPerSecond, 8.0),
            (Figure::InGbPerSecond, 8.0),
            (Figure::OutGbPerSecond, 2.0),
            (Figure::P50Us, 2.0),
            (Figure::P99Us, 4.0),
            (Figure::CpuUs, 62_500.0),
            (Figure::InGbPerCpuSecond, 16.0),
            (Figure::OutGbPerCpuSecond, 4.0),
            (Figure::PeakRssMb, 5.0),
            (Figure::Faults, 2.0),
            (Figure::WakeUps, 3.0),
            (Figure::GeneratorCpus, 2.0),
            (Figure::OtherCpus, 1.5),
        ] {
            assert!(is_near(figures.get(figure), expected), "{figure:?}: {}", figures.get(figure));
        }
        assert!(is_near(figures.counters[0], 10.0) && figures.counters[1].is_nan());
        let unknown = Figures::new(&measured, &Cost { server: None, ..cost }, false);
        assert!(
            unknown.get(Figure::CpuUs).is_nan()
                && unknown.get(Figure::OtherCpus).is_nan()
                && is_near(unknown.get(Figure::P90Us), 4.0)
        );
    }

    #[test]
    fn medians_are_taken_column_by_column_and_ratios_round_by_round() {
        let round =
            |values: [f64; 2]| Figures { values: values.into(), counters: vec![values[0]], is_compressed: false };
        let old = [round([1.0, 9.0]), round([30.0, 7.0]), round([2.0, 8.0])];
        let medians = medians(&old);
        assert!(is_near(medians[0], 2.0) && is_near(medians[1], 8.0) && is_near(medians[2], 2.0));
        let new = [round([2.0, 9.0]), round([60.0, 14.0]), round([4.0, 8.0])];
        let ratios = median_ratios(&new, &old);
        assert!(is_near(ratios[0], 2.0) && is_near(ratios[1], 1.0) && ratios.len() == 3);
        assert!(super::medians(&[]).is_empty());
    }
}
