//! A port's accept loop.
//!
//! [`crate::serve`] runs one for each port. Invariant: at most so many connections are open as was said; more wait in the system's
//! backlog, and a system that refuses to accept is asked again.

use std::{sync::Arc, time::Duration};

use futures::FutureExt as _;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::sleep,
};

use crate::{
    connection::{self, Port},
    http2::Handler,
    io_threads::IoThreads,
};

/// Wait after the system refused to accept, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Where a port's connections are served, and how many.
#[derive(Clone)]
pub(crate) struct Seats {
    /// The threads; `None` for the thread that accepts.
    pub(crate) threads: Option<Arc<IoThreads>>,
    /// Connections at one time.
    pub(crate) max_connections: usize,
}

/// Accepts connections until `stopped`, then waits for those that are open.
pub(crate) async fn serve_port<H: Handler>(
    listener: TcpListener,
    port: Port<H>,
    seats: Seats,
    mut stopped: watch::Receiver<bool>,
) {
    let permits = Arc::new(Semaphore::new(seats.max_connections));
    let mut connections = JoinSet::new();
    loop {
        let accept = async {
            let permit = Arc::clone(&permits).acquire_owned().await;
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            accepted = accept => accepted,
            Some(_) = connections.join_next() => continue,
            _ = stopped.wait_for(|is_stopped| *is_stopped) => break,
        };
        match accepted {
            Ok((stream, _)) => spawn(&mut connections, (stream, permit.ok()), (&port, &seats, &stopped)),
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Who was connected already may have sent a request.
    while let (Ok(permit), Some(Ok((stream, _)))) =
        (Arc::clone(&permits).try_acquire_owned(), listener.accept().now_or_never())
    {
        spawn(&mut connections, (stream, Some(permit)), (&port, &seats, &stopped));
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Serves a connection, with its place among those that may be open.
fn spawn<H: Handler>(
    connections: &mut JoinSet<()>,
    (stream, permit): (TcpStream, Option<OwnedSemaphorePermit>),
    (port, seats, stopped): (&Port<H>, &Seats, &watch::Receiver<bool>),
) {
    let (port, stopped) = (port.clone(), stopped.clone());
    let Some(seat) = seats.threads.as_ref().map(|threads| threads.seat()) else {
        connections.spawn(async move {
            connection::serve(stream, port, stopped).await;
            drop(permit);
        });
        return;
    };
    // The socket belongs to the thread that polls it.
    let Ok(stream) = stream.into_std() else { return };
    let handle = seat.handle.clone();
    let serve = async move {
        match TcpStream::from_std(stream) {
            Ok(stream) => connection::serve(stream, port, stopped).await,
            Err(error) => tracing::warn!(%error, "could not serve a connection"),
        }
        drop((permit, seat));
    };
    connections.spawn_on(serve, &handle);
}
