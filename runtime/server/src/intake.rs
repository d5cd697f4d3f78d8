//! What the bodies of all requests together may take of memory, and each of time.
//!
//! `server` puts [`Intake::bound`] around the inference routes of both protocols. Invariants: a byte of a body is counted before
//! anybody keeps it, and until the last tensor made of it is gone, even when the client has left; no body takes for ever.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{Next, from_fn},
};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};
use torchmodel_core::inference::{InferError, NamedTensor};

/// How long a body may pause.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a body may take from its first byte to its last: 256 MiB at 7 Mbit/s.
const BODY_TIMEOUT: Duration = Duration::from_secs(300);

/// Why a body was not taken to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IntakeError {
    /// The bodies in flight hold as much as they may.
    #[error(
        "the server already holds {held} bytes of requests and may hold {most} (--max-inflight-bytes); try again later"
    )]
    Full {
        /// Bytes of all requests, without the one that was refused.
        held: usize,
        /// The most that they may be.
        most: usize,
    },
    /// The body paused for too long, or went on for too long.
    #[error("the request body stopped coming or came too slowly")]
    Timeout,
}

impl From<IntakeError> for InferError {
    fn from(error: IntakeError) -> Self {
        match error {
            IntakeError::Full { .. } => Self::Overloaded(error.to_string()),
            IntakeError::Timeout => Self::DeadlineExceeded(error.to_string()),
        }
    }
}

/// What a protocol's reader of bodies gets in place of an [`IntakeError`].
pub type Refuse = fn(IntakeError) -> axum::BoxError;

/// The bytes of all requests in flight.
#[derive(Clone, Debug)]
pub struct Intake {
    most: usize,
    held: Arc<AtomicUsize>,
}

impl Intake {
    /// Takes at most `most` bytes at a time.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most, held: Arc::default() }
    }

    /// Bytes that all requests hold now.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.load(Relaxed)
    }

    /// Counts the bodies of requests whose path begins with `prefix`. What is over the bound fails with what `refuse` makes of it,
    /// once; what still comes after that is passed on uncounted, to be thrown away. Handlers find their [`Share`] among the
    /// request's extensions.
    pub fn bound(&self, router: Router, prefix: &'static str, refuse: Refuse) -> Router {
        let intake = self.clone();
        router.layer(from_fn(move |request: Request, next: Next| {
            let is_counted = request.uri().path().starts_with(prefix) && !request.body().is_end_stream();
            let request = if is_counted { intake.clone().count(request, refuse) } else { request };
            next.run(request)
        }))
    }

    fn count(self, request: Request, refuse: Refuse) -> Request {
        let share = Arc::new(Share { intake: self, bytes: AtomicUsize::new(0) });
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(Arc::clone(&share));
        let body = CountedBody { body, share: Some(share), refuse, end: Instant::now() + BODY_TIMEOUT, timer: None };
        Request::from_parts(parts, Body::new(body))
    }
}

/// What one request holds; given back when nobody has it any more.
#[derive(Debug)]
pub struct Share {
    intake: Intake,
    bytes: AtomicUsize,
}

impl Share {
    /// Counts `more` bytes.
    pub fn add(&self, more: usize) -> Result<(), IntakeError> {
        let Intake { most, held } = &self.intake;
        let sum = |held: usize| held.checked_add(more).filter(|sum| sum <= most);
        let added = held.fetch_update(Relaxed, Relaxed, sum);
        added.map_err(|held| IntakeError::Full { held, most: *most })?;
        self.bytes.fetch_add(more, Relaxed);
        Ok(())
    }

    /// Counts what the tensors take beyond what came, and stays until the last of them is gone.
    pub fn hold(self: &Arc<Self>, inputs: &mut [NamedTensor]) -> Result<(), IntakeError> {
        let bytes: usize = inputs.iter().map(|input| input.tensor.data().len()).sum();
        self.add(self.at_most(bytes.saturating_sub(self.bytes.load(Relaxed))))?;
        for input in inputs {
            input.tensor.keep(Arc::clone(self));
        }
        Ok(())
    }

    /// Counts `bytes` for as long as the result lives: what a decoder may make of a text before anybody knows.
    pub fn room(self: &Arc<Self>, bytes: usize) -> Result<Room, IntakeError> {
        let bytes = self.at_most(bytes);
        self.add(bytes)?;
        Ok(Room { share: Arc::clone(self), bytes })
    }

    /// So many of `more` bytes that a request that is alone is not refused because of what is made of it.
    fn at_most(&self, more: usize) -> usize {
        more.min(self.intake.most.saturating_sub(self.bytes.load(Relaxed)))
    }

