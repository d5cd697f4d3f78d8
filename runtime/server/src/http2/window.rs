//! What a client may send before it must wait: little, until a body is admitted.
//!
//! Calls tell how much of an admitted body is still to come; the connection's loop opens its window by as much. Invariant: a client
//! may send without reservation what [`CONNECTION_WINDOW`] says, and beyond that only what was reserved for it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use h2::server::Connection;
use tokio::io::{AsyncRead, AsyncWrite};

use super::answer::Answer;

/// For one stream, and for a connection, of which nothing is admitted.
pub(super) const STREAM_WINDOW: u32 = 256 << 10;
pub(super) const CONNECTION_WINDOW: u32 = 256 << 10;
/// For one stream of a connection that has sent a large body, and the most for a connection.
const LARGE_WINDOW: u32 = 16 << 20;

#[derive(Debug, Default)]
struct Shared {
    /// Bytes of admitted bodies that have not come yet.
    admitted: AtomicUsize,
    /// Bytes by which the connection's window is open beyond its least.
    opened: AtomicUsize,
    /// Whether a large body was admitted, and whether streams have large windows.
    has_large: AtomicUsize,
}

/// A connection's window; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Window {
    shared: Arc<Shared>,
}

const NONE: usize = 0;
const ASKED: usize = 1;
const OPEN: usize = 2;

impl Window {
    /// A body was admitted of which `bytes` are still to come.
    pub(crate) fn expect(&self, bytes: usize) -> Expected {
        if bytes > STREAM_WINDOW as usize && self.shared.has_large.load(Relaxed) == NONE {
            self.shared.has_large.store(ASKED, Relaxed);
        }
        self.shared.admitted.fetch_add(bytes, Relaxed);
        Expected { window: self.clone(), bytes }
    }

    /// Opens or closes the window of `h2` as far as bodies are admitted.
    pub(super) fn apply<T: AsyncRead + AsyncWrite + Unpin>(&self, h2: &mut Connection<T, Answer>) {
        let Shared { admitted, opened, has_large } = &*self.shared;
        if has_large.load(Relaxed) == ASKED && h2.set_initial_window_size(LARGE_WINDOW).is_ok() {
            has_large.store(OPEN, Relaxed);
        }
        let admitted = admitted.load(Relaxed).min((LARGE_WINDOW - CONNECTION_WINDOW) as usize);
        let opened_now = opened.load(Relaxed);
        // It closes only once nothing is to come: every change is a frame.
        if admitted > opened_now || (admitted == 0 && opened_now > 0) {
            opened.store(admitted, Relaxed);
            h2.set_target_window_size(CONNECTION_WINDOW.saturating_add(u32::try_from(admitted).unwrap_or(0)));
        }
    }
}

/// Bytes of an admitted body that are still to come; none any more when it is dropped.
#[derive(Debug)]
pub(crate) struct Expected {
    window: Window,
    bytes: usize,
}

impl Expected {
    /// So many have come.
    pub(crate) fn received(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.window.shared.admitted.fetch_sub(bytes, Relaxed);
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.received(self.bytes);
    }
}
