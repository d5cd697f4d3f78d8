//! A model's queue and its running instances: from a checked request to its own part of a batch's outputs.
//!
//! One OS thread is made for each instance. Requests come from any async task through [`Scheduler::submit`] and are answered through
//! [`crate::reply`]; a dropped reply cancels the request wherever it stands. A request whose model is known to be over sooner than a
//! thread wakes is run on the thread that submits it, if an instance is idle. Invariants: every submitted request is answered exactly
//! once; an instance is driven by one thread at a time; nothing is joined in a `Drop`.

mod batch;
mod inline;
mod queue;
mod runner;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, PoisonError},
    time::Instant,
};

use torchmodel_crds::{Failure, FailurePhase, FailureReason};

use self::{
    batch::PendingRequest,
    queue::{Pushed, Queue},
    runner::Runner,
};
pub use crate::reply::{Answer, Reply};
use crate::{
    batcher::Waiting,
    binding::Binding,
    engine::BoxedInstance,
    inference::InferError,
    loader::LoadedModel,
    metrics::ModelMetrics,
    model_key::ModelName,
    plan::{ExecutionPlan, Threads},
    reply::exchange,
    signature::{CheckedInputs, Signature},
    sync::{Mutex, lock, mpsc, thread},
    tensor::DataLocation,
    warmup::{Warmed, Warmup},
};

/// What a scheduler needs besides a loaded model.
pub struct SchedulerConfig {
    /// Name for texts and threads.
    pub model: ModelName,
    /// Where executions are recorded.
    pub metrics: ModelMetrics,
    /// Called when an instance can never work again; the process should end.
    pub on_fatal: Arc<dyn Fn(Failure) + Send + Sync>,
}

/// A model's queue and its running instances. Made by [`Scheduler::start`]; ended by [`Scheduler::close`], which lets it finish what
/// waits, and [`Scheduler::join`], which waits for that. Dropped without them it closes, and its threads end by themselves.
pub struct Scheduler {
    queue: Arc<Queue>,
    seats: Vec<Arc<Seat>>,
    signature: Signature,
    accepted: Vec<DataLocation>,
    /// Seats whose instances have threads; those after them are spare.
    threaded: usize,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
}

/// Where an instance sits between batches. The runner is put in when the instance is warm and taken out by its thread when that
/// ends; in between whoever runs a batch holds the lock, which the queue gives to one thread at a time.
#[derive(Default)]
struct Seat {
    runner: Mutex<Option<Runner>>,
}

/// What the threads of the instances share while they start.
struct Starting {
    plan: ExecutionPlan,
    warmup: Warmup,
    binding: Binding,
}

/// An instance that is warm.
struct Started {
    binding: Binding,
    warmed: Warmed,
    accepted: Vec<DataLocation>,
}

const LOCATIONS: [DataLocation; 4] =
    [DataLocation::Host, DataLocation::Pinned, DataLocation::Device, DataLocation::Shared];

impl Scheduler {
    /// Starts a thread for each instance and waits until all are warm. Blocks.
    pub fn start(model: LoadedModel, config: SchedulerConfig) -> Result<Self, Failure> {
        let LoadedModel { binding, plan, warmup, instances } = model;
        let queue = Arc::new(Queue::new(config, &plan));
        let mut scheduler = Self {
            queue,
            seats: instances.iter().map(|_| Arc::default()).collect(),
            signature: binding.signature().clone(),
            accepted: LOCATIONS.to_vec(),
            threaded: plan.placements.len(),
            threads: Mutex::new(Vec::new()),
        };
        let mut starting = Starting { plan, warmup, binding };
        let mut instances = instances.into_iter().enumerate();
        let mut last = None;
        for (index, instance) in instances.by_ref().take(starting.plan.placements.len()) {
            // One after the other: warm-up measures and compiles, and the first instance's work serves the rest.
            let started = scheduler.start_instance(index, instance, &starting).inspect_err(|_| {
                scheduler.close();
                scheduler.join();
            })?;
            // What the first instance measured is not measured again beside instances that serve already.
            starting.plan.threads = Threads::Fixed(started.warmed.threads);
            scheduler.queue.set_inline_bytes(started.warmed);
            scheduler.accepted.retain(|location| started.accepted.contains(location));
            scheduler.signature = started.binding.signature().clone();
            last = Some(started);
        }
        let spare = instances.filter(|_| last.as_ref().is_some_and(|started| started.warmed.threads == 1));
        let mut count = starting.plan.placements.len();
        for ((index, instance), started) in spare.zip(last.iter().cycle()) {
            scheduler.open_spare(index, instance, started);
            count += 1;
        }
        scheduler.queue.metrics().set_instances(count);
        Ok(scheduler)
    }

    /// Lets submitters use a spare handle. What warmed up the instances has warmed it, too.
    fn open_spare(&self, index: usize, mut instance: BoxedInstance, started: &Started) {
        let Some(seat) = self.seats.get(index) else { return };
        instance.set_threads(started.warmed.threads);
        *lock(&seat.runner) = Some(Runner::new(Arc::clone(&self.queue), instance, started.binding.clone()));
        self.queue.open_spare(index);
    }

