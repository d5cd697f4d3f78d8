//! What a scheduler does with an engine that overlaps, fails, panics or is lost. Queues and deadlines are shown over the protocols.

mod failures;
mod overlap;
mod queue;

use std::{
    sync::Condvar,
    task::{Context, Poll, Wake, Waker},
    thread::Thread,
    time::Duration,
};

use bytes::Bytes;

use super::*;
use crate::{
    fake::{FakeModel, device::FakeDevice},
    tensor::{DataType, Tensor},
};

/// A scheduler, and what it reports as fatal.
struct Started {
    scheduler: Scheduler,
    fatal: Mutex<mpsc::Receiver<Failure>>,
}

impl Started {
    fn of(model: FakeModel) -> Self {
        Self::planned(model, |_| {})
    }

    /// With a plan that differs from what the configuration says.
    fn planned(model: FakeModel, change: impl FnOnce(&mut ExecutionPlan)) -> Self {
        let (report, fatal) = mpsc::channel();
        let report = Mutex::new(report);
        let on_fatal = move |failure| drop(report.lock().unwrap().send(failure));
        Self { scheduler: model.start(change, on_fatal).unwrap(), fatal: Mutex::new(fatal) }
    }

    /// Submits one row of one byte.
    fn submit(&self, value: u8) -> Reply {
        self.try_submit(row(value), None).unwrap()
    }

    /// Submits one and returns once the instance has taken it.
    fn occupy(&self, value: u8) -> Reply {
        let reply = self.submit(value);
        while self.scheduler.queue.depth() > 0 {
            thread::yield_now();
        }
        reply
    }

    fn try_submit(&self, data: Bytes, deadline: Option<Instant>) -> Result<Reply, InferError> {
        let tensor = Tensor::new(DataType::Uint8, vec![1, i64::try_from(data.len()).unwrap()], data).unwrap();
        self.scheduler.submit(CheckedInputs { tensors: vec![Some(tensor)], rows: 1, key: Some(0) }, deadline)
    }

    /// Returns once the instance's thread waits for requests.
    fn await_idle(&self) {
        while !self.scheduler.queue.is_idle() {
            thread::yield_now();
        }
    }

    fn messages(self) -> Vec<String> {
        self.scheduler.close();
        self.scheduler.join();
        self.fatal.lock().unwrap().try_iter().map(|failure| failure.message).collect()
    }
}

fn row(value: u8) -> Bytes {
    Bytes::from(vec![value])
}

/// A model on that device that takes and gives rows of one byte, at most so many at a time.
fn rows_on(device: &FakeDevice, max_batch_size: u32) -> FakeModel {
    FakeModel::identity("m", DataType::Uint8, &[-1, 1]).batching(max_batch_size).on(device)
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for an answer on this thread.
fn wait(reply: Reply) -> Result<Answer, InferError> {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut reply = std::pin::pin!(reply);
    loop {
        match reply.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(answer) => return answer,
            Poll::Pending => thread::park_timeout(Duration::from_secs(20)),
        }
    }
}

/// The one byte of an answer.
fn value(answer: Result<Answer, InferError>) -> Result<u8, InferError> {
    Ok(answer?.outputs[0].tensor.data()[0])
}

/// Holds whoever passes until it is opened.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        drop(self.0.1.wait_while(self.0.0.lock().unwrap(), |is_open| !*is_open).unwrap());
    }
}

/// Opens when dropped, so that a failed test does not hold its scheduler.
struct Opens(Gate);

impl Drop for Opens {
    fn drop(&mut self) {
        self.0.open();
    }
}
