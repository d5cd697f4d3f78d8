//! Requests on their way through a batch: what is run, and what each is told.
//!
//! Used by [`super::runner`]. Invariant: a request that leaves here without an answer was cancelled.

use std::time::Instant;

use crate::{
    batcher::Waiting,
    engine::{EngineError, EngineInput, ExecutionTimings},
    inference::{InferError, NamedTensor},
    metrics::RequestTimings,
    reply::{Answer, Inputs, ResponseSink},
};

/// A request that was submitted and not answered. Made by [`super::Scheduler::submit`]; held by the queue, which
/// [`crate::batcher::BatcherConfig::max_queue`] bounds, then by the one batch that it runs in; gone with its answer. Until it runs,
/// its inputs are not here but in its channel, where a client that goes away frees them.
#[derive(Debug)]
pub struct PendingRequest {
    /// Where it is answered.
    pub sink: ResponseSink,
    /// Its inputs, once it runs.
    pub inputs: Inputs,
    /// Bytes of its inputs, where they say how much there is to compute.
    pub size_bytes: Option<usize>,
}

/// Requests that run together. Made by the runner when it stages them, and held by it until they are answered or tried again in
/// parts.
#[derive(Debug)]
pub struct Batch {
    /// In the order of arrival.
    pub requests: Vec<Waiting<PendingRequest>>,
    /// When they left the queue.
    pub started: Instant,
}

impl Batch {
    /// Rows of all requests.
    pub fn rows(&self) -> u64 {
        self.requests.iter().map(|waiting| waiting.rows).sum()
    }

    /// Whether anybody still waits for any of it at `now`.
    pub fn is_wanted(&self, now: Instant) -> bool {
        self.requests.iter().any(|waiting| {
            !waiting.payload.sink.is_cancelled() && waiting.deadline.is_none_or(|deadline| deadline > now)
        })
    }

    /// Gives each request its part of the outputs.
    pub fn answer(self, parts: Vec<Vec<NamedTensor>>, timings: ExecutionTimings) {
        for (waiting, outputs) in self.requests.into_iter().zip(parts) {
            let timings = RequestTimings {
                total: waiting.arrived.elapsed(),
                queue: self.started.saturating_duration_since(waiting.arrived),
                compute_input: timings.compute_input,
                compute_infer: timings.compute_infer,
                compute_output: timings.compute_output,
                rows: waiting.rows,
            };
            // What was reserved for the inputs is free before the answer needs a reservation of its own.
            let PendingRequest { sink, inputs, .. } = waiting.payload;
            drop(inputs);
            sink.answer(Answer { outputs, timings });
        }
    }

    /// Tells every request the same error.
    pub fn fail(self, error: &InferError) {
        for waiting in self.requests {
            let PendingRequest { sink, inputs, .. } = waiting.payload;
            drop(inputs);
            sink.fail(error.clone());
        }
    }
}

/// Takes out of `requests` those for which nobody waits any more at `now`, tells the expired, and brings in the inputs of the rest.
pub fn take_inputs(requests: &mut Vec<Waiting<PendingRequest>>, now: Instant, model: &str) {
    for mut waiting in std::mem::take(requests) {
        if waiting.payload.sink.is_cancelled() {
            continue;
        }
        if waiting.deadline.is_some_and(|deadline| deadline <= now) {
            fail_expired(waiting, model);
            continue;
        }
        // One that runs again has them already.
        if let Some(inputs) = waiting.payload.sink.take_inputs() {
            waiting.payload.inputs = inputs;
        } else if waiting.payload.sink.is_cancelled() {
            continue;
        }
        requests.push(waiting);
    }
}

/// Tells a request that its time is over.
pub fn fail_expired(waiting: Waiting<PendingRequest>, model: &str) {
    let text = format!("the request for model '{model}' expired while it waited in the queue");
    waiting.payload.sink.fail(InferError::DeadlineExceeded(text));
}

/// Puts the requests' inputs side by side. Requests of a batch have the same key, so an input that is not batched is the same in
/// all of them and is taken from the first.
pub fn gather(requests: &[Waiting<PendingRequest>], is_batched: impl Fn(usize) -> bool) -> Vec<EngineInput> {
    let Some(first) = requests.first() else { return Vec::new() };
    let mut inputs = Vec::with_capacity(first.payload.inputs.len());
    for (index, tensor) in first.payload.inputs.iter().enumerate() {
        let Some(tensor) = tensor else { continue };
        let mut shape = tensor.shape().to_vec();
        let parts = if is_batched(index) && requests.len() > 1 {
            let tensors = requests.iter().filter_map(|waiting| waiting.payload.inputs.get(index)?.as_ref());
            if let Some(rows) = shape.first_mut() {
                *rows = tensors.clone().filter_map(|tensor| tensor.shape().first()).sum();
            }
            tensors.map(|tensor| tensor.content().clone()).collect()
        } else {
            vec![tensor.content().clone()]
        };
        inputs.push(EngineInput { index, datatype: tensor.datatype(), shape, parts });
    }
    inputs
}

/// What a client is told of an engine's error.
pub fn infer_error(error: &EngineError, model: &str) -> InferError {
    match error {
        EngineError::Refused(message) => {
            InferError::InvalidRequest(format!("model '{model}' refused the request: {message}"))
        }
        EngineError::OutOfMemory(message) => {
            InferError::Overloaded(format!("model '{model}' ran out of memory; send a smaller batch: {message}"))
        }
        EngineError::Failed(message) => InferError::Internal(format!("model '{model}' failed: {message}")),
        EngineError::DeviceLost(message) => InferError::Internal(format!("the device is lost: {message}")),
    }
}
