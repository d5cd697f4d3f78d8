//! The socket of an HTTP/1.1 connection: gives again what was read to tell the protocol, and ends when its client reads nothing.
//!
//! Made by `connection`. Invariant: a write that makes no progress for the pause timeout fails, and so does one of an answer that is not
//! read within the transfer timeout, so that nobody keeps an answer, and what was reserved for it, by not reading or reading slowly.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep_until},
};

use crate::{
    activity::Activity,
    admission::{PAUSE_TIMEOUT, TRANSFER_TIMEOUT},
};

/// A socket, and what was read from it already.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: TcpStream,
    prefix: Bytes,
    /// Runs while a write waits.
    timer: Option<Pin<Box<Sleep>>>,
    /// When a write first waited since all was written.
    blocked: Option<Instant>,
    activity: Arc<Activity>,
}

impl Socket {
    /// `stream`, of which `prefix` was read.
    pub(crate) fn new(stream: TcpStream, prefix: Bytes, activity: Arc<Activity>) -> Self {
        Self { stream, prefix, timer: None, blocked: None, activity }
    }

    /// Ends a write that waits for too long.
    fn within<T>(&mut self, context: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.timer = None;
            let is_late = self.blocked.is_some_and(|blocked| blocked.elapsed() > TRANSFER_TIMEOUT);
            return if is_late { Poll::Ready(Err(io::ErrorKind::TimedOut.into())) } else { result };
        }
        let blocked = *self.blocked.get_or_insert_with(Instant::now);
        let end = (Instant::now() + PAUSE_TIMEOUT).min(blocked + TRANSFER_TIMEOUT);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(end)));
        timer.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let count = self.prefix.len().min(buffer.remaining());
        buffer.put_slice(self.prefix.get(..count).unwrap_or_default());
        self.prefix.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.within(context, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.within(context, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes once it has written all that it has.
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.blocked = None;
        self.activity.written();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
