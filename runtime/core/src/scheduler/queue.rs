//! The queue that submitters and instances share: who runs which request, who sleeps, and who is woken.
//!
//! Holds the [`Batcher`] behind the scheduler's one lock. Invariants: an instance is Running, or its seat is claimed by a submitter,
//! or neither, never both; whenever a request waits and an instance is free, one is awake or being woken; one thread at most spins,
//! only right after it ran a batch, and never longer than the plan says, so that an idle process uses no processor.

use std::{
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use torchmodel_crds::{Failure, FailurePhase, FailureReason};

use super::{
    SchedulerConfig,
    batch::{PendingRequest, fail_expired},
    inline::InlineLimit,
};
use crate::{
    batcher::{Ahead, Batcher, BatcherConfig, Next, Waiting},
    inference::InferError,
    metrics::ModelMetrics,
    plan::ExecutionPlan,
    sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        lock, thread,
    },
    warmup::Warmed,
};

/// Looks at the queue between two of which a spinning thread only burns.
const SPINS_PER_LOOK: usize = 32;

/// What an instance's thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activity {
    /// It warms up, or runs batches.
    Running,
    /// It looks for requests without sleeping.
    Spinning,
    /// It sleeps until it is woken.
    Parked,
    /// It was woken and has not looked yet.
    Waking,
    /// It has ended, or waits for its seat to be released to end.
    Gone,
    /// There is none: only submitters use the instance.
    None,
}

/// One instance, as the queue sees it.
#[derive(Debug)]
struct SeatState {
    activity: Activity,
    /// Whether a submitter runs its own request with the instance.
    is_claimed: bool,
}

struct State {
    batcher: Batcher<PendingRequest>,
    seats: Vec<SeatState>,
    has_spinner: bool,
    is_closed: bool,
}

/// What became of a request that was pushed.
pub enum Pushed {
    /// It waits.
    Queued,
    /// The submitter is to run it with the instance at `seat`, and then [`Queue::release`] it.
    Inline {
        /// Which instance.
        seat: usize,
        /// The request.
        request: Waiting<PendingRequest>,
    },
}

/// The shared part of a scheduler.
pub struct Queue {
    config: SchedulerConfig,
    limits: BatcherConfig,
    spin: Duration,
    state: Mutex<State>,
    /// One for each seat, so that whoever wakes an instance wakes that one.
    wakes: Vec<Condvar>,
    /// Requests pushed so far, for the thread that spins.
    arrivals: AtomicUsize,
    /// What may run on the submitting thread. The warm-up sets it, and each run corrects it.
    inline: InlineLimit,
    has_lost_device: AtomicBool,
}

impl Queue {
    /// With a seat for each handle of the plan; those of the spare ones are nobody's before [`Self::open_spare`].
    pub fn new(config: SchedulerConfig, plan: &ExecutionPlan) -> Self {
        let (limits, hand_off) = (plan.queue, plan.hand_off);
        let seat = |activity| SeatState { activity, is_claimed: false };
        let threads = std::iter::repeat_n(Activity::Running, plan.placements.len());
        let spare = std::iter::repeat_n(Activity::Gone, plan.spare_handles);
        let seats: Vec<_> = threads.chain(spare).map(seat).collect();
        let wakes = seats.iter().map(|_| Condvar::new()).collect();
        let state = State { batcher: Batcher::new(limits), seats, has_spinner: false, is_closed: false };
        Self {
            config,
            limits,
            spin: hand_off.spin,
            state: Mutex::new(state),
            wakes,
            arrivals: AtomicUsize::new(0),
            inline: InlineLimit::new(hand_off.inline_below),
            has_lost_device: AtomicBool::new(false),
        }
    }

    /// Name of the model.
    pub fn model(&self) -> &str {
        self.config.model.as_str()
    }

    /// Where executions are recorded.
    pub fn metrics(&self) -> &ModelMetrics {
        &self.config.metrics
    }

    /// Takes a request, or says that the submitter should run it. A full queue first gives up what nobody waits for any more.
    pub fn push(&self, waiting: Waiting<PendingRequest>) -> Result<Pushed, InferError> {
        let mut state = lock(&self.state);
        if state.is_closed {
            return Err(InferError::NotReady(format!("model '{}' is being unloaded", self.config.model)));
        }
        if let Some(seat) = self.claim(&mut state, &waiting) {
            return Ok(Pushed::Inline { seat, request: waiting });
        }
        let mut expired = Vec::new();
        let mut refused = state.batcher.push(waiting).err();
        if let Some(waiting) = refused.take() {
            expired = state.batcher.take_expired(waiting.arrived, |request| request.sink.is_cancelled());
            refused = state.batcher.push(waiting).err();
        }
        self.arrivals.fetch_add(1, Ordering::Release);
        self.config.metrics.set_queue_depth(state.batcher.len());
        let woken = state.wake_one();
        drop(state);
        self.wake(woken);
        self.fail_expired(expired);
        match refused {
            None => Ok(Pushed::Queued),
            Some(_) => Err(InferError::Overloaded(format!(
                "model '{}' exceeds maximum queue size: {} requests wait; try again later",
                self.config.model, self.limits.max_queue
            ))),
        }
    }

