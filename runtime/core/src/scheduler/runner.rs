//! Drives one instance: stages, launches and finishes batches, and sorts out those that fail.
//!
//! Held by the instance's seat, used by its thread or, for one request, by the thread that submits it. An asynchronous instance is
//! kept busy: two batches launched (one computes while the other copies out or waits for the device) and one staged. Invariants:
//! batches are finished in the order in which they were launched; a failed batch is run again in halves, so that a bad request
//! spoils no other; before each run, requests that nobody waits for any more are taken out.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use super::{
    batch::{Batch, PendingRequest, gather, infer_error, take_inputs},
    queue::Queue,
};
use crate::{
    batcher::{Ahead, Waiting},
    binding::Binding,
    engine::{BoxedInstance, EngineError, Execution, Step},
    split::split_outputs,
};

/// Batches of an asynchronous instance that are launched at one time.
const MAX_LAUNCHED: usize = 2;

type Requests = Vec<Waiting<PendingRequest>>;

/// One instance and what it has under way.
pub struct Runner {
    queue: Arc<Queue>,
    instance: BoxedInstance,
    binding: Binding,
    is_asynchronous: bool,
    /// Parts of failed batches, to be run before anything else. At most one batch's requests for each that was under way.
    again: VecDeque<Requests>,
    staged: Option<Batch>,
    launched: VecDeque<Batch>,
}

impl Runner {
    pub fn new(queue: Arc<Queue>, instance: BoxedInstance, binding: Binding) -> Self {
        let is_asynchronous = instance.is_asynchronous();
        let (again, launched) = (VecDeque::new(), VecDeque::new());
        Self { queue, instance, binding, is_asynchronous, again, staged: None, launched }
    }

    /// Runs `requests` to their answers.
    pub fn run(&mut self, requests: Requests) {
        self.again.push_back(requests);
        self.run_to_the_end(|_, _| None);
    }

    /// Runs `requests`, and what waits in the queue for as long as something is under way.
    pub fn run_while_there_is_more(&mut self, requests: Requests) {
        self.again.push_back(requests);
        if self.is_asynchronous {
            self.run_to_the_end(Queue::next_ahead);
        } else {
            self.run_to_the_end(|_, _| None);
        }
    }

    fn run_to_the_end(&mut self, more: impl Fn(&Queue, Ahead) -> Option<Requests>) {
        loop {
            if self.staged.is_some() && self.launched.len() < MAX_LAUNCHED {
                self.launch();
            } else if let Some(requests) = self.next_to_stage(&more) {
                self.stage(requests);
            } else if self.launched.is_empty() && self.staged.is_none() {
                return;
            } else {
                self.finish();
            }
        }
    }

    fn next_to_stage(&mut self, more: &impl Fn(&Queue, Ahead) -> Option<Requests>) -> Option<Requests> {
        if self.staged.is_some() || (!self.is_asynchronous && !self.launched.is_empty()) {
            return None;
        }
        self.again.pop_front().or_else(|| match self.launched.len() {
            // Nothing is under way: whoever called waits for the next batch better than this loop does.
            0 => None,
            launched if launched < MAX_LAUNCHED => more(&self.queue, Ahead::Ready),
            _ => more(&self.queue, Ahead::Full),
        })
    }

    fn stage(&mut self, mut requests: Requests) {
        let started = Instant::now();
        take_inputs(&mut requests, started, self.queue.model());
        if requests.is_empty() {
            return;
        }
        let signature = self.binding.signature();
        let inputs = gather(&requests, |index| signature.inputs.get(index).is_some_and(|input| input.is_batched));
        let batch = Batch { requests, started };
        match caught(Step::Stage, || self.instance.stage(inputs)) {
            Ok(()) => self.staged = Some(batch),
            Err(error) => self.sort_out(batch, Step::Stage, &error),
        }
    }

    fn launch(&mut self) {
        let Some(batch) = self.staged.take() else { return };
        if !batch.is_wanted(Instant::now()) {
            self.instance.discard();
            let mut requests = batch.requests;
            take_inputs(&mut requests, Instant::now(), self.queue.model());
            return;
        }
        match caught(Step::Launch, || self.instance.launch()) {
            Ok(()) => self.launched.push_back(batch),
            Err(error) => self.sort_out(batch, Step::Launch, &error),
        }
    }

    fn finish(&mut self) {
        let Some(batch) = self.launched.pop_front() else { return };
        let outcome = caught(Step::Finish, || self.instance.finish()).and_then(|execution| {
            let Execution { outputs, timings } = execution;
            let requests = u64::try_from(batch.requests.len()).unwrap_or(u64::MAX);
            self.queue.metrics().record_execution(batch.rows(), &timings, requests);
            Ok((self.binding.named(outputs)?, timings))
        });
        let (outputs, timings) = match outcome {
            Ok(given) => given,
            Err(error) => return self.sort_out(batch, Step::Finish, &error),
        };
        if let [only] = batch.requests.as_slice()
            && let Some(size_bytes) = only.payload.size_bytes
        {
            self.queue.learn_run(size_bytes, batch.started.elapsed());
        }
        let rows: Vec<u64> = batch.requests.iter().map(|waiting| waiting.rows).collect();
        match split_outputs(outputs, &rows) {
            Ok(parts) => batch.answer(parts, timings),
            Err(why) => {
                // The rows depend on one another, or are not rows: no batch of this model can be trusted.
                self.queue.stop_batching(&why);
                self.again.extend(batch.requests.into_iter().map(|waiting| vec![waiting]));
            }
        }
    }

    /// A batch gave nothing: half of it may.
    fn sort_out(&mut self, batch: Batch, step: Step, error: &EngineError) {
        if let EngineError::DeviceLost(message) = error {
            self.queue.report_lost_device(message);
        } else if batch.requests.len() > 1 {
            tracing::debug!(
                model = self.queue.model(),
                step = step.as_str(),
                requests = batch.requests.len(),
                "a batch failed and is run again in halves: {error}"
            );
            let mut first = batch.requests;
            let second = first.split_off(first.len() / 2);
            self.again.push_front(second);
            self.again.push_front(first);
            return;
        }
        batch.fail(&infer_error(error, self.queue.model()));
    }
}

/// Runs one step of an engine. A panic inside it is a failed batch, not a dead thread.
fn caught<T>(step: Step, run: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        Err(EngineError::Failed(format!("the engine panicked in {}; the log says where", step.as_str())))
    })
}
