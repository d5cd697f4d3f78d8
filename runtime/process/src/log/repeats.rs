//! Which of the lines that repeat are written, and how many are not. Pure: the caller passes the time in.
//!
//! A kind of line (see `limit`) may be written [`MAX_LINES`] times from its first one until [`WINDOW`] has passed; then it begins anew.
//! Invariant: every line is written, or counted in exactly one [`Summary`].

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

/// Lines of one kind that are written in a window.
pub(super) const MAX_LINES: u32 = 5;
/// How long lines of one kind are counted together.
pub(super) const WINDOW: Duration = Duration::from_secs(10);
/// Kinds that are told apart at one time.
const MAX_KINDS: usize = 1024;

/// What becomes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It is written.
    Written,
    /// It is the first of its window that is not: a summary has become due.
    FirstCounted,
    /// It is counted.
    Counted,
}

/// The lines of one kind that were left out of a window.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Summary<K> {
    /// Their kind.
    pub(super) kind: K,
    /// The window's first line.
    pub(super) text: String,
    /// How many.
    pub(super) count: u64,
    /// Since when.
    pub(super) elapsed: Duration,
}

#[derive(Debug)]
struct Window {
    began: Instant,
    written: u32,
    counted: u64,
    text: String,
}

impl Window {
    fn has_ended(&self, length: Duration, now: Instant) -> bool {
        now.saturating_duration_since(self.began) >= length
    }
}

/// The windows that are open, by kind, and what is left to tell of those that are not.
#[derive(Debug)]
pub(super) struct Repeats<K> {
    window: Duration,
    windows: HashMap<K, Window>,
    ended: Vec<Summary<K>>,
}

impl<K> Default for Repeats<K> {
    fn default() -> Self {
        Self::within(WINDOW)
    }
}

impl<K> Repeats<K> {
    /// Counts lines together for so long.
    pub(super) fn within(window: Duration) -> Self {
        Self { window, windows: HashMap::new(), ended: Vec::new() }
    }
}

impl<K: Clone + Eq + Hash> Repeats<K> {
    /// Decides on a line of that kind; `text` is asked for where it is the first of its window.
    pub(super) fn admit(&mut self, kind: &K, now: Instant, text: impl FnOnce() -> String) -> Admission {
        if let Some(window) = self.windows.get_mut(kind)
            && !window.has_ended(self.window, now)
        {
            if window.written < MAX_LINES {
                window.written += 1;
                return Admission::Written;
            }
            window.counted += 1;
            return if window.counted == 1 { Admission::FirstCounted } else { Admission::Counted };
        }
        self.close(kind, now);
        self.windows.insert(kind.clone(), Window { began: now, written: 1, counted: 0, text: text() });
        Admission::Written
    }

    /// Whether another kind finds no room. Windows that have ended make some.
    pub(super) fn is_full(&mut self, kind: &K, now: Instant) -> bool {
        if self.windows.len() < MAX_KINDS || self.windows.contains_key(kind) {
            return false;
        }
        self.close_ended(now);
        self.windows.len() >= MAX_KINDS
    }

    /// When something is to be told, if anything is.
    pub(super) fn next_summary(&self) -> Option<Instant> {
        let counting = self.windows.values().filter(|window| window.counted > 0);
        counting.map(|window| window.began + self.window).min()
    }

    /// What was left out of windows that have ended.
    pub(super) fn take_ended(&mut self, now: Instant) -> Vec<Summary<K>> {
        self.close_ended(now);
        std::mem::take(&mut self.ended)
    }

    /// What was left out of every window, before nobody counts any more.
    pub(super) fn take_all(&mut self, now: Instant) -> Vec<Summary<K>> {
        let kinds: Vec<K> = self.windows.keys().cloned().collect();
        for kind in &kinds {
            self.close(kind, now);
        }
        std::mem::take(&mut self.ended)
    }

