//! Listening: on every address, where there is IPv6 and where there is none.
//!
//! Both programs bind all of their ports here, before anything else.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use tokio::net::{TcpListener, TcpSocket};
use tracing::warn;

/// Linux's EAFNOSUPPORT, for which the standard library has no name: this kernel has no IPv6.
const ADDRESS_FAMILY_NOT_SUPPORTED: i32 = 97;
/// Connections that the system keeps while they are not accepted, so that a burst of clients is not turned away.
const BACKLOG: u32 = 1024;

/// Listens on an address: `[::]` is every one of IPv6 and IPv4, and every one of IPv4 alone where the kernel has no IPv6. Port 0
/// takes a free one. Call it on the async runtime.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let error = match bind(address) {
        Err(error) => error,
        bound => return bound,
    };
    let Some(instead) = instead_of(address, &error) else { return Err(error) };
    warn!(%address, %instead, "there is no IPv6 here: listening on IPv4 alone");
    bind(instead)
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A process that is started again gets its port back at once.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Every address of IPv4, if every one of IPv6 was wanted and there is none.
fn instead_of(address: SocketAddr, error: &io::Error) -> Option<SocketAddr> {
    let is_every_ipv6 = address.is_ipv6() && address.ip().is_unspecified();
    let has_no_ipv6 = error.raw_os_error() == Some(ADDRESS_FAMILY_NOT_SUPPORTED);
    (is_every_ipv6 && has_no_ipv6).then(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn every_address_takes_ipv4_too() {
        let port = listen("[::]:0".parse().unwrap()).unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.local_addr().unwrap().port()));
        TcpStream::connect(address).await.unwrap();
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_an_error_on_every_family() {
        for address in ["127.0.0.1:0", "[::]:0"] {
            let port = listen(address.parse().unwrap()).unwrap();
            let error = listen(port.local_addr().unwrap()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{address}");
        }
    }

    #[test]
    fn ipv4_stands_in_for_every_address_where_there_is_no_ipv6_and_for_nothing_else() {
        let no_ipv6 = io::Error::from_raw_os_error(ADDRESS_FAMILY_NOT_SUPPORTED);
        let instead = |address: &str, error: &io::Error| instead_of(address.parse().unwrap(), error);
        assert_eq!(instead("[::]:8080", &no_ipv6), Some("0.0.0.0:8080".parse().unwrap()));
        assert_eq!(instead("[::1]:8080", &no_ipv6), None);
        assert_eq!(instead("0.0.0.0:8080", &no_ipv6), None);
        assert_eq!(instead("[::]:8080", &io::ErrorKind::AddrInUse.into()), None);
    }
}
