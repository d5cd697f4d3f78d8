//! Instance threads that drive a [`Batcher`]: from a checked request to its own part of a batch's outputs.
//!
//! One OS thread owns each engine. Requests come from any async task through [`Scheduler::submit`] and are answered through a
//! oneshot channel; a dropped receiver cancels a request that still waits. Invariants: every submitted request is answered
//! exactly once; when a batch fails, each of its requests is run again alone, so that a bad one spoils no other.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    thread::JoinHandle,
    time::Instant,
};

use tokio::sync::oneshot;
use torchmodel_crds::{Failure, FailurePhase, FailureReason};

use crate::{
    batcher::{Batcher, BatcherConfig, Next, Waiting},
    engine::{Engine, EngineError, EngineInput, Execution, ExecutionTimings},
    inference::{InferError, NamedTensor},
    metrics::{ModelMetrics, RequestTimings},
    model_key::ModelName,
    signature::{CheckedInputs, Signature},
    split::split_outputs,
    tensor::Tensor,
};

/// Outputs of one request and where its time went.
#[derive(Debug)]
pub struct Answer {
    /// All outputs of the model, in its order.
    pub outputs: Vec<NamedTensor>,
    /// Where the time went.
    pub timings: RequestTimings,
}

/// The channel on which a submitted request is answered.
pub type Reply = oneshot::Receiver<Result<Answer, InferError>>;

/// What a scheduler needs besides its engines.
pub struct SchedulerConfig {
    /// Limits of the queue.
    pub batcher: BatcherConfig,
    /// Name for texts and threads.
    pub model: ModelName,
    /// Where executions are recorded.
    pub metrics: ModelMetrics,
    /// Called when an instance can never work again; the process should end.
    pub on_fatal: Arc<dyn Fn(Failure) + Send + Sync>,
}

struct Job {
    inputs: Vec<Option<Tensor>>,
    reply: oneshot::Sender<Result<Answer, InferError>>,
}

struct State {
    batcher: Batcher<Job>,
    is_closed: bool,
}

struct Shared {
    config: SchedulerConfig,
    state: Mutex<State>,
    wake: Condvar,
}

/// A model's queue and its running instances.
pub struct Scheduler {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Scheduler {
    /// Starts a thread for each engine and waits until all are warm. Blocks. Gives the signature that the instances report.
    pub fn start(engines: Vec<Box<dyn Engine>>, config: SchedulerConfig) -> Result<(Self, Signature), Failure> {
        config.metrics.set_instances(engines.len());
        let state = Mutex::new(State { batcher: Batcher::new(config.batcher), is_closed: false });
        let shared = Arc::new(Shared { config, state, wake: Condvar::new() });
        let mut scheduler = Self { shared, threads: Vec::new() };
        let mut signature = Signature::default();
        for (index, engine) in engines.into_iter().enumerate() {
            // One after the other: warm-up measures and compiles, and the first instance's work serves the rest.
            signature = scheduler.start_instance(index, engine)?;
        }
        Ok((scheduler, signature))
    }

    fn start_instance(&mut self, index: usize, mut engine: Box<dyn Engine>) -> Result<Signature, Failure> {
        let shared = Arc::clone(&self.shared);
        let (report, started) = mpsc::channel();
        let run = move || match engine.start() {
            Ok(signature) => {
                let inputs = signature.inputs.iter().map(|input| input.is_batched).collect();
                if report.send(Ok(signature)).is_ok() {
                    let instance = Instance { shared: Arc::clone(&shared), engine, is_batched: inputs };
                    // The engine's own panics are caught closer to it; whatever else may happen, requests must not wait for
                    // a thread that is gone.
                    if catch_unwind(AssertUnwindSafe(|| instance.run())).is_err() {
                        let message = format!("instance {index} panicked; the log says where");
                        let failure = Failure::new(FailurePhase::Serve, FailureReason::CrashLoop, message);
                        (shared.config.on_fatal)(failure);
                    }
                }
            }
            Err(failure) => drop(report.send(Err(failure))),
        };
        let internal = |message: String| Failure::new(FailurePhase::Load, FailureReason::CrashLoop, message);
        let thread = std::thread::Builder::new()
            .name(format!("instance-{index}"))
            .spawn(run)
            .map_err(|error| internal(format!("starting the thread of instance {index}: {error}")))?;
        let started = started.recv();
        self.threads.push(thread);
        started.map_err(|_| internal(format!("instance {index} panicked while it started")))?
    }

    /// Queues a request. Errors: `Overloaded` when the queue is full, `NotReady` when the model is being unloaded.
    pub fn submit(&self, inputs: CheckedInputs, deadline: Option<Instant>) -> Result<Reply, InferError> {
        let (reply, receiver) = oneshot::channel();
        let waiting = Waiting {
            payload: Job { inputs: inputs.tensors, reply },
            rows: inputs.rows,
            key: inputs.key,
            arrived: Instant::now(),
            deadline,
        };
        let config = &self.shared.config;
        let mut state = self.shared.lock();
        if state.is_closed {
            return Err(InferError::NotReady(format!("model '{}' is being unloaded", config.model)));
        }
        if state.batcher.push(waiting).is_err() {
            return Err(InferError::Overloaded(format!(
                "model '{}' exceeds maximum queue size: {} requests wait; try again later",
                config.model, config.batcher.max_queue
            )));
        }
        config.metrics.set_queue_depth(state.batcher.len());
        drop(state);
        self.shared.wake.notify_one();
        Ok(receiver)
    }

