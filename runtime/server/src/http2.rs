//! One HTTP/2 connection: its loop, its limits, its end. gRPC's port and HTTP/2 on the REST port are served by it.
//!
//! The connection's task polls h2 and all calls of the connection itself: a call needs no task of its own, takes each frame while it
//! is in the CPU's cache, and h2 never holds more than a round reads. Invariants: what a client makes us hold without reservation is
//! bounded by the constants below; a connection or stream without progress ends; one without calls never holds up a server that stops.

pub(crate) mod answer;
pub(crate) mod body;
pub(crate) mod router;
mod transport;
mod waker;
pub(crate) mod window;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, stream::FuturesUnordered};
use h2::{
    Ping, PingPong, RecvStream,
    server::{self, SendResponse},
};
use http::{HeaderMap, Request, Response};
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{Instant, Sleep, sleep_until},
};

use self::{
    answer::{Answer, Unsent},
    transport::{Transport, TransportIo},
    waker::RoundWaker,
    window::{CONNECTION_WINDOW, STREAM_WINDOW, Window},
};
use crate::{
    admission::{Admission, AdmissionError, PAUSE_TIMEOUT, Reservation},
    io_threads,
};

/// Requests at one time on a connection.
const MAX_STREAMS: u32 = 128;
/// Bytes of a request's head, as HTTP/2 counts them: names, values and 32 for each.
const MAX_HEAD_BYTES: u32 = 32 << 10;
/// Largest frame that we take. A client's unfinished frame is memory that nobody has admitted.
const MAX_FRAME_BYTES: u32 = 256 << 10;
/// What may wait in h2 for one stream before the router's body is asked for more.
const SEND_BUFFER_BYTES: usize = 4 << 20;
/// Streams that a client has reset and we have not forgotten, and those that it reset before we saw them: more end the connection.
const MAX_RESET_STREAMS: usize = 50;
/// So many calls of a connection are free; each further one reserves [`CALL_BYTES`], as does a large head.
const FREE_CALLS: usize = 8;
/// What a call takes beside a body of tensors and its answer; a message of a call without tensors is in it.
const CALL_BYTES: usize = 24 << 10;
/// A head beyond this reserves what it takes.
const FREE_HEAD_BYTES: usize = 2 << 10;
/// Rounds before other connections get their turn.
const MAX_ROUNDS: usize = 16;

/// How long a new connection may take to begin its first request.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a connection may be without a call.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// How old a connection may get, with up to a tenth more by chance: after it, clients connect again and find new replicas.
const MAX_AGE: Duration = Duration::from_secs(600);
/// How often a peer that says nothing is asked whether it is there, and how long it has for the answer.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How long a connection without a call may take to close when the server stops, and when it is merely old or idle: its client may
/// be far away, and must hear of it before its next request.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the calls of a connection that closes may take, where the server goes on: a watch of health may never end.
const CLOSE_GRACE: Duration = Duration::from_secs(600);
/// How often calls and answers are looked at.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// How often a connection without any is looked at.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_secs(20);

/// What serves the requests of a connection.
pub(crate) trait Handler: Send + Sync + 'static {
    /// Answers one request, and gives what of the answer the client has not read yet. Dropped when the connection ends.
    fn call(
        self: Arc<Self>,
        request: Request<RecvStream>,
        respond: SendResponse<Answer>,
        window: Window,
    ) -> impl Future<Output = Option<Unsent>> + Send;

    /// The answer to a request for which there is no memory.
    fn refuse(&self, error: AdmissionError) -> Response<Bytes>;

    /// The budget.
    fn admission(&self) -> &Admission;
}

fn builder() -> server::Builder {
    let mut builder = server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME_BYTES)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD_BYTES)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .max_concurrent_reset_streams(MAX_RESET_STREAMS)
        .max_pending_accept_reset_streams(MAX_RESET_STREAMS)
        .max_local_error_reset_streams(Some(MAX_RESET_STREAMS));
    builder
}

