//! The lock, the condition variable, atomics and threads of the scheduler and its reply channel, behind one name.
//!
//! Used by [`crate::scheduler`] and [`crate::reply`] and nothing else. With the feature `shuttle` (for `tests/orders.rs` alone) they
//! are shuttle's, which runs the same code in many orders. Invariant: neither module waits or shares by any other means.

#[cfg(not(feature = "shuttle"))]
pub use std::{
    sync::{Condvar, Mutex, MutexGuard, atomic, mpsc},
    thread,
};

#[cfg(feature = "shuttle")]
pub use shuttle::{
    sync::{Condvar, Mutex, MutexGuard, atomic, mpsc},
    thread,
};

use std::sync::PoisonError;

/// Locks, also where a thread panicked with the lock held: what is behind these locks is whole between any two statements.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
