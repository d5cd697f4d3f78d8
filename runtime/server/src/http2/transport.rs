//! The socket under an HTTP/2 connection: reads a bounded piece a round, writes small frames together.
//!
//! `http2` gives the reading end to h2 and keeps the writing end to flush it itself, once a round. Invariants: h2 never holds more of
//! a body than one round reads, since the calls take what it has before the next; a write of the payload is never buffered here.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// What is read at most before the calls take it: it is still in the CPU's cache when it is copied.
const ROUND_BYTES: usize = 256 << 10;
/// Writes up to this wait for others of the same round.
const MAX_COALESCED_BYTES: usize = 1 << 10;
/// All that may wait.
const BUFFER_BYTES: usize = 16 << 10;
/// Slices of one write.
const MAX_SLICES: usize = 65;

#[derive(Debug)]
struct Shared {
    /// What may still be read in this round.
    left: AtomicUsize,
    /// Whether there may be more to read than this round did.
    is_cut: AtomicBool,
    received: AtomicU64,
    outgoing: Mutex<Outgoing>,
}

/// The connection's end of the transport.
#[derive(Clone, Debug)]
pub(super) struct Transport {
    shared: Arc<Shared>,
}

/// h2's end of it.
#[derive(Debug)]
pub(super) struct TransportIo {
    incoming: OwnedReadHalf,
    /// Bytes that were read before anybody knew the protocol.
    prefix: Bytes,
    shared: Arc<Shared>,
}

/// Parts `stream`, of which `prefix` was read already.
pub(super) fn split(stream: TcpStream, prefix: Bytes) -> (Transport, TransportIo) {
    let (incoming, half) = stream.into_split();
    let shared = Arc::new(Shared {
        left: AtomicUsize::new(ROUND_BYTES),
        is_cut: AtomicBool::new(false),
        received: AtomicU64::new(0),
        outgoing: Mutex::new(Outgoing { half, buffer: Vec::new(), start: 0, is_blocked: false, sent: 0 }),
    });
    (Transport { shared: Arc::clone(&shared) }, TransportIo { incoming, prefix, shared })
}