    /// What the model takes and gives, with what the warm-up taught about the outputs.
    #[must_use]
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    fn start_instance(&self, index: usize, instance: BoxedInstance, starting: &Starting) -> Result<Started, Failure> {
        let queue = Arc::clone(&self.queue);
        let seat = self.seats.get(index).map(Arc::clone).unwrap_or_default();
        let (plan, warmup, binding) = (starting.plan.clone(), starting.warmup.clone(), starting.binding.clone());
        let (report, started) = mpsc::channel();
        let run = move || {
            let (mut instance, mut binding) = (instance, binding);
            let warmed = instance.attach().and_then(|()| warmup.run(instance.as_mut(), &plan, &mut binding));
            let warmed = match warmed {
                Ok(warmed) => warmed,
                Err(failure) => return drop(report.send(Err(failure))),
            };
            let accepted = LOCATIONS.into_iter().filter(|location| instance.accepts(*location)).collect();
            let started = Started { binding: binding.clone(), warmed, accepted };
            *lock(&seat.runner) = Some(Runner::new(Arc::clone(&queue), instance, binding));
            if report.send(Ok(started)).is_ok() {
                serve(index, &queue, &seat);
            }
        };
        let internal = |message: String| Failure::new(FailurePhase::Load, FailureReason::CrashLoop, message);
        let thread = thread::Builder::new()
            .name(format!("instance-{index}"))
            .spawn(run)
            .map_err(|error| internal(format!("starting the thread of instance {index}: {error}")))?;
        lock(&self.threads).push(thread);
        let started = started.recv();
        started.map_err(|_| internal(format!("instance {index} panicked while it started")))?
    }

    /// Queues a request, or runs it at once. Errors: `Overloaded` when the queue is full, `NotReady` when the model is being
    /// unloaded, `InvalidRequest` when an input lies where the engine cannot read it.
    pub fn submit(&self, inputs: CheckedInputs, deadline: Option<Instant>) -> Result<Reply, InferError> {
        self.check_locations(&inputs)?;
        let size_bytes = size_bytes(&inputs);
        let (sink, reply) = exchange(inputs.tensors);
        let waiting = Waiting {
            payload: PendingRequest { sink, inputs: Vec::new(), size_bytes },
            rows: inputs.rows,
            key: inputs.key,
            arrived: Instant::now(),
            deadline,
        };
        match self.queue.push(waiting) {
            Ok(Pushed::Queued) => {}
            Ok(Pushed::Inline { seat: index, request }) => self.run_inline(index, request),
            Err(error) => return Err(error),
        }
        Ok(reply)
    }

    fn check_locations(&self, inputs: &CheckedInputs) -> Result<(), InferError> {
        for (input, tensor) in self.signature.inputs.iter().zip(&inputs.tensors) {
            let Some(location) = tensor.as_ref().map(|tensor| tensor.content().location()) else { continue };
            if !self.accepted.contains(&location) {
                return Err(InferError::InvalidRequest(format!(
                    "input '{}' for model '{}' lies in {location}, which the model's engine cannot read; send its data in the \
                     request",
                    input.name,
                    self.queue.model()
                )));
            }
        }
        Ok(())
    }

    /// Runs a request on this thread, with an instance that the queue has claimed for it.
    fn run_inline(&self, index: usize, request: Waiting<PendingRequest>) {
        let started = Instant::now();
        let run = || {
            let Some(seat) = self.seats.get(index) else { return };
            if let Some(runner) = lock(&seat.runner).as_mut() {
                runner.run(vec![request]);
            }
        };
        if catch_unwind(AssertUnwindSafe(run)).is_err() {
            self.queue.report_panic(index);
        }
        self.queue.learn_inline(started.elapsed());
        self.queue.release(index);
    }

    /// Takes no more requests; the instances end once those that wait are answered.
    pub fn close(&self) {
        self.queue.close();
    }

    /// Waits until every instance has ended and given its memory back. Blocks, for as long as what waits takes; call
    /// [`Self::close`] first, and never on an async thread.
    pub fn join(&self) {
        let threads = std::mem::take(&mut *lock(&self.threads));
        for thread in threads {
            // A panic was reported where it happened.
            drop(thread.join());
        }
        for (index, seat) in self.seats.iter().enumerate().skip(self.threaded) {
            self.queue.leave(index);
            drop(lock(&seat.runner).take());
        }
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.close();
    }
}

/// Bytes of a request's tensors; `None` where they say nothing about its shapes, since a dimension beside an empty one may be any.
fn size_bytes(inputs: &CheckedInputs) -> Option<usize> {
    let sizes = inputs.tensors.iter().flatten().map(|tensor| tensor.content().size_bytes());
    sizes.map(|size| (size > 0).then_some(size)).sum()
}

/// The life of an instance's thread after its start.
fn serve(index: usize, queue: &Arc<Queue>, seat: &Seat) {
    // The engine's own panics are caught closer to it; whatever else may happen, requests must not wait for a thread that is gone.
    let run = || {
        let mut may_spin = false;
        while let Some(batch) = queue.next_batch(index, may_spin) {
            if let Some(runner) = lock(&seat.runner).as_mut() {
                runner.run_while_there_is_more(batch);
            }
            may_spin = true;
        }
    };
    if catch_unwind(AssertUnwindSafe(run)).is_err() {
        queue.report_panic(index);
    }
    queue.leave(index);
    let runner = seat.runner.lock().unwrap_or_else(PoisonError::into_inner).take();
    drop(runner);
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
