//! How a version is asked for: what to load it with, what the loader may tell and learn meanwhile, and how to wait for the end.
//!
//! `serve` makes [`LoadRequest`]s, the repository runs them on threads of their own. Invariant: a load learns that nobody wants its
//! result any more, and no more loads run at a time than the permits allow.

use std::{
    any::Any,
    future::Future,
    pin::pin,
    sync::{Arc, Condvar, Mutex, PoisonError},
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
};

use tokio::sync::{oneshot, watch};
use torchmodel_crds::Failure;

use super::state::Progress;
use crate::{config::ModelConfig, loader::LoadedModel, model_key::ModelVersion};

/// Loads one version, on a thread that may block.
pub type Load = Box<dyn FnOnce(&LoadContext) -> Result<LoadedVersion, Failure> + Send>;

/// One version to load.
pub struct LoadRequest {
    /// Its number.
    pub version: ModelVersion,
    /// How to serve it; its name is the model's.
    pub config: ModelConfig,
    /// How to load it.
    pub load: Load,
}

/// A model in memory, and what must stay as long as it does.
pub struct LoadedVersion {
    /// The model.
    pub model: LoadedModel,
    /// Size of its file.
    pub artifact_size_bytes: u64,
    /// Dropped when the version is gone: whatever keeps its artifact.
    pub lease: Box<dyn Any + Send>,
}

/// Why a version did not become ready.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// It could not be loaded.
    #[error("{}", .0.message)]
    Failed(Failure),
    /// It was unloaded before it was ready.
    #[error("it was unloaded before it was ready")]
    Unloaded,
}

/// A load that is under way.
#[derive(Debug)]
pub struct PendingLoad(pub(super) oneshot::Receiver<Result<(), LoadError>>);

impl PendingLoad {
    /// Waits until the version is ready. Dropping it does not end the load.
    pub async fn wait(self) -> Result<(), LoadError> {
        // The sender is dropped only by a thread that was unloaded.
        self.0.await.unwrap_or(Err(LoadError::Unloaded))
    }

    /// The same for a thread without an async runtime.
    pub fn wait_blocking(self) -> Result<(), LoadError> {
        block_on(self.wait())
    }
}

/// What a load may tell and learn.
pub struct LoadContext {
    pub(super) report: Box<dyn Fn(Progress) + Send + Sync>,
    pub(super) canceled: watch::Receiver<bool>,
}

impl LoadContext {
    /// Says how far the load has come.
    pub fn report(&self, progress: Progress) {
        (self.report)(progress);
    }

    /// Whether nobody wants the version any more.
    #[must_use]
    pub fn is_canceled(&self) -> bool {
        *self.canceled.borrow()
    }

    /// Completes when nobody wants the version any more.
    pub async fn canceled(&self) {
        let mut canceled = self.canceled.clone();
        // The sender goes only after it said so.
        drop(canceled.wait_for(|is_canceled| *is_canceled).await);
    }
}

/// How many loads may run at a time.
#[derive(Debug)]
pub(super) struct Permits {
    free: Mutex<usize>,
    changed: Condvar,
}

impl Permits {
    pub(super) fn new(count: usize) -> Self {
        Self { free: Mutex::new(count.max(1)), changed: Condvar::new() }
    }

    /// Waits for a permit; `None` once the load is not wanted any more.
    pub(super) fn acquire(&self, context: &LoadContext) -> Option<Permit<'_>> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self
            .changed
            .wait_while(free, |free| *free == 0 && !context.is_canceled())
            .unwrap_or_else(PoisonError::into_inner);
        if context.is_canceled() {
            return None;
        }
        *free -= 1;
        Some(Permit(self))
    }

    /// Lets those that wait look again at whether they are wanted.
    pub(super) fn wake(&self) {
        // Under the lock, so that nobody is between looking and waiting.
        drop(self.free.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }
}

/// Given back when dropped.
pub(super) struct Permit<'a>(&'a Permits);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.changed.notify_one();
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}
