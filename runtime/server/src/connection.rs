//! One connection: which protocol it speaks, its limits, its end.
//!
//! Used by the accept loop of each port. HTTP/2 is `http2`'s; HTTP/1.1 is hyper's, with the limits here. Invariant: a connection
//! without a request in flight never holds up a server that stops, and one that sends no request is closed after a while.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::{
    body::{Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::AsyncReadExt as _,
    net::TcpStream,
    sync::watch,
    time::{sleep, timeout},
};

use crate::{
    activity::{Activity, InFlight},
    http2::{self, Handler},
    rest::{AnswerBody, RestService},
    socket::Socket,
};

/// How long a request's head may take, and a kept-alive connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// How long a new connection may take to begin its first request.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a connection without a request may take to close when the server stops.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);
/// Bytes of a request's head: its line and its fields.
const MAX_HEAD_BYTES: usize = 32 << 10;
/// The most that is read from an HTTP/1.1 connection at a time; a head beyond it is not even parsed.
const MAX_READ_BYTES: usize = 64 << 10;

/// What an HTTP/2 connection begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a port serves.
pub(crate) struct Port<H> {
    /// Its requests over HTTP/2.
    pub(crate) handler: Arc<H>,
    /// Its requests over HTTP/1.1; `None` where only HTTP/2 is spoken, as gRPC asks.
    pub(crate) rest: Option<RestService>,
}

impl<H> Clone for Port<H> {
    fn clone(&self) -> Self {
        Self { handler: Arc::clone(&self.handler), rest: self.rest.clone() }
    }
}

/// Serves one connection to its end. A connection that breaks the protocol ends; nobody else notices.
pub(crate) async fn serve<H: Handler>(mut stream: TcpStream, port: Port<H>, mut stopped: watch::Receiver<bool>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "could not set TCP_NODELAY");
    }
    let Some(rest) = port.rest else {
        return http2::serve(stream, Bytes::new(), &port.handler, stopped).await;
    };
    let first = {
        let mut first = std::pin::pin!(timeout(FIRST_REQUEST_TIMEOUT, read_first(&mut stream)));
        tokio::select! {
            first = &mut first => first,
            // A request may be on its way.
            _ = async { stopped.wait_for(|is_stopped| *is_stopped).await.map(|_| ()) } => {
                timeout(CLOSE_TIMEOUT, first).await.unwrap_or_else(Err)
            }
        }
    };
    let Ok(Some((prefix, is_http2))) = first else { return };
    if is_http2 {
        return http2::serve(stream, prefix, &port.handler, stopped).await;
    }
    serve_http1((stream, prefix), rest, stopped).await;
}

/// Reads until it is clear which protocol the client speaks: what was read, and whether it is HTTP/2.
async fn read_first(stream: &mut TcpStream) -> Option<(Bytes, bool)> {
    let mut bytes = BytesMut::with_capacity(PREFACE.len());
    loop {
        let expected = PREFACE.get(..bytes.len()).unwrap_or_default();
        if bytes != expected {
            return Some((bytes.freeze(), false));
        }
        if bytes.len() == PREFACE.len() {
            return Some((bytes.freeze(), true));
        }
        let mut rest = [0; PREFACE.len()];
        let place = rest.get_mut(bytes.len()..)?;
        let count = stream.read(place).await.ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(place.get(..count)?);
    }
}

/// An answer's body. When the connection has taken all of it, or gives it up, the request waits for no more than its being written.
struct SentBody {
    body: AnswerBody,
    in_flight: InFlight,
}

impl Drop for SentBody {
    fn drop(&mut self) {
        self.in_flight.time_until_written(self.body.take_timer());
    }
}

impl hyper::body::Body for SentBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Whether a request's head is larger than it may be.
fn is_head_too_large(request: &Request<Incoming>) -> bool {
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>();
    let uri = request.uri();
    uri.path().len() + uri.query().map_or(0, str::len) + fields > MAX_HEAD_BYTES
}

fn head_too_large() -> Response<AnswerBody> {
    let error = format!("{{\"error\":\"the request's head is larger than {MAX_HEAD_BYTES} bytes\"}}");
    let mut response = Response::new(AnswerBody::from(Bytes::from(error)));
    *response.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

async fn serve_http1((stream, prefix): (TcpStream, Bytes), rest: RestService, mut stopped: watch::Receiver<bool>) {
    let activity = Arc::new(Activity::default());
    let socket = Socket::new(stream, prefix, Arc::clone(&activity));
    let service = service_fn(|request| {
        let in_flight = InFlight::new(&activity);
        let rest = &rest;
        async move {
            let answer = if is_head_too_large(&request) { head_too_large() } else { rest.answer(request).await };
            Ok::<_, Infallible>(answer.map(|body| SentBody { body, in_flight }))
        }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_READ_BYTES);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(socket), service));
    let end = async {
        tokio::select! {
            _ = stopped.wait_for(|is_stopped| *is_stopped) => {}
            () = first_request_missed(&activity) => {}
        }
    };
    tokio::select! {
        result = connection.as_mut() => return log_end(result),
        () = end => connection.as_mut().graceful_shutdown(),
    }
    // What is in flight is answered; what is not even a request does not keep the connection.
    tokio::select! {
        result = connection.as_mut() => log_end(result),
        () = idle(&activity) => {}
    }
}

/// Completes when no request has begun in time, and never when one has.
async fn first_request_missed(activity: &Activity) {
    sleep(FIRST_REQUEST_TIMEOUT).await;
    if activity.has_begun() {
        std::future::pending::<()>().await;
    }
}

/// Completes when nothing is in flight, looked at from time to time.
async fn idle(activity: &Activity) {
    loop {
        sleep(CLOSE_TIMEOUT).await;
        if activity.is_idle() {
            return;
        }
    }
}

fn log_end(result: hyper::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended early");
    }
}
