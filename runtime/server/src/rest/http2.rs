//! REST's requests over HTTP/2.
//!
//! A [`Handler`] for the connections of `http2`. Invariant: a request whose client is gone is given up, as HTTP/1.1 does it.

use std::{future::poll_fn, pin::pin, sync::Arc, task::Poll};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderValue, Request, Response, header};

use super::{RestService, answer, error::RestError};
use crate::{
    admission::{Admission, AdmissionError},
    http2::{
        Handler,
        answer::{Answer, Unsent, send_whole},
        body::RequestBody,
        window::Window,
    },
};

impl Handler for RestService {
    async fn call(
        self: Arc<Self>,
        request: Request<RecvStream>,
        mut respond: SendResponse<Answer>,
        _: Window,
    ) -> Option<Unsent> {
        let length =
            request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let request = request.map(|stream| RequestBody::new(stream, length, Into::into));
        let mut answer = pin!(self.answer(request));
        let response = poll_fn(|context| {
            if respond.poll_reset(context).is_ready() {
                return Poll::Ready(None);
            }
            answer.as_mut().poll(context).map(Some)
        });
        let response = response.await?;
        send(&mut respond, response)
    }

    fn refuse(&self, error: AdmissionError) -> Response<Bytes> {
        let response = answer::Answer::from(RestError::from(error)).response;
        response.map(|mut body| body.next().unwrap_or_default())
    }

    fn admission(&self) -> &Admission {
        &self.app.admission
    }
}

fn send(respond: &mut SendResponse<Answer>, response: Response<answer::AnswerBody>) -> Option<Unsent> {
    let (mut parts, body) = response.into_parts();
    // HTTP/2 has no such field.
    parts.headers.remove(header::CONNECTION);
    if body.len() == 0 {
        drop(respond.send_response(Response::from_parts(parts, ()), true));
        return None;
    }
    parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    let (pieces, timer) = body.into_parts();
    send_whole(respond, Response::from_parts(parts, ()), Answer::new(pieces, None).timed(timer), None)
}
