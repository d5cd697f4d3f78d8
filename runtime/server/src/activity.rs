//! What the requests of an HTTP/1.1 connection have come to, down to the last byte of their answers.
//!
//! `connection` counts requests with it and asks whether it may end the connection; `socket` tells when all is written: hyper drops an
//! answer's body once it has taken the last piece, which may be long before a client reads it. Invariant: a request counts from its head
//! until its answer was given to the system.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};

use torchmodel_core::metrics::SendTimer;

use crate::io_threads;

/// What the requests of a connection have come to.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    has_begun: AtomicBool,
    /// Requests whose answers have not left.
    in_flight: AtomicUsize,
    unwritten: Mutex<Unwritten>,
}

/// Answers that were given to the connection as a whole and not to the system yet.
#[derive(Debug, Default)]
struct Unwritten {
    answers: usize,
    timers: Vec<SendTimer>,
}

impl Activity {
    fn unwritten(&self) -> MutexGuard<'_, Unwritten> {
        self.unwritten.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a request ever began.
    pub(crate) fn has_begun(&self) -> bool {
        self.has_begun.load(Relaxed)
    }

    /// Whether no request is in flight and no answer unwritten.
    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight.load(Relaxed) == 0
    }

    /// All that the connection had to write was given to the system.
    pub(crate) fn written(&self) {
        let Unwritten { answers, timers } = &mut *self.unwritten();
        timers.clear();
        if *answers > 0 {
            self.in_flight.fetch_sub(std::mem::take(answers), Relaxed);
        }
    }
}

/// A request in flight, from its head until its answer was given to the connection. It counts until that was written.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Activity>);

impl InFlight {
    /// A request whose head is there.
    pub(crate) fn new(activity: &Arc<Activity>) -> Self {
        activity.has_begun.store(true, Relaxed);
        activity.in_flight.fetch_add(1, Relaxed);
        io_threads::began();
        Self(Arc::clone(activity))
    }

    /// Lets `timer` run until the answer is written.
    pub(crate) fn time_until_written(&self, timer: Option<SendTimer>) {
        self.0.unwritten().timers.extend(timer);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.unwritten().answers += 1;
        io_threads::answered();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_counts_until_its_answer_is_written() {
        let activity = Arc::new(Activity::default());
        assert!(!activity.has_begun() && activity.is_idle());
        let [first, second] = [InFlight::new(&activity), InFlight::new(&activity)];
        activity.written();
        assert!(activity.has_begun() && !activity.is_idle());
        drop(first);
        assert!(!activity.is_idle());
        activity.written();
        drop(second);
        assert!(!activity.is_idle(), "the second is not written");
        activity.written();
        activity.written();
        assert!(activity.is_idle());
    }
}
