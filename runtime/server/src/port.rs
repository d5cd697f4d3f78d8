//! A port's accept loop.
//!
//! [`crate::serve`] runs one for each port. Invariant: at most so many connections are open as was said; more wait in the system's
//! backlog, and a system that refuses to accept is asked again.

use std::{sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    task::JoinSet,
    time::sleep,
};

use crate::{
    connection::{self, Port},
    http2::Handler,
};

/// Wait after the system refused to accept, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Accepts connections until `stopped`, then waits for those that are open.
pub(crate) async fn serve_port<H: Handler>(
    listener: TcpListener,
    port: Port<H>,
    max_connections: usize,
    mut stopped: watch::Receiver<bool>,
) {
    let permits = Arc::new(Semaphore::new(max_connections));
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
            Ok((stream, _)) => {
                let (port, stopped) = (port.clone(), stopped.clone());
                connections.spawn(async move {
                    connection::serve(stream, port, stopped).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}