    fn close_ended(&mut self, now: Instant) {
        let ended = self.windows.iter().filter(|(_, window)| window.has_ended(self.window, now));
        let kinds: Vec<K> = ended.map(|(kind, _)| kind.clone()).collect();
        for kind in &kinds {
            self.close(kind, now);
        }
    }

    fn close(&mut self, kind: &K, now: Instant) {
        let Some(Window { began, counted: count, text, .. }) = self.windows.remove(kind) else { return };
        if count > 0 {
            let elapsed = now.saturating_duration_since(began);
            self.ended.push(Summary { kind: kind.clone(), text, count, elapsed });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn admit(repeats: &mut Repeats<&'static str>, kind: &'static str, now: Instant) -> Admission {
        repeats.admit(&kind, now, || format!("the first {kind}"))
    }

    #[test]
    fn five_lines_of_a_kind_are_written_and_the_others_are_counted_until_ten_seconds_have_passed() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut repeats = Repeats::default();
        for ms in 0..5 {
            assert_eq!(admit(&mut repeats, "a", at(ms)), Admission::Written, "{ms} ms");
        }
        assert_eq!(repeats.next_summary(), None);
        assert_eq!(admit(&mut repeats, "a", at(5)), Admission::FirstCounted);
        assert_eq!(admit(&mut repeats, "b", at(6)), Admission::Written, "another kind has lines of its own");
        assert_eq!(admit(&mut repeats, "a", at(9_999)), Admission::Counted);
        assert_eq!(repeats.next_summary(), Some(at(10_000)));
        assert_eq!(repeats.take_ended(at(9_999)), []);
        let summary =
            Summary { kind: "a", text: "the first a".into(), count: 2, elapsed: Duration::from_millis(10_000) };
        assert_eq!(repeats.take_ended(at(10_000)), [summary]);
        assert_eq!(repeats.next_summary(), None);
        assert_eq!(admit(&mut repeats, "a", at(10_000)), Admission::Written);
    }

    #[test]
    fn a_window_that_ended_unnoticed_is_told_of_when_the_next_begins() {
        let start = Instant::now();
        let mut repeats = Repeats::default();
        for _ in 0..8 {
            admit(&mut repeats, "a", start);
        }
        let later = start + Duration::from_secs(60);
        assert_eq!(admit(&mut repeats, "a", later), Admission::Written);
        let ended = repeats.take_ended(later);
        assert_eq!(ended.iter().map(|summary| summary.count).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn kinds_beyond_the_limit_find_no_room_until_others_have_ended() {
        let start = Instant::now();
        let mut repeats = Repeats::default();
        for kind in 0..MAX_KINDS {
            assert!(!repeats.is_full(&kind, start), "{kind}");
            repeats.admit(&kind, start, String::new);
        }
        assert!(!repeats.is_full(&0, start), "a kind that is known has its room");
        assert!(repeats.is_full(&MAX_KINDS, start));
        assert!(!repeats.is_full(&MAX_KINDS, start + WINDOW));
    }

    proptest! {
        #[test]
        fn no_line_is_lost_without_being_counted(lines in prop::collection::vec((0_u8..4, 0_u64..3_000, any::<bool>()), 0..300)) {
            let mut now = Instant::now();
            let mut repeats = Repeats::default();
            let (mut written, mut told) = (0_u64, 0_u64);
            for (kind, pause_ms, is_told) in &lines {
                now += Duration::from_millis(*pause_ms);
                if repeats.admit(kind, now, String::new) == Admission::Written {
                    written += 1;
                }
                if *is_told {
                    told += repeats.take_ended(now).iter().map(|summary| summary.count).sum::<u64>();
                }
            }
            told += repeats.take_all(now).iter().map(|summary| summary.count).sum::<u64>();
            prop_assert_eq!(written + told, lines.len() as u64);
            prop_assert_eq!(repeats.next_summary(), None);
        }
    }
}
