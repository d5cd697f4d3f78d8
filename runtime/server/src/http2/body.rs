//! A request's body for the routers: what h2 received, as an HTTP body.
//!
//! Made by the handlers for calls that they do not read themselves. Invariant: the client may send more only once the router took
//! what there is, and a body that pauses or trickles ends with an error.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::BoxError;
use bytes::Bytes;
use h2::RecvStream;
use hyper::body::{Body, Frame, SizeHint};

use crate::admission::{AdmissionError, ProgressTimer};

/// The body of one request.
pub(crate) struct RequestBody {
    stream: RecvStream,
    /// What is known of its length.
    length: Option<u64>,
    is_over: bool,
    timer: Option<ProgressTimer>,
    refuse: fn(AdmissionError) -> BoxError,
}

impl RequestBody {
    /// The body that `stream` brings, of `length` bytes if that was said. `refuse` makes the error of one that is too slow.
    pub(crate) fn new(stream: RecvStream, length: Option<u64>, refuse: fn(AdmissionError) -> BoxError) -> Self {
        Self { stream, length, is_over: false, timer: None, refuse }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        match self.stream.poll_data(context) {
            Poll::Ready(Some(Ok(data))) => {
                drop(self.stream.flow_control().release_capacity(data.len()));
                self.length = self.length.map(|length| length.saturating_sub(data.len() as u64));
                if let Some(timer) = &mut self.timer {
                    timer.progressed();
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Poll::Ready(Some(Err(error))) => {
                self.is_over = true;
                Poll::Ready(Some(Err(error.into())))
            }
            // Trailers of requests mean nothing to anybody here.
            Poll::Ready(None) => {
                self.is_over = true;
                Poll::Ready(None)
            }
            Poll::Pending => {
                ready!(self.timer.get_or_insert_default().poll_expired(context));
                self.is_over = true;
                Poll::Ready(Some(Err((self.refuse)(AdmissionError::Timeout))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_over || self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
