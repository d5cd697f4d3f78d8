//! What leaves on an HTTP/2 stream: pieces that are sent as they are, and the watch over a client that does not read them.
//!
//! Handlers give an [`Answer`] to h2, which holds it until its last byte was written; nothing is copied. Invariant: what was reserved
//! for an answer is released exactly then, and an answer of which nothing leaves for a while is given up ([`Unsent`]).

use std::{
    collections::VecDeque,
    future::poll_fn,
    io::IoSlice,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::Poll,
};

use axum::body::Body;
use bytes::{Buf, Bytes};
use h2::{Reason, SendStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Response, header};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use tokio::time::Instant;
use torchmodel_core::metrics::SendTimer;

use crate::admission::{PAUSE_TIMEOUT, ProgressTimer, Reservation, TRANSFER_TIMEOUT};

/// How far an answer has come.
#[derive(Debug, Default)]
struct Transfer {
    sent: AtomicU64,
}

/// Bytes on their way to a client.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pieces: VecDeque<Bytes>,
    remaining: usize,
    transfer: Arc<Transfer>,
    _reservation: Option<Reservation>,
    _timer: Option<SendTimer>,
}

impl Answer {
    /// The pieces, one after the other, and what is reserved for them.
    pub(crate) fn new(pieces: VecDeque<Bytes>, reservation: Option<Reservation>) -> Self {
        let remaining = pieces.iter().map(Bytes::len).sum();
        Self { pieces, remaining, transfer: Arc::default(), _reservation: reservation, _timer: None }
    }

    /// The same, whose time until its last byte was written is recorded.
    pub(crate) fn timed(self, timer: Option<SendTimer>) -> Self {
        Self { _timer: timer, ..self }
    }

    fn with_transfer(bytes: Bytes, transfer: &Arc<Transfer>) -> Self {
        Self { remaining: bytes.len(), pieces: [bytes].into(), transfer: Arc::clone(transfer), ..Self::default() }
    }
}

impl Buf for Answer {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.iter().find(|piece| !piece.is_empty()).map_or(&[], |piece| piece)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let pieces = self.pieces.iter().filter(|piece| !piece.is_empty());
        slices.iter_mut().zip(pieces).map(|(slice, piece)| *slice = IoSlice::new(piece)).count()
    }

    fn advance(&mut self, mut count: usize) {
        self.remaining = self.remaining.saturating_sub(count);
        self.transfer.sent.fetch_add(count as u64, Relaxed);
        while let Some(first) = self.pieces.front_mut() {
            if count < first.len() {
                first.advance(count);
                return;
            }
            count -= first.len();
            self.pieces.pop_front();
        }
    }
}

/// An answer that h2 has and its client has not read: kept by the connection until it has.
pub(crate) struct Unsent {
    stream: SendStream<Answer>,
    transfer: Arc<Transfer>,
    sent: u64,
    begun: Instant,
    progressed: Instant,
}

impl Unsent {
    fn new(stream: SendStream<Answer>, transfer: Arc<Transfer>) -> Self {
        let now = Instant::now();
        Self { stream, transfer, sent: 0, begun: now, progressed: now }
    }

    /// Whether the last byte was written, or the stream is gone.
    pub(crate) fn is_over(&self) -> bool {
        Arc::strong_count(&self.transfer) == 1
    }

    /// Looks at the progress; resets a stream that has made none for too long. Gives whether it goes on.
    pub(crate) fn check(&mut self, now: Instant) -> bool {
        let sent = self.transfer.sent.load(Relaxed);
        if sent != self.sent {
            (self.sent, self.progressed) = (sent, now);
        }
        let is_slow = now.duration_since(self.progressed) > PAUSE_TIMEOUT;
        if is_slow || now.duration_since(self.begun) > TRANSFER_TIMEOUT {
            tracing::debug!("a client did not read its answer");
            self.stream.send_reset(Reason::CANCEL);
            return false;
        }
        true
    }
}

/// Sends an answer that is in memory as a whole. Trailers may follow.
pub(crate) fn send_whole(
    respond: &mut SendResponse<Answer>,
    head: Response<()>,
    answer: Answer,
    trailers: Option<HeaderMap>,
) -> Option<Unsent> {
    let transfer = Arc::clone(&answer.transfer);
    // Errors mean that the client is gone.
    let mut stream = respond.send_response(head, false).ok()?;
    stream.send_data(answer, trailers.is_none()).ok()?;
    if let Some(trailers) = trailers {
        stream.send_trailers(trailers).ok()?;
    }
    Some(Unsent::new(stream, transfer))
}

/// Sends a response of a few bytes, or of none.
pub(crate) fn send_bytes(respond: &mut SendResponse<Answer>, response: Response<Bytes>) -> Option<Unsent> {
    let (parts, body) = response.into_parts();
    let head = Response::from_parts(parts, ());
    if body.is_empty() {
        drop(respond.send_response(head, true));
        return None;
    }
    send_whole(respond, head, Answer::new([body].into(), None), None)
}

