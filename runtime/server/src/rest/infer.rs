//! `POST /v2/models/{model}[/versions/{version}]/infer`: read, decode, ask the service, encode, answer, count.
//!
//! The handler of `rest`'s one route that carries tensors. Invariant: every request that reaches it is counted once, also when
//! the client leaves before the answer.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderValue, header};
use hyper::body::{Frame, SizeHint};
use torchmodel_core::{
    inference::{InferError, InferResponse},
    metrics::{Metrics, Protocol},
    model_key::ModelName,
    outcome::Outcome,
};

use super::{
    App, Target, body,
    decode::{Decoded, HEADER_LENGTH, Head, decode, decode_raw},
    encode::{Encoded, encode},
    error::RestError,
};
use crate::intake::Share;

/// JSON below this is read and written where it is; more on a thread that may block, so that other requests go on.
const INLINE_BYTES: usize = 1 << 20;

/// How many times its own size a JSON text may become as tensors: `0,` is eight bytes of an INT64.
const JSON_GROWTH: usize = 4;

/// Handles one inference request.
pub(super) async fn infer(State(app): State<App>, target: Result<Target, RestError>, request: Request) -> Response {
    let mut count = Count::new(&app.metrics);
    match answer(&app, target, request, &mut count).await {
        Ok(encoded) => {
            count.outcome = Outcome::Ok;
            respond(encoded)
        }
        Err(error) => {
            count.outcome = error.outcome();
            error.into_response()
        }
    }
}

async fn answer(
    app: &App,
    target: Result<Target, RestError>,
    request: Request,
    count: &mut Count<'_>,
) -> Result<Encoded, RestError> {
    let (mut parts, body) = request.into_parts();
    let head = target.and_then(|target| {
        count.model = Some(target.model.clone());
        Ok(Head::new(target.model, target.version, &parts.headers)?)
    });
    let head = match head {
        Ok(head) => head,
        Err(error) => {
            body::discard(&parts.headers, body, app.limits.max_request_bytes).await;
            return Err(error);
        }
    };
    let share = parts.extensions.remove::<Arc<Share>>();
    let body = body::read(&parts.headers, body, app.limits.max_request_bytes, share.as_ref()).await?;
    count.start = Instant::now();
    let Decoded { mut request, form } = decode_body(app, head, body, share.as_ref()).await?;
    if let Some(share) = share {
        share.hold(&mut request.inputs)?;
    }
    let response = app.service.infer(request).await?;
    let is_large = data_bytes(&response) > INLINE_BYTES;
    Ok(off_thread(is_large, move || encode(response, &form)).await?)
}

async fn decode_body(app: &App, head: Head, body: Bytes, share: Option<&Arc<Share>>) -> Result<Decoded, RestError> {
    let limits = app.limits;
    if head.header_length == Some(0) {
        let metadata = app.service.model_metadata(&head.model, head.version)?;
        return Ok(decode_raw(&head, body, &metadata, limits)?);
    }
    let json_bytes = head.header_length.unwrap_or(body.len());
    let room = share.map(|share| share.room(json_bytes.saturating_mul(JSON_GROWTH))).transpose()?;
    let decode = move || {
        let decoded = decode(&head, body, limits);
        drop(room);
        decoded
    };
    Ok(off_thread(json_bytes > INLINE_BYTES, decode).await?)
}

/// Bytes of the outputs: a measure of how long their JSON takes.
fn data_bytes(response: &InferResponse) -> usize {
    response.outputs.iter().map(|output| output.tensor.data().len()).sum()
}

async fn off_thread<T: Send + 'static>(
    is_large: bool,
    work: impl FnOnce() -> Result<T, InferError> + Send + 'static,
) -> Result<T, InferError> {
    if !is_large {
        return work();
    }
    let task = tokio::task::spawn_blocking(work);
    task.await.unwrap_or_else(|_| Err(InferError::Internal("the request could not be processed".into())))
}

fn respond(encoded: Encoded) -> Response {
    let Encoded { json, blobs } = encoded;
    let json_length = json.len();
    let is_binary = !blobs.is_empty();
    let mut response = Response::new(if is_binary {
        Body::new(Pieces(std::iter::once(json).chain(blobs).collect()))
    } else {
        Body::from(json)
    });
    let content_type = if is_binary { "application/octet-stream" } else { "application/json" };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    if is_binary {
        response.headers_mut().insert(HEADER_LENGTH, json_length.into());
    }
    response
}

/// A body of pieces that are sent as they are; its length is known.
struct Pieces(VecDeque<Bytes>);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|piece| piece.len() as u64).sum())
    }
}

/// Counts one request when it is dropped, which is also what happens when the client leaves.
struct Count<'a> {
    metrics: &'a Metrics,
    start: Instant,
    /// `None` until the name was read.
    model: Option<ModelName>,
    outcome: Outcome,
}

impl<'a> Count<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        Self { metrics, start: Instant::now(), model: None, outcome: Outcome::Canceled }
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.metrics.record_response(Protocol::Rest, self.model.as_ref(), self.outcome, self.start.elapsed());
    }
}
