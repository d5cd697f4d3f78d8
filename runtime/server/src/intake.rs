//! Counts the bodies of REST requests as they come, until REST reserves them before it reads them.
//!
//! `server` puts [`Intake::bound`] around the inference routes of both protocols. Invariants: a byte of a body is counted before
//! anybody keeps it, and until the last tensor made of it is gone, even when the client has left; no body takes for ever.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{Next, from_fn},
};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use torchmodel_core::inference::NamedTensor;

use crate::admission::{Admission, AdmissionError, ProgressTimer, Reservation};

/// What a protocol's reader of bodies gets in place of an [`AdmissionError`].
pub type Refuse = fn(AdmissionError) -> axum::BoxError;

/// Counts the bodies of requests as they come.
#[derive(Clone, Debug)]
pub struct Intake {
    admission: Admission,
}

impl Intake {
    /// Takes what `admission` admits.
    #[must_use]
    pub fn new(admission: Admission) -> Self {
        Self { admission }
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
        let reservation = self.admission.reserve(0).ok().map(Mutex::new);
        let share = Arc::new(Share { admission: self.admission, reservation });
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(Arc::clone(&share));
        let body = CountedBody { body, share: Some(share), refuse, timer: ProgressTimer::default() };
        Request::from_parts(parts, Body::new(body))
    }
}

/// What one request holds; given back when nobody has it any more.
#[derive(Debug)]
pub struct Share {
    admission: Admission,
    reservation: Option<Mutex<Reservation>>,
}

impl Share {
    fn with<T>(&self, change: impl FnOnce(&mut Reservation) -> T) -> Option<T> {
        let reservation = self.reservation.as_ref()?;
        Some(change(&mut reservation.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn bytes(&self) -> usize {
        self.with(|reservation| reservation.bytes()).unwrap_or(0)
    }

    /// Counts `more` bytes.
    pub fn add(&self, more: usize) -> Result<(), AdmissionError> {
        self.with(|reservation| reservation.grow(more)).unwrap_or(Ok(()))
    }

    /// Counts what the tensors take beyond what came, and stays until the last of them is gone.
    pub fn hold(self: &Arc<Self>, inputs: &mut [NamedTensor]) -> Result<(), AdmissionError> {
        let bytes: usize = inputs.iter().map(|input| input.tensor.data().len()).sum();
        let more = bytes.saturating_sub(self.bytes());
        self.with(|reservation| reservation.grow_within(more)).unwrap_or(Ok(()))?;
        for input in inputs {
            input.tensor.keep(Arc::clone(self));
        }
        Ok(())
    }

    /// Counts `bytes` for as long as the result lives: what a decoder may make of a text before anybody knows.
    pub fn room(self: &Arc<Self>, bytes: usize) -> Result<Reservation, AdmissionError> {
        self.admission.reserve(bytes.min(self.admission.maximum().saturating_sub(self.bytes())))
    }

    fn give_back(&self) {
        self.with(|reservation| reservation.shrink_to(0));
    }
}

/// A request's body whose bytes and time are counted.
struct CountedBody {
    body: Body,
    /// `None` once the body was refused.
    share: Option<Arc<Share>>,
    refuse: Refuse,
    timer: ProgressTimer,
}

impl CountedBody {
    fn fail(&mut self, error: AdmissionError) -> axum::BoxError {
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
            ready!(self.timer.poll_expired(context));
            return Poll::Ready(Some(Err(self.fail(AdmissionError::Timeout))));
        };
        self.timer.progressed();
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

    use tokio::time::Instant;

    use super::*;
    use crate::admission::{PAUSE_TIMEOUT, TRANSFER_TIMEOUT};
    use torchmodel_core::tensor::{DataType, Tensor};

    fn refuse(error: AdmissionError) -> axum::BoxError {
        Box::new(error)
    }

    fn counted(intake: &Intake, body: Body) -> (Arc<Share>, Body) {
        let request = intake.clone().count(Request::new(body), refuse);
        let (parts, body) = request.into_parts();
        (Arc::clone(parts.extensions.get().unwrap()), body)
    }

    fn chunks(sizes: &'static [usize]) -> Body {
        Body::from_stream(stream::iter(sizes.iter().map(|size| Ok::<_, AdmissionError>(Bytes::from(vec![0; *size])))))
    }

    fn error_of(frame: Option<Result<Frame<Bytes>, axum::Error>>) -> AdmissionError {
        *frame.unwrap().unwrap_err().into_inner().downcast().unwrap()
    }

    #[tokio::test]
    async fn what_is_over_the_bound_is_refused_once_and_what_others_gave_back_is_free_again() {
        let admission = Admission::new(100);
        let intake = Intake::new(admission.clone());
        let (share, mut body) = counted(&intake, chunks(&[60]));
        body.frame().await.unwrap().unwrap();
        assert_eq!(admission.held(), 60);

        let (_other, mut refused) = counted(&intake, chunks(&[40, 1, 50]));
        refused.frame().await.unwrap().unwrap();
        assert_eq!(error_of(refused.frame().await), AdmissionError::Full { held: 100, maximum: 100 });
        assert_eq!(admission.held(), 60, "what was refused holds nothing");
        assert_eq!(refused.frame().await.unwrap().unwrap().into_data().unwrap().len(), 50);
        assert!(refused.frame().await.is_none());

        drop((share, body));
        let (_share, mut body) = counted(&intake, chunks(&[100]));
        body.frame().await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_tensor_holds_its_request_until_it_is_gone() {
        let admission = Admission::new(100);
        let intake = Intake::new(admission.clone());
        let (share, body) = counted(&intake, chunks(&[10]));
        body.collect().await.unwrap();
        let tensor = Tensor::new(DataType::Uint8, vec![16], vec![7; 16].into()).unwrap();
        let mut inputs = [NamedTensor { name: "x".into(), tensor }];
        share.hold(&mut inputs).unwrap();
        drop(share);
        let slice = inputs[0].tensor.data().slice(3..5);
        drop(inputs);
        assert_eq!((slice.as_ref(), admission.held()), (&[7, 7][..], 16));
        drop(slice);
        assert_eq!(admission.held(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_may_neither_pause_long_nor_trickle_for_ever() {
        let admission = Admission::new(100);
        let intake = Intake::new(admission.clone());
        let (_share, mut body) =
            counted(&intake, Body::from_stream(stream::pending::<Result<Bytes, AdmissionError>>()));
        let started = Instant::now();
        assert_eq!(error_of(body.frame().await), AdmissionError::Timeout);
        assert_eq!(started.elapsed().as_secs(), PAUSE_TIMEOUT.as_secs());

        let trickle = stream::repeat(()).then(|()| async {
            tokio::time::sleep(PAUSE_TIMEOUT / 2).await;
            Ok::<_, AdmissionError>(Bytes::from_static(b"x"))
        });
        let (_share, body) = counted(&intake, Body::from_stream(trickle));
        let started = Instant::now();
        let error = body.collect().await.unwrap_err();
        assert_eq!(*error.into_inner().downcast::<AdmissionError>().unwrap(), AdmissionError::Timeout);
        assert_eq!(started.elapsed().as_secs(), TRANSFER_TIMEOUT.as_secs());
    }
}