/// Sends what a router answered, frame by frame, no faster than the client reads.
pub(crate) async fn send_response(respond: &mut SendResponse<Answer>, response: Response<Body>) -> Option<Unsent> {
    let (mut parts, mut body) = response.into_parts();
    // HTTP/2 has no such fields.
    parts.headers.remove(header::CONNECTION);
    parts.headers.remove(header::TRANSFER_ENCODING);
    if let Some(length) = body.size_hint().exact().filter(|length| *length > 0) {
        parts.headers.entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
    let is_empty = body.is_end_stream();
    let mut stream = respond.send_response(Response::from_parts(parts, ()), is_empty).ok()?;
    if is_empty {
        return None;
    }
    let transfer = Arc::<Transfer>::default();
    let mut timer = None::<ProgressTimer>;
    loop {
        let next = poll_fn(|context| {
            if stream.poll_reset(context).is_ready() {
                return Poll::Ready(Err(()));
            }
            std::pin::pin!(body.frame()).poll(context).map(Ok)
        });
        match next.await.ok()? {
            None => break,
            Some(Err(_)) => {
                stream.send_reset(Reason::INTERNAL_ERROR);
                return None;
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => {
                    let timer = timer.get_or_insert_default();
                    if !has_capacity(&mut stream, data.len(), timer).await {
                        return None;
                    }
                    stream.send_data(Answer::with_transfer(data, &transfer), false).ok()?;
                }
                Err(frame) => {
                    stream.send_trailers(frame.into_trailers().ok()?).ok()?;
                    return Some(Unsent::new(stream, transfer));
                }
            },
        }
    }
    stream.send_data(Answer::default(), true).ok()?;
    Some(Unsent::new(stream, transfer))
}

/// Waits until the client takes more. Gives false when it is gone, or does not in time; the stream is then reset.
async fn has_capacity(stream: &mut SendStream<Answer>, bytes: usize, timer: &mut ProgressTimer) -> bool {
    stream.reserve_capacity(bytes);
    while stream.capacity() == 0 {
        match timer.within(poll_fn(|context| stream.poll_capacity(context))).await {
            Ok(Some(Ok(_))) => {}
            Ok(Some(Err(_)) | None) => return false,
            Err(_) => {
                stream.send_reset(Reason::CANCEL);
                return false;
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::duplex;

    use super::*;
    use crate::admission::Admission;

    #[tokio::test]
    async fn an_answer_that_nobody_reads_is_given_up_and_what_was_reserved_for_it_released() {
        let (near, far) = duplex(1 << 20);
        let client = tokio::spawn(async {
            let (mut client, connection) = h2::client::handshake(near).await.unwrap();
            tokio::spawn(connection);
            let request = http::Request::get("http://t/").body(()).unwrap();
            client.send_request(request, true).unwrap().0.await.unwrap().into_body()
        });
        let mut server = h2::server::Builder::new().handshake::<_, Answer>(far).await.unwrap();
        let (_, mut respond) = server.accept().await.unwrap().unwrap();
        let admission = Admission::new(1 << 20);
        let reservation = admission.reserve(1 << 20).unwrap();
        // More than the client's window takes.
        let answer = Answer::new([vec![7; 1 << 20].into()].into(), Some(reservation));
        let mut unsent = send_whole(&mut respond, Response::new(()), answer, None).unwrap();
        drop(respond);
        let (abort, aborted) = tokio::sync::oneshot::channel::<()>();
        let driver = tokio::spawn(async move {
            tokio::select! {
                _ = server.accept() => None,
                _ = aborted => Some(server),
            }
        });
        let mut body = client.await.unwrap();
        assert!(body.data().await.unwrap().is_ok(), "the window is filled");
        assert!(!unsent.is_over());
        let now = Instant::now();
        assert!(unsent.check(now), "something left");
        assert!(unsent.check(now + PAUSE_TIMEOUT));
        assert_eq!(admission.held(), 1 << 20);
        assert!(!unsent.check(now + PAUSE_TIMEOUT + Duration::from_secs(1)));
        drop(unsent);
        let error = loop {
            if let Err(error) = body.data().await.unwrap() {
                break error;
            }
        };
        assert_eq!(error.reason(), Some(Reason::CANCEL));
        while admission.held() > 0 {
            tokio::task::yield_now().await;
        }
        drop(abort);
        drop(driver.await);
    }

    #[test]
    fn pieces_are_one_buffer_that_is_read_without_copies() {
        let pieces = [&b"head"[..], b"", b"tensor", b"x"].map(Bytes::from_static);
        let mut answer = Answer::new(pieces.into(), None);
        assert_eq!((answer.remaining(), answer.chunk()), (11, &b"head"[..]));
        let mut slices = [IoSlice::new(&[]); 4];
        assert_eq!(answer.chunks_vectored(&mut slices), 3);
        assert_eq!(&*slices[1], b"tensor");
        answer.advance(5);
        assert_eq!((answer.remaining(), answer.chunk()), (6, &b"ensor"[..]));
        answer.advance(5);
        assert_eq!((answer.remaining(), answer.chunk()), (1, &b"x"[..]));
        answer.advance(1);
        assert!(!answer.has_remaining() && answer.chunk().is_empty());
        assert_eq!(answer.transfer.sent.load(Relaxed), 11);
    }
}