    /// A seat on which the submitter may run `waiting` itself: nothing waits before it, an instance is free, and it will be over
    /// sooner than a thread wakes.
    fn claim(&self, state: &mut State, waiting: &Waiting<PendingRequest>) -> Option<usize> {
        let limit = self.inline.bytes();
        if limit == 0 || waiting.payload.size_bytes.is_none_or(|size| size > limit) || !state.batcher.is_empty() {
            return None;
        }
        let is_free = |seat: &SeatState| !seat.is_claimed && seat.is_idle();
        // The spare ones first: an instance with a thread serves those who wait, too.
        let index = state.seats.iter().rposition(is_free)?;
        state.seats.get_mut(index)?.is_claimed = true;
        Some(index)
    }

    /// From now on submitters may use the spare handle at `index`.
    pub fn open_spare(&self, index: usize) {
        lock(&self.state).set(index, Activity::None);
    }

    /// Gives back a seat that was claimed.
    pub fn release(&self, index: usize) {
        let mut state = lock(&self.state);
        let has_work = state.is_closed || !state.batcher.is_empty();
        let mut woken = None;
        if let Some(seat) = state.seats.get_mut(index) {
            seat.is_claimed = false;
            if has_work && seat.activity == Activity::Parked {
                seat.activity = Activity::Waking;
                woken = Some(index);
            } else if seat.activity == Activity::Gone {
                // Its thread waits to take the instance down.
                woken = Some(index);
            }
        }
        drop(state);
        self.wake(woken);
    }

    /// Waits for the next batch of the instance at `index`; `None` once closed and empty. With `may_spin` it looks for a moment
    /// before it sleeps.
    pub fn next_batch(&self, index: usize, mut may_spin: bool) -> Option<Vec<Waiting<PendingRequest>>> {
        let mut state = lock(&self.state);
        loop {
            state.set(index, Activity::Running);
            if state.is_claimed(index) {
                state = self.park(state, index, None);
                continue;
            }
            let now = Instant::now();
            let expired = state.batcher.take_expired(now, |request| request.sink.is_cancelled());
            if !expired.is_empty() {
                drop(state);
                self.fail_expired(expired);
                state = lock(&self.state);
                continue;
            }
            let is_closed = state.is_closed;
            let until = match state.batcher.next(now) {
                Next::Run(batch) => return Some(self.leave_with(state, batch)),
                Next::WaitUntil(at) if !is_closed => Some(at),
                // No company will come any more.
                Next::WaitUntil(at) => match state.batcher.next(at) {
                    Next::Run(batch) => return Some(self.leave_with(state, batch)),
                    Next::WaitUntil(_) | Next::Idle => return None,
                },
                Next::Idle if is_closed => return None,
                Next::Idle => None,
            };
            if may_spin && until.is_none() && !state.has_spinner && !self.spin.is_zero() {
                let seen = self.arrivals.load(Ordering::Acquire);
                state = self.spin(state, index, seen);
                // Where another instance was faster, there is traffic still.
                may_spin = self.arrivals.load(Ordering::Acquire) != seen;
            } else {
                state = self.park(state, index, until);
            }
        }
    }

    /// A batch that may be taken while others are under way, without waiting.
    pub fn next_ahead(&self, ahead: Ahead) -> Option<Vec<Waiting<PendingRequest>>> {
        let mut state = lock(&self.state);
        let batch = state.batcher.next_ahead(Instant::now(), ahead)?;
        Some(self.leave_with(state, batch))
    }

    /// Another instance is woken for what the batch left behind.
    fn leave_with(
        &self,
        mut state: MutexGuard<'_, State>,
        batch: Vec<Waiting<PendingRequest>>,
    ) -> Vec<Waiting<PendingRequest>> {
        self.config.metrics.set_queue_depth(state.batcher.len());
        let woken = if state.batcher.is_empty() { None } else { state.wake_one() };
        drop(state);
        self.wake(woken);
        batch
    }

