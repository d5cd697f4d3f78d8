//! Which requests may run on the thread that submits them, by what runs took so far.
//!
//! The queue asks [`InlineLimit::bytes`] before it hands out a seat, and tells it of every run. A request's size stands for its time,
//! which the plan allows only where shapes decide it; this corrects what shapes do not tell. Invariants: a size that was slow comes back
//! only after [`QUICK_RUNS`] quick runs in a row, so that one that is now quick and now slow stays away; after [`MAX_STRIKES`] runs that
//! held up a submitter's thread nothing runs there any more.

use std::time::Duration;

use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A run on a submitter's thread that takes longer held up the connections of that thread: many times what a wake-up costs, and
/// more than a busy machine takes a thread's processor away for.
const STRIKE: Duration = Duration::from_millis(5);
/// So many of those are no accident.
const MAX_STRIKES: usize = 3;
/// Quick runs in a row after which a size that was slow counts as quick again: more than chance gives a model that is slow often.
const QUICK_RUNS: usize = 64;

/// Requests of no more bytes than this may run on the submitting thread.
#[derive(Debug)]
pub struct InlineLimit {
    /// A run that takes less is quick. Zero for none.
    below: Duration,
    /// Whether operators run on one thread, without which nothing runs inline.
    is_single_threaded: AtomicBool,
    /// The largest size that proved quick; 0 for none.
    bytes: AtomicUsize,
    /// The smallest size that was slow.
    slow_bytes: AtomicUsize,
    /// Quick runs of sizes from there on, since the last slow one.
    quick_runs: AtomicUsize,
    strikes: AtomicUsize,
}

impl InlineLimit {
    /// Nothing runs inline yet; later what takes less than `below`.
    pub fn new(below: Duration) -> Self {
        Self {
            below,
            is_single_threaded: AtomicBool::new(false),
            bytes: AtomicUsize::new(0),
            slow_bytes: AtomicUsize::new(usize::MAX),
            quick_runs: AtomicUsize::new(0),
            strikes: AtomicUsize::new(0),
        }
    }

    /// The limit, 0 for none.
    pub fn bytes(&self) -> usize {
        if self.is_over() { 0 } else { self.bytes.load(Ordering::Relaxed) }
    }

    fn is_over(&self) -> bool {
        self.strikes.load(Ordering::Relaxed) >= MAX_STRIKES
    }

    /// What the warm-up found out.
    pub fn set(&self, bytes: usize, threads: usize) {
        self.is_single_threaded.store(threads == 1, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Learns from a request of `size_bytes` that ran alone, on whichever thread.
    pub fn learn_run(&self, size_bytes: usize, elapsed: Duration) {
        if self.below.is_zero() || !self.is_single_threaded.load(Ordering::Relaxed) {
            return;
        }
        let limit = self.bytes.load(Ordering::Relaxed);
        if elapsed >= self.below {
            self.slow_bytes.fetch_min(size_bytes, Ordering::Relaxed);
            self.quick_runs.store(0, Ordering::Relaxed);
            if size_bytes <= limit {
                self.bytes.store(size_bytes.saturating_sub(1), Ordering::Relaxed);
            }
        } else if size_bytes > limit && self.may_raise_to(size_bytes) {
            self.bytes.store(size_bytes, Ordering::Relaxed);
        }
    }

    /// Whether a quick run lets requests of `size_bytes` run inline.
    fn may_raise_to(&self, size_bytes: usize) -> bool {
        if size_bytes < self.slow_bytes.load(Ordering::Relaxed) {
            return true;
        }
        let is_trusted = self.quick_runs.fetch_add(1, Ordering::Relaxed).saturating_add(1) >= QUICK_RUNS;
        if is_trusted {
            self.slow_bytes.store(usize::MAX, Ordering::Relaxed);
        }
        is_trusted
    }

    /// Learns how long a run kept its submitter's thread. Gives true for the one after which nothing runs there any more.
    pub fn strike(&self, elapsed: Duration) -> bool {
        elapsed > STRIKE && self.strikes.fetch_add(1, Ordering::Relaxed).saturating_add(1) == MAX_STRIKES
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    const BELOW: Duration = Duration::from_micros(200);
    const QUICK: Duration = Duration::from_micros(199);
    const SLOW: Duration = Duration::from_micros(200);

    fn limit(bytes: usize) -> InlineLimit {
        let limit = InlineLimit::new(BELOW);
        limit.set(bytes, 1);
        limit
    }

    #[test]
    fn quick_runs_raise_the_limit_and_slow_ones_lower_it() {
        let limit = limit(10);
        for (size_bytes, elapsed, expected) in [
            (20, QUICK, 20),
            (15, QUICK, 20),
            (30, SLOW, 20),
            (18, SLOW, 17),
            (5, SLOW, 4),
            (4, QUICK, 4),
            (0, SLOW, 0),
        ] {
            limit.learn_run(size_bytes, elapsed);
            assert_eq!(limit.bytes(), expected, "{size_bytes} in {elapsed:?}");
        }
    }

    #[test]
    fn a_quick_run_does_not_bring_back_a_size_that_was_slow_but_those_below_it() {
        let limit = limit(100);
        limit.learn_run(50, SLOW);
        for (size_bytes, expected) in [(50, 49), (100, 49), (49, 49)] {
            limit.learn_run(size_bytes, QUICK);
            assert_eq!(limit.bytes(), expected, "{size_bytes}");
        }
        limit.learn_run(20, SLOW);
        limit.learn_run(40, QUICK);
        assert_eq!(limit.bytes(), 19);
        limit.set(5, 1);
        limit.learn_run(19, QUICK);
        assert_eq!(limit.bytes(), 19);
    }

    #[test]
    fn a_size_that_is_now_quick_and_now_slow_stays_off_the_submitters_thread() {
        let limit = limit(100);
        limit.learn_run(100, SLOW);
        for _ in 0..1000 {
            for _ in 1..QUICK_RUNS {
                limit.learn_run(100, QUICK);
                assert_eq!(limit.bytes(), 99);
            }
            limit.learn_run(100, SLOW);
        }
    }

    #[test]
    fn one_hiccup_of_the_machine_is_forgotten_after_many_quick_runs() {
        let limit = limit(100);
        limit.learn_run(100, SLOW);
        (0..QUICK_RUNS).for_each(|_| limit.learn_run(100, QUICK));
        assert_eq!(limit.bytes(), 100);
    }

    #[test]
    fn three_runs_that_held_up_their_submitter_end_it_for_good() {
        let limit = limit(100);
        let (short, long) = (Duration::from_millis(5), Duration::from_micros(5001));
        let over: Vec<bool> = [long, short, long, short, long, long].map(|elapsed| limit.strike(elapsed)).into();
        assert_eq!(over, [false, false, false, false, true, false], "told once");
        assert_eq!(limit.bytes(), 0);
        (0..1000).for_each(|_| limit.learn_run(100, QUICK));
        limit.set(100, 1);
        assert_eq!(limit.bytes(), 0);
    }

    #[test]
    fn nothing_is_learnt_where_nothing_runs_inline() {
        let (never, shared) = (InlineLimit::new(Duration::ZERO), InlineLimit::new(BELOW));
        never.set(0, 1);
        shared.set(0, 2);
        for limit in [never, shared] {
            limit.learn_run(10, Duration::ZERO);
            assert_eq!(limit.bytes(), 0);
        }
    }
}
