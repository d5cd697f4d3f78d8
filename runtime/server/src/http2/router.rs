//! Serves a connection's requests with an axum router: REST, the port for metrics, and gRPC's calls that carry no tensors.
//!
//! Invariant: a request whose client is gone is given up, as HTTP/1.1 does it.

use std::{convert::Infallible, future::poll_fn, sync::Arc, task::Poll};

use axum::{BoxError, Router, body::Body};
use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderValue, Request, Response, StatusCode, header};
use tonic::codegen::Service as _;

use super::{
    Handler,
    answer::{Answer, Unsent, send_response},
    body::RequestBody,
    window::Window,
};
use crate::admission::{Admission, AdmissionError};

/// A router on a port.
pub(crate) struct RouterHandler {
    /// What answers.
    pub(crate) router: Router,
    /// The budget.
    pub(crate) admission: Admission,
}

impl Handler for RouterHandler {
    async fn call(
        self: Arc<Self>,
        request: Request<RecvStream>,
        respond: SendResponse<Answer>,
        _: Window,
    ) -> Option<Unsent> {
        route(self.router.clone(), request, respond, Into::into).await
    }

    fn refuse(&self, error: AdmissionError) -> Response<Bytes> {
        let body = serde_json::json!({ "error": error.to_string() }).to_string();
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        response
    }

    fn admission(&self) -> &Admission {
        &self.admission
    }
}

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