    /// Takes no more requests; the instances end once those that wait are answered.
    pub fn close(&self) {
        self.shared.lock().is_closed = true;
        self.shared.wake.notify_all();
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.close();
        for thread in self.threads.drain(..) {
            // A panic was reported where it happened.
            drop(thread.join());
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that holds the lock can leave the queue half changed, so a poisoned lock is still good.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for work; `None` once closed and empty.
    fn next_batch(&self) -> Option<Vec<Waiting<Job>>> {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            for expired in state.batcher.take_expired(now, |job| job.reply.is_closed()) {
                let text =
                    format!("the request for model '{}' expired while it waited in the queue", self.config.model);
                drop(expired.payload.reply.send(Err(InferError::DeadlineExceeded(text))));
            }
            match state.batcher.next(now) {
                Next::Run(batch) => {
                    self.config.metrics.set_queue_depth(state.batcher.len());
                    return Some(batch);
                }
                Next::WaitUntil(at) if !state.is_closed => {
                    let timeout = at.saturating_duration_since(now);
                    state = self.wake.wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner).0;
                }
                // No company will come any more.
                Next::WaitUntil(at) => match state.batcher.next(at) {
                    Next::Run(batch) => return Some(batch),
                    Next::WaitUntil(_) | Next::Idle => return None,
                },
                Next::Idle if state.is_closed => return None,
                Next::Idle => {
                    self.config.metrics.set_queue_depth(0);
                    state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

/// One engine on its own thread.
struct Instance {
    shared: Arc<Shared>,
    engine: Box<dyn Engine>,
    is_batched: Vec<bool>,
}

impl Instance {
    fn run(mut self) {
        while let Some(batch) = self.shared.next_batch() {
            self.run_batch(batch);
        }
    }

    fn run_batch(&mut self, batch: Vec<Waiting<Job>>) {
        let started = Instant::now();
        match self.execute(&batch) {
            Ok(execution) => {
                let rows: Vec<u64> = batch.iter().map(|waiting| waiting.rows).collect();
                match split_outputs(execution.outputs, &rows) {
                    Ok(parts) => answer(batch, parts, (started, execution.timings)),
                    Err(message) => {
                        tracing::warn!(model = self.shared.config.model.as_str(), "{message}");
                        self.run_each_alone(batch);
                    }
                }
            }
            Err(EngineError::DeviceLost(message)) => {
                let failure = Failure::new(
                    FailurePhase::Serve,
                    FailureReason::CrashLoop,
                    format!("the device is lost: {message}"),
                );
                (self.shared.config.on_fatal)(failure);
                for waiting in batch {
                    drop(
                        waiting.payload.reply.send(Err(InferError::Internal(format!("the device is lost: {message}")))),
                    );
                }
            }
            Err(_) if batch.len() > 1 => self.run_each_alone(batch),
            Err(error) => {
                for waiting in batch {
                    drop(waiting.payload.reply.send(Err(infer_error(&error, &self.shared.config.model))));
                }
            }
        }
    }

    /// One bad request, or a model that does not keep the batch's rows, must spoil no other request.
    fn run_each_alone(&mut self, batch: Vec<Waiting<Job>>) {
        for waiting in batch {
            self.run_batch(vec![waiting]);
        }
    }

    /// Runs the engine. A panic inside it is a failed execution, not a dead thread.
    fn execute(&mut self, batch: &[Waiting<Job>]) -> Result<Execution, EngineError> {
        let inputs = gather(batch, &self.is_batched);
        let started = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| self.engine.run(&inputs)))
            .unwrap_or_else(|_| Err(EngineError::Failed("the engine panicked; the log says where".into())));
        if let Ok(execution) = &result {
            let rows = batch.iter().map(|waiting| waiting.rows).sum();
            let requests = u64::try_from(batch.len()).unwrap_or(u64::MAX);
            self.shared.config.metrics.record_execution(rows, &execution.timings, requests);
        }
        tracing::trace!(requests = batch.len(), elapsed_us = started.elapsed().as_micros(), "executed a batch");
        result
    }
}

/// Gives each request of a batch its part of the outputs.
fn answer(batch: Vec<Waiting<Job>>, parts: Vec<Vec<NamedTensor>>, (started, timings): (Instant, ExecutionTimings)) {
    for (waiting, outputs) in batch.into_iter().zip(parts) {
        let timings = RequestTimings {
            total: waiting.arrived.elapsed(),
            queue: started.saturating_duration_since(waiting.arrived),
            compute_input: timings.compute_input,
            compute_infer: timings.compute_infer,
            compute_output: timings.compute_output,
            rows: waiting.rows,
        };
        // Nobody waits for it any more when the receiver is gone.
        drop(waiting.payload.reply.send(Ok(Answer { outputs, timings })));
    }
}

/// Puts the requests' inputs side by side. Requests of a batch have the same key, so an input that is not batched is the same in
/// all of them and is taken from the first.
fn gather(batch: &[Waiting<Job>], is_batched: &[bool]) -> Vec<EngineInput> {
    let Some(first) = batch.first() else { return Vec::new() };
    let mut inputs = Vec::with_capacity(first.payload.inputs.len());
    for (index, tensor) in first.payload.inputs.iter().enumerate() {
        let Some(tensor) = tensor else { continue };
        let mut shape = tensor.shape().to_vec();
        let joined = is_batched.get(index).copied().unwrap_or(false) && batch.len() > 1;
        let parts = if joined {
            let tensors = batch.iter().filter_map(|waiting| waiting.payload.inputs.get(index)?.as_ref());
            if let Some(rows) = shape.first_mut() {
                *rows = tensors.clone().filter_map(|tensor| tensor.shape().first()).sum();
            }
            tensors.map(|tensor| tensor.data().clone()).collect()
        } else {
            vec![tensor.data().clone()]
        };
        inputs.push(EngineInput { index, datatype: tensor.datatype(), shape, parts });
    }
    inputs
}

fn infer_error(error: &EngineError, model: &ModelName) -> InferError {
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

#[cfg(test)]
mod tests;