    fn park<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        index: usize,
        until: Option<Instant>,
    ) -> MutexGuard<'a, State> {
        state.set(index, Activity::Parked);
        let Some(wake) = self.wakes.get(index) else { return state };
        match until {
            None => wake.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(at) => {
                let timeout = at.saturating_duration_since(Instant::now());
                wake.wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }

    /// Looks for requests that came after the first `seen`, without the lock and without sleeping, for as long as the plan allows.
    fn spin<'a>(&'a self, mut state: MutexGuard<'a, State>, index: usize, seen: usize) -> MutexGuard<'a, State> {
        state.set(index, Activity::Spinning);
        state.has_spinner = true;
        drop(state);
        let started = Instant::now();
        while self.arrivals.load(Ordering::Acquire) == seen && started.elapsed() < self.spin {
            (0..SPINS_PER_LOOK).for_each(|_| std::hint::spin_loop());
            // Whoever brings the next request may need this very processor.
            thread::yield_now();
        }
        let mut state = lock(&self.state);
        state.has_spinner = false;
        state
    }

    fn wake(&self, index: Option<usize>) {
        if let Some(wake) = index.and_then(|index| self.wakes.get(index)) {
            wake.notify_one();
        }
    }

    fn fail_expired(&self, expired: Vec<Waiting<PendingRequest>>) {
        for waiting in expired {
            fail_expired(waiting, self.config.model.as_str());
        }
    }

    /// Takes no more requests.
    pub fn close(&self) {
        let mut state = lock(&self.state);
        state.is_closed = true;
        self.arrivals.fetch_add(1, Ordering::Release);
        for seat in &mut state.seats {
            if seat.activity == Activity::Parked {
                seat.activity = Activity::Waking;
            }
        }
        drop(state);
        self.wakes.iter().for_each(Condvar::notify_one);
    }

    /// The thread of the instance at `index` ends, or the spare handle there is taken down, once nobody uses it. After the last
    /// thread, nobody is left to answer what waits.
    pub fn leave(&self, index: usize) {
        let mut state = lock(&self.state);
        state.set(index, Activity::Gone);
        while let Some(wake) = self.wakes.get(index).filter(|_| state.is_claimed(index)) {
            state = wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let mut left = Vec::new();
        let mut woken = None;
        if state.seats.iter().all(|seat| matches!(seat.activity, Activity::Gone | Activity::None)) {
            state.is_closed = true;
            left = state.batcher.take_all();
        } else if !state.batcher.is_empty() {
            woken = state.wake_one();
        }
        drop(state);
        self.wake(woken);
        // Dropped sinks tell that the model stopped.
        drop(left);
    }

    /// What the warm-up found out about running on the submitting thread.
    pub fn set_inline_bytes(&self, warmed: Warmed) {
        self.inline.set(warmed.inline_bytes, warmed.threads);
    }

    /// Corrects what may run inline by how long a request of `size_bytes` took alone.
    pub fn learn_run(&self, size_bytes: usize, elapsed: Duration) {
        self.inline.learn_run(size_bytes, elapsed);
    }

    /// Corrects whether anything may by how long a run kept its submitter's thread.
    pub fn learn_inline(&self, elapsed: Duration) {
        if self.inline.strike(elapsed) {
            tracing::info!(
                model = self.config.model.as_str(),
                elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
                "a run that was to be quick held up its connection's thread again: from now on every request runs on an instance's \
                 own thread"
            );
        }
    }

    /// From now on every request runs alone.
    pub fn stop_batching(&self, why: &str) {
        if lock(&self.state).batcher.stop_batching() {
            tracing::warn!(model = self.config.model.as_str(), "requests are no longer batched: {why}");
        }
    }

    /// The device is lost: told once, since every batch after this one meets it too.
    pub fn report_lost_device(&self, message: &str) {
        if !self.has_lost_device.swap(true, Ordering::AcqRel) {
            self.report(format!("the device is lost: {message}"));
        }
    }

    /// An instance panicked outside its engine.
    pub fn report_panic(&self, index: usize) {
        self.report(format!("instance {index} panicked; the log says where"));
    }

    /// Requests that wait, for tests.
    #[cfg(all(test, not(feature = "shuttle")))]
    pub fn depth(&self) -> usize {
        lock(&self.state).batcher.len()
    }

    /// Whether every instance waits for requests, for tests.
    #[cfg(all(test, not(feature = "shuttle")))]
    pub fn is_idle(&self) -> bool {
        lock(&self.state).seats.iter().all(|seat| seat.is_idle() && !seat.is_claimed)
    }

    /// Instances that look for requests without sleeping, for tests.
    #[cfg(all(test, not(feature = "shuttle")))]
    pub fn spinning(&self) -> usize {
        lock(&self.state).seats.iter().filter(|seat| seat.activity == Activity::Spinning).count()
    }

    fn report(&self, message: String) {
        let on_fatal = Arc::clone(&self.config.on_fatal);
        on_fatal(Failure::new(FailurePhase::Serve, FailureReason::CrashLoop, message));
    }
}

impl SeatState {
    /// Whether its thread neither runs a batch nor has ended.
    fn is_idle(&self) -> bool {
        matches!(self.activity, Activity::Spinning | Activity::Parked | Activity::Waking | Activity::None)
    }
}

impl State {
    fn set(&mut self, index: usize, activity: Activity) {
        if let Some(seat) = self.seats.get_mut(index) {
            seat.activity = activity;
        }
    }

    fn is_claimed(&self, index: usize) -> bool {
        self.seats.get(index).is_some_and(|seat| seat.is_claimed)
    }

    /// Chooses the instance to wake for a request that waits: none when one looks anyway, else one that sleeps.
    fn wake_one(&mut self) -> Option<usize> {
        if self.seats.iter().any(|seat| seat.activity == Activity::Spinning && !seat.is_claimed) {
            return None;
        }
        let index = self.seats.iter().position(|seat| seat.activity == Activity::Parked && !seat.is_claimed)?;
        self.set(index, Activity::Waking);
        Some(index)
    }
}
