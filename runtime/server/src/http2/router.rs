//! Serves a connection's requests with tonic's router: gRPC's calls that carry no tensors.
//!
//! Invariant: a request whose client is gone is given up, as HTTP/1.1 does it.

use std::{convert::Infallible, future::poll_fn, task::Poll};

use axum::{BoxError, Router, body::Body};
use h2::{RecvStream, server::SendResponse};
use http::{Request, header};
use tonic::codegen::Service as _;

use super::{
    answer::{Answer, Unsent, send_response},
    body::RequestBody,
};
use crate::admission::AdmissionError;

/// Answers one request from `router`. `refuse` makes the error of a body that is too slow.
pub(crate) async fn route(
    mut router: Router,
    request: Request<RecvStream>,
    mut respond: SendResponse<Answer>,
    refuse: fn(AdmissionError) -> BoxError,
) -> Option<Unsent> {
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let request = request.map(|stream| Body::new(RequestBody::new(stream, length, refuse)));
    let mut answer = router.call(request);
    let response = poll_fn(|context| {
        if respond.poll_reset(context).is_ready() {
            return Poll::Ready(None);
        }
        std::pin::Pin::new(&mut answer).poll(context).map(Some)
    });
    let response = response.await?.unwrap_or_else(|never: Infallible| match never {});
    drop(answer);
    send_response(&mut respond, response).await
}