impl Shared {
    fn outgoing(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transport {
    /// Begins a round of reading.
    pub(super) fn begin_round(&self) {
        self.shared.left.store(ROUND_BYTES, Relaxed);
        self.shared.is_cut.store(false, Relaxed);
    }

    /// Whether this round ended before all was read.
    pub(super) fn is_cut(&self) -> bool {
        self.shared.is_cut.load(Relaxed)
    }

    /// Bytes received since the beginning.
    pub(super) fn received(&self) -> u64 {
        self.shared.received.load(Relaxed)
    }

    /// Bytes sent since the beginning, and whether the peer does not take more now.
    pub(super) fn sent(&self) -> (u64, bool) {
        let outgoing = self.shared.outgoing();
        (outgoing.sent, outgoing.is_blocked)
    }

    /// Sends what waited.
    pub(super) fn poll_flush(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.outgoing().poll_flush(context)
    }
}

impl AsyncRead for TransportIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = self.shared.left.load(Relaxed);
        if left == 0 {
            // Nobody needs to wake us: the round ends and the next one begins.
            self.shared.is_cut.store(true, Relaxed);
            return Poll::Pending;
        }
        if !self.prefix.is_empty() {
            let count = self.prefix.len().min(buffer.remaining());
            buffer.put_slice(self.prefix.get(..count).unwrap_or_default());
            self.prefix.advance(count);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.incoming).poll_read(context, buffer))?;
        let count = buffer.filled().len().saturating_sub(before);
        self.shared.left.store(left.saturating_sub(count), Relaxed);
        self.shared.received.fetch_add(count as u64, Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TransportIo {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.shared.outgoing().poll_write(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.shared.outgoing().poll_write(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Does nothing: the connection flushes at the end of its round.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut outgoing = self.shared.outgoing();
        ready!(outgoing.poll_flush(context))?;
        Pin::new(&mut outgoing.half).poll_shutdown(context)
    }
}

#[derive(Debug)]
struct Outgoing {
    half: OwnedWriteHalf,
    buffer: Vec<u8>,
    /// What of the buffer was sent already.
    start: usize,
    is_blocked: bool,
    sent: u64,
}

impl Outgoing {
    fn poll_write(&mut self, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let total = slices.iter().map(|slice| slice.len()).sum::<usize>();
        if total <= MAX_COALESCED_BYTES && self.buffer.len().saturating_add(total) <= BUFFER_BYTES {
            for slice in slices {
                self.buffer.extend_from_slice(slice);
            }
            return Poll::Ready(Ok(total));
        }
        loop {
            let sent = ready!(self.poll_send(context, slices))?;
            if sent > 0 {
                return Poll::Ready(Ok(sent));
            }
        }
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.start < self.buffer.len() {
            ready!(self.poll_send(context, &[]))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Sends the buffer and then `slices`, in one call. Gives how much of the slices was sent.
    fn poll_send(&mut self, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let waiting = self.buffer.get(self.start..).unwrap_or_default();
        let mut all = [IoSlice::new(&[]); MAX_SLICES];
        let mut count = 0;
        for (place, slice) in all.iter_mut().zip(std::iter::once(&IoSlice::new(waiting)).chain(slices)) {
            *place = *slice;
            count += 1;
        }
        let slices = all.get(usize::from(waiting.is_empty())..count).unwrap_or_default();
        let result = Pin::new(&mut self.half).poll_write_vectored(context, slices);
        self.is_blocked = result.is_pending();
        let sent = ready!(result)?;
        if sent == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.sent = self.sent.saturating_add(sent as u64);
        let of_buffer = sent.min(waiting.len());
        self.start = self.start.saturating_add(of_buffer);
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        }
        Poll::Ready(Ok(sent.saturating_sub(of_buffer)))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    async fn pair() -> (Transport, TransportIo, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (transport, io) = split(listener.accept().await.unwrap().0, Bytes::from_static(b"PRI "));
        (transport, io, client)
    }

    #[tokio::test]
    async fn what_was_read_before_comes_first_and_a_round_reads_only_so_much() {
        let (transport, mut io, mut client) = pair().await;
        let body = vec![7; 3 * ROUND_BYTES];
        tokio::spawn(async move { client.write_all(&body).await.map(|()| client) });
        let mut first = [0; 4];
        io.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"PRI ");
        let mut rounds = 0;
        let mut received = 0;
        while received < 3 * ROUND_BYTES {
            let mut bytes = vec![0; ROUND_BYTES];
            let count = poll_fn(|context| {
                let mut buffer = ReadBuf::new(&mut bytes);
                match Pin::new(&mut io).poll_read(context, &mut buffer) {
                    Poll::Pending if transport.is_cut() => Poll::Ready(None),
                    other => other.map(|result| result.map(|()| buffer.filled().len()).ok()),
                }
            });
            if let Some(count) = count.await {
                received += count;
            } else {
                rounds += 1;
                transport.begin_round();
            }
        }
        assert!(rounds >= 2, "{rounds}");
        assert_eq!(transport.received(), 3 * ROUND_BYTES as u64);
    }

    #[tokio::test]
    async fn small_writes_leave_together_and_before_a_large_one() {
        let (transport, mut io, mut client) = pair().await;
        io.write_all(b"one ").await.unwrap();
        io.write_all(b"two ").await.unwrap();
        io.flush().await.unwrap();
        assert_eq!(transport.sent(), (0, false), "h2's flush sends nothing");
        poll_fn(|context| transport.poll_flush(context)).await.unwrap();
        assert_eq!(transport.sent(), (8, false));
        io.write_all(b"three ").await.unwrap();
        let large = vec![b'x'; 5000];
        io.write_all(&large).await.unwrap();
        assert_eq!(transport.sent().0, 8 + 6 + 5000);
        io.shutdown().await.unwrap();
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, [&b"one two three "[..], &large].concat());
    }
}
