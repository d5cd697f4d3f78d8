//! The waker of a connection that polls its calls itself.
//!
//! What a round of the connection makes ready, it looks at in its next round; only what happens between polls wakes the task. So a
//! request costs the wake-ups that its bytes and its answer cost, and none in between. Invariant: no wake-up is lost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Wake, Waker},
};

use futures::task::AtomicWaker;

/// Remembers wake-ups while the connection is polled, and passes on those between.
#[derive(Debug, Default)]
pub(super) struct RoundWaker {
    task: AtomicWaker,
    is_polling: AtomicBool,
    is_woken: AtomicBool,
}

impl RoundWaker {
    /// The task's poll begins.
    pub(super) fn enter(&self, context: &Context<'_>) {
        self.task.register(context.waker());
        self.is_polling.store(true, SeqCst);
    }

    /// A round begins: what wakes from now on asks for another.
    pub(super) fn begin_round(&self) {
        self.is_woken.store(false, SeqCst);
    }

    /// Whether the poll may end; if not, another round is due.
    pub(super) fn may_leave(&self) -> bool {
        self.is_polling.store(false, SeqCst);
        let is_woken = self.is_woken.load(SeqCst);
        if is_woken {
            self.is_polling.store(true, SeqCst);
        }
        !is_woken
    }

    /// The poll ends although there may be more to do: the task is woken again.
    pub(super) fn leave_for_later(&self, context: &Context<'_>) {
        self.is_polling.store(false, SeqCst);
        context.waker().wake_by_ref();
    }

    /// A waker for what the connection polls.
    pub(super) fn waker(self: &Arc<Self>) -> Waker {
        Waker::from(Arc::clone(self))
    }
}

impl Wake for RoundWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_woken.store(true, SeqCst);
        if !self.is_polling.load(SeqCst) {
            self.task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    #[test]
    fn a_wake_up_within_the_poll_asks_for_a_round_and_one_between_polls_wakes_the_task() {
        let counter = Arc::new(Counter::default());
        let task = Waker::from(Arc::clone(&counter));
        let rounds = Arc::new(RoundWaker::default());
        let waker = rounds.waker();
        rounds.enter(&Context::from_waker(&task));
        rounds.begin_round();
        waker.wake_by_ref();
        assert!(!rounds.may_leave());
        rounds.begin_round();
        assert!(rounds.may_leave());
        assert_eq!(counter.0.load(SeqCst), 0);
        waker.wake_by_ref();
        waker.wake_by_ref();
        assert_eq!(counter.0.load(SeqCst), 1);
        rounds.enter(&Context::from_waker(&task));
        rounds.begin_round();
        rounds.leave_for_later(&Context::from_waker(&task));
        assert_eq!(counter.0.load(SeqCst), 2);
    }
}
