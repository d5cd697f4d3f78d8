//! The batching policy, without clocks, threads or tensors: which waiting requests run together, and when.
//!
//! The scheduler drives a [`Batcher`] and passes the time in. The policy is work-conserving: a free instance starts at once with
//! what is there unless `max_delay` says to wait, so batches form while instances are busy. Invariants: a batch holds requests
//! of one key only and at most `max_rows` rows (a larger single request never enters); requests of a key leave in the order of
//! arrival; an expired or cancelled request never runs.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// The limits of one model's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_field_names, reason = "three maxima, each in the manifest's own word")]
pub struct BatcherConfig {
    /// Maximum of rows in one batch; 1 or less means that requests run alone.
    pub max_rows: u64,
    /// How long the oldest request may wait for company while an instance is free.
    pub max_delay: Duration,
    /// Maximum of requests that wait.
    pub max_queue: usize,
}

/// A request that waits. Made when it is submitted; held by the [`Batcher`] until its batch is taken, its deadline passes or nobody
/// waits for it any more, and then by whoever took it. [`BatcherConfig::max_queue`] bounds how many there are.
#[derive(Debug)]
pub struct Waiting<T> {
    /// What the scheduler needs to run and answer it.
    pub payload: T,
    /// Rows that it adds to a batch.
    pub rows: u64,
    /// Requests with equal keys may share a batch; `None` always runs alone.
    pub key: Option<u64>,
    /// When it arrived.
    pub arrived: Instant,
    /// When nobody waits for its answer any more.
    pub deadline: Option<Instant>,
}

/// What an idle instance should do.
#[derive(Debug)]
pub enum Next<T> {
    /// Run these together.
    Run(Vec<Waiting<T>>),
    /// Ask again at this instant, or when a request arrives.
    WaitUntil(Instant),
    /// Ask again when a request arrives.
    Idle,
}

/// Which batch an instance that still has one under way may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ahead {
    /// What would run now.
    Ready,
    /// A full one alone: taking it early costs it no company.
    Full,
}

/// A queue of requests and the policy over it. One for each scheduler, behind its lock, as long as the model is loaded; it holds at
/// most [`BatcherConfig::max_queue`] requests, which leave it in batches or as expired.
#[derive(Debug)]
pub struct Batcher<T> {
    config: BatcherConfig,
    queue: VecDeque<Waiting<T>>,
}

impl<T> Batcher<T> {
    /// An empty queue.
    #[must_use]
    pub fn new(config: BatcherConfig) -> Self {
        Self { config, queue: VecDeque::new() }
    }

    /// Requests that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// From now on every request runs alone. Whether any did not before.
    pub fn stop_batching(&mut self) -> bool {
        let was_batching = self.config.max_rows > 1;
        self.config.max_rows = 1;
        self.config.max_delay = Duration::ZERO;
        was_batching
    }

    /// Adds a request, or gives it back when the queue is full.
    pub fn push(&mut self, waiting: Waiting<T>) -> Result<(), Waiting<T>> {
        if self.queue.len() >= self.config.max_queue {
            return Err(waiting);
        }
        self.queue.push_back(waiting);
        Ok(())
    }

    /// Takes out the requests whose deadline has passed at `now`, and those that `is_cancelled`.
    pub fn take_expired(&mut self, now: Instant, is_cancelled: impl Fn(&T) -> bool) -> Vec<Waiting<T>> {
        let is_gone =
            |waiting: &Waiting<T>| waiting.deadline.is_some_and(|at| at <= now) || is_cancelled(&waiting.payload);
        if !self.queue.iter().any(is_gone) {
            return Vec::new();
        }
        let (gone, kept) = self.queue.drain(..).partition(is_gone);
        self.queue = kept;
        gone.into()
    }

    /// Takes out every request.
    pub fn take_all(&mut self) -> Vec<Waiting<T>> {
        self.queue.drain(..).collect()
    }

    /// What an instance that is idle at `now` should do.
    pub fn next(&mut self, now: Instant) -> Next<T> {
        let Some(head) = self.queue.front() else { return Next::Idle };
        // A delay too long to be an instant is none: nothing may wait for ever.
        let ready_at = head.arrived.checked_add(self.config.max_delay).unwrap_or(now);
        let chosen = self.choose(head);
        if !chosen.is_full && ready_at > now {
            return Next::WaitUntil(ready_at);
        }
        Next::Run(self.take(&chosen.positions))
    }

