//! Looks for the next request without sleeping, where it follows the last answer at once.
//!
//! To wake a thread costs as much as a small request. A client that asks as soon as it has its answer is met by a thread that
//! still looks; `connection` and `http2` say when requests begin and are answered. Invariants: only one thread of the process
//! spins at a time; a thread spins only after a request that came within [`SPIN`] of an answer, so that one in vain ends it, and a
//! process without requests never spins.

use std::{
    cell::RefCell,
    future::poll_fn,
    sync::atomic::{
        AtomicBool,
        Ordering::{AcqRel, Release},
    },
    task::{Poll, Waker},
    thread,
    time::{Duration, Instant},
};

/// How long to look after an answer, and how soon a request must follow one for the thread to look after the next.
const SPIN: Duration = Duration::from_micros(150);

/// How often to look before the processor is offered to others.
const LOOKS_PER_YIELD: usize = 4;

thread_local! {
    static TRAFFIC: RefCell<Traffic> = const { RefCell::new(Traffic::new()) };
}

/// The requests of a thread's connections, as far as spinning goes.
#[derive(Debug)]
struct Traffic {
    /// When the last answer was given.
    answered: Option<Instant>,
    /// Whether the last request came soon after the answer before it.
    is_dense: bool,
    /// Until when to look.
    until: Option<Instant>,
    /// Wakes the loop that looks; only set while that waits.
    waker: Option<Waker>,
}

impl Traffic {
    const fn new() -> Self {
        Self { answered: None, is_dense: false, until: None, waker: None }
    }

    fn began(&mut self, now: Instant) {
        if let Some(answered) = self.answered.take() {
            self.is_dense = now.saturating_duration_since(answered) <= SPIN;
        }
        self.until = None;
    }

    fn answered(&mut self, now: Instant) {
        self.answered = Some(now);
        if self.is_dense {
            self.until = Some(now + SPIN);
        }
    }
}

/// A request of one of this thread's connections began.
pub(crate) fn began() {
    TRAFFIC.with_borrow_mut(|traffic| traffic.began(Instant::now()));
}

/// A request of one of this thread's connections was answered.
pub(crate) fn answered() {
    let waker = TRAFFIC.with_borrow_mut(|traffic| {
        traffic.answered(Instant::now());
        if traffic.until.is_some() { traffic.waker.take() } else { None }
    });
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// Spins whenever there is reason to, for as long as the thread lives. `is_taken` tells whether a thread does.
pub(super) async fn run(is_taken: &AtomicBool) {
    loop {
        poll_fn(|context| {
            TRAFFIC.with_borrow_mut(|traffic| {
                if traffic.until.is_some() {
                    return Poll::Ready(());
                }
                traffic.waker = Some(context.waker().clone());
                Poll::Pending
            })
        })
        .await;
        if is_taken.swap(true, AcqRel) {
            TRAFFIC.with_borrow_mut(|traffic| traffic.until = None);
            continue;
        }
        while TRAFFIC.with_borrow(|traffic| traffic.until).is_some_and(|until| Instant::now() < until) {
            // The runtime asks the system for events and comes back at once.
            for _ in 0..LOOKS_PER_YIELD {
                tokio::task::yield_now().await;
            }
            // Whoever sends the next request may need this very processor.
            thread::yield_now();
        }
        TRAFFIC.with_borrow_mut(|traffic| traffic.until = None);
        is_taken.store(false, Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, atomic::Ordering::Acquire};

    use super::*;

    #[test]
    fn a_thread_looks_after_an_answer_only_while_requests_follow_answers_closely() {
        let start = Instant::now();
        let at = |us: u64| start + Duration::from_micros(us);
        let mut traffic = Traffic::new();
        traffic.began(at(0));
        traffic.answered(at(10));
        assert_eq!(traffic.until, None, "nobody knows yet what follows");
        traffic.began(at(10) + SPIN);
        assert_eq!(traffic.until, None);
        traffic.answered(at(500));
        assert_eq!(traffic.until, Some(at(500) + SPIN));
        traffic.began(at(510));
        assert_eq!(traffic.until, None, "a request is there");
        traffic.answered(at(520));
        // In vain, once.
        traffic.began(at(521) + SPIN);
        traffic.answered(at(1000));
        assert_eq!(traffic.until, None);
    }

    #[test]
    fn a_request_that_began_while_another_ran_says_nothing() {
        let start = Instant::now();
        let mut traffic = Traffic::new();
        traffic.began(start);
        traffic.answered(start);
        traffic.began(start);
        assert!(traffic.is_dense);
        traffic.began(start + 10 * SPIN);
        assert!(traffic.is_dense);
    }

    #[tokio::test]
    async fn looking_ends_by_itself_and_is_done_by_one_thread_at_a_time() {
        let is_taken = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&is_taken);
        let looking = tokio::spawn(async move { run(&flag).await });
        let pair = || {
            began();
            answered();
        };
        pair();
        pair();
        while !is_taken.load(Acquire) {
            // The runtime may be too slow for the moment in which to look.
            pair();
            tokio::task::yield_now().await;
        }
        while is_taken.load(Acquire) {
            tokio::task::yield_now().await;
        }
        // Another thread looks.
        is_taken.store(true, Release);
        pair();
        pair();
        while TRAFFIC.with_borrow(|traffic| traffic.until.is_some() || traffic.waker.is_none()) {
            tokio::task::yield_now().await;
        }
        assert!(is_taken.load(Acquire), "whoever looks still has it");
        looking.abort();
    }
}