/// Serves one connection to its end; `prefix` was read from it already.
pub(crate) async fn serve<H: Handler>(
    stream: TcpStream,
    prefix: Bytes,
    handler: &Arc<H>,
    mut stopped: watch::Receiver<bool>,
) {
    let (transport, io) = transport::split(stream, prefix);
    let handshake = tokio::select! {
        handshake = tokio::time::timeout(FIRST_REQUEST_TIMEOUT, builder().handshake(io)) => handshake,
        _ = async { stopped.wait_for(|is_stopped| *is_stopped).await.map(|_| ()) } => return,
    };
    let Ok(Ok(mut h2)) = handshake else { return };
    let now = Instant::now();
    let mut connection = Connection {
        pings: h2.ping_pong(),
        h2,
        transport,
        handler,
        call: |request, respond, window, reservation| {
            let handler = Arc::clone(handler);
            async move {
                let _held: Option<Reservation> = reservation;
                handler.call(request, respond, window).await
            }
        },
        calls: FuturesUnordered::new(),
        unsent: Vec::new(),
        window: Window::default(),
        waker: Arc::default(),
        stop: Box::pin(async move {
            // An error means that the sender is gone, which is a stop too.
            drop(stopped.wait_for(|is_stopped| *is_stopped).await);
        }),
        timer: Box::pin(sleep_until(now + CHECK_INTERVAL)),
        watch: Watch::new(now),
    };
    // The rounds are bounded by what they read; tokio's own count of steps would only cut them short.
    tokio::task::unconstrained(std::future::poll_fn(|context| connection.poll(context))).await;
}

/// The end of a connection, once it was told to its client.
#[derive(Clone, Copy)]
struct Closing {
    since: Instant,
    /// How long it may go on without a call.
    timeout: Duration,
}

/// When what happened on a connection.
struct Watch {
    active: Instant,
    age_end: Instant,
    has_begun: bool,
    closing: Option<Closing>,
    is_stopping: bool,
    /// Bytes that had come at the last look, and when there were new ones.
    received: (u64, Instant),
    /// Bytes that had left, and when there were new ones or none waited.
    sent: (u64, Instant),
    is_pinged: bool,
}

impl Watch {
    fn new(now: Instant) -> Self {
        // Any number that differs between connections will do.
        let chance = u64::from(std::process::id()).wrapping_mul(2_654_435_761).wrapping_add(nanos());
        let age = MAX_AGE + MAX_AGE / 1000 * u32::try_from(chance % 100).unwrap_or(0);
        Self {
            active: now,
            age_end: now + age,
            has_begun: false,
            closing: None,
            is_stopping: false,
            received: (0, now),
            sent: (0, now),
            is_pinged: false,
        }
    }
}

fn nanos() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| u64::from(now.subsec_nanos()) / 1000)
}

struct Connection<'a, H, C, F> {
    h2: server::Connection<TransportIo, Answer>,
    pings: Option<PingPong>,
    transport: Transport,
    handler: &'a Arc<H>,
    call: C,
    calls: FuturesUnordered<F>,
    unsent: Vec<Unsent>,
    window: Window,
    waker: Arc<RoundWaker>,
    stop: Pin<Box<dyn Future<Output = ()> + Send>>,
    timer: Pin<Box<Sleep>>,
    watch: Watch,
}