    fn give_back(&self) {
        self.intake.held.fetch_sub(self.bytes.swap(0, Relaxed), Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Bytes that one request holds for a while.
#[derive(Debug)]
pub struct Room {
    share: Arc<Share>,
    bytes: usize,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.share.bytes.fetch_sub(self.bytes, Relaxed);
        self.share.intake.held.fetch_sub(self.bytes, Relaxed);
    }
}

/// A request's body whose bytes and time are counted.
struct CountedBody {
    body: Body,
    /// `None` once the body was refused.
    share: Option<Arc<Share>>,
    refuse: Refuse,
    end: Instant,
    /// Runs only while the body is waited for.
    timer: Option<Pin<Box<Sleep>>>,
}

impl CountedBody {
    fn fail(&mut self, error: IntakeError) -> axum::BoxError {
        if let Some(share) = self.share.take() {
            share.give_back();
        }
        (self.refuse)(error)
    }
}

impl HttpBody for CountedBody {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) else {
            if self.share.is_none() {
                return Poll::Pending;
            }
            let end = self.end.min(Instant::now() + PAUSE_TIMEOUT);
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(end)));
            ready!(timer.as_mut().poll(context));
            return Poll::Ready(Some(Err(self.fail(IntakeError::Timeout))));
        };
        self.timer = None;
        let bytes = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
        match self.share.as_ref().map_or(Ok(()), |share| share.add(bytes)) {
            Ok(()) => Poll::Ready(frame.map(|frame| frame.map_err(Into::into))),
            Err(error) => Poll::Ready(Some(Err(self.fail(error)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt as _, stream};
    use http_body_util::BodyExt as _;

    use super::*;
    use torchmodel_core::tensor::{DataType, Tensor};

    fn refuse(error: IntakeError) -> axum::BoxError {
        Box::new(error)
    }

    fn counted(intake: &Intake, body: Body) -> (Arc<Share>, Body) {
        let request = intake.clone().count(Request::new(body), refuse);
        let (parts, body) = request.into_parts();
        (Arc::clone(parts.extensions.get().unwrap()), body)
    }

    fn chunks(sizes: &'static [usize]) -> Body {
        Body::from_stream(stream::iter(sizes.iter().map(|size| Ok::<_, IntakeError>(Bytes::from(vec![0; *size])))))
    }

    fn error_of(frame: Option<Result<Frame<Bytes>, axum::Error>>) -> IntakeError {
        *frame.unwrap().unwrap_err().into_inner().downcast().unwrap()
    }

    #[tokio::test]
    async fn what_is_over_the_bound_is_refused_once_and_what_others_gave_back_is_free_again() {
        let intake = Intake::new(100);
        let (share, mut body) = counted(&intake, chunks(&[60]));
        body.frame().await.unwrap().unwrap();
        assert_eq!(intake.held(), 60);

        let (_other, mut refused) = counted(&intake, chunks(&[40, 1, 50]));
        refused.frame().await.unwrap().unwrap();
        assert_eq!(error_of(refused.frame().await), IntakeError::Full { held: 100, most: 100 });
        assert_eq!(intake.held(), 60, "what was refused holds nothing");
        assert_eq!(refused.frame().await.unwrap().unwrap().into_data().unwrap().len(), 50);
        assert!(refused.frame().await.is_none());

        drop((share, body));
        let (_share, mut body) = counted(&intake, chunks(&[100]));
        body.frame().await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_tensor_holds_its_request_until_it_is_gone() {
        let intake = Intake::new(100);
        let (share, body) = counted(&intake, chunks(&[10]));
        body.collect().await.unwrap();
        let tensor = Tensor::new(DataType::Uint8, vec![16], vec![7; 16].into()).unwrap();
        let mut inputs = [NamedTensor { name: "x".into(), tensor }];
        share.hold(&mut inputs).unwrap();
        drop(share);
        let slice = inputs[0].tensor.data().slice(3..5);
        drop(inputs);
        assert_eq!((slice.as_ref(), intake.held()), (&[7, 7][..], 16));
        drop(slice);
        assert_eq!(intake.held(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_may_neither_pause_long_nor_trickle_for_ever() {
        let intake = Intake::new(100);
        let (_share, mut body) = counted(&intake, Body::from_stream(stream::pending::<Result<Bytes, IntakeError>>()));
        let started = Instant::now();
        assert_eq!(error_of(body.frame().await), IntakeError::Timeout);
        assert_eq!(started.elapsed().as_secs(), PAUSE_TIMEOUT.as_secs());

        let trickle = stream::repeat(()).then(|()| async {
            tokio::time::sleep(PAUSE_TIMEOUT / 2).await;
            Ok::<_, IntakeError>(Bytes::from_static(b"x"))
        });
        let (_share, body) = counted(&intake, Body::from_stream(trickle));
        let started = Instant::now();
        let error = body.collect().await.unwrap_err();
        assert_eq!(*error.into_inner().downcast::<IntakeError>().unwrap(), IntakeError::Timeout);
        assert_eq!(started.elapsed().as_secs(), BODY_TIMEOUT.as_secs());
    }
}
