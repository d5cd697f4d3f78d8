//! The executions of each batch size: how many, and how long their stages took.
//!
//! Recorded by `metrics::model` after each execution, read for the statistics. Invariant: recording takes no lock, and allocates
//! only the first time that a power of two is reached; sizes above [`MAX_SIZE`] are not told apart, and not told.

use std::sync::OnceLock;

use super::{
    timings::ExecutionTimings,
    values::{Counter, DurationCounter},
};
use crate::statistics::{BatchStatistics, StatisticDuration};

/// The largest batch size that has statistics of its own: all the sizes up to it take 4 MiB.
const MAX_SIZE: u64 = (1 << GROUPS) - 1;
/// Group `n` holds the sizes from `2^n` to below `2^(n + 1)`.
const GROUPS: usize = 16;

#[derive(Debug, Default)]
struct Size {
    executions: Counter,
    compute_input: DurationCounter,
    compute_infer: DurationCounter,
    compute_output: DurationCounter,
}

/// Statistics by batch size.
#[derive(Debug, Default)]
pub(super) struct BatchSeries([OnceLock<Box<[Size]>>; GROUPS]);

impl BatchSeries {
    pub(super) fn record(&self, rows: u64, timings: &ExecutionTimings) {
        if !(1..=MAX_SIZE).contains(&rows) {
            return;
        }
        let group = rows.ilog2();
        let first = 1u64 << group;
        let Some(sizes) = usize::try_from(group).ok().and_then(|group| self.0.get(group)) else { return };
        let sizes = sizes.get_or_init(|| (0..first).map(|_| Size::default()).collect());
        let Some(size) = usize::try_from(rows - first).ok().and_then(|position| sizes.get(position)) else { return };
        size.executions.add(1);
        size.compute_input.add(timings.compute_input);
        size.compute_infer.add(timings.compute_infer);
        size.compute_output.add(timings.compute_output);
    }

    /// Every size that ran, the smallest first.
    pub(super) fn statistics(&self) -> Vec<BatchStatistics> {
        let groups = (0u32..).zip(&self.0).filter_map(|(group, sizes)| Some((1u64 << group, sizes.get()?)));
        let sizes = groups.flat_map(|(first, sizes)| (first..).zip(sizes.iter()));
        sizes
            .filter(|(_, size)| size.executions.get() > 0)
            .map(|(batch_size, size)| {
                let count = size.executions.get();
                let statistic = |time: &DurationCounter| StatisticDuration { count, total: time.get() };
                BatchStatistics {
                    batch_size,
                    compute_input: statistic(&size.compute_input),
                    compute_infer: statistic(&size.compute_infer),
                    compute_output: statistic(&size.compute_output),
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_size_that_ran_is_told_with_its_own_times_in_order() {
        let series = BatchSeries::default();
        let timings = |ms| ExecutionTimings { compute_infer: Duration::from_millis(ms), ..Default::default() };
        for (rows, ms) in [(8, 5), (1, 1), (7, 2), (8, 6), (0, 9), (MAX_SIZE, 3), (MAX_SIZE + 1, 9)] {
            series.record(rows, &timings(ms));
        }
        let told: Vec<_> = series
            .statistics()
            .into_iter()
            .map(|size| (size.batch_size, size.compute_infer.count, size.compute_infer.total.as_millis()))
            .collect();
        assert_eq!(told, [(1, 1, 1), (7, 1, 2), (8, 2, 11), (MAX_SIZE, 1, 3)]);
    }
}
