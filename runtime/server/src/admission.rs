//! What all requests together may take of memory, and each of time: asked before anything is read or made.
//!
//! REST and gRPC reserve a body before they read it, what they make of it before they make it, and the answer until its last byte
//! has left. Invariants: what is held never exceeds the maximum but by what one request alone makes of a body that was admitted;
//! idle buffers of the pool give way to requests; no client keeps anything longer than its timeouts without progress.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, Sleep, sleep_until},
};
use torchmodel_core::{
    inference::InferError,
    metrics::Protocol,
    slab::{SlabMut, SlabPool},
};

/// How long a body, or a client that reads its answer, may pause.
pub const PAUSE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a body may take from its first byte to its last, and an answer to be read: 256 MiB at 7 Mbit/s.
pub const TRANSFER_TIMEOUT: Duration = Duration::from_secs(300);

/// The part of the maximum that idle buffers may take, one in so many. They give way when requests need it.
const IDLE_PART: usize = 2;

/// Why a request was not taken, or not taken to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    /// The requests in flight hold as much as they may.
    #[error(
        "the server already holds {held} bytes of requests and may hold {maximum} (--max-inflight-bytes); try again later"
    )]
    Full {
        /// Bytes of all requests, without what was refused.
        held: usize,
        /// The maximum.
        maximum: usize,
    },
    /// The body paused for too long, or went on for too long.
    #[error("the request body stopped coming or came too slowly")]
    Timeout,
}

impl From<AdmissionError> for InferError {
    fn from(error: AdmissionError) -> Self {
        match error {
            AdmissionError::Full { .. } => Self::Overloaded(error.to_string()),
            AdmissionError::Timeout => Self::DeadlineExceeded(error.to_string()),
        }
    }
}

/// Into the server or out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From a client.
    In,
    /// To a client.
    Out,
}

/// So much held at one time leaves holes in the heap that are worth giving back.
const MUCH: usize = 16 << 20;

#[derive(Debug)]
struct Shared {
    maximum: usize,
    held: AtomicUsize,
    /// Told when much is held that was not before.
    rose: Notify,
    pool: SlabPool,
    /// By protocol, then direction.
    copied: [AtomicU64; 4],
}

/// The memory that all requests share, and the buffers that they are read into; cheap to clone.
#[derive(Clone, Debug)]
pub struct Admission {
    shared: Arc<Shared>,
}

impl Admission {
    /// Admits at most `maximum` bytes at a time, and keeps at most half of that for later use.
    #[must_use]
    pub fn new(maximum: usize) -> Self {
        Self::with_pool(maximum, SlabPool::new(maximum / IDLE_PART))
    }