    /// What an instance that has a batch under way may take at `now`.
    pub fn next_ahead(&mut self, now: Instant, ahead: Ahead) -> Option<Vec<Waiting<T>>> {
        let head = self.queue.front()?;
        if ahead == Ahead::Full && !self.choose(head).is_full {
            return None;
        }
        match self.next(now) {
            Next::Run(batch) => Some(batch),
            Next::WaitUntil(_) | Next::Idle => None,
        }
    }

    /// Positions of the requests that would run with `head`, in the order of arrival.
    fn choose(&self, head: &Waiting<T>) -> Chosen {
        let mut chosen =
            Chosen { positions: vec![0], is_full: head.key.is_none() || head.rows >= self.config.max_rows };
        let mut rows = head.rows;
        for (position, waiting) in self.queue.iter().enumerate().skip(1) {
            if chosen.is_full {
                break;
            }
            if waiting.key != head.key {
                continue;
            }
            let sum = rows.saturating_add(waiting.rows);
            if sum > self.config.max_rows {
                chosen.is_full = true;
            } else {
                rows = sum;
                chosen.positions.push(position);
                chosen.is_full = rows >= self.config.max_rows;
            }
        }
        chosen
    }

    fn take(&mut self, positions: &[usize]) -> Vec<Waiting<T>> {
        // Positions rise, so taking from the back keeps the earlier ones valid.
        let mut batch: Vec<_> = positions.iter().rev().filter_map(|position| self.queue.remove(*position)).collect();
        batch.reverse();
        batch
    }
}

struct Chosen {
    positions: Vec<usize>,
    is_full: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn batcher(max_rows: u64, max_delay: Duration) -> Batcher<u32> {
        Batcher::new(BatcherConfig { max_rows, max_delay, max_queue: 8 })
    }

    fn waiting(payload: u32, rows: u64, key: u64, arrived: Instant) -> Waiting<u32> {
        Waiting { payload, rows, key: Some(key), arrived, deadline: None }
    }

    fn payloads(next: Next<u32>) -> Vec<u32> {
        match next {
            Next::Run(batch) => batch.into_iter().map(|waiting| waiting.payload).collect(),
            other => panic!("expected a batch, got {other:?}"),
        }
    }

    #[test]
    fn a_free_instance_takes_what_is_there_when_there_is_no_delay() {
        let now = Instant::now();
        let mut batcher = batcher(4, Duration::ZERO);
        assert!(matches!(batcher.next(now), Next::Idle));
        batcher.push(waiting(1, 1, 0, now)).unwrap();
        batcher.push(waiting(2, 1, 0, now)).unwrap();
        assert_eq!(payloads(batcher.next(now)), [1, 2]);
        assert!(batcher.is_empty());
    }

    #[test]
    fn waits_for_company_until_the_delay_is_over_or_the_batch_is_full() {
        let now = Instant::now();
        let mut batcher = batcher(3, 5 * MS);
        batcher.push(waiting(1, 1, 0, now)).unwrap();
        assert!(matches!(batcher.next(now + MS), Next::WaitUntil(at) if at == now + 5 * MS));
        batcher.push(waiting(2, 2, 0, now + MS)).unwrap();
        assert_eq!(payloads(batcher.next(now + MS)), [1, 2]);
        batcher.push(waiting(3, 1, 0, now)).unwrap();
        assert_eq!(payloads(batcher.next(now + 5 * MS)), [3]);
    }

    #[test]
    fn never_exceeds_the_rows_and_keeps_the_order_of_a_key() {
        let now = Instant::now();
        let mut batcher = batcher(4, 5 * MS);
        for (payload, rows) in [(1, 2), (2, 3), (3, 1)] {
            batcher.push(waiting(payload, rows, 0, now)).unwrap();
        }
        assert_eq!(payloads(batcher.next(now)), [1], "2 does not fit, and 3 must not overtake it");
        assert_eq!(payloads(batcher.next(now)), [2, 3]);
    }

