//! The threads that serve connections: each has its own, and none wakes another.
//!
//! [`crate::serve`] starts them; each port gives a new connection to the one with the fewest. A runtime whose workers share their
//! tasks pays for looking for work and for waking each other with every request. Invariant: a connection stays on its thread.

mod spin;

use std::{
    io,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread,
};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

pub(crate) use self::spin::{answered, began};

/// Threads for what blocks (decompression, large JSON), for each thread that serves connections.
const MAX_BLOCKING_THREADS: usize = 4;

struct IoThread {
    handle: Handle,
    connections: Arc<AtomicUsize>,
    /// Dropped to end the thread.
    _stop: oneshot::Sender<()>,
}

/// All of them; they end when it is dropped, and their connections with them.
pub(crate) struct IoThreads {
    threads: Vec<IoThread>,
}

/// A place for one connection on a thread.
pub(crate) struct Seat {
    /// Where to spawn it.
    pub(crate) handle: Handle,
    connections: Arc<AtomicUsize>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.connections.fetch_sub(1, Relaxed);
    }
}

impl IoThreads {
    /// Starts `count` threads, at least one.
    pub(crate) fn start(count: usize) -> io::Result<Self> {
        // On one CPU, whoever sends the next request needs it.
        let is_shared = thread::available_parallelism().map_or(1, NonZeroUsize::get) < 2;
        let is_taken = Arc::new(AtomicBool::new(is_shared));
        let threads = (0..count.max(1)).map(|index| IoThread::start(index, &is_taken)).collect::<io::Result<_>>()?;
        Ok(Self { threads })
    }

    /// A seat on the thread with the fewest connections. Without threads, on the caller's runtime.
    pub(crate) fn seat(&self) -> Seat {
        let fewest = self.threads.iter().min_by_key(|thread| thread.connections.load(Relaxed));
        let (handle, connections) = fewest.map_or_else(
            || (Handle::current(), Arc::default()),
            |thread| (thread.handle.clone(), Arc::clone(&thread.connections)),
        );
        connections.fetch_add(1, Relaxed);
        Seat { handle, connections }
    }
}

impl IoThread {
    fn start(index: usize, is_taken: &Arc<AtomicBool>) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(MAX_BLOCKING_THREADS).build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let is_taken = Arc::clone(is_taken);
        let run = move || {
            runtime.block_on(async {
                tokio::select! {
                    biased;
                    // Nobody sends: the end is that the sender is dropped.
                    _ = stopped => {}
                    () = spin::run(&is_taken) => {}
                }
            });
        };
        thread::Builder::new().name(format!("io-{index}")).spawn(run)?;
        Ok(Self { handle, connections: Arc::default(), _stop: stop })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_are_spread_over_the_threads_and_a_seat_is_free_again_when_its_connection_ends() {
        let threads = IoThreads::start(2).unwrap();
        let seats = [threads.seat(), threads.seat(), threads.seat()];
        let open = || threads.threads.iter().map(|thread| thread.connections.load(Relaxed)).collect::<Vec<_>>();
        assert_eq!(open().iter().sum::<usize>(), 3);
        assert!(open().iter().all(|open| *open >= 1));
        let name = seats[0].handle.spawn(async { thread::current().name().map(str::to_owned) }).await.unwrap();
        assert!(name.unwrap().starts_with("io-"));
        drop(seats);
        assert_eq!(open(), [0, 0]);
    }
}
