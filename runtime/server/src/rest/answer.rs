//! An answer and its body: pieces that are sent as they are.
//!
//! Made by the handlers of `rest`, finished by `rest::compression`. Invariant: a body's length is known, and each piece holds what
//! was reserved for it until it has been sent.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use hyper::body::{Body, Frame, SizeHint};
use torchmodel_core::metrics::SendTimer;

/// A body of pieces.
#[derive(Debug, Default)]
pub(crate) struct AnswerBody {
    pieces: Pieces,
    /// Dropped once the last piece was written, or the client is gone.
    timer: Option<SendTimer>,
}

#[derive(Debug, Default)]
enum Pieces {
    #[default]
    None,
    One(Bytes),
    Many(VecDeque<Bytes>),
}

impl AnswerBody {
    /// The pieces, one after the other.
    pub(super) fn new(mut pieces: Vec<Bytes>) -> Self {
        match pieces.as_mut_slice() {
            [] => Self::default(),
            [only] => std::mem::take(only).into(),
            _ => Pieces::Many(pieces.into()).into(),
        }
    }

    /// Bytes that are not sent yet.
    pub(super) fn len(&self) -> usize {
        match &self.pieces {
            Pieces::None => 0,
            Pieces::One(bytes) => bytes.len(),
            Pieces::Many(pieces) => pieces.iter().map(Bytes::len).sum(),
        }
    }

    /// Records the time until the body is dropped.
    pub(super) fn time(&mut self, timer: SendTimer) {
        self.timer = Some(timer);
    }

    /// What records the time until it is dropped.
    pub(crate) fn take_timer(&mut self) -> Option<SendTimer> {
        self.timer.take()
    }

    /// All pieces, and what records how long they take.
    pub(super) fn into_parts(self) -> (VecDeque<Bytes>, Option<SendTimer>) {
        let pieces = match self.pieces {
            Pieces::None => VecDeque::new(),
            Pieces::One(bytes) => [bytes].into(),
            Pieces::Many(pieces) => pieces,
        };
        (pieces, self.timer)
    }

    /// The next piece.
    pub(super) fn next(&mut self) -> Option<Bytes> {
        match &mut self.pieces {
            Pieces::Many(pieces) => pieces.pop_front(),
            _ => match std::mem::take(&mut self.pieces) {
                Pieces::One(bytes) => Some(bytes),
                _ => None,
            },
        }
    }
}

impl From<Pieces> for AnswerBody {
    fn from(pieces: Pieces) -> Self {
        Self { pieces, timer: None }
    }
}

impl From<Bytes> for AnswerBody {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::default() } else { Pieces::One(bytes).into() }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.next().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        match &self.pieces {
            Pieces::None => true,
            Pieces::One(_) => false,
            Pieces::Many(pieces) => pieces.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.len() as u64)
    }
}

/// An answer that may still be compressed.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response<AnswerBody>,
    /// Whether it carries tensors, which are not compressed because a client could read that.
    pub(super) is_inference: bool,
}

impl Answer {
    /// An answer that carries tensors.
    pub(super) fn inference(response: Response<AnswerBody>) -> Self {
        Self { response, is_inference: true }
    }

    /// Any other.
    pub(super) fn text(status: StatusCode, content_type: &'static str, text: String) -> Self {
        let mut response = Response::new(AnswerBody::from(Bytes::from(text)));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        Self { response, is_inference: false }
    }

    /// A JSON answer that is no inference: metadata, health, errors.
    pub(super) fn json(status: StatusCode, body: &serde_json::Value) -> Self {
        Self::text(status, "application/json", body.to_string())
    }
}
