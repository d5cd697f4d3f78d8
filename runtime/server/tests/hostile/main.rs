//! Clients that mean harm, against a server in a process of its own: what they can make it hold is measured there.
//!
//! Each test starts a server with small limits, does one hostile thing, and asserts that the server's resident memory stayed within
//! the documented bound (docs/protocol.md), that health on the metrics port kept answering, and that a friendly client is served
//! afterwards. The server is this same test binary, started again with [`CHILD`] set; it ends with its standard input.

mod frames;
mod http1;
mod http2;
mod server;

/// Set for the process that serves.
const CHILD: &str = "TORCHMODEL_TEST_SERVER";

#[test]
fn the_process_that_serves() {
    if std::env::var_os(CHILD).is_some() {
        server::run_child();
    }
}
