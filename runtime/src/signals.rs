//! The signals that ask the program to end.
//!
//! Made first of all by `command`, waited for by `termination`.

use tokio::signal::unix::{Signal, SignalKind, signal};
use torchmodel_crds::Failure;

use crate::misused;

/// SIGTERM and SIGINT, from the moment of [`Signals::listen`] on: one that comes while nobody waits is not lost.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Begins to listen. Call it on the async runtime.
    pub fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| misused(format!("listening for signals: {error}")));
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Waits for one of them.
    pub async fn next(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
        }
    }
}