    /// The same, with buffers from `pool`.
    #[must_use]
    pub fn with_pool(maximum: usize, pool: SlabPool) -> Self {
        let (held, rose) = (AtomicUsize::new(0), Notify::new());
        let shared = Shared { maximum, held, rose, pool, copied: Default::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Bytes that all requests hold now.
    #[must_use]
    pub fn held(&self) -> usize {
        self.shared.held.load(Relaxed)
    }

    /// The maximum of [`Self::held`].
    #[must_use]
    pub fn maximum(&self) -> usize {
        self.shared.maximum
    }

    /// Where buffers come from.
    #[must_use]
    pub fn pool(&self) -> &SlabPool {
        &self.shared.pool
    }

    /// Completes when so much was held that what the allocator keeps of it is worth giving back.
    pub(crate) async fn rose(&self) {
        self.shared.rose.notified().await;
    }

    /// Whether little is held and no idle buffer is kept.
    pub(crate) fn is_quiet(&self) -> bool {
        self.held() < MUCH && self.pool().idle_bytes() == 0
    }

    /// Reserves `bytes`, or nothing. An empty reservation is always given.
    pub fn reserve(&self, bytes: usize) -> Result<Reservation, AdmissionError> {
        self.hold(bytes)?;
        Ok(Reservation { admission: self.clone(), bytes, beside: 0 })
    }

    /// An empty reservation for more of a request that holds `beside` bytes already, as far as it still holds them.
    #[must_use]
    pub fn reserve_beside(&self, beside: usize) -> Reservation {
        Reservation { admission: self.clone(), bytes: 0, beside }
    }

    /// Reserves `bytes` and takes a slab for them. Frozen with its reservation, the slab holds it until its last slice is gone.
    pub fn slab(&self, bytes: usize) -> Result<(SlabMut, Reservation), AdmissionError> {
        let reservation = self.reserve(bytes)?;
        Ok((self.shared.pool.take(bytes), reservation))
    }

    /// Counts payload bytes that this program copied from one place in memory to another.
    pub fn count_copy(&self, protocol: Protocol, direction: Direction, bytes: usize) {
        if let Some(counter) = self.shared.copied.get(copy_index(protocol, direction)) {
            counter.fetch_add(bytes as u64, Relaxed);
        }
    }

    /// Payload bytes copied so far.
    #[must_use]
    pub fn copied_bytes(&self, protocol: Protocol, direction: Direction) -> u64 {
        self.shared.copied.get(copy_index(protocol, direction)).map_or(0, |counter| counter.load(Relaxed))
    }

    fn hold(&self, bytes: usize) -> Result<(), AdmissionError> {
        let Shared { maximum, held, rose, pool, .. } = &*self.shared;
        let sum = |held: usize| held.checked_add(bytes).filter(|sum| sum <= maximum);
        let before = held
            .fetch_update(Relaxed, Relaxed, sum)
            .map_err(|held| AdmissionError::Full { held, maximum: *maximum })?;
        if before < MUCH && before.saturating_add(bytes) >= MUCH {
            rose.notify_one();
        }
        let free = maximum.saturating_sub(before.saturating_add(bytes));
        if free < maximum / IDLE_PART && pool.idle_bytes() > free {
            pool.shrink_to(free);
        }
        Ok(())
    }
}

const fn copy_index(protocol: Protocol, direction: Direction) -> usize {
    let protocol = match protocol {
        Protocol::Rest => 0,
        Protocol::Grpc => 2,
    };
    match direction {
        Direction::In => protocol,
        Direction::Out => protocol + 1,
    }
}

/// Bytes of the budget that somebody holds.
///
/// A protocol makes one for a request when its length is known, before it reads the body ([`Admission::reserve`]; 503 or UNAVAILABLE
/// when it does not fit), and [`grows`](Self::grow) it where the length is known only step by step. It travels with what it was
/// reserved for: into `SlabMut::freeze`, so that the tensor's last slice releases it, or beside an answer until its last byte
/// has left. [`Self::split`] parts it among the tensors of a request. Dropping releases. `--max-inflight-bytes` bounds the sum of all.
pub struct Reservation {
    admission: Admission,
    bytes: usize,
    /// What the same request may hold besides: in reservations that were split off this one, or that it was made beside.
    beside: usize,
}

impl fmt::Debug for Reservation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Reservation({} bytes)", self.bytes)
    }
}

impl Reservation {
    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The budget that it is a part of.
    #[must_use]
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Holds `more` bytes too, or stays as it is.
    pub fn grow(&mut self, more: usize) -> Result<(), AdmissionError> {
        self.admission.hold(more)?;
        self.bytes = self.bytes.saturating_add(more);
        Ok(())
    }

    /// Holds so many of `more` bytes that a request that is alone is not refused for what is made of it: its body was admitted. What is
    /// made of a body is at most some thirty times its size (empty strings in gRPC's typed contents), bounded by --max-request-bytes.
    pub fn grow_within(&mut self, more: usize) -> Result<(), AdmissionError> {
        let left = self.admission.maximum().saturating_sub(self.bytes).saturating_sub(self.beside);
        self.grow(more.min(left))
    }

    /// Takes `bytes` out into a reservation of their own; at most all.
    #[must_use]
    pub fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes = self.bytes.saturating_sub(bytes);
        self.beside = self.beside.saturating_add(bytes);
        Self { admission: self.admission.clone(), bytes, beside: 0 }
    }

    /// Releases all but `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        let beside = self.beside;
        drop(self.split(self.bytes.saturating_sub(bytes)));
        self.beside = beside;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.admission.shared.held.fetch_sub(self.bytes, Relaxed);
    }
}

/// Ends the wait for a client that makes no progress, in either direction.
///
/// Whoever waits makes one for a transfer, tells it of each step ([`Self::progressed`]) and polls it while there is none. A transfer
/// that never waits sets no timer. Bounded by [`PAUSE_TIMEOUT`] and [`TRANSFER_TIMEOUT`].
#[derive(Debug)]
pub struct ProgressTimer {
    end: Instant,
    pause_end: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Default for ProgressTimer {
    fn default() -> Self {
        let now = Instant::now();
        Self { end: now + TRANSFER_TIMEOUT, pause_end: now + PAUSE_TIMEOUT, timer: None }
    }
}

impl ProgressTimer {
    /// Something came or went.
    pub fn progressed(&mut self) {
        self.pause_end = Instant::now() + PAUSE_TIMEOUT;
    }

