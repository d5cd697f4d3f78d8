//! Work that takes long, off the threads that serve connections.
//!
//! Used by both protocols for large JSON, typed contents and compression. Invariant: a panic of such work is an error of its request.

use torchmodel_core::inference::InferError;

/// Does `work` on a thread that may block.
pub(crate) async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, InferError> {
    let task = tokio::task::spawn_blocking(work);
    task.await.map_err(|_| InferError::Internal("the request could not be processed; the log says why".into()))
}
