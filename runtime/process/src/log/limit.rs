//! Keeps lines that repeat, such as those of a client that errs in a loop, from filling the log.
//!
//! A layer over the whole log, so that no place that logs has to think of it: lines of the levels error and warn are told apart by where
//! they are written and whom they speak of, and `repeats` decides. Invariant: what is left out is told within a window, by a thread that
//! waits without a clock while nothing is left out, or when the program ends.

use std::{
    fmt::{self, Write as _},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Instant,
};

use tracing::{
    Event, Level, Subscriber, callsite,
    field::{Field, Visit},
};
use tracing_subscriber::layer::{Context, Layer};

use super::repeats::{Admission, Repeats, Summary};
use crate::sizes::format_count;

/// Of the lines that tell what was left out; they are not limited themselves.
pub(super) const TARGET: &str = "repeated_lines";
/// Fields that say whom a line speaks of. Their values come from manifests and the cluster, never from a request.
const SUBJECTS: [&str; 3] = ["model", "namespace", "name"];
/// The most characters of a line that a summary quotes.
const MAX_QUOTE: usize = 200;

/// Where a line is written, and whom it speaks of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    callsite: callsite::Identifier,
    level: Level,
    subject: String,
}

/// What was written and counted, for all threads.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    repeats: Mutex<Repeats<Kind>>,
    counted: Condvar,
}

/// The layer.
pub(super) struct Limit(Arc<Limiter>);

impl Limit {
    pub(super) fn new(limiter: &Arc<Limiter>) -> Self {
        Self(Arc::clone(limiter))
    }
}

impl<S: Subscriber> Layer<S> for Limit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        *metadata.level() > Level::WARN || metadata.target() == TARGET || self.0.admits(event, Instant::now())
    }
}

impl Limiter {
    fn admits(&self, event: &Event<'_>, now: Instant) -> bool {
        let mut kind =
            Kind { callsite: event.metadata().callsite(), level: *event.metadata().level(), subject: String::new() };
        event.record(&mut Subject(&mut kind.subject));
        let mut repeats = self.lock();
        if repeats.is_full(&kind, now) {
            // So many speak at once that they are no longer told apart: the places that log are few.
            kind.subject.clear();
        }
        let admission = repeats.admit(&kind, now, || quote(event));
        drop(repeats);
        if admission == Admission::FirstCounted {
            self.counted.notify_one();
        }
        admission == Admission::Written
    }

    /// Starts the thread that tells what was left out. It ends with the process.
    pub(super) fn tell_in_time(limiter: &Arc<Self>) {
        let limiter = Arc::clone(limiter);
        let thread = thread::Builder::new().name("log-summaries".into()).spawn(move || limiter.run(tell));
        if let Err(error) = thread {
            tracing::warn!(%error, "no thread for summaries of repeated lines: they come when the program ends");
        }
    }

    fn run(&self, tell: impl Fn(&Summary<Kind>)) -> ! {
        let mut repeats = self.lock();
        loop {
            let now = Instant::now();
            repeats = match repeats.next_summary() {
                None => self.counted.wait(repeats).unwrap_or_else(PoisonError::into_inner),
                Some(due) if due > now => {
                    self.counted.wait_timeout(repeats, due - now).unwrap_or_else(PoisonError::into_inner).0
                }
                Some(_) => {
                    let ended = repeats.take_ended(now);
                    drop(repeats);
                    ended.iter().for_each(&tell);
                    self.lock()
                }
            };
        }
    }

    /// Tells everything that was left out until now.
    pub(super) fn tell_all(&self) {
        let all = self.lock().take_all(Instant::now());
        all.iter().for_each(tell);
    }

    fn lock(&self) -> MutexGuard<'_, Repeats<Kind>> {
        self.repeats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell(summary: &Summary<Kind>) {
    let Summary { kind, text, count, elapsed } = summary;
    let seconds = elapsed.as_millis().div_ceil(1000).max(1);
    let line = format!("… and {} more like it in the last {seconds} s: {text}", format_count(*count));
    if kind.level == Level::ERROR {
        tracing::error!(target: TARGET, suppressed = count, "{line}");
    } else {
        tracing::warn!(target: TARGET, suppressed = count, "{line}");
    }
}

/// Gathers the values of [`SUBJECTS`].
struct Subject<'a>(&'a mut String);

impl Visit for Subject<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if SUBJECTS.contains(&field.name()) {
            // Writing to a String cannot fail.
            let _ = write!(self.0, "{value:?} ");
        }
    }
}

/// A line's message and fields on one line, cut to [`MAX_QUOTE`].
fn quote(event: &Event<'_>) -> String {
    let mut quote = Quote { text: String::new(), left: MAX_QUOTE };
    event.record(&mut quote);
    quote.text
}

struct Quote {
    text: String,
    /// Characters that may follow.
    left: usize,
}

impl Visit for Quote {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let separator = if self.text.is_empty() { "" } else { " " };
        // An error says that the rest was cut.
        let _ = if field.name() == "message" {
            write!(self, "{separator}{value:?}")
        } else {
            write!(self, "{separator}{}={value:?}", field.name())
        };
    }
}

impl fmt::Write for Quote {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        for character in part.chars() {
            self.left = self.left.checked_sub(1).ok_or(fmt::Error)?;
            let is_last = self.left == 0;
            self.text.push(if is_last {
                '…'
            } else if character.is_control() {
                ' '
            } else {
                character
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use tracing_subscriber::{layer::SubscriberExt as _, registry};

    use super::*;

    #[test]
    fn what_was_left_out_is_told_when_its_window_ends_though_nothing_more_is_written() {
        let window = Duration::from_millis(20);
        let limiter = Arc::new(Limiter { repeats: Mutex::new(Repeats::within(window)), counted: Condvar::new() });
        let (told, tells) = mpsc::channel();
        let thread = Arc::clone(&limiter);
        thread::spawn(move || thread.run(|summary| told.send((summary.count, summary.elapsed)).unwrap_or_default()));
        let loops = |lines: u64| {
            for _ in 0..lines {
                tracing::warn!("it failed");
            }
        };
        let mut counted = 0;
        tracing::subscriber::with_default(registry().with(Limit::new(&limiter)), || loops(1000));
        // A slow machine may take more than one window for the loop, each with lines that are written.
        while let Ok((count, elapsed)) = tells.recv_timeout(Duration::from_secs(10)) {
            assert!(elapsed >= window, "{elapsed:?}");
            counted += count;
            if counted >= 900 {
                return;
            }
        }
        panic!("{counted} lines were told of");
    }
}
