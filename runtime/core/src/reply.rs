//! The channel on which a submitted request is answered: one or many responses and an end, from any thread to an async task.
//!
//! [`crate::scheduler::Scheduler::submit`] makes a pair with [`exchange`]: the [`ResponseSink`] goes with the request, the [`Reply`]
//! to whoever asked. The request's inputs wait in the channel too, so that a dropped `Reply` frees them at once, wherever the
//! request stands. Invariant: a `Reply` gets an end or an error exactly once, also when the sink is lost.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use crate::{
    inference::{InferError, NamedTensor},
    metrics::RequestTimings,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
        lock,
    },
    tensor::Tensor,
};

/// Most responses that wait in one channel to be read.
pub const MAX_BUFFERED_RESPONSES: usize = 64;

/// Outputs of one response and where its time went.
#[derive(Debug)]
pub struct Answer {
    /// All outputs of the model, in its order.
    pub outputs: Vec<NamedTensor>,
    /// Where the time went.
    pub timings: RequestTimings,
}

/// A request's inputs in the model's order; `None` where an optional one was left out.
pub type Inputs = Vec<Option<Tensor>>;

/// Why a response was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// Nobody waits for it any more.
    #[error("the request was cancelled")]
    Cancelled,
    /// The reader is [`MAX_BUFFERED_RESPONSES`] behind.
    #[error("{MAX_BUFFERED_RESPONSES} responses wait to be read")]
    Full,
}

#[derive(Debug)]
struct Exchange {
    /// Whether the reply was dropped. Outside the lock, since the queue asks it of every request when it is full.
    is_cancelled: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    inputs: Option<Inputs>,
    responses: VecDeque<Result<Answer, InferError>>,
    is_ended: bool,
    reader: Option<Waker>,
}

/// The writing end. Made with the request, held by the queue and then by the batch that the request is part of, and gone with its
/// last response. Dropped without [`Self::end`] or [`Self::fail`] it tells the reader that the model stopped.
#[derive(Debug)]
pub struct ResponseSink {
    exchange: Arc<Exchange>,
}

/// The reading end. As a future it gives the only response of a unary request; [`Self::next`] gives them one by one. Held by the
/// task that asked; dropping it cancels the request and frees its inputs.
#[derive(Debug)]
pub struct Reply {
    exchange: Arc<Exchange>,
}

/// A channel that holds a request's inputs until they are taken or nobody waits for the answer.
#[must_use]
pub fn exchange(inputs: Inputs) -> (ResponseSink, Reply) {
    let state = State { inputs: Some(inputs), responses: VecDeque::new(), is_ended: false, reader: None };
    let exchange = Arc::new(Exchange { is_cancelled: AtomicBool::new(false), state: Mutex::new(state) });
    (ResponseSink { exchange: Arc::clone(&exchange) }, Reply { exchange })
}

impl ResponseSink {
    /// Whether nobody waits for a response any more.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.exchange.is_cancelled.load(Ordering::Acquire)
    }

    /// The inputs, once; `None` when they were taken before or the request was cancelled.
    #[must_use]
    pub fn take_inputs(&self) -> Option<Inputs> {
        lock(&self.exchange.state).inputs.take()
    }

    /// Gives one response; others may follow.
    pub fn send(&self, answer: Answer) -> Result<(), SinkError> {
        if self.is_cancelled() {
            return Err(SinkError::Cancelled);
        }
        let mut state = lock(&self.exchange.state);
        if state.responses.len() >= MAX_BUFFERED_RESPONSES {
            return Err(SinkError::Full);
        }
        state.responses.push_back(Ok(answer));
        let reader = state.reader.take();
        drop(state);
        reader.into_iter().for_each(Waker::wake);
        Ok(())
    }

    /// Says that no response follows.
    pub fn end(self) {
        self.close(None);
    }

    /// Gives the only response, and the end.
    pub fn answer(self, answer: Answer) {
        self.close(Some(Ok(answer)));
    }

    /// Says that no response follows, and why.
    pub fn fail(self, error: InferError) {
        self.close(Some(Err(error)));
    }

    fn close(&self, last: Option<Result<Answer, InferError>>) {
        let mut state = lock(&self.exchange.state);
        if state.is_ended {
            return;
        }
        state.is_ended = true;
        // What nobody will read is given back outside the lock.
        let unread = if self.is_cancelled() {
            last
        } else {
            state.responses.extend(last);
            None
        };
        let inputs = state.inputs.take();
        let reader = state.reader.take();
        drop(state);
        drop((unread, inputs));
        reader.into_iter().for_each(Waker::wake);
    }
}

