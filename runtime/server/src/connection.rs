//! One connection: its limits, its requests, and its end.
//!
//! Used by `server`'s accept loop. Invariant: a connection without a request in flight never holds up a server that stops, and one
//! that sends no request is closed after a while.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body};
use bytes::Bytes;
use hyper::{
    body::{Frame, SizeHint},
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::{net::TcpStream, sync::watch, time::sleep};

/// How long a request's head may take, and a kept-alive connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// How long a new connection may take to begin its first request.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a connection without a request may take to close when the server stops.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);
/// How often an HTTP/2 peer that says nothing is asked whether it is there, and how long it has for the answer.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Requests at one time on an HTTP/2 connection.
const MAX_STREAMS: u32 = 1024;
/// Bytes of a request's head, in HTTP/1.1 also of one read of a body.
const MAX_HEAD_BYTES: usize = 512 << 10;
/// What an HTTP/2 peer may send before it must wait for us: for one request, and for a connection.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Largest HTTP/2 frame that we take.
const MAX_FRAME_BYTES: u32 = 1 << 20;

/// Which versions of HTTP a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Versions {
    /// 1.1, and 2 without TLS by prior knowledge.
    Both,
    /// 2 only, as gRPC asks.
    Two,
}

/// The limits of a port's connections.
pub(super) fn builder(versions: Versions) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    if versions == Versions::Two {
        builder = builder.http2_only();
    }
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME_BYTES)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX))
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    builder
}

/// What the requests of a connection have come to.
#[derive(Debug, Default)]
struct Activity {
    has_begun: AtomicBool,
    in_flight: AtomicUsize,
}

/// A request in flight, from its head to the end of its answer.
struct InFlight(Arc<Activity>);

impl InFlight {
    fn new(activity: &Arc<Activity>) -> Self {
        activity.has_begun.store(true, Relaxed);
        activity.in_flight.fetch_add(1, Relaxed);
        Self(Arc::clone(activity))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

/// An answer's body, which ends the request when it is sent or given up.
struct AnswerBody {
    body: Body,
    _in_flight: InFlight,
}

impl hyper::body::Body for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

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

/// Serves one connection to its end. A connection that breaks the protocol ends; nobody else notices.
pub(super) async fn serve(
    stream: TcpStream,
    builder: &Builder<TokioExecutor>,
    router: Router,
    mut stopped: watch::Receiver<bool>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "could not set TCP_NODELAY");
    }
    let activity = Arc::new(Activity::default());
    let router = TowerToHyperService::new(router);
    let service = service_fn(|request| {
        let in_flight = InFlight::new(&activity);
        let answer = router.call(request);
        async move {
            let answer = answer.await.unwrap_or_else(|never: Infallible| match never {});
            Ok::<_, Infallible>(answer.map(|body| AnswerBody { body, _in_flight: in_flight }))
        }
    });
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
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
    if activity.has_begun.load(Relaxed) {
        std::future::pending::<()>().await;
    }
}

/// Completes when nothing is in flight, looked at from time to time.
async fn idle(activity: &Activity) {
    loop {
        sleep(CLOSE_TIMEOUT).await;
        if activity.in_flight.load(Relaxed) == 0 {
            return;
        }
    }
}

fn log_end(result: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    if let Err(error) = result {
        tracing::debug!(error, "a connection ended early");
    }
}