impl<H, C, F> Connection<'_, H, C, F>
where
    H: Handler,
    C: Fn(Request<RecvStream>, SendResponse<Answer>, Window, Option<Reservation>) -> F,
    F: Future<Output = Option<Unsent>>,
{
    fn poll(&mut self, task: &mut Context<'_>) -> Poll<()> {
        let rounds = Arc::clone(&self.waker);
        let waker = rounds.waker();
        rounds.enter(task);
        for _ in 0..MAX_ROUNDS {
            rounds.begin_round();
            if self.round(&mut Context::from_waker(&waker)).is_ready() {
                return Poll::Ready(());
            }
            if !self.transport.is_cut() && rounds.may_leave() {
                return Poll::Pending;
            }
        }
        rounds.leave_for_later(task);
        Poll::Pending
    }

    /// Reads and writes, lets the calls take what came, and looks at the clock. Ready when the connection is over.
    fn round(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.transport.begin_round();
        loop {
            match self.h2.poll_accept(context) {
                Poll::Ready(Some(Ok((request, respond)))) => self.begin(request, respond),
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(%error, "a connection ended early");
                    return Poll::Ready(());
                }
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        while let Poll::Ready(Some(unsent)) = self.calls.poll_next_unpin(context) {
            self.unsent.extend(unsent);
            self.watch.active = Instant::now();
            io_threads::answered();
        }
        self.unsent.retain(|unsent| !unsent.is_over());
        self.window.apply(&mut self.h2);
        if let Poll::Ready(Err(error)) = self.transport.poll_flush(context) {
            tracing::debug!(%error, "a connection ended early");
            return Poll::Ready(());
        }
        if !self.watch.is_stopping && self.stop.as_mut().poll(context).is_ready() {
            self.watch.is_stopping = true;
            self.close(Instant::now(), CLOSE_TIMEOUT);
        }
        if let Some(pings) = &mut self.pings
            && self.watch.is_pinged
            && pings.poll_pong(context).is_ready()
        {
            self.watch.is_pinged = false;
        }
        while self.timer.as_mut().poll(context).is_ready() {
            let now = Instant::now();
            if self.check(now).is_ready() {
                return Poll::Ready(());
            }
            let next = now + self.interval();
            self.timer.as_mut().reset(next);
        }
        Poll::Pending
    }

    fn begin(&mut self, request: Request<RecvStream>, mut respond: SendResponse<Answer>) {
        self.watch.has_begun = true;
        io_threads::began();
        let head_bytes = head_bytes(request.headers()).saturating_add(request.uri().path().len());
        let call_bytes = if self.calls.len() < FREE_CALLS { 0 } else { CALL_BYTES };
        let bytes = if head_bytes <= FREE_HEAD_BYTES { call_bytes } else { call_bytes.saturating_add(head_bytes) };
        let reservation = match self.handler.admission().reserve(bytes) {
            Ok(reservation) => (bytes > 0).then_some(reservation),
            Err(error) => {
                let refusal = answer::send_bytes(&mut respond, self.handler.refuse(error));
                self.unsent.extend(refusal);
                return;
            }
        };
        self.calls.push((self.call)(request, respond, self.window.clone(), reservation));
    }

    fn close(&mut self, now: Instant, timeout: Duration) {
        if self.watch.closing.is_none() {
            self.h2.graceful_shutdown();
        }
        self.watch.closing = Some(Closing { since: now, timeout });
        self.timer.as_mut().reset(now + timeout);
    }

    /// When to look at the clock again.
    fn interval(&self) -> Duration {
        match self.watch.closing {
            Some(closing) => closing.timeout,
            None if self.calls.is_empty() && self.unsent.is_empty() => IDLE_CHECK_INTERVAL,
            None => CHECK_INTERVAL,
        }
    }

    /// Looks at the clock: answers that nobody reads, peers that are gone, age and idleness. Ready when the connection is over.
    fn check(&mut self, now: Instant) -> Poll<()> {
        self.unsent.retain_mut(|unsent| unsent.check(now));
        let is_busy = !self.calls.is_empty() || !self.unsent.is_empty();
        if let Some(Closing { since, timeout }) = self.watch.closing {
            let closing = now.duration_since(since);
            if closing > CLOSE_GRACE || (!is_busy && closing >= timeout) {
                return Poll::Ready(());
            }
        }
        let (sent, is_blocked) = self.transport.sent();
        if !is_blocked || sent != self.watch.sent.0 {
            self.watch.sent = (sent, now);
        } else if now.duration_since(self.watch.sent.1) > PAUSE_TIMEOUT {
            tracing::debug!("a client reads nothing any more");
            return Poll::Ready(());
        }
        if self.is_gone(now) {
            tracing::debug!("a client is gone");
            return Poll::Ready(());
        }
        let idle_timeout = if self.watch.has_begun { IDLE_TIMEOUT } else { FIRST_REQUEST_TIMEOUT };
        let is_idle = !is_busy && now.duration_since(self.watch.active) > idle_timeout;
        if self.watch.closing.is_none() && (is_idle || now >= self.watch.age_end) {
            self.close(now, GOODBYE_TIMEOUT);
        }
        Poll::Pending
    }

    /// Asks a peer that says nothing, and tells whether one that was asked has not answered.
    fn is_gone(&mut self, now: Instant) -> bool {
        let received = self.transport.received();
        if received != self.watch.received.0 {
            self.watch.received = (received, now);
            return false;
        }
        let silence = now.duration_since(self.watch.received.1);
        if silence > KEEP_ALIVE
            && !self.watch.is_pinged
            && let Some(pings) = &mut self.pings
        {
            self.watch.is_pinged = pings.send_ping(Ping::opaque()).is_ok();
        }
        silence > 2 * KEEP_ALIVE
    }
}

/// What the headers take, as HTTP/2 counts it.
fn head_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
}