impl Drop for ResponseSink {
    fn drop(&mut self) {
        let is_ended = lock(&self.exchange.state).is_ended;
        if !is_ended {
            self.close(Some(Err(InferError::Internal("the model stopped before it answered".to_owned()))));
        }
    }
}

impl Reply {
    /// The next response, or `None` after the last.
    pub async fn next(&mut self) -> Option<Result<Answer, InferError>> {
        poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&self, context: &Context<'_>) -> Poll<Option<Result<Answer, InferError>>> {
        let mut state = lock(&self.exchange.state);
        if let Some(response) = state.responses.pop_front() {
            return Poll::Ready(Some(response));
        }
        if state.is_ended {
            return Poll::Ready(None);
        }
        if !state.reader.as_ref().is_some_and(|reader| reader.will_wake(context.waker())) {
            state.reader = Some(context.waker().clone());
        }
        Poll::Pending
    }
}

impl Future for Reply {
    type Output = Result<Answer, InferError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_next(context).map(|response| {
            response.unwrap_or_else(|| Err(InferError::Internal("the model gave no response".to_owned())))
        })
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.exchange.is_cancelled.store(true, Ordering::Release);
        let mut state = lock(&self.exchange.state);
        let inputs = state.inputs.take();
        let responses = std::mem::take(&mut state.responses);
        drop(state);
        drop((inputs, responses));
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use std::task::Wake;

    use super::*;

    struct Ignored;

    impl Wake for Ignored {
        fn wake(self: Arc<Self>) {}
    }

    fn answer() -> Answer {
        Answer { outputs: Vec::new(), timings: RequestTimings::default() }
    }

    fn next(reply: &Reply) -> Poll<Option<Result<Answer, InferError>>> {
        let waker = Waker::from(Arc::new(Ignored));
        reply.poll_next(&Context::from_waker(&waker))
    }

    #[test]
    fn many_responses_come_in_order_and_then_the_end() {
        let (sink, reply) = exchange(Vec::new());
        assert!(next(&reply).is_pending());
        for rows in [1, 2] {
            let timings = RequestTimings { rows, ..RequestTimings::default() };
            sink.send(Answer { timings, ..answer() }).unwrap();
        }
        sink.end();
        for rows in [1, 2] {
            assert!(matches!(next(&reply), Poll::Ready(Some(Ok(answer))) if answer.timings.rows == rows));
        }
        assert!(matches!(next(&reply), Poll::Ready(None)));
    }

    #[test]
    fn a_lost_sink_is_told_as_an_error_once() {
        let (sink, reply) = exchange(Vec::new());
        drop(sink);
        assert!(matches!(next(&reply), Poll::Ready(Some(Err(InferError::Internal(_))))));
        assert!(matches!(next(&reply), Poll::Ready(None)));
    }

    #[test]
    fn a_dropped_reply_frees_the_inputs_and_is_told_to_the_sink() {
        let owner = Arc::new(vec![0u8; 4]);
        let data = bytes::Bytes::from_owner(SharedBytes(Arc::clone(&owner)));
        let tensor = Tensor::new(crate::tensor::DataType::Uint8, vec![4], data).unwrap();
        let (sink, reply) = exchange(vec![Some(tensor)]);
        assert_eq!(Arc::strong_count(&owner), 2);
        drop(reply);
        assert_eq!(Arc::strong_count(&owner), 1, "while the sink is still held");
        assert!(sink.is_cancelled());
        assert_eq!(sink.take_inputs(), None);
        assert_eq!(sink.send(answer()), Err(SinkError::Cancelled));
    }

    #[test]
    fn a_reader_that_is_behind_bounds_what_waits() {
        let (sink, _reply) = exchange(Vec::new());
        for _ in 0..MAX_BUFFERED_RESPONSES {
            sink.send(answer()).unwrap();
        }
        assert_eq!(sink.send(answer()), Err(SinkError::Full));
    }

    struct SharedBytes(Arc<Vec<u8>>);

    impl AsRef<[u8]> for SharedBytes {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
}