    #[test]
    fn looks_past_another_key_without_losing_it() {
        let now = Instant::now();
        let mut batcher = batcher(4, Duration::ZERO);
        for (payload, key) in [(1, 7), (2, 9), (3, 7)] {
            batcher.push(waiting(payload, 1, key, now)).unwrap();
        }
        assert_eq!(payloads(batcher.next(now)), [1, 3]);
        assert_eq!(payloads(batcher.next(now)), [2]);
    }

    #[test]
    fn a_request_without_a_key_runs_alone_and_at_once() {
        let now = Instant::now();
        let mut batcher = batcher(4, 5 * MS);
        for payload in [1, 2] {
            batcher.push(Waiting { key: None, ..waiting(payload, 1, 0, now) }).unwrap();
        }
        assert_eq!(payloads(batcher.next(now)), [1]);
        assert_eq!(payloads(batcher.next(now)), [2]);
    }

    #[test]
    fn a_full_queue_gives_the_request_back() {
        let now = Instant::now();
        let mut batcher = batcher(4, Duration::ZERO);
        for payload in 0..8 {
            batcher.push(waiting(payload, 1, 0, now)).unwrap();
        }
        assert_eq!(batcher.push(waiting(8, 1, 0, now)).unwrap_err().payload, 8);
        assert_eq!(batcher.len(), 8);
    }

    #[test]
    fn expired_and_cancelled_requests_never_run() {
        let now = Instant::now();
        let mut batcher = batcher(4, Duration::ZERO);
        for payload in [1, 2, 3] {
            let deadline = Some(now + payload * MS);
            batcher.push(Waiting { deadline, ..waiting(payload, 1, 0, now) }).unwrap();
        }
        let gone = batcher.take_expired(now + MS, |payload| *payload == 3);
        assert_eq!(gone.iter().map(|waiting| waiting.payload).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(payloads(batcher.next(now + MS)), [2]);
    }

    #[test]
    fn a_batch_is_taken_ahead_when_it_is_ready_or_only_when_it_is_full() {
        let now = Instant::now();
        let mut batcher = batcher(2, Duration::ZERO);
        batcher.push(waiting(1, 1, 0, now)).unwrap();
        assert!(batcher.next_ahead(now, Ahead::Full).is_none(), "another may still join it");
        batcher.push(waiting(2, 1, 0, now)).unwrap();
        assert_eq!(batcher.next_ahead(now, Ahead::Full).map(|batch| batch.len()), Some(2));
        batcher.push(waiting(3, 1, 0, now)).unwrap();
        assert_eq!(batcher.next_ahead(now, Ahead::Ready).map(|batch| batch.len()), Some(1));
        assert!(batcher.next_ahead(now, Ahead::Ready).is_none());
    }

    #[test]
    fn once_batching_is_stopped_every_request_runs_alone_and_at_once() {
        let now = Instant::now();
        let mut batcher = batcher(4, 5 * MS);
        for payload in [1, 2] {
            batcher.push(waiting(payload, 1, 0, now)).unwrap();
        }
        assert!(batcher.stop_batching());
        assert!(!batcher.stop_batching(), "told once");
        assert_eq!(payloads(batcher.next(now)), [1]);
        assert_eq!(payloads(batcher.next(now)), [2]);
    }

    proptest::proptest! {
        #[test]
        fn every_request_leaves_once_in_a_lawful_batch(
            arrivals in proptest::collection::vec((1u64..6, 0u64..3), 0..8),
            max_rows in 5u64..9,
        ) {
            let now = Instant::now();
            let mut batcher = batcher(max_rows, Duration::ZERO);
            for (index, (rows, key)) in arrivals.iter().enumerate() {
                batcher.push(waiting(u32::try_from(index).unwrap(), *rows, *key, now)).unwrap();
            }
            let mut seen = Vec::new();
            while let Next::Run(batch) = batcher.next(now) {
                assert!(batch.iter().map(|waiting| waiting.rows).sum::<u64>() <= max_rows);
                assert!(batch.iter().all(|waiting| waiting.key == batch[0].key));
                assert!(batch.is_sorted_by_key(|waiting| waiting.payload));
                seen.extend(batch.into_iter().map(|waiting| waiting.payload));
            }
            seen.sort_unstable();
            assert_eq!(seen, (0..u32::try_from(arrivals.len()).unwrap()).collect::<Vec<_>>());
        }
    }
}