    /// Ready once the transfer has paused, or lasted, for too long.
    pub fn poll_expired(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let end = self.end.min(self.pause_end);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(end)));
        // Set again only when it fires: progress is frequent, expiry is not.
        while timer.as_mut().poll(context).is_ready() {
            if Instant::now() >= end {
                return Poll::Ready(());
            }
            timer.as_mut().reset(end);
        }
        Poll::Pending
    }

    /// Waits for one step of the transfer.
    pub async fn within<T>(&mut self, step: impl Future<Output = T>) -> Result<T, AdmissionError> {
        let mut step = std::pin::pin!(step);
        let result = std::future::poll_fn(|context| {
            if let Poll::Ready(value) = step.as_mut().poll(context) {
                return Poll::Ready(Ok(value));
            }
            self.poll_expired(context).map(|()| Err(AdmissionError::Timeout))
        });
        let result = result.await;
        self.progressed();
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_the_maximum_is_refused_and_what_was_released_is_free_again() {
        let admission = Admission::new(100);
        let mut first = admission.reserve(60).unwrap();
        assert_eq!(admission.reserve(41).unwrap_err(), AdmissionError::Full { held: 60, maximum: 100 });
        assert_eq!(first.grow(41).unwrap_err(), AdmissionError::Full { held: 60, maximum: 100 });
        first.grow(40).unwrap();
        assert_eq!((first.bytes(), admission.held()), (100, 100));
        assert!(admission.reserve(0).is_ok());
        first.shrink_to(10);
        assert_eq!(admission.held(), 10);
        drop(first);
        assert_eq!(admission.held(), 0);
        assert!(admission.reserve(usize::MAX).is_err());
    }

    #[test]
    fn a_request_that_is_alone_is_not_refused_for_what_is_made_of_it() {
        let admission = Admission::new(100);
        let mut alone = admission.reserve(60).unwrap();
        alone.grow_within(500).unwrap();
        assert_eq!((alone.bytes(), admission.held()), (100, 100));
        alone.shrink_to(50);
        let _other = admission.reserve(10).unwrap();
        assert!(alone.grow_within(500).is_err());
        assert_eq!(admission.held(), 60);
    }

    #[test]
    fn what_a_lone_request_holds_besides_does_not_refuse_its_answer() {
        let admission = Admission::new(100);
        let mut request = admission.reserve(60).unwrap();
        let tensor = request.split(60);
        let mut answer = admission.reserve_beside(60);
        answer.grow_within(80).unwrap();
        let first = answer.split(30);
        answer.grow_within(30).unwrap();
        assert_eq!((first.bytes(), answer.bytes(), admission.held()), (30, 10, 100));
        drop(tensor);
        let _other = admission.reserve(60).unwrap();
        let mut answer = admission.reserve_beside(0);
        assert!(answer.grow_within(60).is_err(), "it is not alone");
    }

    #[test]
    fn a_slab_holds_its_part_of_a_reservation_until_its_last_slice_is_gone() {
        let admission = Admission::new(100);
        let mut reservation = admission.reserve(50).unwrap();
        let mut slab = admission.pool().take(20);
        slab.append(&[7; 20]);
        let bytes = slab.freeze(reservation.split(20));
        assert_eq!(reservation.bytes(), 30);
        drop(reservation);
        let slice = bytes.slice(3..5);
        drop(bytes);
        assert_eq!((slice.as_ref(), admission.held()), (&[7, 7][..], 20));
        drop(slice);
        assert_eq!(admission.held(), 0);
    }

    #[test]
    fn idle_buffers_give_way_to_requests() {
        let admission = Admission::new(4 << 20);
        drop([admission.slab(1 << 20).unwrap(), admission.slab(1 << 20).unwrap()]);
        assert_eq!((admission.held(), admission.pool().idle_bytes()), (0, 2 << 20));
        let _held = admission.reserve(3 << 20).unwrap();
        assert_eq!(admission.pool().idle_bytes(), 1 << 20);
    }

    #[tokio::test(start_paused = true)]
    async fn a_transfer_may_neither_pause_long_nor_trickle_for_ever() {
        let started = Instant::now();
        let mut timer = ProgressTimer::default();
        assert_eq!(timer.within(std::future::pending::<()>()).await, Err(AdmissionError::Timeout));
        assert_eq!(started.elapsed().as_secs(), PAUSE_TIMEOUT.as_secs());

        let started = Instant::now();
        let mut timer = ProgressTimer::default();
        while timer.within(tokio::time::sleep(PAUSE_TIMEOUT / 2)).await.is_ok() {}
        assert_eq!(started.elapsed().as_secs(), TRANSFER_TIMEOUT.as_secs());
    }

    #[test]
    fn copies_are_counted_by_protocol_and_direction() {
        let admission = Admission::new(1);
        admission.count_copy(Protocol::Rest, Direction::In, 3);
        admission.count_copy(Protocol::Rest, Direction::In, 4);
        admission.count_copy(Protocol::Grpc, Direction::Out, 5);
        let all = [Protocol::Rest, Protocol::Grpc]
            .map(|protocol| [Direction::In, Direction::Out].map(|way| admission.copied_bytes(protocol, way)));
        assert_eq!(all, [[7, 0], [0, 5]]);
    }
}
